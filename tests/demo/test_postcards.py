from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import words
from demo.captions import POSITIONS
from demo.fonts import FACES, font, ink
from demo.postcards import Postcard, draw, main, plan, postcards, render
from demo.scene import PAINT, Line, Scene, compose, contrast, distance
from demo.stack import ROOT

SEED = 77
#: What a model sees of a picture; drawing it at this size directly is fast.
SEEN = 336
#: What the demo model was trained on: a generator that draws anything else needs a model trained anew.
TRAINED_ON_TRUTH = "575fefd8b4c9509c3cc603163d5e09b77855b9448ee5835c45a4a01e6db94797"
TRAINED_ON_PIXELS = "c2249728c30c32a190fa38d7960b1fdb43f9625017c85b717cb696032b827346"
#: One picture of each texture: how far its pixels spread, and its 6 x 4 mean colours.
TRAINED_ON_TEXTURES = {
    2: (
        13.23,
        "9b9aa09c9ba19d9ca29887a39b9aa19c9ba19b9aa09c9ba19d9ca29c9ba19b9aa09c9ba1"
        "9c9ba19c9ba19c9ba19c9ba19b9aa09c9ba19b9aa09c9ba195949a9a999f9b9aa09c9ba1",
    ),
    6: (
        27.61,
        "a7a9a5a7a9a5a7a9a5a7a9a5a7a9a5a7a9a5a7a9a5a7a9a5a7a9a5a7a9a5a7a9a5a7a9a5"
        "a7a9a5a6a7a4888a87939592a7a9a5a7a9a5a7a9a5a0a29f919390959693918072a3a29c",
    ),
    30: (
        24.30,
        "b1b090b0af90a2a7a7a1a6a8a1a6a8a1a6a8a1a6a8a2a7a7a1a6a8a1a6a8a1a6a8a1a6a8"
        "a1a6a8a1a6a8a1a6a8a1a6a8a1a6a8a1a6a8a1a6a893939292929091908e92918fa1a6a8",
    ),
}


@pytest.fixture(scope="module")
def cards() -> list[Postcard]:
    return [plan(SEED, index) for index in range(600)]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [compose(SEED, index) for index in range(600)]


def test_a_seed_and_an_index_give_the_same_file_every_time() -> None:
    for index in range(12):
        assert draw(SEED, index) == draw(SEED, index)
    assert [card.data for card in postcards(SEED, 3, start=2)] == [draw(SEED, index).data for index in (2, 3, 4)]


def test_another_seed_or_index_is_another_picture() -> None:
    drawn = [draw(seed, index).data for seed in (SEED, SEED + 1, -SEED) for index in range(6)]
    assert len({*drawn}) == len(drawn)


def test_the_series_are_those_that_the_demo_model_was_trained_on() -> None:
    first, _, third = (plan(0, index) for index in range(3))
    assert (first.name, first.width, first.height) == ("postcard-000000.jpg", 806, 1209)
    assert first.caption == "A medium pink diamond at the bottom on a noisy gray background, with two lines of text."
    assert first.text == "Lopez & Sons\nAhmed, Laura"
    assert third.caption == (
        "Two shapes on a dotted gray background: a small purple circle at the top and a small black arrow at the "
        "bottom. No text."
    )
    told = json.dumps([plan(0, index).truth() for index in range(500)], ensure_ascii=False)
    assert hashlib.sha256(told.encode()).hexdigest() == TRAINED_ON_TRUTH


def test_the_pictures_are_those_that_the_demo_model_was_trained_on() -> None:
    """Waves of a texture are numpy's float32, whose last bit depends on the processor: those are compared nearly."""
    exact = hashlib.sha256()
    for index in range(60):
        if compose(0, index).backdrop.kind in ("plain", "gradient", "noisy"):
            exact.update(render(0, index, SEEN)[0].tobytes())
    assert exact.hexdigest() == TRAINED_ON_PIXELS
    for index, (spread, cells) in TRAINED_ON_TEXTURES.items():
        picture = render(0, index, SEEN)[0]
        assert np.asarray(picture).astype(float).std() == pytest.approx(spread, abs=0.03)
        seen = picture.resize((6, 4), Image.Resampling.BOX)
        assert abs(np.asarray(seen).astype(int).ravel() - [*bytes.fromhex(cells)]).max() <= 1


