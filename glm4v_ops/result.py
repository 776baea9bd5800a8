"""One row of the product: what became of one manifest row, with its provenance.

The same columns travel from the model to the tables: written to result parts (Parquet, `RESULT_SCHEMA`),
judged by the gate, copied into `annotations` (outcome ok) or `quarantine` (every other outcome).
Knows nothing of where parts are kept or how tables are written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import pyarrow as pa

from glm4v_ops.quality.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one manifest row. Units are in the field comments; None means "not known", never "empty"."""

    day: date
    key: str  # object key in the bucket, or the path given on the command line
    etag: str
    version_id: str | None
    size: int  # bytes, from the manifest
    sha256: str | None  # hex digest of the object's bytes; None when they were never read whole
    width: int | None  # pixels, upright (EXIF orientation applied), before scaling; None when not decoded
    height: int | None
    outcome: Outcome
    reason: str  # stable code, "" when ok
    detail: str  # a sentence for a person, "" when ok
    caption: str | None  # the raw answer; kept in quarantine too
    text: str | None  # the raw answer, "" means "the image holds no text"; None when never answered
    has_text: bool | None
    recipe_id: str
    caption_answer_id: str | None
    text_answer_id: str | None
    model: str
    revision: str
    quantization: str
    attempts: int  # generations run for this row: 0 when every answer came from the cache
    cached: bool  # every answer came from the cache, the model did not run
    tokens_in: int
    tokens_out: int
    latency_ms: float | None  # from the start of the batch to this row's last token, milliseconds; None when cached
    manifest_id: str
    shard: int
    part: str  # URI of the result part that holds this row
    dag_run_id: str  # Airflow's run id, or "cli"
    try_number: int  # Airflow's try that wrote the part, from 1; 0 outside Airflow
    annotated_at: datetime  # UTC


RESULT_SCHEMA = pa.schema(
    [
        pa.field("day", pa.date32(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("version_id", pa.string()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("sha256", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("caption", pa.string()),
        pa.field("text", pa.string()),
        pa.field("has_text", pa.bool_()),
        pa.field("recipe_id", pa.string(), nullable=False),
        pa.field("caption_answer_id", pa.string()),
        pa.field("text_answer_id", pa.string()),
        pa.field("model", pa.string(), nullable=False),
        pa.field("revision", pa.string(), nullable=False),
        pa.field("quantization", pa.string(), nullable=False),
        pa.field("attempts", pa.int16(), nullable=False),
        pa.field("cached", pa.bool_(), nullable=False),
        pa.field("tokens_in", pa.int32(), nullable=False),
        pa.field("tokens_out", pa.int32(), nullable=False),
        pa.field("latency_ms", pa.float32()),
        pa.field("manifest_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("dag_run_id", pa.string(), nullable=False),
        pa.field("try_number", pa.int16(), nullable=False),
        pa.field("annotated_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

#: Column names in their one order: of the Parquet parts, of COPY, of the command line's JSON.
COLUMNS: tuple[str, ...] = tuple(RESULT_SCHEMA.names)


def to_table(results: list[Result]) -> pa.Table:
    """Results as an Arrow table in `RESULT_SCHEMA`, in the given order."""
    return pa.Table.from_pylist([dataclasses.asdict(result) for result in results], schema=RESULT_SCHEMA)


def from_table(table: pa.Table) -> list[Result]:
    """The inverse of `to_table`."""
    return from_rows(table.to_pylist())


def from_rows(rows: Iterable[Mapping[str, Any]]) -> list[Result]:
    """Results from plain rows, as Parquet and the tables give them."""
    return [Result(**{**row, "outcome": Outcome(row["outcome"])}) for row in rows]
