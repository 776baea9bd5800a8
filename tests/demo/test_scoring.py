from __future__ import annotations

import json

import pytest

from demo.captions import Facts, ObjectFacts, canonical, make_caption
from demo.scoring import Row, character_error_rate, facts_right, score, score_caption


def thing(shape: str, color: str, size: str, position: str) -> ObjectFacts:
    return ObjectFacts(shape=shape, color=color, size=size, position=position)


def picture(*objects: ObjectFacts, lines: int = 0) -> Facts:
    return Facts(
        kind="postcard" if objects else "blank",
        objects=canonical(list(objects)),
        count=len(objects),
        background={"kind": "plain", "color": "white"},
        text_lines=lines,
    )


STAR = thing("star", "red", "large", "top left")
RING = thing("ring", "blue", "small", "bottom")
HEART = thing("heart", "pink", "medium", "right")


@pytest.mark.parametrize(
    ("answer", "truth", "rate"),
    [
        ("abcd", "abcd", 0.0),
        ("abcx", "abcd", 0.25),
        ("abc", "abcd", 0.25),
        ("abcde", "abcd", 0.25),
        ("", "abcd", 1.0),
        ("ABCD", "abcd", 1.0),
        ("早上十点", "早上九点", 0.25),
        ("营业时间", "营业时间", 0.0),
        ("ab\ncd", "ab cd", 0.2),
        ("ab\r\n\n  cd  ", "ab\ncd", 0.0),
        ("cafe\u0301", "café", 0.0),
        ("cafe", "café", 0.25),
        ("invented", "", 8.0),
        ("", "", 0.0),
        (" \n ", "", 0.0),
    ],
)
def test_known_error_rates(answer: str, truth: str, rate: float) -> None:
    assert character_error_rate([(answer, truth)]) == pytest.approx(rate)


def test_rates_are_of_all_characters_together_not_of_pictures() -> None:
    assert character_error_rate([("x" * 9 + "y", "x" * 10), ("b", "a"), ("", "")]) == pytest.approx(2 / 11)


def test_text_invented_on_a_blank_picture_counts_against_the_others() -> None:
    assert character_error_rate([("abcde", "abcde"), ("ghost", "")]) == pytest.approx(1.0)


def test_a_right_caption_has_every_fact_right_in_any_form_and_order() -> None:
    facts = picture(STAR, RING, HEART, lines=2)
    for template in range(6):
        assert score_caption(make_caption(facts, template), facts) == (13, 13)
    backwards = (
        "A small blue ring at the bottom, a medium pink heart on the right and a large red star in the top left "
        "on a plain white background, with no text."
    )
    assert score_caption(backwards, facts) == (13, 13)


@pytest.mark.parametrize(
    ("wrong", "fact"),
    [
        (thing("star", "green", "large", "top left"), "color"),
        (thing("cross", "red", "large", "top left"), "shape"),
        (thing("star", "red", "small", "top left"), "size"),
        (thing("star", "red", "large", "bottom right"), "position"),
    ],
)
def test_one_wrong_attribute_counts_exactly_once(wrong: ObjectFacts, fact: str) -> None:
    facts = picture(STAR, RING, HEART)
    for template in range(6):
        caption = make_caption(picture(wrong, RING, HEART), template)
        assert score_caption(caption, facts) == (12, 13)
        assert facts_right(caption, facts) == {
            name: (2 if name == fact else 3, 3) for name in ("shape", "color", "size", "position")
        } | {"count": (1, 1)}


def test_two_objects_that_swap_colours_are_two_errors_and_no_more() -> None:
    swapped = picture(thing("star", "blue", "large", "top left"), thing("ring", "red", "small", "bottom"))
    assert score_caption(make_caption(swapped, 0), picture(STAR, RING)) == (7, 9)


def test_a_missing_object_has_all_its_facts_wrong_and_the_count_too() -> None:
    assert score_caption(make_caption(picture(STAR, RING), 2), picture(STAR, RING, HEART)) == (8, 13)


def test_an_extra_object_makes_the_count_wrong_and_nothing_else() -> None:
    assert score_caption(make_caption(picture(STAR, RING, HEART), 0), picture(STAR, RING)) == (8, 9)


def test_an_object_invented_on_a_blank_picture_is_noticed() -> None:
    assert score_caption(make_caption(picture(), 0), picture()) == (1, 1)
    assert score_caption(make_caption(picture(STAR), 0), picture()) == (0, 1)


def test_a_stated_count_that_the_list_contradicts_is_wrong() -> None:
    facts = picture(STAR, RING)
    assert score_caption(make_caption(facts, 2).replace("Two shapes", "Three shapes"), facts) == (8, 9)


def test_a_right_count_above_a_list_that_contradicts_it_is_wrong_too() -> None:
    claimed = make_caption(picture(STAR, RING), 2).replace("Two shapes", "Three shapes")
    assert score_caption(claimed, picture(STAR, RING, HEART)) == (8, 13)


@pytest.mark.parametrize("silence", ["", "   ", "A photograph of a harbour."])
def test_a_caption_that_says_nothing_has_nothing_right_not_even_that_a_picture_is_blank(silence: str) -> None:
    assert score_caption(silence, picture(STAR)) == (0, 5)
    assert score_caption(silence, picture()) == (0, 1)


def test_a_caption_stuck_in_a_loop_is_scored_all_the_same() -> None:
    loop = "A large red star in the top left, " * 300
    arrow = thing("arrow", "brown", "medium", "center")
    assert score_caption(loop, picture(STAR, RING, HEART, arrow)) == (4, 17)


def test_a_whole_set_is_scored_together_and_the_result_is_json() -> None:
    good, bad = picture(STAR, lines=1), picture(RING, HEART)
    rows = [
        Row(caption=make_caption(good, 1), text="Hello", true_text="Hello", facts=good),
        Row(caption=make_caption(picture(RING), 1), text="??", true_text="", facts=bad),
    ]
    found = score(rows)
    assert json.loads(json.dumps(found)) == found
    assert (found["images"], found["text_edits"], found["text_characters"]) == (2, 2, 5)
    assert found["text_cer"] == pytest.approx(0.4)
    assert (found["facts_right"], found["facts_total"]) == (5 + 4, 5 + 9)
    assert found["caption_facts"] == pytest.approx(9 / 14)
    assert (found["text_exact"], found["captions_exact"]) == (0.5, 0.5)
    assert found["by_fact"] == pytest.approx(
        {"shape": 2 / 3, "color": 2 / 3, "size": 2 / 3, "position": 2 / 3, "count": 0.5}
    )


def test_an_empty_set_has_no_errors_and_nothing_right() -> None:
    found = score([])
    assert (found["images"], found["text_cer"], found["caption_facts"]) == (0, 0.0, 0.0)
