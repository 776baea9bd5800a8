"""Result parts: the immutable Parquet objects in the work area that hold a shard's results.

A part is named for the manifest rows it holds, `results/<day>/<recipe_id>/<manifest_id>/<shard>/<start>-<end>.parquet`
with rows counted from 0 within the shard and `end` not included. It is written by one `put_object` that takes no
existing name, so it is there whole or not at all, and never changes; its name alone says which rows are done. Because
names are ranges and not ordinals, a run with another `part_size` still resumes after what is there, and `tables` reads
every row once even where parts overlap.

Knows nothing of how a result comes about, of tables, or of the gate: a missing part is not an error here, it is
simply rows that nobody reads back.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from glm4v_ops.errors import ManifestError
from glm4v_ops.result import RESULT_SCHEMA, Result, to_table
from glm4v_ops.settings import S3Uri
from glm4v_ops.source import store

if TYPE_CHECKING:
    S3Client = Any

_NAME = re.compile(r"/(?P<shard>\d{5})/(?P<start>\d{7})-(?P<end>\d{7})\.parquet$")


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Rows `start` to `end` of a shard, counted from 0, `end` not included."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """One result part that exists."""

    shard: int
    span: Span
    uri: str


def results_folder(work: S3Uri, *, day: date, recipe_id: str, manifest_id: str) -> S3Uri:
    """Where the parts of one run over one day lie: another recipe or another manifest has another folder."""
    return work.child("results", day.isoformat(), recipe_id, manifest_id)


def part_uri(folder: S3Uri, shard: int, span: Span) -> S3Uri:
    """The name of the part that holds `span` of `shard`."""
    return folder.child(f"{shard:05d}", f"{span.start:07d}-{span.end:07d}.parquet")


def existing(client: S3Client, folder: S3Uri, shard: int | None = None) -> list[Part]:
    """The parts under `folder` (of one shard, or of all), in order of shard and row."""
    under = folder.child(f"{shard:05d}", "") if shard is not None else folder.child("")
    found = []
    for key in store.list_keys(client, under):
        if match := _NAME.search(f"/{key}"):
            span = Span(int(match["start"]), int(match["end"]))
            found.append(Part(int(match["shard"]), span, str(S3Uri(folder.bucket, key))))
    return sorted(found)


def covered(parts: Sequence[Part], *, rows: int) -> int:
    """How many of a shard's `rows` lie in `parts`. Raises `ManifestError` for a part that reaches past the shard."""
    for part in parts:
        if part.span.end > rows or len(part.span) <= 0:
            raise ManifestError(
                f"part {part.uri} names rows that shard {part.shard} of {rows} rows does not have",
                remedy="delete that object; no run of this manifest wrote it",
            )
    return rows - sum(len(gap) for gap in _gaps(parts, rows))


def plan(parts: Sequence[Part], *, rows: int, part_size: int) -> list[Span]:
    """The parts still to write: the rows not in `parts`, in order, cut every `part_size` rows."""
    return [
        Span(start, min(start + part_size, gap.end))
        for gap in _gaps(parts, rows)
        for start in range(gap.start, gap.end, part_size)
    ]


def write(client: S3Client, uri: S3Uri, results: list[Result]) -> bool:
    """Write one part, whole or not at all; False when another wrote it meanwhile: what stands, stays."""
    buffer = io.BytesIO()
    pq.write_table(to_table(results), buffer, compression="zstd")
    return store.put_once(client, uri, buffer.getvalue(), "application/vnd.apache.parquet")


def read(client: S3Client, part: Part) -> pa.Table:
    """One part's rows. Raises `ManifestError` when it holds other columns or another number of rows than it should."""
    data = store.get_bytes(client, S3Uri.parse(part.uri, setting="part"))
    # In this thread alone: a process that exits right after Arrow's pool has read is now and then aborted.
    table = pq.ParquetFile(io.BytesIO(data), pre_buffer=False).read(use_threads=False)
    if table.num_rows != len(part.span) or table.schema.names != RESULT_SCHEMA.names:
        raise ManifestError(
            f"part {part.uri} holds {table.num_rows} rows of {len(table.schema.names)} columns, "
            f"not {len(part.span)} rows of {len(RESULT_SCHEMA.names)}",
            remedy="delete that object and run the shard again",
        )
    return table.cast(RESULT_SCHEMA)


def tables(client: S3Client, folder: S3Uri) -> Iterator[pa.Table]:
    """Every row under `folder` once, in order of shard and row, one part in memory at a time."""
    shard, reached = -1, 0
    for part in existing(client, folder):
        if part.shard != shard:
            shard, reached = part.shard, 0
        if part.span.end > reached:
            table = read(client, part)
            yield table.slice(max(0, reached - part.span.start))
            reached = part.span.end


def _gaps(parts: Sequence[Part], rows: int) -> Iterator[Span]:
    reached = 0
    for part in sorted(parts):
        if part.span.start > reached:
            yield Span(reached, part.span.start)
        reached = max(reached, part.span.end)
    if reached < rows:
        yield Span(reached, rows)
