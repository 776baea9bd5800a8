from __future__ import annotations

import gc
import hashlib
import io
import sys
import threading
import tracemalloc
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from glm4v_ops.errors import Cancelled, ImageRejected, StoreUnavailable
from glm4v_ops.pictures import Picture, decoded_ahead
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import ImageSection
from glm4v_ops.source.fetch import Fetched
from glm4v_ops.source.local import fetch_local, rows_of
from glm4v_ops.source.manifest import ManifestRow
from tests.shards import number_of, png


def fetched(number: int, data: bytes | None = None) -> Fetched:
    row = ManifestRow(f"{number}.png", "e", None, 1, datetime(2026, 11, 20, tzinfo=UTC), 0)
    return Fetched(row, png(number) if data is None else data, None)


Source = Callable[[threading.Event], Iterator[Fetched]]


def pictures(
    source: Source, *, ahead: int = 4, cancel: threading.Event | None = None
) -> Generator[Picture, None, None]:
    return decoded_ahead(
        source,
        limits=ImageSection(),
        decoders=2,
        ahead=ahead,
        cancel=cancel or threading.Event(),
    )


def counting(taken: list[int], many: int = 1000) -> Source:
    def source(stop: threading.Event) -> Iterator[Fetched]:
        for number in range(many):
            if stop.is_set():
                return
            taken.append(number)
            yield fetched(number)

    return source


def test_pictures_come_in_the_order_of_their_rows() -> None:
    found = list(pictures(counting([], 30)))
    assert [number_of(picture.decoded.image) for picture in found if picture.decoded] == list(range(30))
    assert [picture.row.key for picture in found] == [f"{number}.png" for number in range(30)]


def test_no_more_is_taken_from_the_source_than_may_wait() -> None:
    taken: list[int] = []
    with closing(pictures(counting(taken), ahead=4)) as found:
        for number in range(20):
            next(found)
            # Handed out, waiting in the queue, and the one the feeder holds.
            assert len(taken) <= (number + 1) + 4 + 1
    assert len(taken) <= 20 + 4 + 2


def test_closing_early_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with closing(pictures(counting([]))) as found:
        next(found)
    assert set(threading.enumerate()) <= before


def test_a_fault_of_the_source_is_raised_after_the_pictures_before_it() -> None:
    def source(stop: threading.Event) -> Iterator[Fetched]:
        yield from (fetched(number) for number in range(3))
        raise StoreUnavailable("gone")

    found = pictures(source)
    assert [next(found).row.key for _ in range(3)] == ["0.png", "1.png", "2.png"]
    with pytest.raises(StoreUnavailable, match="gone"):
        next(found)


def test_bytes_that_do_not_decode_are_a_rejected_picture_with_its_digest() -> None:
    gone = Fetched(fetched(1).row, None, ImageRejected(Outcome.MISSING, "gone"))

    def source(stop: threading.Event) -> Iterator[Fetched]:
        yield from (fetched(0, b"<html>"), gone, fetched(2))

    html, missing, fine = list(pictures(source))
    assert html.rejected
    assert missing.rejected
    assert (html.rejected.outcome, html.sha256) == (Outcome.UNSUPPORTED, hashlib.sha256(b"<html>").hexdigest())
    assert (missing.rejected.reason, missing.sha256, missing.decoded) == ("gone", None, None)
    assert (fine.rejected, fine.sha256) == (None, hashlib.sha256(png(2)).hexdigest())


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is let go here is let go at once, not when the collector comes round."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def images_alive() -> int:
    return sum(issubclass(type(each), Image.Image) for each in gc.get_objects())


@pytest.mark.usefixtures("no_collector")
def test_a_broken_picture_holds_neither_its_bytes_nor_its_pixels() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((400, 400), 80).save(buffer, "JPEG")
    broken = [buffer.getvalue()[: 30_000 + number] for number in range(20)]
    before, counts = images_alive(), [sys.getrefcount(data) for data in broken]

    def source(stop: threading.Event) -> Iterator[Fetched]:
        yield from (fetched(number, data) for number, data in enumerate(broken))

    found = list(pictures(source))
    assert [picture.rejected.reason for picture in found if picture.rejected] == ["truncated"] * 20
    assert images_alive() == before
    assert [sys.getrefcount(data) for data in broken] == counts


@pytest.mark.usefixtures("no_collector")
def test_a_file_over_the_byte_limit_is_not_kept(tmp_path: Path) -> None:
    for number in range(20):
        with (tmp_path / f"{number}.png").open("wb") as file:
            file.truncate(1_000_001)
    tracemalloc.start()
    try:
        found = list(pictures(lambda stop: fetch_local(rows_of([tmp_path]), max_bytes=1_000_000, cancel=stop)))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [picture.rejected.reason for picture in found if picture.rejected] == ["bytes"] * 20
    assert kept < 2_000_000


def test_cancel_is_heard_while_the_source_stalls() -> None:
    cancel = threading.Event()

    def source(stop: threading.Event) -> Iterator[Fetched]:
        yield fetched(0)
        cancel.set()
        stop.wait()

    with pytest.raises(Cancelled):
        list(pictures(source, cancel=cancel))