def test_a_plan_is_the_truth_of_the_drawn_file_without_its_bytes() -> None:
    for index in range(10):
        drawn = draw(SEED, index)
        assert drawn.data
        assert plan(SEED, index).data == b""
        assert drawn.truth() == plan(SEED, index).truth()


def test_the_truth_is_complete_and_agrees_with_itself(cards: list[Postcard]) -> None:
    for card in cards:
        truth = card.truth()
        assert json.loads(json.dumps(truth)) == truth
        assert [*truth] == ["name", "kind", "width", "height", "caption", "text", "facts"]
        facts, lines = card.facts, card.text.splitlines()
        assert facts["kind"] == card.kind
        assert facts["count"] == len(facts["objects"])
        assert facts["text_lines"] == len(lines)
        assert all(line == line.strip() != "" for line in lines)
        assert (card.kind == "blank") == (not facts["objects"] and not lines)
        if card.kind in ("blank", "text", "receipt"):
            assert not facts["objects"]


def test_every_kind_of_card_is_there_and_most_are_postcards(cards: list[Postcard]) -> None:
    kinds = Counter(card.kind for card in cards)
    assert {*kinds} == {"postcard", "blank", "text", "receipt"}
    assert min(kinds.values()) >= 0.02 * len(cards)
    assert kinds["postcard"] > 0.6 * len(cards)


def test_objects_come_in_all_shapes_colours_sizes_positions_and_counts(cards: list[Postcard]) -> None:
    objects = [thing for card in cards for thing in card.facts["objects"]]

    def tell(name: str, least: int, share: float) -> None:
        counts = Counter(thing[name] for thing in objects)  # type: ignore[literal-required]
        assert len(counts) >= least, name
        assert min(counts.values()) > share * len(objects), counts

    tell("shape", 8, 0.05)
    tell("color", 10, 0.02)
    tell("size", 3, 0.15)
    tell("position", 9, 0.05)
    counts = Counter(card.facts["count"] for card in cards if card.kind == "postcard")
    assert {*counts} == {1, 2, 3, 4}
    assert min(counts.values()) > 0.1 * counts.total()
    assert any(each[0] == each[1] for card in cards for each in combinations(card.facts["objects"], 2)), "some alike"


def test_backgrounds_are_plain_gradient_noisy_and_textured(scenes: list[Scene]) -> None:
    kinds = Counter(scene.backdrop.kind for scene in scenes)
    assert {*kinds} == {"plain", "gradient", "noisy", "striped", "checked", "dotted"}
    assert min(kinds.values()) > 0.05 * len(scenes)
    assert len({scene.backdrop.colour for scene in scenes}) == 8


def test_text_has_nought_to_four_lines_and_receipts_their_items(cards: list[Postcard]) -> None:
    lines = Counter(card.facts["text_lines"] for card in cards if card.kind != "receipt")
    assert {*lines} == {0, 1, 2, 3, 4}
    assert min(lines.values()) > 0.05 * lines.total()
    for receipt in (card.text.splitlines() for card in cards if card.kind == "receipt"):
        assert len(receipt) >= 4
        paid = [round(float(line.rpartition(" ")[2].lstrip("$€£")) * 100) for line in receipt[1:]]
        assert sum(paid[:-1]) == paid[-1], receipt


@pytest.mark.parametrize(
    "is_one",
    [
        lambda line: line.isalpha() and line.islower(),
        lambda line: line.replace(" ", "").isalpha() and line.isupper(),
        lambda line: line.replace(" ", "").isalpha() and line.istitle(),
        lambda line: any(sign in line for sign in "$€£") and any(letter.isdigit() for letter in line),
        lambda line: len(line) == 10 and line.count("-") == 2 and line.replace("-", "").isdigit(),
        lambda line: line.isalnum() and not line.isalpha() and not line.isdigit() and line.isupper(),
        lambda line: any(sign in line for sign in ",;:?!()&@%\"'"),
        lambda line: not line.isascii() and any(letter in "äöüéñßèçÖ" for letter in line),
    ],
    ids=["word", "capitals", "name", "price", "date", "code", "punctuation", "accents"],
)
def test_text_is_words_names_prices_dates_codes_and_punctuation(
    is_one: Callable[[str], bool], cards: list[Postcard]
) -> None:
    lines = [line for card in cards if card.kind != "receipt" for line in card.text.splitlines()]
    assert sum(is_one(line) for line in lines) >= 5


