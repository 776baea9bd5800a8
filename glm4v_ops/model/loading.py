"""A checkpoint on a device, quantised as the recipe says, checked before anyone believes it.

Weights come from safetensors through transformers' own classes; never code from a checkpoint, never pickle.
Knows nothing of tasks or images: `Engine` asks the questions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glm4v_ops.errors import Glm4vError, GpuUnavailable, ModelRefused
from glm4v_ops.model.faults import is_device_lost, is_out_of_memory
from glm4v_ops.model.identity import checkpoint_folder
from glm4v_ops.recipe import Family, Quantization, Recipe

log = logging.getLogger(__name__)

_GLM4V_TYPES = ("glm4v", "glm46v")
_LANGUAGE, _VISION, _HEAD = "model.language_model", "model.visual", "lm_head"
_PARTS = {_LANGUAGE: "the language model", _VISION: "the vision tower", _HEAD: "lm_head"}
#: The parts whose linear layers each policy holds in 4 bit: those and no others.
_IN_4_BIT: dict[Quantization, tuple[str, ...]] = {
    Quantization.NONE: (),
    Quantization.NF4: (_LANGUAGE,),
    Quantization.NF4_FULL: (_LANGUAGE, _VISION),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model with what it takes to speak to it."""

    model: Any
    tokenizer: Any
    image_processor: Any
    device: torch.device
    stop_ids: frozenset[int]


def load(recipe: Recipe, *, base: Path | None, device: str, progress: Callable[[str], None] = log.info) -> Checkpoint:
    """Load the recipe's checkpoint, fetched first where it is on the hub.

    Raises `ModelRefused` when it is broken or not what the recipe says, `GpuUnavailable` when the device is missing,
    lost or full, `TransientError` when the hub does not answer.
    """
    target = choose_device(device)
    folder = checkpoint_folder(recipe, base)
    progress(f"loading {recipe.model_name} ({recipe.model.quantization.value}, {recipe.model.dtype}) on {target}")
    try:
        check_files(folder, recipe)
        checkpoint, report = _read(folder, recipe, target)
    except (Glm4vError, ImportError):
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        if is_out_of_memory(error) or is_device_lost(error):
            raise GpuUnavailable(
                f"{target} cannot take {recipe.model_name}: {message}",
                remedy="free the device or quantise further; see nvidia-smi",
            ) from error
        raise ModelRefused(
            f"{recipe.model_name} does not load: {message}", remedy="check the folder's files against their origin"
        ) from error
    check_report(report, recipe)
    check_weights(checkpoint.model, recipe)
    if target.type == "cpu":
        _keep_inputs_contiguous(checkpoint.model)
    return checkpoint


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU when there is one. Raises `GpuUnavailable` when a GPU is asked for that does not answer."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= there:
            fault = (
                f"no {device} here, only {there} CUDA device{'s' * (there > 1)}" if there else "no CUDA device answers"
            )
            raise GpuUnavailable(fault, remedy="check nvidia-smi, or run with --device cpu")
    return device


def _read(folder: Path, recipe: Recipe, target: torch.device) -> tuple[Checkpoint, Any]:
    """The checkpoint, and transformers' report of missing and mismatched tensors. Raises whatever transformers does."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # written to stderr, it stands in a task's log as an error
    dtype: torch.dtype = getattr(torch, recipe.model.dtype)
    model, report = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": target},
        quantization_config=quantization_config(recipe.model.quantization, dtype),
        attn_implementation="sdpa",
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # told in the report, by name; raised, it names nothing
        trust_remote_code=False,
        output_loading_info=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    image_processor = Glm4vImageProcessorPil.from_pretrained(folder)
    return Checkpoint(model.eval(), tokenizer, image_processor, target, _stop_ids(model, recipe)), report


def quantization_config(quantization: Quantization, dtype: torch.dtype) -> Any:
    """bitsandbytes' NF4 for what the policy quantises, None for `none`."""
    if quantization is Quantization.NONE:
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        # Matched as prefixes of full names. Any list drops bitsandbytes' own default, so lm_head is always named.
        llm_int8_skip_modules=[part for part in _PARTS if part not in _IN_4_BIT[quantization]],
    )


