"""From a question to token ids, and from token ids to an answer. The order is user → image → text.

Text before the image is what makes these models echo file paths, so the order is checked, not hoped for.
The checkpoint's own chat template renders the prompt; knows nothing of pixels or of how ids are decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from glm4v_ops.errors import ModelRefused

_IMAGE = "<|image|>"
_THOUGHT = re.compile(r"^\s*<think>.*?</think>\s*", re.DOTALL)
_ANSWER = re.compile(r"^\s*<answer>(.*?)(</answer>\s*)?$", re.DOTALL)
_BOX = re.compile(r"<\|begin_of_box\|>(.*?)<\|end_of_box\|>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids around the image: `prefix` + one placeholder a patch token + `suffix`."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def build_prompt(tokenizer: Any, text: str, *, thinking: bool = False) -> Prompt:
    """Render one question about one image by the checkpoint's chat template.

    Raises `ModelRefused` when there is no template, when it does not give user → image → text, or when the prompt
    itself holds the image placeholder.
    """
    if tokenizer.chat_template is None:
        raise ModelRefused("the checkpoint has no chat template", remedy="fetch it again with its chat_template.jinja")
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    rendered: str = tokenizer.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=False, enable_thinking=thinking
    )
    before, *after = rendered.split(_IMAGE)
    if len(after) != 1 or "<|user|>" not in before or text.strip() not in after[0]:
        raise ModelRefused(
            f"the chat template gives {rendered!r}, not user → image → text with one image",
            remedy="use the checkpoint's own chat template, and keep <|image|> out of prompts",
        )
    ids: list[int] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    image_id = tokenizer.convert_tokens_to_ids(_IMAGE)
    if ids.count(image_id) != 1:
        raise ModelRefused(
            f"{_IMAGE} is no token of this tokenizer", remedy="use the tokenizer that came with the checkpoint"
        )
    at = ids.index(image_id)
    return Prompt(tuple(ids[:at]), tuple(ids[at + 1 :]))


def read_answer(tokenizer: Any, ids: list[int]) -> str:
    """The answer's text: a closed thought, the answer's wrapper and surrounding blanks removed, nothing else.

    Control tokens are kept as text on purpose: an answer that holds one is garbled, and the checks must see it.
    """
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    text = _THOUGHT.sub("", text)
    if match := _ANSWER.match(text):
        text = match.group(1)
    return _BOX.sub(r"\1", text).strip()
