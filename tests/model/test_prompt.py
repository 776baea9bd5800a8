from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from demo.blueprint import CHAT_TEMPLATE, build_tokenizer
from glm4v_ops.errors import ModelRefused
from glm4v_ops.model.prompt import build_prompt, read_answer


@pytest.fixture
def tokenizer() -> Any:
    return build_tokenizer(["A red circle."])


@pytest.mark.parametrize("text", ["描述这张图片。", "Read out all text.", "user", "image", "a\nb", "[gMASK]"])
def test_the_order_is_user_image_text(tokenizer: Any, text: str) -> None:
    prompt = build_prompt(tokenizer, text)
    assert tokenizer.decode(prompt.prefix) == "[gMASK]<sop><|user|>\n<|begin_of_image|>"
    assert tokenizer.decode(prompt.suffix) == f"<|end_of_image|>{text}<|assistant|>\n"
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    whole = tokenizer(f"[gMASK]<sop><|user|>\n<|begin_of_image|><|image|><|end_of_image|>{text}<|assistant|>\n")
    assert [*prompt.prefix, image, *prompt.suffix] == whole["input_ids"]


def test_thinking_is_the_templates_to_render(tokenizer: Any) -> None:
    tokenizer.chat_template = CHAT_TEMPLATE + "{% if not enable_thinking %}<think></think>{% endif %}"
    off, on = build_prompt(tokenizer, "?"), build_prompt(tokenizer, "?", thinking=True)
    assert tokenizer.decode(off.suffix).endswith("<|assistant|>\n<think></think>")
    assert tokenizer.decode(on.suffix).endswith("<|assistant|>\n")


@pytest.mark.parametrize(
    "template",
    [
        "<|user|>{{ messages[0].content[1].text }}<|image|><|assistant|>",
        "<|image|><|user|>{{ messages[0].content[1].text }}<|assistant|>",
        "<|user|><|image|><|image|>{{ messages[0].content[1].text }}<|assistant|>",
        "<|user|>{{ messages[0].content[1].text }}<|assistant|>",
        "<|user|><|image|><|assistant|>",
    ],
)
def test_a_template_of_any_other_order_is_refused(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ModelRefused, match="not user → image → text with one image"):
        build_prompt(tokenizer, "Read out all text.")


def test_a_prompt_that_holds_the_image_placeholder_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ModelRefused, match=r"keep <\|image\|> out of prompts"):
        build_prompt(tokenizer, "What is <|image|>?")


def test_a_checkpoint_without_a_template_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ModelRefused, match="has no chat template"):
        build_prompt(tokenizer, "?")


def test_a_tokenizer_that_does_not_know_the_placeholder_is_refused() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    foreign = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    foreign.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    with pytest.raises(ModelRefused, match=r"<\|image\|> is no token of this tokenizer"):
        build_prompt(PreTrainedTokenizerFast(tokenizer_object=foreign, chat_template=CHAT_TEMPLATE), "?")


def ids(tokenizer: Any, text: str) -> list[int]:
    found: Sequence[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(found)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (" A red circle .\n", "A red circle ."),
        ("价格：¥12 €3 “é” 🙂", "价格：¥12 €3 “é” 🙂"),
        ("two  spaces , it 's\n\n  kept", "two  spaces , it 's\n\n  kept"),
        ("<think>a circle,\nred</think>\n<answer>A red circle.</answer>", "A red circle."),
        ("<think></think>A red circle.", "A red circle."),
        ("<answer>A red circle", "A red circle"),
        ("The price is <|begin_of_box|>¥12<|end_of_box|>.", "The price is ¥12."),
    ],
)
def test_an_answer_is_read_without_its_wrapping(tokenizer: Any, said: str, answer: str) -> None:
    assert read_answer(tokenizer, ids(tokenizer, said)) == answer


@pytest.mark.parametrize("said", ["<|image|>OPEN", "OPEN<|assistant|>", "<think>I see", "OPEN<answer>", "[gMASK]"])
def test_control_tokens_in_an_answer_stay_visible(tokenizer: Any, said: str) -> None:
    assert read_answer(tokenizer, ids(tokenizer, said)) == said


def test_half_a_character_becomes_a_replacement_mark(tokenizer: Any) -> None:
    assert read_answer(tokenizer, ids(tokenizer, "茶")[:2]) == "\ufffd"
