from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from demo import drop
from demo.hostile import SEED, HostileFile, hostile_files
from demo.postcards import render
from demo.stack import ROOT
from glm4v_ops.errors import ImageRejected
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import ImageSection, load_recipe
from glm4v_ops.source.image import decode

FILES = {each.name: each for each in hostile_files()}
BROKEN = ("empty.jpg", "half-a-picture.png", "half-a-picture.jpg", "not-found.jpg", "poster.png")
#: The images among them, and which card of the series each one shows.
CARDS = {
    "waving.gif": 114,
    "print-shop-cmyk.jpg": 560,
    "phone-held-sideways.jpg": 11,
    "scan-16-bit.png": 274,
    "sticker.png": 565,
    "秋日 茶馆%2F菜单 no 7.png": 428,
}


def opened(name: str) -> Image.Image:
    return Image.open(io.BytesIO(FILES[name].data))


def difference(image: Image.Image, other: Image.Image) -> float:
    """Mean difference of a channel, 0-255."""
    assert image.size == other.size
    return float(np.asarray(ImageChops.difference(image, other)).mean())


def png_header(data: bytes) -> tuple[int, int, int, int]:
    """Width, height, bits a channel, kind of pixel."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    return width, height, depth, colour


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("hostile", FILES.values(), ids=lambda each: each.name)
def test_each_file_decodes_or_is_rejected_as_it_says_under_every_recipe(hostile: HostileFile, recipe: Path) -> None:
    limits = load_recipe(recipe).image
    if hostile.outcome.is_ok:
        decoded = decode(hostile.data, limits)
        assert hostile.truth is not None
        assert (decoded.width, decoded.height) == (hostile.truth["width"], hostile.truth["height"])
        assert hostile.reason == ""
    else:
        with pytest.raises(ImageRejected) as caught:
            decode(hostile.data, limits)
        assert (caught.value.outcome, caught.value.reason) == (hostile.outcome, hostile.reason)


def test_the_files_are_the_ones_a_drop_must_survive() -> None:
    assert [*FILES] == [*BROKEN, *CARDS]
    assert {name: FILES[name].outcome for name in BROKEN} == {
        "empty.jpg": Outcome.UNREADABLE,
        "half-a-picture.png": Outcome.UNREADABLE,
        "half-a-picture.jpg": Outcome.UNREADABLE,
        "not-found.jpg": Outcome.UNSUPPORTED,
        "poster.png": Outcome.OVERSIZED,
    }
    assert {FILES[name].outcome for name in CARDS} == {Outcome.OK}
    assert len(hostile_files()) == len(FILES), "no name twice"
    assert all(each.says for each in FILES.values())


def test_broken_files_are_broken_in_the_way_their_names_say() -> None:
    assert FILES["empty.jpg"].data == b""
    assert (opened("half-a-picture.png").format, opened("half-a-picture.jpg").format) == ("PNG", "JPEG")
    assert b"<html>" in FILES["not-found.jpg"].data
    poster = FILES["poster.png"].data
    assert png_header(poster)[:2] == (30_000, 30_000)
    assert len(poster) < 120_000


def test_unusual_files_are_unusual_in_the_way_their_names_say() -> None:
    assert getattr(opened("waving.gif"), "n_frames") > 1  # noqa: B009 - a reader's own attribute, unknown to its base class
    assert opened("print-shop-cmyk.jpg").mode == "CMYK"
    assert b"Adobe" in FILES["print-shop-cmyk.jpg"].data, "the sign that the inks are inverted"
    assert opened("phone-held-sideways.jpg").getexif()[0x0112] == 6
    assert png_header(FILES["scan-16-bit.png"].data)[2:] == (16, 2)
    assert opened("sticker.png").mode == "P"
    assert opened("sticker.png").has_transparency_data
    (odd,) = [name for name in CARDS if not name.isascii()]
    assert " " in odd
    assert "%2F" in odd
    assert any("\u4e00" <= letter <= "\u9fff" for letter in odd)


@pytest.mark.parametrize("name", CARDS)
def test_each_image_shows_its_postcard_and_carries_its_truth(name: str) -> None:
    picture, card = render(SEED, CARDS[name])
    assert FILES[name].truth == {**card.truth(), "name": name}
    assert json.loads(json.dumps(FILES[name].truth)) == FILES[name].truth
    # Not 0: JPEG and palettes cost a little, and the sticker's own white is not quite that of the page it is laid on.
    assert difference(decode(FILES[name].data, ImageSection()).image, picture) < 6
    assert card.text, "something to read"
    assert card.facts["objects"], "something to see"


def test_readers_that_ignore_what_is_unusual_see_another_picture() -> None:
    picture = {name: render(SEED, index)[0] for name, index in CARDS.items()}
    animation = opened("waving.gif")
    animation.seek(1)
    assert difference(animation.convert("RGB"), picture["waving.gif"]) > 10
    assert opened("phone-held-sideways.jpg").size != picture["phone-held-sideways.jpg"].size
    assert difference(opened("sticker.png").convert("RGB"), picture["sticker.png"]) > 100


def test_the_bytes_are_the_same_in_another_process_and_small() -> None:
    code = "import sys, demo.hostile as h; [sys.stdout.buffer.write(each.data) for each in h.hostile_files()]"
    environ = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, check=True)
    together = b"".join(each.data for each in hostile_files())
    assert other.stdout == together
    assert len(together) < 1_000_000


def test_no_day_has_the_series_that_these_come_from() -> None:
    assert drop.seed(date.max) < SEED
