"""Scores of captions and read texts against the generator's truth.

Promises: text CER is edits over truth characters of all pictures together, text invented on a blank picture counting as
edits; caption facts are shape, colour, size and position of every true object, matched one to one at their best, and
the object count of every picture. Does not know: the model, or where the answers came from."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from itertools import permutations
from typing import TypedDict

from rapidfuzz.distance import Levenshtein

from demo.captions import Facts, ObjectFacts, parse_caption

__all__ = ["Row", "Score", "character_error_rate", "parse_caption", "score", "score_caption"]

_ATTRIBUTES = ("shape", "color", "size", "position")
_MOST_COMPARED = 8  # a caption stuck in a loop lists hundreds: its count is wrong anyway, the matching stays small


class Row(TypedDict):
    """One picture: the answers, and the truth beside them."""

    caption: str
    text: str
    true_text: str
    facts: Facts


class Score(TypedDict):
    """What `score` returns, ready for JSON. Rates are fractions of one."""

    images: int
    text_cer: float
    text_edits: int
    text_characters: int
    text_exact: float
    caption_facts: float
    facts_right: int
    facts_total: int
    captions_exact: float
    by_fact: dict[str, float]


def normalised(text: str) -> str:
    """NFC, with white space at line ends and empty lines out: layout a reader does not see is no reading error."""
    lines = (" ".join(line.split()) for line in unicodedata.normalize("NFC", text).splitlines())
    return "\n".join(line for line in lines if line)


def edits(answer: str, truth: str) -> int:
    return int(Levenshtein.distance(normalised(answer), normalised(truth)))


def character_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Edits over truth characters, of (answer, truth) pairs taken together; invented text always counts."""
    wrong = total = 0
    for answer, truth in pairs:
        wrong += edits(answer, truth)
        total += len(normalised(truth))
    return wrong / max(total, 1)


def _agreement(claimed: ObjectFacts | None, true: ObjectFacts) -> tuple[bool, bool, bool, bool]:
    if claimed is None:
        return (False, False, False, False)
    return (
        claimed["shape"] == true["shape"],
        claimed["color"] == true["color"],
        claimed["size"] == true["size"],
        claimed["position"] == true["position"],
    )


def _best_match(claimed: list[ObjectFacts], true: list[ObjectFacts]) -> list[tuple[bool, bool, bool, bool]]:
    seats: list[ObjectFacts | None] = list(claimed[:_MOST_COMPARED])
    seats += [None] * (len(true) - len(seats))
    matches = ([_agreement(c, t) for c, t in zip(order, true, strict=True)] for order in permutations(seats, len(true)))
    return max(matches, key=lambda match: sum(sum(agreed) for agreed in match))


def facts_right(caption: str, facts: Facts) -> dict[str, tuple[int, int]]:
    """(right, total) of each of shape, color, size, position and count."""
    claim = parse_caption(caption)
    agreed = _best_match(claim["objects"], facts["objects"])
    tally = {name: (sum(a[i] for a in agreed), len(agreed)) for i, name in enumerate(_ATTRIBUTES)}
    said_something = bool(claim["objects"] or claim["background"]["kind"] or claim["text_lines"])
    right = said_something and claim["count"] == facts["count"] == len(claim["objects"])
    return tally | {"count": (int(right), 1)}


def score_caption(caption: str, facts: Facts) -> tuple[int, int]:
    """How many facts of the picture the caption has right, and how many there are (4 per object, and the count)."""
    tally = facts_right(caption, facts).values()
    return sum(right for right, _ in tally), sum(total for _, total in tally)


def score(rows: Iterable[Row | Mapping[str, object]]) -> Score:
    """All scores of a set of pictures; an empty set scores 0 errors and 0 facts."""
    images = wrong = characters = exact_texts = exact_captions = 0
    tally: dict[str, tuple[int, int]] = {}
    for row in rows:
        answer, truth = str(row["text"]), str(row["true_text"])
        facts: Facts = row["facts"]  # type: ignore[assignment]
        images += 1
        row_edits = edits(answer, truth)
        wrong += row_edits
        characters += len(normalised(truth))
        exact_texts += row_edits == 0
        of_row = facts_right(str(row["caption"]), facts)
        exact_captions += all(right == total for right, total in of_row.values())
        for name, (right, total) in of_row.items():
            before = tally.get(name, (0, 0))
            tally[name] = (before[0] + right, before[1] + total)
    right_all, total_all = sum(r for r, _ in tally.values()), sum(t for _, t in tally.values())
    return Score(
        images=images,
        text_cer=wrong / max(characters, 1),
        text_edits=wrong,
        text_characters=characters,
        text_exact=exact_texts / max(images, 1),
        caption_facts=right_all / max(total_all, 1),
        facts_right=right_all,
        facts_total=total_all,
        captions_exact=exact_captions / max(images, 1),
        by_fact={name: right / max(total, 1) for name, (right, total) in tally.items()},
    )