def _stop_ids(model: Any, recipe: Recipe) -> frozenset[int]:
    ids = model.generation_config.eos_token_id
    if ids is None:
        raise ModelRefused(
            f"{recipe.model_name} names no stop tokens (eos_token_id in generation_config.json)",
            remedy="fetch the checkpoint again with its generation_config.json",
        )
    return frozenset(ids if isinstance(ids, list) else [ids])


def _keep_inputs_contiguous(model: Any) -> None:
    """bitsandbytes 0.50 is silently wrong for a non-contiguous input of one row, on CPUs with AVX512-BF16."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))


def check_files(folder: Path, recipe: Recipe) -> None:
    """Refuse by the files alone, before minutes of loading, what cannot or may not run. Raises `ModelRefused`."""
    config = _read_json(folder / "config.json")
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
    if "quantization_config" in config and recipe.model.quantization is Quantization.NONE:
        raise ModelRefused(
            f"{recipe.model_name} is stored quantised, and the recipe says none",
            remedy="use an unquantised checkpoint, or correct model.quantization",
        )
    for path in sorted(folder.glob("*.json")):
        if path.name.endswith("config.json") and "auto_map" in _read_json(path):
            raise ModelRefused(
                f"{recipe.model_name} brings code of its own (auto_map in {path.name}), which is never run",
                remedy="use a checkpoint for transformers' own glm4v class",
            )
    _check_weight_files(folder, recipe)


def _check_weight_files(folder: Path, recipe: Recipe) -> None:
    index = folder / "model.safetensors.index.json"
    names = sorted(set(_read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
    absent = [name for name in names if not (folder / name).is_file()]
    if not absent:
        return
    if pickled := sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)):
        raise ModelRefused(
            f"{recipe.model_name} has its weights pickled ({pickled[0]}), and unpickling runs code",
            remedy="use a checkpoint with safetensors",
        )
    raise ModelRefused(
        f"{recipe.model_name} lacks {', '.join(absent[:5])}", remedy="the checkpoint is incomplete: fetch it again"
    )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def check_report(report: Any, recipe: Recipe) -> None:
    """Refuse a checkpoint that did not fill the model. `report` is transformers' loading info."""
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):
        if names := report.get(problem):
            raise ModelRefused(
                f"{recipe.model_name}: {problem.replace('_', ' ')}: {sorted(map(str, names))[:5]}",
                remedy="the checkpoint is incomplete: fetch it again",
            )


def check_weights(model: Any, recipe: Recipe) -> None:
    """Refuse weights that are not what the recipe says, or not numbers. Raises `ModelRefused` naming a tensor."""
    policy = recipe.model.quantization
    for name, part, is_4_bit in _linear_layers(model):
        wanted = part in _IN_4_BIT[policy]
        if is_4_bit and not wanted:
            raise ModelRefused(
                f"{_PARTS[part]} is quantised ({name}), and the recipe says {policy.value}",
                remedy="use an unquantised checkpoint, or correct model.quantization",
            )
        if wanted and not is_4_bit:
            raise ModelRefused(
                f"{_PARTS[part]} is not in 4 bit ({name}), and the recipe says {policy.value}",
                remedy="use an unquantised checkpoint: what is stored quantised is loaded as it is stored",
            )
    expected: torch.dtype = getattr(torch, recipe.model.dtype)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue  # packed 4-bit weights
        if parameter.dtype != expected:
            raise ModelRefused(
                f"{name} is {parameter.dtype}, and the recipe says {recipe.model.dtype}", remedy="correct model.dtype"
            )
        # One sum, not isfinite of each: no second tensor of an embedding's size on a full card.
        if not parameter.detach().sum(dtype=torch.float32).isfinite():
            raise ModelRefused(f"{name} holds NaN or infinity", remedy="the checkpoint is broken: fetch it again")


def _linear_layers(model: Any) -> Iterator[tuple[str, str, bool]]:
    """Every linear layer's name, the part it belongs to, and whether its weights are packed."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            part = next(part for part in _PARTS if name.startswith(part))
            yield name, part, not module.weight.is_floating_point()
