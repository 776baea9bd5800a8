from __future__ import annotations

import threading
from collections import deque
from itertools import islice
from math import ceil, floor
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import PreTrainedTokenizerFast

from demo.blueprint import PATCH, build_image_processor
from demo.fonts import font, ink
from demo.postcards import draw, plan, render
from demo.scene import Line, Scene, compose
from demo.stack import ROOT
from demo.stream import (
    CAPTION_TOKENS,
    LETTERS,
    PARCEL,
    TEXT_TOKENS,
    Drawing,
    Parcel,
    Ring,
    Stream,
    letters_in_patches,
    to_model_size,
)
from glm4v_ops.recipe import load_recipe
from glm4v_ops.source.image import decode
from tests.demo.processes import asked, command_line

STOP = 256
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parcels(tokenizer: PreTrainedTokenizerFast) -> list[Parcel]:
    """The first that a worker of its own would hand on."""
    return [*islice(Drawing(tokenizer, STOP, seed=3, first=0), 2)]


def test_a_picture_reaches_the_model_in_training_exactly_as_in_the_pipeline() -> None:
    recipe, processor = load_recipe(ROOT / "recipes" / "demo.yaml"), build_image_processor()
    compared = 0
    for index in range(20):
        card = draw(5, index)
        if card.format != "PNG":  # the others lose a little in the file
            continue
        asked = processor(images=[decode(card.data, recipe.image).image], return_tensors="pt")
        trained = processor(images=[to_model_size(render(5, index)[0])], return_tensors="pt")
        assert torch.equal(asked["image_grid_thw"], trained["image_grid_thw"])
        assert torch.equal(asked["pixel_values"], trained["pixel_values"])
        compared += 1
    assert compared >= 5


def test_a_mark_names_its_patch_by_the_place_at_which_the_processor_hands_it_to_the_vision_tower() -> None:
    processor = build_image_processor()
    for columns, rows in ((24, 16), (16, 24)):
        width, height = columns * PATCH, rows * PATCH
        scene = next(scene for scene in (compose(3, index) for index in range(99)) if len(scene.letters) > 20)
        marks = letters_in_patches(scene, width, height)
        for (_, x, y), (patch, _) in zip(scene.letters, marks, strict=False):
            column, row = int(x * columns), int(y * rows)
            image = Image.new("RGB", (width, height))
            image.paste("white", (column * PATCH, row * PATCH, (column + 1) * PATCH, (row + 1) * PATCH))
            values = processor(images=[image], return_tensors="pt")["pixel_values"]
            assert values.mean(dim=1).argmax() == patch


def inks(scene: Scene, line: Line) -> list[tuple[str, np.ndarray]]:
    """Every letter of a line with the pixels of the full-size picture that it alone covers."""
    size = round(4 * line.size) / 4  # as it is painted
    left, top, right, bottom = ink(line.face, size, line.text)
    face, found = font(line.face, size), []
    before = np.zeros((scene.height, scene.width), bool)
    for end in range(1, len(line.text) + 1):
        mask = Image.new("L", (right - left + 2, bottom - top + 2))
        ImageDraw.Draw(mask).text((1 - left, 1 - top), line.text[:end], fill=255, font=face, anchor="ls")
        turned = mask.rotate(line.angle, Image.Resampling.BICUBIC, expand=True)
        picture = Image.new("L", (scene.width, scene.height))
        picture.paste(turned, (round(line.x - turned.width / 2), round(line.y - turned.height / 2)))
        now = np.asarray(picture) > 100
        found.append((line.text[end - 1], now & ~before))
        before = now
    return found


