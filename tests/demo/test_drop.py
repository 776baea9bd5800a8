from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from demo import drop, postcards
from demo.hostile import HostileFile, hostile_files
from demo.parts import ObjectStore

IMAGES = 5


class Bucket:
    """A day's drop in a real bucket; `written` keeps the key of every write, in order."""

    def __init__(self, store: ObjectStore, day: date, truth: Path) -> None:
        store.bucket(drop.BUCKET)
        self.client = store.client()
        self.day = day
        self.truth = truth
        self.written: list[str] = []
        self.refused: set[str] = set()
        self.told_at_marker = ""
        self.client.meta.events.register("before-parameter-build.s3.PutObject", self._noted)

    def _noted(self, params: dict[str, Any], **_: Any) -> None:
        name = params["Key"].removeprefix(drop.prefix(self.day))
        if name in self.refused:
            raise ConnectionError("the network is gone")
        if name == drop.MARKER:
            self.told_at_marker = self.truth.read_text(encoding="utf-8")
        self.written.append(name)

    def fill(self, *, images: int = IMAGES, hostile: tuple[HostileFile, ...] = ()) -> drop.Filled:
        self.written.clear()
        return drop.fill(self.client, self.day, images=images, hostile=hostile, truth=self.truth)

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=drop.BUCKET, Key=drop.prefix(self.day) + name, Body=data)

    def data(self, name: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=drop.BUCKET, Key=drop.prefix(self.day) + name)["Body"].read()
        return data

    def names(self) -> set[str]:
        return {key.removeprefix(drop.prefix(self.day)) for key in drop.listing(self.client, self.day)}


_days = iter(range(1, 1000))


@pytest.fixture
def bucket(store: ObjectStore, tmp_path: Path) -> Bucket:
    """A day of its own for every test: the demo's bucket has one name."""
    return Bucket(store, date.fromordinal(700_000 + next(_days)), tmp_path / "truth" / "day.jsonl")


def test_a_day_is_filled_with_its_own_postcards(bucket: Bucket) -> None:
    assert bucket.fill() == drop.Filled(bucket.day, uploaded=IMAGES, kept=0)
    cards = [postcards.draw(drop.seed(bucket.day), index) for index in range(IMAGES)]
    assert {name: bucket.data(name) for name in bucket.names()} == {card.name: card.data for card in cards}


def test_two_days_hold_different_pictures() -> None:
    one, two = date(2026, 11, 20), date(2026, 11, 21)
    assert drop.prefix(one) == "images/2026-11-20/"
    assert postcards.plan(drop.seed(one), 0).caption != postcards.plan(drop.seed(two), 0).caption


def test_filling_again_writes_no_picture_and_keeps_every_etag(bucket: Bucket) -> None:
    hostile = hostile_files()
    assert bucket.fill(hostile=hostile).uploaded == IMAGES + len(hostile)
    before, told = drop.listing(bucket.client, bucket.day), bucket.truth.read_text(encoding="utf-8")
    assert bucket.fill(hostile=hostile) == drop.Filled(bucket.day, uploaded=0, kept=IMAGES + len(hostile))
    assert bucket.written == [drop.MARKER]
    assert drop.listing(bucket.client, bucket.day) == before
    assert bucket.truth.read_text(encoding="utf-8") == told


def test_the_marker_comes_last_when_the_truth_is_complete_and_is_no_image(bucket: Bucket) -> None:
    bucket.fill(hostile=hostile_files())
    assert bucket.written[-1] == drop.MARKER
    assert bucket.written.count(drop.MARKER) == 1
    assert bucket.told_at_marker == bucket.truth.read_text(encoding="utf-8")
    assert drop.MARKER not in bucket.names()
    assert bucket.data(drop.MARKER) == b""


def test_the_truth_has_a_line_for_every_picture_that_can_be_answered_for(bucket: Bucket) -> None:
    hostile = hostile_files()
    bucket.fill(hostile=hostile)
    told = {line["key"]: line for line in drop.read_truth(bucket.truth)}
    etags = drop.listing(bucket.client, bucket.day)
    expected = {card.name: card.truth() for card in (postcards.plan(drop.seed(bucket.day), n) for n in range(IMAGES))}
    expected |= {each.name: each.truth for each in hostile if each.truth}
    assert told == {
        drop.prefix(bucket.day) + name: json.loads(json.dumps(truth))
        | {"key": drop.prefix(bucket.day) + name, "etag": etags[drop.prefix(bucket.day) + name]}
        for name, truth in expected.items()
    }
    assert {*etags} - {*told} == {drop.prefix(bucket.day) + each.name for each in hostile if not each.outcome.is_ok}


def test_hostile_files_keep_their_bytes_and_their_odd_names(bucket: Bucket) -> None:
    bucket.fill(images=0, hostile=hostile_files())
    assert {name: bucket.data(name) for name in bucket.names()} == {each.name: each.data for each in hostile_files()}


def test_a_file_that_somebody_else_put_there_is_left_alone(bucket: Bucket) -> None:
    bucket.put("my own 照片.jpg", b"somebody's")
    bucket.fill()
    bucket.fill()
    assert bucket.data("my own 照片.jpg") == b"somebody's"
    assert len(drop.read_truth(bucket.truth)) == IMAGES


def test_a_smaller_start_after_a_larger_one_leaves_pictures_and_truth(bucket: Bucket) -> None:
    bucket.fill()
    assert bucket.fill(images=2) == drop.Filled(bucket.day, uploaded=0, kept=2)
    assert len(bucket.names()) == len(drop.read_truth(bucket.truth)) == IMAGES
    assert bucket.fill(images=IMAGES + 1) == drop.Filled(bucket.day, uploaded=1, kept=IMAGES)


def test_a_picture_that_was_lost_or_overwritten_is_put_back(bucket: Bucket) -> None:
    bucket.fill()
    told = bucket.truth.read_text(encoding="utf-8")
    lost, overwritten, *_ = sorted(bucket.names())
    bucket.client.delete_object(Bucket=drop.BUCKET, Key=drop.prefix(bucket.day) + lost)
    bucket.put(overwritten, b"scribble")
    assert bucket.fill() == drop.Filled(bucket.day, uploaded=2, kept=IMAGES - 2)
    assert {*bucket.written} == {lost, overwritten, drop.MARKER}
    assert bucket.truth.read_text(encoding="utf-8") == told


def test_a_picture_of_a_larger_start_that_somebody_replaced_is_no_longer_vouched_for(bucket: Bucket) -> None:
    bucket.fill()
    last = max(bucket.names())
    bucket.put(last, b"somebody's")
    bucket.fill(images=2)
    assert bucket.data(last) == b"somebody's"
    assert drop.prefix(bucket.day) + last not in {line["key"] for line in drop.read_truth(bucket.truth)}


def test_an_upload_that_fails_leaves_no_marker_and_the_next_start_uploads_what_is_missing_alone(bucket: Bucket) -> None:
    bucket.refused = {postcards.plan(drop.seed(bucket.day), 1).name}
    with pytest.raises(ConnectionError):
        bucket.fill()
    assert drop.MARKER not in bucket.written
    bucket.refused = set()
    assert bucket.fill() == drop.Filled(bucket.day, uploaded=1, kept=IMAGES - 1)
    assert len(drop.read_truth(bucket.truth)) == IMAGES
