"""A checkpoint on a device, quantised as the recipe says, checked before anyone believes it.

Weights come from safetensors through transformers' own classes; never code from a checkpoint, never pickle.
Knows nothing of tasks or images: `Engine` asks the questions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glm4v_ops.errors import GpuUnavailable, ModelRefused
from glm4v_ops.model.identity import digest, local_folder
from glm4v_ops.recipe import Family, Quantization, Recipe

log = logging.getLogger(__name__)

#: bitsandbytes matches these as prefixes or suffixes of full names; giving any drops its own default, so lm_head is named.
_KEPT_IN_16_BIT = {Quantization.NF4: ["model.visual", "lm_head"], Quantization.NF4_FULL: ["lm_head"]}
_GLM4V_TYPES = ("glm4v", "glm46v")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model with what it takes to speak to it."""

    model: Any
    tokenizer: Any
    image_processor: Any
    device: torch.device
    dtype: torch.dtype
    stop_ids: tuple[int, ...]


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU when there is one. Raises `GpuUnavailable` when a GPU is asked for and none answers."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise GpuUnavailable("no CUDA device answers", remedy="check nvidia-smi, or run with --device cpu")
    return device


def load(recipe: Recipe, *, base: Path | None, device: str, progress: Callable[[str], None] = log.info) -> Checkpoint:
    """Load the recipe's checkpoint. Raises `ModelRefused` (broken, or not what the recipe says) or `GpuUnavailable`."""
    folder = local_folder(recipe, base)
    source = str(folder) if folder else recipe.model.id
    revision = None if folder else recipe.model.revision
    if folder and recipe.model.revision.startswith("sha256:") and digest(folder) != recipe.model.revision:
        raise ModelRefused(
            f"the checkpoint in {recipe.model.id} is {digest(folder)}, the recipe was frozen on {recipe.model.revision}",
            remedy="run the day again from its manifest, or put the old checkpoint back",
        )
    _check_config(source, revision, recipe)
    target = choose_device(device)
    dtype: torch.dtype = getattr(torch, recipe.model.dtype)
    progress(f"loading {recipe.model_name} ({recipe.model.quantization.value}, {recipe.model.dtype}) on {target}")
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    pinned: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=dtype,
            device_map={"": target},
            quantization_config=quantization_config(recipe.model.quantization, dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            **pinned,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **pinned)
        image_processor = Glm4vImageProcessorPil.from_pretrained(source, **pinned)
    except torch.OutOfMemoryError as error:
        raise GpuUnavailable(
            f"no room for {recipe.model_name} on {target}: {error}", remedy="free the card or quantise further"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelRefused(
            f"{recipe.model_name} does not load: {error}", remedy="check the folder's files against their origin"
        ) from error
    check(model, report, recipe)
    model.eval()
    if target.type == "cpu":
        _keep_inputs_contiguous(model)
    ids = model.generation_config.eos_token_id
    stop_ids = tuple(ids) if isinstance(ids, list) else (ids,)
    return Checkpoint(model, tokenizer, image_processor, target, dtype, stop_ids)


def quantization_config(quantization: Quantization, dtype: torch.dtype) -> Any:
    """bitsandbytes' NF4 for what the policy quantises, None for `none`."""
    if quantization is Quantization.NONE:
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_KEPT_IN_16_BIT[quantization],
    )


def _check_config(source: str, revision: str | None, recipe: Recipe) -> None:
    """Refuse by config.json, before minutes of loading, what cannot run."""
    from transformers.utils import cached_file

    path = cached_file(source, "config.json", revision=revision)
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if recipe.model.family is Family.CHATGLM or kind == "chatglm":
        raise ModelRefused(
            "GLM-4V-9B (model_type chatglm) has no native class in this release",
            remedy="use a glm4v checkpoint such as zai-org/GLM-4.6V-Flash",
        )
    if kind not in _GLM4V_TYPES:
        raise ModelRefused(
            f"{recipe.model_name} is a {kind!r} checkpoint, not one of {', '.join(_GLM4V_TYPES)}",
            remedy="correct model.id in the recipe",
        )
    if "text_config" not in config or "vision_config" not in config:
        raise ModelRefused(
            f"{recipe.model_name} has a flat config.json of mid-2025, which loads and then fails at the first image",
            remedy="take the checkpoint's current revision, whose config has text_config and vision_config",
        )


def _keep_inputs_contiguous(model: Any) -> None:
    """bitsandbytes 0.50 gives silently wrong results on the CPU for a non-contiguous input of one row."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))


def check(model: Any, report: Any, recipe: Recipe) -> None:
    """Refuse a model that loaded but is not what the recipe says. Raises `ModelRefused` naming tensors.

    `report` is transformers' loading info: missing, unexpected and mismatched keys.
    """
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if names := report.get(problem):
            raise ModelRefused(
                f"{recipe.model_name}: {problem.replace('_', ' ')}: {sorted(map(str, names))[:5]}",
                remedy="the checkpoint is incomplete: fetch it again",
            )
    policy, four_bit, plain = recipe.model.quantization, [], []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            packed = module.weight.dtype not in (torch.float32, torch.float16, torch.bfloat16)
            (four_bit if packed else plain).append(name)
    quantised_vision = [name for name in four_bit if name.startswith("model.visual")]
    if quantised_vision and policy is not Quantization.NF4_FULL:
        raise ModelRefused(
            f"the vision tower is quantised ({quantised_vision[0]}) and the recipe says {policy.value}",
            remedy="use an unquantised checkpoint, or say nf4-full",
        )
    if "lm_head" in four_bit:
        raise ModelRefused("lm_head is quantised: answers would be garbled", remedy="use an unquantised checkpoint")
    language = [name for name in plain if name.startswith("model.language_model")]
    if policy is not Quantization.NONE and language:
        raise ModelRefused(
            f"{len(language)} linear layers of the language model are not in 4 bit, e.g. {language[0]}",
            remedy="bitsandbytes did not quantise them: check that it is installed for this machine",
        )
    if policy is Quantization.NONE and four_bit:
        raise ModelRefused(f"{four_bit[0]} is in 4 bit and the recipe says none", remedy="correct model.quantization")
    expected = getattr(torch, recipe.model.dtype)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ModelRefused(f"{name} was never loaded", remedy="the checkpoint is incomplete: fetch it again")
        if parameter.is_floating_point() and parameter.dtype != expected:
            raise ModelRefused(
                f"{name} is {parameter.dtype}, the recipe says {recipe.model.dtype}", remedy="correct model.dtype"
            )
