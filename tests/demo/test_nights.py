from __future__ import annotations

from datetime import date

import pytest

from demo import nights
from demo.stack import SOURCE, Stack


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
    views = nights.follow(ready, runs, seen.append, dag_id="tiny", seconds=120)
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
    assert {view.state for view in nights.follow(ready, runs, seen.append, dag_id="tiny", seconds=120)} == {"success"}


def test_a_run_that_fails_is_reported_with_the_end_of_the_failing_tasks_log(ready: Stack) -> None:
    yesterday = nights.days_before()[0]
    run = nights.start_nightly(ready, yesterday, "tiny_failing")
    with pytest.raises(nights.RunFailed, match=r"(?s)ended as failed.*task fail \[-1\], try 1.*the cupboard is bare"):
        nights.follow(ready, [(yesterday, run)], lambda views: None, dag_id="tiny_failing", seconds=60)
