from __future__ import annotations

import dataclasses
from datetime import date, timedelta

import pytest

from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.result import Result, to_table
from glm4v_ops.sink.postgres import publish
from glm4v_ops.sink.queries import days, digest_of_day, quarantine, show
from tests.sink.rows import DAY, row, run_info

BEFORE = DAY - timedelta(days=1)


def _on(day: date, rows: list[Result]) -> list[Result]:
    return [dataclasses.replace(result, day=day) for result in rows]


ROWS = [
    row("a"),
    row("b", Outcome.EMPTY, reason="no_answer"),
    row("c", Outcome.GARBLED, reason="mojibake"),
    row("d", Outcome.GARBLED, reason="control_token"),
]


@pytest.fixture
def published(tables: str) -> str:
    for day, dag_run in ((BEFORE, "run-0"), (DAY, "run-1")):
        info = run_info(4, dag_run_id=dag_run, images_per_s=2.5)
        publish(tables, day=day, tables=[to_table(_on(day, ROWS))], run=info)
    return tables


def test_days_are_the_latest_run_of_each_newest_first(published: str) -> None:
    publish(published, day=BEFORE, tables=[to_table(_on(BEFORE, ROWS[:2]))], run=run_info(2, dag_run_id="run-2"))
    found = days(published)
    assert [(day.day, day.dag_run_id, day.manifest_rows, day.ok, day.quarantined) for day in found] == [
        (DAY, "run-1", 4, 1, 3),
        (BEFORE, "run-2", 2, 1, 1),
    ]
    assert found[0].by_outcome == {Outcome.OK: 1, Outcome.EMPTY: 1, Outcome.GARBLED: 2}
    assert (found[0].images_per_s, found[0].recipe_name, found[0].model) == (2.5, "demo", "demo/model")
    assert found[0].content_digest == digest_of_day(published, DAY)
    assert days(published, limit=1) == found[:1]


def test_a_key_is_shown_on_every_day_and_in_either_table(published: str) -> None:
    publish(published, day=BEFORE, tables=[to_table(_on(BEFORE, ROWS[1:]))], run=run_info(3, dag_run_id="run-2"))
    assert show(published, "a") == [ROWS[0]]
    assert show(published, "b") == [ROWS[1], *_on(BEFORE, ROWS[1:2])]
    assert show(published, "%") == []


def test_quarantine_is_filtered_by_day_outcome_and_reason(published: str) -> None:
    assert quarantine(published) == ROWS[1:] + _on(BEFORE, ROWS[1:])
    assert quarantine(published, day=BEFORE) == _on(BEFORE, ROWS[1:])
    assert quarantine(published, day=DAY, outcome=Outcome.GARBLED) == ROWS[2:]
    assert quarantine(published, reason="mojibake", limit=1) == [ROWS[2]]
    assert quarantine(published, outcome=Outcome.REFUSED) == []


def test_the_digest_of_a_day_sees_both_tables_and_no_other_day(published: str) -> None:
    nothing = digest_of_day(published, DAY + timedelta(days=1))
    assert len({nothing, digest_of_day(published, DAY), digest_of_day(published, BEFORE)}) == 3
    before = digest_of_day(published, DAY)
    changed = [*ROWS[:3], dataclasses.replace(ROWS[3], detail="another")]
    publish(published, day=BEFORE, tables=[to_table(_on(BEFORE, changed))], run=run_info(4, dag_run_id="run-3"))
    assert digest_of_day(published, DAY) == before
    publish(published, day=DAY, tables=[to_table(changed)], run=run_info(4, dag_run_id="run-3"))
    assert digest_of_day(published, DAY) != before