def test_text_varies_so_much_that_it_must_be_read(cards: list[Postcard]) -> None:
    lines = [line for card in cards if card.kind != "receipt" for line in card.text.splitlines()]
    assert len({*lines}) > 0.9 * len(lines)
    assert max(len(line) for line in lines) <= words.LONGEST


def test_text_is_set_in_several_families_sizes_turns_light_and_dark(scenes: list[Scene]) -> None:
    families = Counter(line.face.partition("/")[0] for scene in scenes for line in scene.lines)
    assert len(families) >= 4
    assert min(families.values()) > 0.05 * families.total()
    sizes = [line.size / max(scene.width, scene.height) for scene in scenes for line in scene.lines]
    assert max(sizes) > 1.8 * min(sizes)
    turns = [line.angle for scene in scenes for line in scene.lines]
    assert 0 < max(turns) <= 5
    assert -5 <= min(turns) < 0
    assert 0.2 < sum(turn == 0 for turn in turns) / len(turns) < 0.8
    light = [sum(line.paint) > sum(line.label or scene.backdrop.light) for scene in scenes for line in scene.lines]
    assert 0.2 < sum(light) / len(light) < 0.8


def test_every_letter_that_is_printed_is_in_every_face(cards: list[Postcard]) -> None:
    letters = {letter for card in cards for letter in card.text} - {"\n", " "}
    for face in FACES:
        nothing = font(face, 40).getmask("\U0010fffe")
        for letter in letters:
            mask = font(face, 40).getmask(letter)
            assert (mask.size, bytes(mask)) != (nothing.size, bytes(nothing)), f"{face} has no {letter}"


def test_pictures_are_landscape_portrait_and_square_from_256_to_1280_pixels(cards: list[Postcard]) -> None:
    forms = Counter((card.width > card.height) - (card.width < card.height) for card in cards)
    assert {*forms} == {-1, 0, 1}
    assert min(forms.values()) > 0.1 * len(cards)
    long = [max(card.width, card.height) for card in cards]
    assert 256 <= min(long) < 300
    assert 1200 < max(long) <= 1280


def test_files_are_png_jpeg_of_several_qualities_and_webp(cards: list[Postcard]) -> None:
    formats = Counter(card.format for card in cards)
    assert {*formats} == {"PNG", "JPEG", "WEBP"}
    assert min(formats.values()) > 0.1 * len(cards)
    for name in ("JPEG", "WEBP"):
        assert len({card.quality for card in cards if card.format == name}) > 10


def test_file_bytes_open_as_their_format_with_the_size_that_is_stated() -> None:
    formats = set()
    for index in range(20):
        card = draw(SEED, index)
        with Image.open(io.BytesIO(card.data)) as opened:
            opened.load()
            assert (opened.format, opened.size, opened.mode) == (card.format, (card.width, card.height), "RGB")
        assert Path(card.name).suffix == {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}[card.format]
        formats.add(card.format)
    assert len(formats) == 3


def test_what_the_truth_names_stands_where_it_says_in_the_colour_it_says() -> None:
    looked_at = 0
    for index in range(80):
        scene = compose(SEED, index)
        picture, card = render(SEED, index, SEEN)
        scale = picture.width / scene.width
        for thing in scene.things:
            assert thing.facts in card.facts["objects"]
            column, row = int(3 * thing.x / scene.width), int(3 * thing.y / scene.height)
            assert POSITIONS[3 * row + column] == thing.facts["position"]
            if thing.facts["shape"] in ("ring", "crescent"):
                continue  # nothing is painted at their centre
            seen = picture.getpixel((int(thing.x * scale), int(thing.y * scale)))
            assert isinstance(seen, tuple)
            nearest = min(PAINT, key=lambda name: distance(PAINT[name], (seen[0], seen[1], seen[2])))
            assert nearest == thing.facts["color"], card.name
            looked_at += 1
    assert looked_at > 80


