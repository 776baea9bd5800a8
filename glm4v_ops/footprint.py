"""How much memory a recipe's model needs, per quantisation: an estimate, made without loading it.

Counts the parameters in the headers of the checkpoint's safetensors files where they are at hand, else takes the
published sizes of the family. Good to about a tenth. Knows nothing of torch.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from glm4v_ops.errors import ModelRefused
from glm4v_ops.model.identity import local_folder
from glm4v_ops.recipe import Family, Quantization, Recipe

GIB = 1 << 30
#: Bytes a parameter in NF4 with doubly quantised scales; measured checkpoints agree within 3 %.
_NF4_BYTES = 0.516
#: Bytes for the runtime and the allocator's slack, and for the cache and activations of one picture of 1024x768 in a
#: 9B model (measured: 7.2 GiB with one picture, 13.5 with 32).
_FIXED = 0.5 * GIB
_PER_PICTURE = 0.2 * GIB
_REFERENCE_PIXELS = 1024 * 768


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters by how quantisation treats them."""

    language: int  # linear layers of the language model: 4 bits under NF4
    vision: int  # linear layers of the vision tower: 4 bits only under NF4_FULL
    rest: int  # embeddings, norms, lm_head: never quantised

    def bytes(self, quantization: Quantization, *, per_parameter: int) -> float:
        language = _NF4_BYTES if quantization is not Quantization.NONE else per_parameter
        vision = _NF4_BYTES if quantization is Quantization.NF4_FULL else per_parameter
        return self.language * language + self.vision * vision + self.rest * per_parameter


#: The published 9B checkpoints, for when their weights are not on this machine yet.
_PUBLISHED = {
    Family.GLM4V: Parameters(language=8_160_000_000, vision=900_000_000, rest=1_240_000_000),
    Family.CHATGLM: Parameters(language=8_160_000_000, vision=4_500_000_000, rest=1_240_000_000),
}


def needed_bytes(recipe: Recipe, quantization: Quantization, parameters: Parameters) -> float:
    """Memory the recipe needs under `quantization`: the weights, and the work on one batch."""
    per_parameter = 4 if recipe.model.dtype == "float32" else 2
    side = recipe.image.max_side
    pictures = recipe.run.batch_size * side * side * 0.75 / _REFERENCE_PIXELS  # 4:3 is the usual picture
    share = parameters.language / _PUBLISHED[Family.GLM4V].language
    return parameters.bytes(quantization, per_parameter=per_parameter) + _FIXED + _PER_PICTURE * pictures * share


def parameters_of(recipe: Recipe, base: Path | None) -> Parameters:
    """Counted in the checkpoint when its files are on this machine, else the family's published sizes.

    Raises `ModelRefused` when a file there is cut short.
    """
    try:
        folder = local_folder(recipe, base) or _hub_cache(recipe)
    except ModelRefused:
        folder = None
    files = sorted(folder.glob("*.safetensors")) if folder else []
    return _count(files) if files else _PUBLISHED[recipe.model.family]


def _hub_cache(recipe: Recipe) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(recipe.model.id, revision=recipe.model.revision, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def _count(files: list[Path]) -> Parameters:
    counted = {"language": 0, "vision": 0, "rest": 0}
    for path in files:
        with path.open("rb") as file:
            try:
                (length,) = struct.unpack("<Q", file.read(8))
                header: dict[str, dict[str, list[int]]] = json.loads(file.read(length))
            except (struct.error, ValueError, OverflowError) as error:
                raise ModelRefused(
                    f"{path} is no whole safetensors file", remedy="copy the checkpoint again"
                ) from error
        for name, tensor in header.items():
            if name != "__metadata__":
                counted[_kind(name, tensor["shape"])] += math.prod(tensor["shape"])
    return Parameters(**counted)


def _kind(name: str, shape: list[int]) -> str:
    vision = {"visual", "vision"} & set(name.split("."))
    if len(shape) != 2 or any(part in name for part in ("embed", "lm_head", "output_layer")):
        return "rest"
    return "vision" if vision else "language"
