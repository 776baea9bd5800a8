"""The picture a model must answer about before anyone believes it, and whether its answers will do.

A quantised or mispaired vision tower leaves the language fluent: such a model describes a picture that is not there. So
an answer must not only look like one, something in the answers must be on the picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from PIL import Image, ImageDraw, ImageFont

from glm4v_ops.recipe import Recipe

#: Tokens a reference answer may take at least, whatever the recipe's own limits.
_ROOM = 64


def reference_picture() -> Image.Image:
    """A red circle above the word OPEN, on white, 448 x 336 pixels."""
    picture = Image.new("RGB", (448, 336), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((174, 40, 274, 140), fill=(220, 30, 30))
    draw.text((224, 250), "OPEN", fill="black", anchor="mm", font=ImageFont.load_default(size=44))
    return picture


def asking_plainly(recipe: Recipe) -> Recipe:
    """The recipe with its own prompts, greedy and with room: neither chance nor a small limit shall refuse a model."""
    plain = {
        name: task.model_copy(update={"temperature": 0.0, "max_new_tokens": max(task.max_new_tokens, _ROOM)})
        for name, task in recipe.tasks.items()
    }
    return recipe.model_copy(update={"tasks": plain})


#: The word, or colour and shape: whichever the recipe's prompts ask for, in English or Chinese.
_WORD = re.compile("open", re.I)
_COLOUR = re.compile(r"\bred\b|红|紅", re.I)
_SHAPE = re.compile(r"circ|\bround\b|\bdis[ck]\b|\bdot\b|\bball\b|圆|圓", re.I)


def shows_reference(answers: Iterable[str]) -> bool:
    """Whether any of the answers says what is on the reference picture."""
    return any(_WORD.search(said) or (_COLOUR.search(said) and _SHAPE.search(said)) for said in answers)
