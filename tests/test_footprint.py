from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from glm4v_ops.errors import ModelRefused
from glm4v_ops.footprint import GIB, Parameters, needed_bytes, parameters_of
from glm4v_ops.recipe import Family, Quantization, Recipe, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
NINE_B = load_recipe(RECIPES / "default.yaml")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No checkpoint in the hub's cache, whatever the developer has in theirs."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def with_model(model_id: str, **model: str) -> Recipe:
    return Recipe.model_validate({**NINE_B.model_dump(), "model": {"id": model_id, **model}})


def gib(quantization: Quantization, recipe: Recipe = NINE_B) -> float:
    return needed_bytes(recipe, quantization, parameters_of(recipe, None)) / GIB


def checkpoint(folder: Path, *shards: Mapping[str, tuple[int, ...]]) -> Recipe:
    """A checkpoint of tensors with these shapes, one file a shard, and a recipe that names it."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for number, shapes in enumerate(shards):
        tensors = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
        save_file(tensors, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
    return with_model(str(folder))


def test_parameters_are_counted_by_how_quantisation_treats_them(tmp_path: Path) -> None:
    recipe = checkpoint(
        tmp_path / "model",
        {
            "model.language_model.layers.0.mlp.up_proj.weight": (64, 10),
            "model.language_model.layers.0.input_layernorm.weight": (7,),
            "model.language_model.embed_tokens.weight": (100, 2),
            "lm_head.weight": (100, 3),
        },
        {
            "model.visual.blocks.0.attn.qkv.weight": (64, 20),
            "model.visual.blocks.0.attn.qkv.bias": (5,),
            "model.visual.patch_embed.proj.weight": (4, 3, 2, 2, 2),
            "model.language_model.layers.0.self_attn.q_proj.weight": (64, 30),
        },
    )
    assert parameters_of(recipe, None) == Parameters(
        language=64 * 10 + 64 * 30, vision=64 * 20, rest=7 + 200 + 300 + 5 + 4 * 3 * 2 * 2 * 2
    )


def test_the_vision_tower_of_the_other_family_is_seen_too(tmp_path: Path) -> None:
    shapes = {
        "transformer.vision.transformer.layers.0.mlp.fc1.weight": (8, 8),
        "transformer.output_layer.weight": (9, 9),
    }
    assert parameters_of(checkpoint(tmp_path / "model", shapes), None) == Parameters(language=0, vision=64, rest=81)


def test_a_folder_is_looked_for_beside_the_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    checkpoint(tmp_path / "model", {"a.weight": (3, 3)})
    assert parameters_of(with_model("../model"), tmp_path / "recipes").language == 9


def test_a_checkpoint_in_the_hubs_cache_is_counted(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--somebody--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("c0ffee")
    (cached / "snapshots").mkdir()
    checkpoint(cached / "snapshots" / "c0ffee", {"a.weight": (3, 3)})
    assert parameters_of(with_model("somebody/model"), None).language == 9


@pytest.mark.parametrize("model_id", ["zai-org/GLM-4.6V-Flash", "../not/there", "no hub id at all!"])
def test_a_checkpoint_that_is_not_here_has_its_familys_published_size(model_id: str) -> None:
    here = parameters_of(with_model(model_id), None)
    assert 9e9 < here.language + here.vision + here.rest < 11e9
    other = parameters_of(with_model(model_id, family=Family.CHATGLM.value), None)
    assert other.vision > here.vision


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 7, struct.pack("<Q", 500) + b'{"a": ', struct.pack("<Q", 2**63) + b"{}"]
)
def test_a_file_that_is_cut_short_is_named(data: bytes, tmp_path: Path) -> None:
    recipe = checkpoint(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelRefused, match=r"model\.safetensors is no whole safetensors file"):
        parameters_of(recipe, None)


def test_four_bits_fit_a_nine_b_model_where_sixteen_do_not() -> None:
    """Measured: 7.2 GiB with one picture, 13.5 with 32, in NF4."""
    small, large = (
        NINE_B.model_copy(update={"run": NINE_B.run.model_copy(update={"batch_size": size})}) for size in (1, 32)
    )
    assert gib(Quantization.NF4, small) == pytest.approx(7.2, rel=0.2)
    assert gib(Quantization.NF4, large) == pytest.approx(13.5, rel=0.2)
    assert gib(Quantization.NONE, small) == pytest.approx(10.3e9 * 2 / GIB, rel=0.1)
    assert gib(Quantization.NF4_FULL) < gib(Quantization.NF4) < gib(Quantization.NONE)


def test_a_larger_batch_a_larger_picture_and_a_wider_dtype_need_more() -> None:
    def changed(**sections: dict[str, object]) -> Recipe:
        content = NINE_B.model_dump()
        return Recipe.model_validate(content | {name: content[name] | values for name, values in sections.items()})

    base = gib(Quantization.NF4)
    assert gib(Quantization.NF4, changed(run={"batch_size": 32})) > base + 1
    assert gib(Quantization.NF4, changed(image={"max_side": 2048})) > base + 1
    assert gib(Quantization.NONE, changed(model={"dtype": "float32"})) > 1.8 * gib(Quantization.NONE)


def test_the_work_on_a_small_model_is_small() -> None:
    tiny = Parameters(language=4_000_000, vision=3_000_000, rest=1_000_000)
    assert needed_bytes(load_recipe(RECIPES / "demo.yaml"), Quantization.NF4, tiny) < GIB


def test_the_header_is_read_and_never_the_weights(tmp_path: Path) -> None:
    recipe = checkpoint(tmp_path / "model")
    header = json.dumps(
        {"a.weight": {"dtype": "F16", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 41]}}
    ).encode()
    (tmp_path / "model" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert parameters_of(recipe, None).language == 1 << 40
