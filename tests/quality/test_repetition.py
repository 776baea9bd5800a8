from __future__ import annotations

import random

import pytest

from glm4v_ops.quality.repetition import find_loop


def _text(answer: str, *, was_cut: bool = False) -> str | None:
    loop = find_loop(answer, is_caption=False, was_cut=was_cut)
    return loop.kind if loop else None


def test_a_loop_names_what_repeats_and_how_often() -> None:
    loop = find_loop("Menu\n" + "green tea 2.50 " * 14, is_caption=False, was_cut=False)
    assert loop is not None
    assert (loop.kind, loop.unit, loop.times) == ("phrase_loop", "green tea 2.50", 14)


def test_equal_rows_pass_in_a_text_and_are_a_loop_in_a_caption() -> None:
    rows = "one small red circle\n" * 6
    assert _text(rows) is None
    assert find_loop(rows, is_caption=True, was_cut=False) is not None


def test_the_token_limit_makes_a_short_run_a_loop_only_at_the_end_of_the_answer() -> None:
    assert _text("the cat sat the cat sat the cat sat the", was_cut=True) == "phrase_loop"
    assert _text("the cat sat the cat sat the cat sat the", was_cut=False) is None
    assert _text("the cat sat the cat sat the cat sat and then it left", was_cut=True) is None


def test_a_loop_in_the_middle_of_an_answer_is_found() -> None:
    before, after = "Opening hours Monday to Friday ", " closed on Sunday and holidays"
    assert _text(before + "nine to five and " * 12 + after) == "phrase_loop"


def test_a_loop_of_whole_paragraphs_is_found() -> None:
    words = [f"word{chr(97 + index % 26)}{chr(97 + index // 26)}" for index in range(100)]
    assert _text(" ".join(words * 8)) == "phrase_loop"
    assert _text(" ".join(words * 2)) is None


def test_a_loop_that_varies_is_found() -> None:
    block = [f"item{letter} of the long list" for letter in "abcdefgh"]
    drifting = [line for index in range(60) for line in (block if index % 3 else block[:7])]
    assert _text("\n".join(drifting)) == "phrase_loop"


@pytest.mark.parametrize("seed", range(5))
def test_a_long_table_of_yes_and_no_is_no_loop(seed: int) -> None:
    cells = random.Random(seed).choices(["yes", "no"], k=300)
    assert _text("\n".join(cells)) is None


def test_a_long_page_of_prose_is_no_loop() -> None:
    generator = random.Random(7)
    words = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("a", "en", "ir", "ost", "um")]
    page = ". ".join(" ".join(generator.choices(words, k=9)) for _ in range(120))
    assert _text(page) is None
    assert _text(page, was_cut=True) is None


def test_marks_may_repeat_longer_than_words() -> None:
    assert _text("Chapter one " + ". " * 60 + "7") is None
    assert _text("0 " * 99) is None
    assert _text("0 " * 120) == "phrase_loop"


def test_a_word_without_spaces_may_loop_too() -> None:
    assert _text("hahahaha") is None
    assert _text("ha" * 40) == "character_loop"
    assert _text("0123456789" * 8) is None
