from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.parts import ObjectStore
from glm4v_ops import parts
from glm4v_ops.errors import ManifestError
from glm4v_ops.parts import Part, Span
from glm4v_ops.result import from_table
from glm4v_ops.settings import S3Uri
from tests.airflow.home import ROOT
from tests.shards import DAY
from tests.sink.rows import row


def part(start: int, end: int, shard: int = 0) -> Part:
    return Part(shard, Span(start, end), f"s3://work/{shard}/{start}-{end}")


@pytest.fixture
def folder(store: ObjectStore) -> S3Uri:
    return parts.results_folder(S3Uri(store.new_bucket(), "glm4v"), day=DAY, recipe_id="r" * 16, manifest_id="m" * 12)


def write(store: ObjectStore, folder: S3Uri, shard: int, start: int, end: int) -> None:
    rows = [row(f"{shard}/{number}", shard=shard) for number in range(start, end)]
    parts.write(store.client(), parts.part_uri(folder, shard, Span(start, end)), rows)


def test_a_part_is_named_for_day_recipe_manifest_shard_and_rows() -> None:
    folder = parts.results_folder(S3Uri("work", "glm4v"), day=DAY, recipe_id="rrr", manifest_id="mmm")
    uri = str(parts.part_uri(folder, 3, Span(256, 512)))
    assert uri == "s3://work/glm4v/results/2026-11-20/rrr/mmm/00003/0000256-0000512.parquet"


def test_without_parts_the_plan_is_the_whole_shard_in_pieces() -> None:
    assert parts.plan([], rows=10, part_size=4) == [Span(0, 4), Span(4, 8), Span(8, 10)]
    assert parts.plan([], rows=0, part_size=4) == []


def test_the_plan_fills_the_gaps_and_touches_nothing_else() -> None:
    found = [part(4, 8), part(9, 12)]
    assert parts.plan(found, rows=20, part_size=5) == [Span(0, 4), Span(8, 9), Span(12, 17), Span(17, 20)]
    assert parts.covered(found, rows=20) == 7


def test_overlapping_parts_cover_their_rows_once() -> None:
    found = [part(0, 8), part(5, 10), part(6, 7)]
    assert parts.covered(found, rows=12) == 10
    assert parts.plan(found, rows=12, part_size=5) == [Span(10, 12)]


def test_a_part_past_the_end_of_its_shard_is_a_contradiction() -> None:
    with pytest.raises(ManifestError, match="shard 0 of 6 rows"):
        parts.covered([part(4, 8)], rows=6)


def test_parts_come_back_in_order_of_shard_and_row(store: ObjectStore, folder: S3Uri) -> None:
    for shard, start, end in ((1, 0, 2), (0, 2, 5), (0, 0, 2)):
        write(store, folder, shard, start, end)
    tables = list(parts.tables(store.client(), folder))
    assert [key for table in tables for key in table["key"].to_pylist()] == [
        "0/0",
        "0/1",
        "0/2",
        "0/3",
        "0/4",
        "1/0",
        "1/1",
    ]
    assert [found.shard for found in parts.existing(store.client(), folder)] == [0, 0, 1]
    assert [found.span for found in parts.existing(store.client(), folder, 0)] == [Span(0, 2), Span(2, 5)]


def test_rows_in_two_parts_are_read_once(store: ObjectStore, folder: S3Uri) -> None:
    for start, end in ((0, 4), (2, 6), (3, 5)):
        write(store, folder, 0, start, end)
    keys = [key for table in parts.tables(store.client(), folder) for key in table["key"].to_pylist()]
    assert keys == [f"0/{number}" for number in range(6)]


def test_a_row_survives_the_part_unchanged(store: ObjectStore, folder: S3Uri) -> None:
    written = row("图片/一 %2F.png", caption="一只红色的圆。", text="", has_text=False)
    parts.write(store.client(), parts.part_uri(folder, 0, Span(0, 1)), [written])
    assert [each for table in parts.tables(store.client(), folder) for each in from_table(table)] == [written]


def test_a_part_that_stands_never_changes(store: ObjectStore, folder: S3Uri) -> None:
    uri = parts.part_uri(folder, 0, Span(0, 1))
    first, second = row("a.png", caption="first"), row("a.png", caption="second")
    assert parts.write(store.client(), uri, [first]) is True
    assert parts.write(store.client(), uri, [second]) is False
    assert [each for table in parts.tables(store.client(), folder) for each in from_table(table)] == [first]


def test_of_many_who_write_the_same_part_at_once_one_does(store: ObjectStore, folder: S3Uri) -> None:
    uri, client = parts.part_uri(folder, 0, Span(0, 1)), store.client()
    with ThreadPoolExecutor(8) as threads:
        written = list(threads.map(lambda number: parts.write(client, uri, [row(f"{number}.png")]), range(8)))
    assert written.count(True) == 1
    [found] = [each for table in parts.tables(client, folder) for each in from_table(table)]
    assert found.key == f"{written.index(True)}.png"


#: Reads the part that it is given, and prints how many threads the process has before and after.
READING = """
import os, sys
from glm4v_ops import parts
from glm4v_ops.source import store
client, folder = store.client(), parts.S3Uri.parse(sys.argv[1], setting="folder")
[part] = parts.existing(client, folder)
store.get_bytes(client, parts.S3Uri.parse(part.uri, setting="part"))
before = len(os.listdir("/proc/self/task"))
assert parts.read(client, part).num_rows == 2
print(before, len(os.listdir("/proc/self/task")))
"""


def test_reading_a_part_starts_no_thread_for_the_end_of_the_process_to_meet(store: ObjectStore, folder: S3Uri) -> None:
    write(store, folder, 0, 0, 2)
    environ = {**os.environ, **store.environ(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", READING, str(folder)]
    before, after = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()
    assert before == after


def test_a_part_with_fewer_rows_than_its_name_says_is_refused(store: ObjectStore, folder: S3Uri) -> None:
    parts.write(store.client(), parts.part_uri(folder, 0, Span(0, 3)), [row("a"), row("b")])
    with pytest.raises(ManifestError, match="holds 2 rows"):
        list(parts.tables(store.client(), folder))


def test_a_part_with_other_columns_is_refused(store: ObjectStore, folder: S3Uri) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"key": ["a"]}), buffer)
    uri = parts.part_uri(folder, 0, Span(0, 1))
    store.client().put_object(Bucket=uri.bucket, Key=uri.key, Body=buffer.getvalue())
    with pytest.raises(ManifestError, match="1 columns"):
        list(parts.tables(store.client(), folder))


def test_other_objects_in_the_folder_are_let_be(store: ObjectStore, folder: S3Uri) -> None:
    write(store, folder, 0, 0, 2)
    other = folder.child("00000", "notes.txt")
    store.client().put_object(Bucket=other.bucket, Key=other.key, Body=b"x")
    assert len(parts.existing(store.client(), folder)) == 1