def inked(picture: Image.Image, line: Line, scale: float) -> float:
    """Share of the pixels around a line's centre that have its colour."""
    half = line.size * scale
    box = (line.x * scale - half, line.y * scale - half / 2, line.x * scale + half, line.y * scale + half / 2)
    pixels = np.asarray(picture.crop(tuple(round(edge) for edge in box))).astype(int)  # type: ignore[arg-type]
    return float((abs(pixels - line.paint).max(axis=-1) < 40).mean())


def test_every_line_of_the_truth_is_printed_and_can_be_told_from_what_is_behind_it() -> None:
    for index in range(60):
        scene = compose(SEED, index)
        picture, card = render(SEED, index, SEEN)
        if card.kind != "receipt":
            assert card.text == "\n".join(line.text for line in scene.lines)
        assert " ".join(line.text for line in scene.lines) == card.text.replace("\n", " ")
        for line in scene.lines:
            # Among two letters' width in the middle, some ink, and not nothing but ink.
            assert 0.005 < inked(picture, line, picture.width / scene.width) < 0.9, (card.name, line.text)
            grounds = [line.label] if line.label else [scene.backdrop.dark, scene.backdrop.light]
            if scene.sheet:
                grounds = [scene.sheet.paint]
            assert all(contrast(line.paint, ground) >= 4.5 for ground in grounds)


def test_lines_of_text_are_read_from_top_to_bottom(scenes: list[Scene]) -> None:
    for scene in scenes:
        middles = [line.y for line in scene.lines]
        if scene.kind != "receipt":
            assert middles == sorted(middles)


Box = tuple[float, float, float, float]


def around(x: float, y: float, width: float, height: float) -> Box:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def taken(scene: Scene) -> list[Box]:
    """The upright box of every object and, without its turn and label, of every piece of text."""
    boxes = [around(thing.x, thing.y, thing.extent, thing.extent) for thing in scene.things]
    for line in scene.lines:
        left, top, right, bottom = ink(line.face, line.size, line.text)
        boxes.append(around(line.x, line.y, right - left, bottom - top))
    return boxes


def test_objects_and_text_stand_whole_inside_the_picture_and_apart(scenes: list[Scene]) -> None:
    for scene in scenes:
        boxes = taken(scene)
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= scene.width
            assert 0 <= top < bottom <= scene.height
        for one, two in combinations(boxes, 2):
            assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]


def test_a_smaller_drawing_is_the_same_picture() -> None:
    for index in range(6):
        full, card = render(SEED, index)
        small, same = render(SEED, index, 224)
        assert same == card
        assert max(small.size) == 224
        reduced = full.resize(small.size, Image.Resampling.BOX)
        assert abs(np.asarray(reduced).astype(int) - np.asarray(small).astype(int)).mean() < 12


def command(*arguments: str, hash_seed: str = "1") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "demo.postcards", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
    )


def test_the_command_writes_the_files_and_their_truth_as_any_other_process_would(tmp_path: Path) -> None:
    finished = command("--out", str(tmp_path / "cards"), "--count", "7", "--seed", "5")
    assert finished.returncode == 0, finished.stderr
    assert "7 pictures" in finished.stdout
    told = [json.loads(line) for line in (tmp_path / "cards/truth.jsonl").read_text(encoding="utf-8").splitlines()]
    assert told == [card.truth() for card in postcards(5, 7)]
    assert {path.name for path in (tmp_path / "cards").iterdir()} == {"truth.jsonl", *(line["name"] for line in told)}
    for card in postcards(5, 7):
        assert (tmp_path / "cards" / card.name).read_bytes() == card.data


def test_the_command_explains_itself_and_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    said = command("--help").stdout
    assert all(option in said for option in ("--out", "--count", "--seed"))
    refused = command("--out", str(tmp_path), "--count", "-1")
    assert refused.returncode == 2
    assert "must not be negative" in refused.stderr


def test_a_contact_sheet_shows_the_first_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["--out", str(tmp_path), "--count", "6", "--seed", "5", "--contact-sheet", str(tmp_path / "s.png")]) == 0
    )
    assert "6 pictures" in capsys.readouterr().out
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size == (5 * 248 + 8, 2 * 268 + 8)
