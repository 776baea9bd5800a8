"""What the DAG file asks of Airflow: when, where, how often. What its tasks do is held by tests/airflow."""

from __future__ import annotations

import runpy
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG, CronPartitionTimetable

from glm4v_ops.airflow.assets import ANNOTATIONS
from glm4v_ops.airflow.retries import TypedRetries
from tests.airflow.home import ROOT

FILE = ROOT / "dags" / "nightly_annotation.py"


@pytest.fixture
def dag() -> DAG:
    found: DAG = runpy.run_path(str(FILE))["dag"]
    return found


def task(dag: DAG, task_id: str) -> Any:
    found = dag.get_task(task_id)
    return found


def test_a_run_is_the_day_before_at_midnight_utc_and_old_days_are_left_to_backfills(dag: DAG) -> None:
    timetable = dag.timetable
    assert isinstance(timetable, CronPartitionTimetable)
    assert (dag.catchup, dag.max_active_runs) == (False, 2)


def test_only_annotate_takes_the_gpu_pool(dag: DAG) -> None:
    assert {name: each.pool for name, each in dag.task_dict.items()} == {
        "wait_for_drop": "default_pool",
        "freeze_manifest": "default_pool",
        "annotate": "gpu",
        "gate": "default_pool",
        "publish": "default_pool",
    }


@pytest.mark.parametrize("queue", ["gpu", "the big card"])
def test_annotate_goes_to_the_queue_of_the_gpu_workers_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, queue: str
) -> None:
    monkeypatch.setenv("GLM4V_GPU_QUEUE", queue)
    dag = runpy.run_path(str(FILE))["dag"]
    assert {name for name, each in dag.task_dict.items() if each.queue == queue} == {"annotate"}


@pytest.mark.parametrize("unset", [None, ""])
def test_without_gpu_workers_annotate_goes_where_everything_goes(
    monkeypatch: pytest.MonkeyPatch, unset: str | None
) -> None:
    if unset is None:
        monkeypatch.delenv("GLM4V_GPU_QUEUE", raising=False)
    else:
        monkeypatch.setenv("GLM4V_GPU_QUEUE", unset)
    assert len({each.queue for each in runpy.run_path(str(FILE))["dag"].task_dict.values()}) == 1


def test_every_task_is_retried_by_the_type_of_its_error_with_longer_and_longer_pauses(dag: DAG) -> None:
    for name in dag.task_dict:
        each = task(dag, name)
        assert isinstance(each.retry_policy, TypedRetries), name
        assert each.retries == (3 if name == "annotate" else 2), name
        assert (each.retry_exponential_backoff, each.max_retry_delay) == (2.0, timedelta(hours=1)), name


def test_the_order_is_that_of_an_images_way(dag: DAG) -> None:
    order = [each.task_id for each in dag.topological_sort()]
    assert order == ["wait_for_drop", "freeze_manifest", "annotate", "gate", "publish"]


def test_only_publish_tells_whoever_waits_for_the_tables(dag: DAG) -> None:
    assert {name: list(each.outlets) for name, each in dag.task_dict.items() if each.outlets} == {
        "publish": [ANNOTATIONS]
    }


def test_dag_and_every_task_say_what_to_do_when_they_are_red(dag: DAG) -> None:
    assert "What is red says why" in (dag.doc_md or "")
    for name in dag.task_dict:
        doc = task(dag, name).doc_md if name != "annotate" else task(dag, name).partial_kwargs["doc_md"]
        assert "When it is red" in doc, name
