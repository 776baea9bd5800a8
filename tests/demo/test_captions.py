from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import pytest

from demo.captions import (
    COLOURS,
    NUMBERS,
    POSITIONS,
    SHAPES,
    SIZES,
    TEMPLATES,
    Facts,
    ObjectFacts,
    canonical,
    make_caption,
    parse_caption,
)
from demo.postcards import Postcard, plan

SEED = 31


@pytest.fixture(scope="module")
def cards() -> list[Postcard]:
    return [plan(SEED, index) for index in range(2000)]


def thing(shape: str, color: str, size: str, position: str) -> ObjectFacts:
    return ObjectFacts(shape=shape, color=color, size=size, position=position)


def picture(*objects: ObjectFacts, lines: int = 0) -> Facts:
    return Facts(
        kind="postcard",
        objects=canonical(list(objects)),
        count=len(objects),
        background={"kind": "plain", "color": "light blue"},
        text_lines=lines,
    )


STAR = thing("star", "red", "large", "top left")
RING = thing("ring", "blue", "small", "bottom")


def test_a_caption_of_every_kind_and_form_says_its_facts_and_nothing_else(cards: list[Postcard]) -> None:
    assert {card.facts["kind"] for card in cards} == {"postcard", "blank", "text", "receipt"}
    for card in cards:
        assert parse_caption(card.caption) == card.facts, card.caption
    for card in cards[:400]:
        for template in range(TEMPLATES):
            caption = make_caption(card.facts, template)
            assert parse_caption(caption) == card.facts, caption


def test_captions_vary_in_words_and_form(cards: list[Postcard]) -> None:
    assert (
        len({make_caption(picture(STAR, RING, lines=2), template) for template in range(TEMPLATES)}) == TEMPLATES >= 4
    )
    openings = Counter(card.caption.split()[0] for card in cards if card.kind == "postcard")
    assert len(openings) > 4
    assert openings.most_common(1)[0][1] < 0.6 * openings.total()
    assert len({card.caption for card in cards if card.kind == "postcard"}) > 0.98 * openings.total()
    for kind in ("blank", "text", "receipt"):
        forms = {make_caption({**picture(lines=1), "kind": kind}, template) for template in range(TEMPLATES)}
        assert len(forms) > 1


def test_every_caption_is_one_or_more_whole_sentences(cards: list[Postcard]) -> None:
    for card in cards:
        assert card.caption[0].isupper(), card.caption
        assert card.caption[-1] == ".", card.caption
        assert "  " not in card.caption


def test_known_captions_read_as_a_person_would_write_them() -> None:
    assert make_caption(picture(STAR), 0) == (
        "A large red star in the top left on a plain light blue background, with no text."
    )
    twins = picture(RING, RING, STAR, lines=1)
    assert make_caption(twins, 2) == (
        "Three shapes on a plain light blue background: a large red star in the top left and two small blue rings "
        "at the bottom. One line of text."
    )
    cross = thing("cross", "black", "medium", "left")
    assert "two medium black crosses on the left" in make_caption(picture(cross, cross), 1)


def test_the_order_in_which_objects_are_given_changes_no_caption() -> None:
    one = picture(STAR, RING)
    other: Facts = {**one, "objects": [*reversed(one["objects"])]}
    assert make_caption(one, 3) == make_caption(other, 3)


def changed_facts(facts: Facts) -> Iterator[Facts]:
    """The same facts with one thing different, in every way there is."""
    values = {"shape": SHAPES, "color": COLOURS, "size": SIZES, "position": POSITIONS}
    for index, one in enumerate(facts["objects"]):
        for name, allowed in values.items():
            now = allowed.index(one[name])  # type: ignore[literal-required]
            other = copy.deepcopy(facts)
            other["objects"][index][name] = allowed[(now + 1) % len(allowed)]  # type: ignore[literal-required]
            yield {**other, "objects": canonical(other["objects"])}
        rest = [*facts["objects"][:index], *facts["objects"][index + 1 :]]
        if rest:
            yield {**facts, "objects": rest, "count": len(rest)}
    if facts["kind"] != "blank":
        yield {**facts, "text_lines": facts["text_lines"] + 1}
    yield {**facts, "background": {**facts["background"], "color": "gray"}}


def test_a_caption_of_other_facts_is_another_caption_and_is_read_as_such(cards: list[Postcard]) -> None:
    for card in cards[:150]:
        for other in changed_facts(card.facts):
            if other == card.facts:
                continue
            for template in range(TEMPLATES):
                caption = make_caption(other, template)
                assert caption != make_caption(card.facts, template)
                assert parse_caption(caption) == other, caption


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("red", "pink"),
        ("star", "arrow"),
        ("top left", "top"),
        ("large", "small"),
        ("two", "three"),
        ("rings", "circles"),
    ],
)
def test_one_wrong_word_in_a_caption_is_noticed(right: str, wrong: str) -> None:
    facts = picture(STAR, RING, RING)
    for template in range(TEMPLATES):
        caption = make_caption(facts, template)
        assert parse_caption(caption.replace(right, wrong)) != facts
        assert right in caption


def test_a_stated_count_is_read_even_when_the_list_contradicts_it() -> None:
    caption = make_caption(picture(STAR, RING), 2).replace("Two shapes", "Four shapes")
    claim = parse_caption(caption)
    assert (claim["count"], len(claim["objects"])) == (4, 2)


def test_numbers_have_words_as_far_as_a_picture_needs_them(cards: list[Postcard]) -> None:
    assert max(card.facts["text_lines"] for card in cards) < len(NUMBERS)
    assert max(card.facts["count"] for card in cards) < len(NUMBERS)


@pytest.mark.parametrize(
    "nonsense",
    [
        "",
        " ",
        ".",
        "a star",
        "99 stars",
        "red red red",
        "in the top left",
        "<|user|> 你好",
        "lines of text",
        "a " * 999,
    ],
)
def test_no_caption_is_too_odd_to_read(nonsense: str) -> None:
    claim = parse_caption(nonsense)
    assert set(claim) == set(Facts.__annotations__)


def test_an_attribute_that_is_not_said_is_not_claimed() -> None:
    assert parse_caption("There is a star.")["objects"] == [thing("star", "", "", "")]
    assert parse_caption("A photograph of a harbour.") == Facts(
        kind="blank", objects=[], count=0, background={"kind": "", "color": ""}, text_lines=0
    )
