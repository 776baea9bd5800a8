from __future__ import annotations

import dataclasses
import typing
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from types import NoneType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.result import COLUMNS, RESULT_SCHEMA, Result, from_table, to_table
from tests.sink.rows import row

#: Parts outlive releases: a change here cannot read yesterday's parts, and the tables need a migration.
SCHEMA = """
day date32[day] not null · key string not null · etag string not null · version_id string · size int64 not null
sha256 string · width int32 · height int32 · outcome string not null · reason string not null · detail string not null
caption string · text string · has_text bool · recipe_id string not null · caption_answer_id string
text_answer_id string · model string not null · revision string not null · quantization string not null
attempts int16 not null · cached bool not null · tokens_in int32 not null · tokens_out int32 not null
latency_ms float · manifest_id string not null · shard int32 not null · part string not null
dag_run_id string not null · try_number int16 not null · annotated_at timestamp[us, tz=UTC] not null
"""

ROWS = [
    row(),
    row("图片/天 空%2F+?.png", caption="一只红色的猫。", text="营业时间：\n早上九点 😀", detail="é\t\"'\\N"),
    row("nul", text="a\x00b", caption=""),
    row("blank", text="", has_text=False),
    row("missing", Outcome.MISSING, sha256=None, width=None, height=None, latency_ms=None, version_id="v1"),
    row("big", size=2**40, tokens_in=2**31 - 1, attempts=2**15 - 1, shard=2**31 - 1),
]


def test_rows_come_back_from_a_part_exactly_as_they_were(tmp_path: Path) -> None:
    pq.write_table(to_table(ROWS), tmp_path / "part.parquet")
    assert from_table(pq.read_table(tmp_path / "part.parquet")) == ROWS


def test_blank_is_not_unknown() -> None:
    blank, unknown = from_table(to_table([row(text="", caption=""), row("b", text=None, caption=None)]))
    assert (blank.text, blank.caption) == ("", "")
    assert (unknown.text, unknown.caption) == (None, None)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_comes_back_as_itself(outcome: Outcome) -> None:
    assert from_table(to_table([row(outcome=outcome)]))[0].outcome is outcome


def test_a_time_keeps_its_moment_and_microseconds_whatever_its_zone() -> None:
    when = datetime(2026, 11, 21, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=8)))
    found = from_table(to_table([row(annotated_at=when)]))[0].annotated_at
    assert found == when
    assert found.utcoffset() == timedelta(0)


def test_no_rows_are_a_table_with_the_schema() -> None:
    assert to_table([]).schema == RESULT_SCHEMA
    assert from_table(to_table([])) == []


def test_an_outcome_nobody_knows_is_no_row() -> None:
    table = to_table([row()])
    position = COLUMNS.index("outcome")
    odd = table.set_column(position, RESULT_SCHEMA.field(position), pa.array(["fine"]))
    with pytest.raises(ValueError, match="fine"):
        from_table(odd)


def test_the_schema_is_what_parts_and_tables_were_made_with() -> None:
    fields = [f"{field.name} {field.type}{'' if field.nullable else ' not null'}" for field in RESULT_SCHEMA]
    assert fields == SCHEMA.strip().replace("\n", " · ").split(" · ")


def test_the_schema_says_what_the_class_says() -> None:
    hints = typing.get_type_hints(Result)
    kinds = {str: "string", int: "int", bool: "bool", float: "float", date: "date", datetime: "timestamp"}
    assert tuple(field.name for field in dataclasses.fields(Result)) == COLUMNS
    for field in RESULT_SCHEMA:
        parts = typing.get_args(hints[field.name]) or (hints[field.name],)
        (kind,) = [part for part in parts if part is not NoneType]
        assert field.nullable == (NoneType in parts), field.name
        assert str(field.type).startswith(kinds[str if kind is Outcome else kind]), field.name


def test_a_row_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        row().text = "x"  # type: ignore[misc]
