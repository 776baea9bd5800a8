from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open
from torch import nn
from transformers import Glm4vConfig, Glm4vForConditionalGeneration, PreTrainedTokenizerFast

from demo.blueprint import (
    MAX_SIDE,
    MIN_AREA,
    SPECIAL_TOKENS,
    STOP_TOKENS,
    build_config,
    build_image_processor,
    build_model,
    build_tokenizer,
)
from demo.postcards import plan
from glm4v_ops.recipe import load_recipe

PARAMETERS = 8_490_240


@pytest.fixture(scope="module")
def captions() -> list[str]:
    """Those that `demo.train` makes the word list from, with its own defaults."""
    return [plan(1, index).caption for index in range(1500)]


@pytest.fixture(scope="module")
def built(captions: list[str]) -> PreTrainedTokenizerFast:
    return build_tokenizer(captions)


@pytest.fixture(scope="module")
def model(built: PreTrainedTokenizerFast) -> Glm4vForConditionalGeneration:
    return build_model(build_config(built))


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def texts() -> Iterator[str]:
    yield from (
        "",
        " ",
        "\n",
        "a",
        "  two  spaces  ",
        "\ttab\r\nand lines\n\n",
        "红色的圆形，左上角。",
        "营业时间 9:00—18:00",
    )
    yield from (
        "straße CAFÉ e\u0301",
        "👩‍👩‍👧 🇨🇳",
        "\u0000\u0007\ufeff\u200b",
        "مرحبا",
        "A large red circle. A LARGE RED",
        " redder",
    )
    random = Random(7)
    words = [" red", " circle", " in the", "red", " ", "\n", "早", "é", "🙂", "x", "<", "|"]
    for _ in range(200):
        yield "".join(random.choice(words) for _ in range(12))
        yield "".join(
            chr(random.choice((random.randrange(0x20, 0x7F), random.randrange(0x4E00, 0x9FFF)))) for _ in range(9)
        )


def test_every_text_comes_back_as_it_was(built: PreTrainedTokenizerFast) -> None:
    for text in texts():
        assert built.decode(ids(built, text), skip_special_tokens=True) == text


def test_what_was_encoded_has_no_second_encoding(built: PreTrainedTokenizerFast) -> None:
    for text in texts():
        encoded = ids(built, text)
        assert ids(built, built.decode(encoded)) == encoded


def test_text_is_letters_and_a_caption_is_words(built: PreTrainedTokenizerFast, captions: list[str]) -> None:
    assert len(ids(built, "Lopez&Sons")) == len("Lopez&Sons")
    # A word standing first is letters: what a picture's line begins with must be read.
    assert len(ids(built, "red circle")) == len("red") + 1
    words = sum(len(caption.split()) for caption in captions[:200])
    assert sum(len(ids(built, caption)) for caption in captions[:200]) < 1.6 * words


def test_a_word_that_captions_seldom_use_stays_letters() -> None:
    tokenizer = build_tokenizer(["a red ox"] * 4 + ["a red star"] * 5)
    assert {token for token in tokenizer.get_added_vocab() if token.startswith(" ")} == {" red", " star"}


def test_the_special_tokens_stand_in_the_familys_order_after_the_bytes(built: PreTrainedTokenizerFast) -> None:
    assert [built.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [*range(256, 256 + len(SPECIAL_TOKENS))]
    assert SPECIAL_TOKENS[:5] == ("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>")
    order = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>")
    assert SPECIAL_TOKENS[6:12] == order
    assert built.decode([256, 263, 270], skip_special_tokens=True) == ""


@pytest.mark.parametrize("parts", [("image", "text"), ("text", "image")])
def test_the_prompt_is_user_then_image_then_text_whatever_the_order_of_the_parts(
    built: PreTrainedTokenizerFast, parts: tuple[str, ...]
) -> None:
    content: list[dict[str, str]] = [
        {"type": part, **({"text": "读出文字。"} if part == "text" else {})} for part in parts
    ]
    rendered = built.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert rendered == "[gMASK]<sop><|user|>\n<|begin_of_image|><|image|><|end_of_image|>读出文字。<|assistant|>\n"


def test_the_template_renders_plain_text_and_a_conversation(built: PreTrainedTokenizerFast) -> None:
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}]
    rendered = built.apply_chat_template(said, tokenize=False)
    assert rendered == "[gMASK]<sop><|user|>\nHello<|assistant|>\nYes?"


