"""The demo's days as DAG runs: yesterday as the nightly run, the days before as one backfill, followed to their end.

Uses what an operator would: unpause, `airflow backfill create`, a trigger with a partition key. Knows nothing of what
the DAG does; "done" is what Airflow says.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

from demo.airflow_api import AirflowApi
from demo.stack import Stack
from glm4v_ops.errors import Glm4vError

DAG = "nightly_annotation"
_UNFINISHED = ("queued", "running")
#: Seconds until a fresh Airflow has read the DAG file, or made the run that is due after unpausing.
_PATIENCE = 120
#: Seconds for one DAG run's whole way; the demo's takes one minute.
_RUN_SECONDS = 1800


class RunFailed(Glm4vError):
    """A run did not succeed; the message holds the end of the failing task's log."""


@dataclass(frozen=True, slots=True)
class RunView:
    """One run as it stands now. `tasks` are states in the DAG's order of starting, `labels` those of mapped tasks."""

    day: date
    run_id: str
    state: str
    tasks: dict[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return self.state not in _UNFINISHED


def wait_for_dag(stack: Stack, dag_id: str = DAG, patience: float = _PATIENCE) -> None:
    """Wait until Airflow has read the DAG file. Raises `RunFailed` with its import error."""
    deadline = time.monotonic() + patience
    while not any(each["dag_id"] == dag_id for each in stack.api.every("dags", "dags", exclude_stale=True)):
        stack.check()
        errors = list(stack.api.every("importErrors", "import_errors"))
        if errors:
            raise RunFailed(f"{errors[0]['filename']} does not import:\n{errors[0]['stack_trace']}")
        if time.monotonic() > deadline:
            raise RunFailed(
                f"Airflow did not find the DAG {dag_id} in {patience:.0f} s{stack.parts['dag-processor'].tail()}"
            )
        time.sleep(1)


def runs_of(api: AirflowApi, day: date, dag_id: str = DAG) -> list[dict[str, Any]]:
    """All runs of a day, newest last."""
    query = {"partition_key_prefix_pattern": day.isoformat(), "order_by": "id"}
    return [
        each
        for each in api.every(f"dags/{dag_id}/dagRuns", "dag_runs", **query)
        if each["partition_key"] == day.isoformat()
    ]


def start_nightly(stack: Stack, day: date, dag_id: str = DAG) -> str:
    """The scheduled run of `day`: made by unpausing the DAG; by a trigger when the day had its scheduled run before."""
    before = runs_of(stack.api, day, dag_id)
    stack.api.patch(f"dags/{dag_id}", {"is_paused": False})
    if before:
        if before[-1]["state"] in _UNFINISHED:  # cut off by the end of the last start; Airflow takes it up again
            return str(before[-1]["dag_run_id"])
        return _trigger(stack, day, dag_id, "make demo, again")
    deadline = time.monotonic() + _PATIENCE
    while not (found := runs_of(stack.api, day, dag_id)):
        stack.check()
        if day != days_before(count=1)[0]:
            return _trigger(stack, day, dag_id, "make demo, begun before midnight UTC")
        if time.monotonic() > deadline:
            raise RunFailed(f"the scheduler made no run for {day}{stack.parts['scheduler'].tail()}")
        time.sleep(1)
    return str(found[-1]["dag_run_id"])


def _trigger(stack: Stack, day: date, dag_id: str, note: str) -> str:
    body = {"logical_date": None, "partition_key": day.isoformat(), "note": note}
    return str(stack.api.post(f"dags/{dag_id}/dagRuns", body)["dag_run_id"])


def start_backfill(stack: Stack, first: date, last: date, dag_id: str = DAG) -> list[str]:
    """`airflow backfill create` from `first` to `last`, done days included; the run ids, oldest day first."""
    days = [date.fromordinal(number) for number in range(first.toordinal(), last.toordinal() + 1)]
    earlier = {day: runs_of(stack.api, day, dag_id) for day in days}
    states = {runs[-1]["state"] if runs else "none" for runs in earlier.values()}
    if states.intersection(_UNFINISHED) and states <= {*_UNFINISHED, "success"}:
        # Cut off by the end of the last start, some days perhaps done. Airflow would refuse a second backfill.
        return [runs[-1]["dag_run_id"] for runs in earlier.values()]
    before = {day: {run["dag_run_id"] for run in runs} for day, runs in earlier.items()}
    options = ["--from-date", f"{first}", "--to-date", f"{last}", "--max-active-runs", "1"]
    deadline = time.monotonic() + (_RUN_SECONDS * len(days) if states.intersection(_UNFINISHED) else _PATIENCE)
    while True:
        finished = stack.airflow(
            "backfill", "create", "--dag-id", dag_id, *options, "--reprocess-behavior", "completed"
        )
        if finished.returncode == 0:
            break
        said = finished.stdout + finished.stderr
        # Airflow allows one backfill a DAG, and notes the end of the last one up to half a minute late.
        if ("AlreadyRunningBackfill" not in said and "running backfill" not in said) or time.monotonic() > deadline:
            raise RunFailed(f"airflow backfill create failed:\n{said[-3000:]}")
        time.sleep(3)
    made: list[str] = []
    for day in days:
        runs = runs_of(stack.api, day, dag_id)
        new = [run["dag_run_id"] for run in runs if run["dag_run_id"] not in before[day]]
        # A day whose last run is still under way is left to that run.
        made.append(new[-1] if new else runs[-1]["dag_run_id"])
    return made


def follow(
    stack: Stack,
    runs: Sequence[tuple[date, str]],
    show: Callable[[list[RunView]], None],
    *,
    dag_id: str = DAG,
    seconds: float = _RUN_SECONDS,
) -> list[RunView]:
    """Wait until every run has ended, calling `show` on the way. Raises `RunFailed` when one did not succeed."""
    deadline = time.monotonic() + seconds * len(runs)
    while True:
        stack.check()
        views = [view_of(stack.api, dag_id, day, run_id) for day, run_id in runs]
        show(views)
        if all(view.done for view in views):
            break
        if time.monotonic() > deadline:
            raise RunFailed(f"the runs did not end in {seconds * len(runs):.0f} s: {views}")
        time.sleep(1.5)
    failed = [view for view in views if view.state != "success"]
    if failed:
        raise RunFailed("\n".join(_explain(stack.api, dag_id, view) for view in failed))
    return views


def view_of(api: AirflowApi, dag_id: str, day: date, run_id: str) -> RunView:
    """One run as Airflow tells it now."""
    run = api.get(f"dags/{dag_id}/dagRuns/{run_id}")
    tasks: dict[str, Counter[str]] = {}
    labels: list[tuple[int, str]] = []
    instances = api.every(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", "task_instances")
    for each in sorted(instances, key=lambda one: (one["start_date"] or "9", one["task_id"])):
        tasks.setdefault(each["task_id"], Counter())[each["state"] or "waiting"] += 1
        if each["map_index"] >= 0 and each["rendered_map_index"]:
            labels.append((each["map_index"], each["rendered_map_index"]))
    told = {name: _states(counts) for name, counts in tasks.items()}
    return RunView(day, run_id, run["state"], told, tuple(label for _, label in sorted(labels)))


def _states(counts: Counter[str]) -> str:
    if len(counts) == 1 and counts.total() == 1:
        return next(iter(counts))
    return ", ".join(f"{number} {state}" for state, number in sorted(counts.items()))


def _explain(api: AirflowApi, dag_id: str, view: RunView) -> str:
    """Which task of a failed run failed, and the end of its log."""
    lines = [f"the run {view.run_id} ended as {view.state}"]
    path = f"dags/{dag_id}/dagRuns/{view.run_id}/taskInstances"
    for each in api.every(path, "task_instances"):
        if each["state"] == "failed":
            log = api.task_log(dag_id, view.run_id, each["task_id"], each["map_index"], each["try_number"])
            lines.append(f"task {each['task_id']} [{each['map_index']}], try {each['try_number']}; the end of its log:")
            lines += [f"    {line}" for line in log[-25:]]
    return "\n".join(lines)


def days_before(today: date | None = None, count: int = 3) -> list[date]:
    """Yesterday and the days before it, newest first, in UTC as the DAG counts them."""
    number = (today or datetime.now(UTC).date()).toordinal()
    return [date.fromordinal(number - back) for back in range(1, count + 1)]


def summary(views: Iterable[RunView]) -> list[str]:
    """A line a run, for a terminal or a log."""
    return [
        f"{view.day}  {view.state:8}  "
        + "  ".join(f"{task}: {state}" for task, state in view.tasks.items())
        + "".join(f"\n            {label}" for label in view.labels if view.tasks.get("annotate") != "success")
        for view in views
    ]
