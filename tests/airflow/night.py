"""A run of the real DAG under the real scheduler, as an operator sees it: started, watched, read back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import yaml

from demo import nights
from demo.stack import ROOT, Stack
from glm4v_ops.recipe import Recipe, load_recipe
from glm4v_ops.result import Result
from glm4v_ops.sink import queries

DAG = nights.DAG
T = TypeVar("T")
_PATIENCE = 300


@dataclass(frozen=True, slots=True)
class Night:
    """One run that has ended, and its day's rows as they stood at that moment: a later run may change them."""

    stack: Stack
    view: nights.RunView
    rows: dict[str, Result]  # by key
    digest: str  # over every column of every row

    @property
    def path(self) -> str:
        return run_path(self.view.run_id)

    def xcom(self, task: str, key: str = "return_value", map_index: int = -1) -> Any:
        where = f"{self.path}/taskInstances/{task}/xcomEntries/{key}"
        return self.stack.api.get(where, map_index=map_index)["value"]

    def log(self, task: str, map_index: int = -1, try_number: int = 1) -> str:
        return "\n".join(self.stack.api.task_log(DAG, self.view.run_id, task, map_index, try_number))

    def instance(self, task: str, map_index: int = -1) -> dict[str, Any]:
        return instance(self.stack, self.view.run_id, task, map_index)

    def events(self) -> list[dict[str, Any]]:
        found = self.stack.api.every("assets/events", "asset_events", source_run_id=self.view.run_id)
        return list(found)


def run_path(run_id: str) -> str:
    return f"dags/{DAG}/dagRuns/{run_id}"


def instance(stack: Stack, run_id: str, task: str, map_index: int = -1) -> dict[str, Any]:
    """The task instance's newest try; empty when it was not expanded yet."""
    found = stack.api.every(f"{run_path(run_id)}/taskInstances", "task_instances")
    return next((each for each in found if (each["task_id"], each["map_index"]) == (task, map_index)), {})


def progress_of(stack: Stack, run_id: str, map_index: int) -> dict[str, Any]:
    """What the annotate task last left in its state store; empty before it left anything."""
    where = f"{run_path(run_id)}/taskInstances/annotate/state-store"
    found = stack.api.get(where, map_index=map_index)["task_state_store"]
    return next((dict(each["value"]) for each in found if each["key"] == "progress"), {})


def trigger(stack: Stack, day: date, recipe: Path | None = None, *, keyed: bool = True, dag: str = DAG) -> str:
    """A run of `day`, as a person starts one in the UI; the run id. Not `keyed`: the day is a parameter only."""
    conf = {"recipe": str(recipe)} if recipe else {}
    body: dict[str, Any] = {"logical_date": None, "conf": conf if keyed else {**conf, "day": day.isoformat()}}
    if keyed:
        body["partition_key"] = day.isoformat()
    return str(stack.api.post(f"dags/{dag}/dagRuns", body)["dag_run_id"])


def finished(stack: Stack, day: date, run_id: str) -> Night:
    """Wait until the run has succeeded. Raises `RunFailed` with the end of the failing task's log."""
    nights.follow(stack, [(day, run_id)], lambda views: None, seconds=_PATIENCE)
    return ended(stack, day, run_id)


def ended(stack: Stack, day: date, run_id: str) -> Night:
    """A run that has ended, well or not."""
    quarantined = queries.quarantine(stack.dsn, day=day, limit=None)
    rows = {row.key: row for row in [*queries.annotated(stack.dsn, day), *quarantined]}
    view = nights.view_of(stack.api, DAG, day, run_id)
    return Night(stack, view, rows, queries.digest_of_day(stack.dsn, day))


def until(stack: Stack, look: Callable[[], T | None], what: str) -> T:
    """Wait for something that a run does on its way."""
    deadline = time.monotonic() + _PATIENCE
    while not (found := look()):
        stack.check()
        assert time.monotonic() < deadline, f"waited {_PATIENCE} s for {what}"
        time.sleep(0.2)
    return found


def demo_recipe(path: Path, **changes: dict[str, Any]) -> Recipe:
    """Write the demo's recipe to `path` with sections changed; the model is the demo's wherever the file lies."""
    content = yaml.safe_load((ROOT / "recipes/demo.yaml").read_text(encoding="utf-8"))
    content["model"]["id"] = str(ROOT / "demo/model")
    for section, change in changes.items():
        content[section] |= change
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return load_recipe(path)
