from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from datetime import date
from types import SimpleNamespace
from typing import Any, cast

import pytest

from demo import nights
from demo.stack import SOURCE, Stack

#: A stack of its own on a busy machine.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def ready(stack: Stack) -> Stack:
    nights.wait_for_dag(stack, "tiny")
    nights.wait_for_dag(stack, "tiny_failing")
    return stack


def test_a_day_is_yesterday_or_before_in_utc() -> None:
    assert nights.days_before(date(2026, 3, 1)) == [date(2026, 2, 28), date(2026, 2, 27), date(2026, 2, 26)]


def test_yesterday_runs_as_scheduled_and_older_days_as_a_backfill_and_both_again(ready: Stack) -> None:
    yesterday, middle, oldest = nights.days_before()
    seen: list[list[nights.RunView]] = []
    runs = [(yesterday, nights.start_nightly(ready, yesterday, "tiny"))]
    assert runs[0][1].startswith("scheduled__")
    older = nights.start_backfill(ready, oldest, middle, "tiny")
    assert [run.split("__")[0] + run.split("__")[2] for run in older] == [f"backfill{oldest}", f"backfill{middle}"]
    runs += zip((oldest, middle), older, strict=True)
    views = nights.follow(ready, runs, seen.append, dag_id="tiny", seconds=240)
    assert [view.state for view in views] == ["success"] * 3
    assert views[0].tasks == {"look": "success", "work": "2 success"}
    assert views[0].labels == ("piece 1", "piece 2")
    assert len(seen) >= 2
    assert len(nights.summary(views)) == 3

    found = ready.api.get(f"dags/tiny/dagRuns/{runs[0][1]}/taskInstances/look/xcomEntries/return_value")["value"]
    assert found == {
        "endpoint": ready.store.endpoint,
        "login": ready.store.access_key,
        "schema": "glm4v",
        "source": SOURCE,
        "keys_in_environment": None,
    }

    again = nights.start_nightly(ready, yesterday, "tiny")
    assert again.startswith("manual__")
    second = nights.start_backfill(ready, oldest, middle, "tiny")
    assert not set(second) & set(older)
    runs = [(yesterday, again), *zip((oldest, middle), second, strict=True)]
    assert {view.state for view in nights.follow(ready, runs, seen.append, dag_id="tiny", seconds=240)} == {"success"}


class CutOff:
    """A stack that was stopped in the middle of a backfill: what Airflow knows of its days, and what it answers."""

    def __init__(self, states: dict[date, str], *, refusals: int = 0) -> None:
        self.runs = {day: [{"dag_run_id": f"old {day}", "state": state}] for day, state in states.items() if state}
        self.commands: list[tuple[str, ...]] = []
        self.api = self
        self._refusals = refusals

    def every(self, path: str, field: str, *, partition_key_prefix_pattern: str, **_: Any) -> Iterator[dict[str, Any]]:
        for run in self.runs.get(date.fromisoformat(partition_key_prefix_pattern), []):
            yield {**run, "partition_key": partition_key_prefix_pattern}

    def airflow(self, *command: str) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if len(self.commands) <= self._refusals:
            return subprocess.CompletedProcess(command, 1, "", "AlreadyRunningBackfill: Another backfill is running")
        for day in (FIRST, LAST):
            self.runs.setdefault(day, []).append({"dag_run_id": f"new {day}", "state": "queued"})
        return subprocess.CompletedProcess(command, 0, "", "")


FIRST, LAST = date(2026, 3, 1), date(2026, 3, 2)


@pytest.mark.parametrize("first", ["success", "running", "queued"])
def test_a_backfill_that_was_cut_off_goes_on_and_is_not_made_again(first: str) -> None:
    stack = CutOff({FIRST: first, LAST: "queued"})
    assert nights.start_backfill(cast(Stack, stack), FIRST, LAST) == [f"old {FIRST}", f"old {LAST}"]
    assert stack.commands == []


def test_a_backfill_of_which_a_day_failed_is_made_again_when_airflow_has_ended_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 * len(waits))
    stack = CutOff({FIRST: "failed", LAST: "running"}, refusals=9)
    assert nights.start_backfill(cast(Stack, stack), FIRST, LAST) == [f"new {FIRST}", f"new {LAST}"]
    assert len(stack.commands) == 10


def test_days_that_are_done_are_run_again() -> None:
    stack = CutOff({FIRST: "success", LAST: "success"})
    assert nights.start_backfill(cast(Stack, stack), FIRST, LAST) == [f"new {FIRST}", f"new {LAST}"]
    [command] = stack.commands
    assert command[-2:] == ("--reprocess-behavior", "completed")


def test_a_day_that_is_no_longer_yesterday_is_triggered_by_its_key() -> None:
    posted: list[Any] = []

    def post(path: str, body: Any) -> dict[str, str]:
        posted.append(body)
        return {"dag_run_id": "manual"}

    api = SimpleNamespace(every=lambda *_, **__: iter(()), patch=lambda path, body: None, post=post)
    stack = SimpleNamespace(api=api, check=lambda: None)
    assert nights.start_nightly(cast(Stack, stack), FIRST) == "manual"
    assert [body["partition_key"] for body in posted] == [FIRST.isoformat()]


def test_a_run_that_fails_is_reported_with_the_end_of_the_failing_tasks_log(ready: Stack) -> None:
    yesterday = nights.days_before()[0]
    run = nights.start_nightly(ready, yesterday, "tiny_failing")
    with pytest.raises(nights.RunFailed, match=r"(?s)ended as failed.*task fail \[-1\], try 1.*the cupboard is bare"):
        nights.follow(ready, [(yesterday, run)], lambda views: None, dag_id="tiny_failing", seconds=240)
