"""Loops in an answer: the same characters, words, lines or sentences again and again.

A loop is a *run*: neighbouring units with one period. How long a run must be depends on what may rightly repeat. A
photographed table holds equal rows and columns of zeros, a receipt rules and dotted leaders; a caption says nothing
twice. An answer that the token limit cut inside a run has met a loop much sooner than one the model ended itself.
Knows nothing of outcomes. Counted loops ("1. a cat 2. a cat …") are not found: rows of a real list look the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

#: One unit: a letter of a script without spaces, a number with its separators, a word, or equal marks in a row.
_UNIT = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|\d[\d.,:/]*\d|[^\W\d_]+|\d|((?:[^\w\s]|_))\1*",
    re.UNICODE,
)
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af]")
_LETTER = re.compile(r"[^\W\d_]")
_SENTENCE = re.compile(r"[^.!?。！？\n]+")

#: Units in the longest period looked for: a paragraph. Longer loops end at the token limit and are truncated anyway.
_LONGEST_PERIOD = 120
#: Units looked at: an answer has at most some thousand, and the search is units × periods.
_MOST_UNITS = 6_000

#: Times a period must stand in a row, by task and length of the period in units: (longest period, times).
#: Captions: "very very very" passes, a phrase three times over in one sentence still passes, then it is a loop.
_CAPTION_TIMES = ((1, 8), (2, 6), (7, 4), (_LONGEST_PERIOD, 3))
#: Texts: eight equal rows of a receipt pass, "ha" sixteen times passes by `_TEXT_LETTERS`.
_TEXT_TIMES = ((2, 16), (7, 10), (_LONGEST_PERIOD, 8))
#: Letters a run in a text must hold (a Chinese one counts as 3): a laugh or a cheer is shorter.
_TEXT_LETTERS = 80
#: Times, where the token limit cut the answer inside the run: no picture's text ends just there by chance.
_CUT_TIMES = ((1, 8), (_LONGEST_PERIOD, 3))
#: Letters such a run must hold: two or three short words.
_CUT_LETTERS = 12
#: Times a period without any letter must stand in a row: a table of 9 × 11 zeros, a long dotted leader pass.
_MARK_TIMES = 100
_CUT_MARK_TIMES = 24
#: Equal sentences, anywhere in a caption, of at least so many units: "There is a red circle." twice is a stutter.
_SENTENCE_TIMES = 3
_SENTENCE_UNITS = 4
#: Equal characters in a row: "Goooooal" passes, a barcode of zeros and a ruled line across a page pass.
_LETTER_RUN = 40
_MARK_RUN = 400
_CUT_MARK_RUN = 100
#: Characters in a row of one period inside one word without spaces ("hahaha…"), and its longest period.
_WORD_RUN = 60
_WORD_PERIOD = 12
#: Loops that vary: of a long answer's 8-word windows, so small a share differ. A table of yes and no has many more.
_WINDOW = 8
_WINDOWS_FROM = 160
_FEWEST_WINDOWS = 0.15


@dataclass(frozen=True, slots=True)
class Loop:
    """What repeats: `kind` is a stable code, `unit` the repeated piece, `times` how often it stands there."""

    kind: str
    unit: str
    times: int


def find_loop(answer: str, *, is_caption: bool, was_cut: bool) -> Loop | None:
    """The first loop found in `answer`. `was_cut`: the token limit ended it, not the model."""
    units = [match.group().casefold() for match in _UNIT.finditer(answer)][:_MOST_UNITS]
    return (
        _character_loop(answer, was_cut=was_cut)
        or _phrase_loop(units, is_caption=is_caption, was_cut=was_cut)
        or (_sentence_loop(answer) if is_caption else None)
        or _varied_loop(units)
    )


def _character_loop(answer: str, *, was_cut: bool) -> Loop | None:
    stripped = answer.rstrip()
    for match in re.finditer(r"(\S)\1{39,}", stripped):
        times, at_end = len(match.group()), match.end() == len(stripped)
        is_letter = _LETTER.match(match.group(1)) is not None
        limit = _LETTER_RUN if is_letter else _CUT_MARK_RUN if was_cut and at_end else _MARK_RUN
        if times >= limit:
            return Loop("character_loop", match.group(1), times)
    for word in answer.split():
        for period in range(2, _WORD_PERIOD + 1) if len(word) >= _WORD_RUN else ():
            end, length = _longest_run(word, period)
            piece = word[end - period : end]
            if length >= _WORD_RUN and _LETTER.search(piece) and not _WIDE.search(piece):
                return Loop("character_loop", piece, length // period)
    return None


def _phrase_loop(units: Sequence[str], *, is_caption: bool, was_cut: bool) -> Loop | None:
    for period in range(1, min(_LONGEST_PERIOD, len(units) // 2) + 1):
        end, length = _longest_run(units, period)
        if length < 2 * period:
            continue
        piece, times = units[end - period : end], length // period
        if _is_loop(piece, times, is_caption=is_caption) or (
            was_cut and _is_cut_loop(units, period, is_caption=is_caption)
        ):
            return Loop("phrase_loop", _shortened(piece), times)
    return None


def _is_loop(piece: Sequence[str], times: int, *, is_caption: bool) -> bool:
    letters = times * _letters(piece)
    if letters == 0:
        return times >= _MARK_TIMES
    if is_caption:
        return times >= _times(_CAPTION_TIMES, len(piece))
    return times >= _times(_TEXT_TIMES, len(piece)) and letters >= _TEXT_LETTERS


def _is_cut_loop(units: Sequence[str], period: int, *, is_caption: bool) -> bool:
    """Whether the answer ends inside a run; its last unit may be half a word."""
    for last in (len(units), len(units) - 1):
        length = _run_ending(units, period, last)
        piece, times = units[last - period : last], length // period
        letters = times * _letters(piece)
        if letters == 0:
            if times >= _CUT_MARK_TIMES:
                return True
        elif times >= _times(_CUT_TIMES, period) and letters >= _CUT_LETTERS:
            return True
    return False


def _sentence_loop(answer: str) -> Loop | None:
    sentences = Counter(" ".join(sentence.casefold().split()) for sentence in _SENTENCE.findall(answer))
    for sentence, times in sentences.items():
        if times >= _SENTENCE_TIMES and len(_UNIT.findall(sentence)) >= _SENTENCE_UNITS:
            return Loop("sentence_loop", sentence[:60], times)
    return None


def _varied_loop(units: Sequence[str]) -> Loop | None:
    words = [unit for unit in units if _LETTER.search(unit)]
    if len(words) < _WINDOWS_FROM:
        return None
    windows = Counter(tuple(words[start : start + _WINDOW]) for start in range(len(words) - _WINDOW + 1))
    if len(windows) >= _FEWEST_WINDOWS * windows.total():
        return None
    piece, times = windows.most_common(1)[0]
    return Loop("phrase_loop", _shortened(piece), times)


def _longest_run(units: Sequence[str], period: int) -> tuple[int, int]:
    """(end, length) of the longest stretch in which every unit equals the one `period` before it."""
    best_end, best, matching = 0, 0, 0
    for index in range(period, len(units)):
        matching = matching + 1 if units[index] == units[index - period] else 0
        if matching > best:
            best_end, best = index + 1, matching
    return best_end, best + period if best else 0


def _run_ending(units: Sequence[str], period: int, end: int) -> int:
    """Length of the stretch of this period that ends before `end`."""
    index = end - 1
    while index >= period and units[index] == units[index - period]:
        index -= 1
    return end - 1 - index + period


def _times(steps: Sequence[tuple[int, int]], period: int) -> int:
    return next(times for longest, times in steps if period <= longest)


def _letters(piece: Sequence[str]) -> int:
    """Letters in one period; one of a script without spaces says as much as three."""
    return sum(len(unit) * (3 if _WIDE.match(unit) else 1) for unit in piece if _LETTER.match(unit))


def _shortened(piece: Sequence[str]) -> str:
    joined = ("" if all(_WIDE.match(unit) for unit in piece) else " ").join(piece)
    return joined if len(joined) <= 60 else joined[:57] + "…"