def test_a_mark_lies_on_the_ink_of_its_letter() -> None:
    """Letters are taken from the drawn line one by one, so a neighbour's ink does not count."""
    hit: list[bool] = []
    turned = 0
    for index in range(40):
        scene = compose(77, index)
        if not scene.lines or max(scene.width, scene.height) > 900:
            continue
        picture = np.asarray(render(77, index)[0]).astype(int)
        width, height = to_model_size(Image.new("RGB", (scene.width, scene.height))).size
        marks = iter(letters_in_patches(scene, width, height))
        for line in scene.lines:
            turned += bool(line.angle)
            for letter, covered in inks(scene, line):
                if letter == " " or not letter.isascii():
                    continue
                patch, code = next(marks)
                if patch < 0:  # more letters than are told
                    break
                assert chr(code) == letter
                if not letter.isalnum():
                    continue
                if covered.sum() > 20:  # the line's own colour stands there in the picture, but for soft edges
                    assert (abs(picture[covered] - line.paint).max(axis=1) < 150).mean() > 0.5
                cell, within = divmod(int(patch), 4)
                row = cell // (width // 28) * 2 + within // 2
                column = cell % (width // 28) * 2 + within % 2
                rows = slice(
                    floor(row * PATCH / height * scene.height), ceil((row + 1) * PATCH / height * scene.height)
                )
                columns = slice(
                    floor(column * PATCH / width * scene.width), ceil((column + 1) * PATCH / width * scene.width)
                )
                hit.append(bool(covered[rows, columns].any()))
    assert turned > 3
    assert len(hit) > 250
    assert np.mean(hit) > 0.99


def test_a_parcel_holds_pictures_of_one_size_with_their_answers(
    parcels: list[Parcel], tokenizer: PreTrainedTokenizerFast
) -> None:
    truth = {(card.caption, card.text): card for card in (plan(3, index) for index in range(400))}
    for parcel in parcels:
        assert (parcel.pixels.dtype, parcel.pixels.shape[0], parcel.pixels.shape[3]) == (torch.uint8, PARCEL, 3)
        assert all(side % 28 == 0 for side in parcel.pixels.shape[1:3])
        assert parcel.captions.shape == (PARCEL, CAPTION_TOKENS)
        assert parcel.texts.shape == (PARCEL, TEXT_TOKENS)
        assert parcel.letters.shape == (PARCEL, LETTERS, 2)
        assert {each.dtype for each in parcel[1:]} == {torch.int16}
        for captions, texts, letters in zip(*parcel[1:], strict=True):
            caption, text = said(tokenizer, captions), said(tokenizer, texts)
            card = truth[caption, text]
            marked = "".join(chr(code) for patch, code in letters.tolist() if patch >= 0)
            told = [letter for letter in text.replace("\n", "").replace(" ", "") if letter.isascii()][:LETTERS]
            assert sorted(marked) == sorted(told) if card.kind != "receipt" else marked == "".join(told)


def said(tokenizer: PreTrainedTokenizerFast, row: torch.Tensor) -> str:
    """The answer whose tokens these are; it ends with the stop token, and nothing but -1 follows."""
    tokens = row.tolist()
    end = tokens.index(STOP)
    assert set(tokens[end + 1 :]) <= {-1}
    return str(tokenizer.decode(tokens[:end]))


def test_no_answer_is_longer_than_what_is_kept_of_it(tokenizer: PreTrainedTokenizerFast) -> None:
    for index in range(800):
        card = plan(0, index)
        assert len(tokenizer(card.caption).input_ids) < CAPTION_TOKENS
        assert len(tokenizer(card.text).input_ids) < TEXT_TOKENS


def test_the_same_seed_draws_the_same_pictures_and_another_seed_or_start_others(
    parcels: list[Parcel], tokenizer: PreTrainedTokenizerFast
) -> None:
    again = next(iter(Drawing(tokenizer, STOP, seed=3, first=0)))
    assert all(torch.equal(one, two) for one, two in zip(parcels[0], again, strict=True))
    for seed, first in ((4, 0), (3, 1000)):
        other = next(iter(Drawing(tokenizer, STOP, seed=seed, first=first)))
        assert not torch.equal(other.captions, again.captions)


def numbered(number: int) -> Parcel:
    pixels = torch.full((PARCEL, 4, 4, 3), number, dtype=torch.uint8)
    return Parcel(pixels, *(torch.full((PARCEL, 2), number, dtype=torch.int16) for _ in range(3)))


def test_a_ring_gives_only_what_it_has_been_given_and_forgets_the_oldest() -> None:
    generator = torch.Generator().manual_seed(0)
    ring = Ring(numbered(1), 2 * PARCEL, CPU)

    def held() -> set[int]:
        columns = ring.sample(200, generator)
        assert all(torch.equal(columns[0][:, 0, 0, 0].int(), column[:, 0].int()) for column in columns[1:])
        return {*columns[1][:, 0].tolist()}

    for number, expected in ((1, {1}), (2, {1, 2}), (3, {2, 3}), (4, {3, 4})):
        ring.add(numbered(number))
        assert held() == expected
    assert ring.seen == 4 * PARCEL


class Giving:
    """A tokenizer that fails after so many answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, answers: int) -> None:
        self.tokenizer, self.left = tokenizer, answers

    def __call__(self, text: str, **options: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("out of ink")
        return self.tokenizer(text, **options)


def stream(tokenizer: Any, *, workers: int = 0) -> Stream:
    return Stream(tokenizer, STOP, seed=3, first=0, workers=workers, capacity=64, device=CPU)


def test_a_drawing_that_fails_is_raised_by_the_batch_that_comes_to_it(tokenizer: PreTrainedTokenizerFast) -> None:
    with stream(Giving(tokenizer, 2 * 100)) as failing:
        failing.fill(1, wait=True)
        with pytest.raises(RuntimeError, match="drawing postcards failed") as caught:
            deque(iter(lambda: failing.batch(4), None), maxlen=0)  # one after the other, without an end of its own
        assert str(caught.value.__cause__) == "out of ink"
        assert failing.drawn >= PARCEL


def test_a_batch_asked_for_before_anything_is_drawn_waits(tokenizer: PreTrainedTokenizerFast) -> None:
    with stream(tokenizer) as drawing:
        pixels, captions, texts, letters = drawing.batch(5)
    assert len(pixels) == len(captions) == len(texts) == len(letters) == 5
    assert {*map(tuple, captions.tolist())} <= {tuple(row) for row in drawn_so_far(drawing)}


def drawn_so_far(drawing: Stream) -> list[list[int]]:
    return [row for ring in drawing._rings.values() for row in ring.columns[1][: ring.seen].tolist()]


def test_worker_processes_draw_the_same_and_are_gone_after_close(
    parcels: list[Parcel], tokenizer: PreTrainedTokenizerFast
) -> None:
    here = psutil.Process()
    before = {each.pid for each in here.children(recursive=True)}
    threads = {*threading.enumerate()}
    with stream(tokenizer, workers=1) as drawing:
        drawing.fill(1, wait=True)
        [ring] = drawing._rings.values()
        assert torch.equal(ring.columns[0][:PARCEL], parcels[0].pixels)
        assert {each.pid for each in here.children(recursive=True)} - before
    drawing.close()
    # The loader does not join its queue's feeder, nor the fork server its children at once: both are about to end.
    for thread in {*threading.enumerate()} - threads:
        thread.join(30)
    assert {*threading.enumerate()} <= threads
    # What serves forks to whoever asks stays, it is the interpreter's own.
    left = [each for each in here.children(recursive=True) if each.pid not in before]
    assert not [line for line in asked(left, command_line) if "forkserver" not in line and "tracker" not in line]
    forks = [child for children in asked(left, psutil.Process.children) for child in children]
    _, alive = psutil.wait_procs(forks, timeout=30)
    assert not alive


def test_close_does_not_wait_for_anyone_to_take_what_is_drawn(tokenizer: PreTrainedTokenizerFast) -> None:
    full = stream(tokenizer)
    full._waiting.maxsize = 1
    full.fill(1, wait=True)
    full.close()
    assert not full._collector.is_alive()
