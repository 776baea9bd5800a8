"""Facts of a picture, their words, and back: `make_caption(facts)` and `parse_caption(sentence)` are inverse.

Promises: a closed, small vocabulary; objects in one canonical order, so that a caption follows from the facts and the
template number alone; no template makes a fact ambiguous. Does not know: how pictures are drawn, or free English."""

from __future__ import annotations

import re
from typing import TypedDict

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross", "crescent", "arrow")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SIZES = ("large", "medium", "small")
POSITIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
BACKDROPS = ("plain", "gradient", "noisy", "striped", "checked", "dotted")
BACKDROP_COLOURS = ("white", "gray", "black", "cream", "light blue", "light green", "navy", "maroon")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
TEMPLATES = 6  # sentence forms of a picture with objects; the other kinds take the number modulo their own

_PREPOSITION = {"top": "at", "bottom": "at", "left": "on", "right": "on"}


class ObjectFacts(TypedDict):
    """One drawn object; an attribute that a caption leaves out is an empty string (only in parsed captions)."""

    shape: str
    color: str
    size: str
    position: str


class BackdropFacts(TypedDict):
    kind: str
    color: str


class Facts(TypedDict):
    """What is true of one picture, or what one caption claims."""

    kind: str
    objects: list[ObjectFacts]
    count: int
    background: BackdropFacts
    text_lines: int


def canonical(objects: list[ObjectFacts]) -> list[ObjectFacts]:
    """Reading order of the 3x3 grid; within a cell larger first, then by colour and shape."""

    def rank(thing: ObjectFacts) -> tuple[int, int, int, int]:
        return (
            POSITIONS.index(thing["position"]),
            SIZES.index(thing["size"]),
            COLOURS.index(thing["color"]),
            SHAPES.index(thing["shape"]),
        )

    return sorted(objects, key=rank)


def _plural(noun: str, number: int) -> str:
    if number == 1:
        return noun
    return noun + ("es" if noun.endswith("ss") else "s")


def _join(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _items(objects: list[ObjectFacts]) -> str:
    """ "a large red circle in the top left, two small blue stars at the bottom and …": equals in a cell are counted."""
    grouped: list[tuple[ObjectFacts, int]] = []
    for thing in canonical(objects):
        if grouped and grouped[-1][0] == thing:
            grouped[-1] = (thing, grouped[-1][1] + 1)
        else:
            grouped.append((thing, 1))
    return _join(
        [
            f"{'a' if n == 1 else NUMBERS[n]} {t['size']} {t['color']} {_plural(t['shape'], n)} "
            f"{_PREPOSITION.get(t['position'], 'in')} the {t['position']}"
            for t, n in grouped
        ]
    )


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def make_caption(facts: Facts, template: int) -> str:
    """The caption of these facts in sentence form `template` (any whole number; taken modulo the forms there are)."""
    kind, colour = facts["background"]["kind"], facts["background"]["color"]
    ground = f"a {kind} {colour} background"
    lines = facts["text_lines"]
    text = f"{NUMBERS[lines]} {_plural('line', lines)} of text" if lines else "no text"
    if facts["kind"] == "receipt":
        forms = [f"A receipt with {text} on {ground}.", f"On {ground} there is a receipt with {text}."]
    elif facts["kind"] == "blank":
        forms = [
            f"An empty picture: {ground}, no shapes and {text}.",
            f"Nothing but {ground}, with no shapes and {text}.",
        ]
    elif facts["kind"] == "text":
        forms = [f"{_capital(text)} on {ground}, with no shapes.", f"A picture of {text} on {ground}, with no shapes."]
    else:
        count = facts["count"]
        shapes, items = f"{NUMBERS[count]} {_plural('shape', count)}", _items(facts["objects"])
        forms = [
            f"{_capital(items)} on {ground}, with {text}.",
            f"On {ground} there {'is' if count == 1 else 'are'} {items}, with {text}.",
            f"{_capital(shapes)} on {ground}: {items}. {_capital(text)}.",
            f"A picture of {items} on {ground}, with {text}.",
            f"{_capital(ground)} with {items}, and {text}.",
            f"{_capital(shapes)} and {text}: {items}. The background is {kind} {colour}.",
        ]
    return forms[template % len(forms)]


_NUMBER = {word: number for number, word in enumerate(NUMBERS)} | {"a": 1, "an": 1}
_NOUNS = {form: shape for shape in SHAPES for form in (shape, _plural(shape, 2))}
_GROUND = re.compile(rf"\b({'|'.join(BACKDROPS)}) ({'|'.join(BACKDROP_COLOURS)})\b")
_LINES = re.compile(r"\b(\w+) lines? of text\b")
_COUNT = re.compile(r"\b(\w+) shapes?\b")
_PLACE = re.compile(r"\s*(?:in|at|on) the (top left|top right|bottom left|bottom right|top|bottom|left|right|center)\b")
_WORD = re.compile(r"[a-z0-9]+")


def _number(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdigit() and len(word) < 3 else _NUMBER.get(word)


def _parsed_objects(sentence: str) -> list[ObjectFacts]:
    """Every shape noun with the adjectives and the number just before it and the place just after it."""
    found: list[ObjectFacts] = []
    before: list[str] = []
    for match in _WORD.finditer(sentence):
        word = match.group()
        if word in _NOUNS:
            size = colour = ""
            number = 1
            for adjective in reversed(before):
                if adjective in SIZES and not size:
                    size = adjective
                elif adjective in COLOURS and not colour:
                    colour = adjective
                else:
                    number = _number(adjective) or 1
                    break
            place = _PLACE.match(sentence, match.end())
            thing = ObjectFacts(shape=_NOUNS[word], color=colour, size=size, position=place.group(1) if place else "")
            found.extend(ObjectFacts(**thing) for _ in range(number))
            before = []
        else:
            before.append(word)
    return found


def parse_caption(caption: str) -> Facts:
    """What a caption of this grammar claims. Never raises: what is not said is "" or 0, unknown words are passed over.

    `count` is the number the caption states ("three shapes"), else the number of objects it lists."""
    sentence = " ".join(caption.lower().split())
    objects = _parsed_objects(sentence)
    stated = _COUNT.search(sentence)
    number = _number(stated.group(1)) if stated else None
    ground = _GROUND.search(sentence)
    lines = _LINES.search(sentence)
    text_lines = (_number(lines.group(1)) or 0) if lines else 0
    if re.search(r"\breceipt\b", sentence):
        kind = "receipt"
    elif objects:
        kind = "postcard"
    else:
        kind = "text" if text_lines else "blank"
    return Facts(
        kind=kind,
        objects=objects,
        count=len(objects) if number is None else number,
        background=BackdropFacts(kind=ground.group(1) if ground else "", color=ground.group(2) if ground else ""),
        text_lines=text_lines,
    )