def test_every_quantised_size_is_a_multiple_of_64(model: Glm4vForConditionalGeneration) -> None:
    linears = [each for each in model.model.language_model.layers.modules() if isinstance(each, nn.Linear)]
    assert len(linears) == 5 * 6
    assert all(size % 64 == 0 for each in linears for size in each.weight.shape)
    assert model.config.text_config.vocab_size % 64 == 0


def test_the_model_stops_where_the_family_stops(
    model: Glm4vForConditionalGeneration, built: PreTrainedTokenizerFast
) -> None:
    stops = [built.convert_tokens_to_ids(token) for token in STOP_TOKENS]
    assert STOP_TOKENS == ("<|endoftext|>", "<|user|>", "<|observation|>")
    assert model.generation_config.eos_token_id == model.config.text_config.eos_token_id == stops
    assert model.generation_config.do_sample is False
    assert model.generation_config.pad_token_id == built.pad_token_id == stops[0]


@pytest.mark.parametrize("size", [(1280, 853), (853, 1280), (1280, 1280), (100, 75), (640, 480)])
def test_a_picture_scaled_by_the_recipe_keeps_its_detail_in_the_processor(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    _, rows, columns = build_image_processor()(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
    # The sides are rounded to 28 pixels each.
    assert 0.85 * MIN_AREA <= rows * columns * 14 * 14 <= 1.01 * MAX_SIDE * MAX_SIDE
    assert rows % 2 == columns % 2 == 0
    assert max(rows, columns) <= MAX_SIDE / 14 or max(size) <= 100


def test_the_recipe_scales_to_what_the_model_was_trained_on(checkpoint: Path) -> None:
    recipe = load_recipe(checkpoint.parents[1] / "recipes" / "demo.yaml")
    assert recipe.image.max_side == MAX_SIDE


def test_the_checkpoints_tokenizer_is_what_todays_code_builds(built: PreTrainedTokenizerFast, checkpoint: Path) -> None:
    stored = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored == json.loads(built.backend_tokenizer.to_str())
    loaded = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    for name in ("chat_template", "pad_token", "eos_token", "padding_side", "model_max_length"):
        assert getattr(loaded, name) == getattr(built, name), name


def without_versions(content: dict[str, Any]) -> dict[str, Any]:
    """What a configuration says of the model; the rest tells who wrote it."""
    content = json.loads(json.dumps(content))
    for each in (content, *(part for part in content.values() if isinstance(part, dict))):
        for name in ("transformers_version", "_name_or_path", "architectures", "dtype"):
            each.pop(name, None)
    return content


def test_the_checkpoints_configuration_and_processor_are_what_todays_code_builds(
    model: Glm4vForConditionalGeneration, checkpoint: Path
) -> None:
    stored = Glm4vConfig.from_pretrained(checkpoint)
    assert without_versions(stored.to_dict()) == without_versions(model.config.to_dict())
    content = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert content["architectures"] == ["Glm4vForConditionalGeneration"]
    generation = json.loads((checkpoint / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == model.config.text_config.eos_token_id
    processor = json.loads((checkpoint / "preprocessor_config.json").read_text(encoding="utf-8"))
    fresh = json.loads(build_image_processor().to_json_string())
    assert {**fresh, **processor} == {**processor, **fresh}
    assert processor["size"] == fresh["size"]


def test_the_weights_are_those_of_the_model_and_small(model: Glm4vForConditionalGeneration, checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    assert path.stat().st_size <= 20_000_000
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in [*file.keys()]}
        stored = {name: (tuple(each.get_shape()), each.get_dtype()) for name, each in slices.items()}
    assert stored == {name: (tuple(value.shape), "BF16") for name, value in model.state_dict().items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS
