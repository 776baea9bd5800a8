from __future__ import annotations

import logging
import time
from typing import Any

import jinja2
import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time.comms import ErrorResponse

from glm4v_ops.airflow import progress
from glm4v_ops.airflow.progress import LABEL_TEMPLATE, LiveProgress
from glm4v_ops.progress import Progress


def at(done: int) -> Progress:
    return Progress(
        shard=2,
        shards=12,
        done=done,
        total=2048,
        images_per_s=9.8,
        p50_s=1.1,
        p95_s=2.1,
        cached=0,
        resumed=0,
        by_outcome={"ok": done},
    )


def template(context: dict[str, Any]) -> str:
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(LABEL_TEMPLATE).render(context)


class Unavailable:
    """The state store while the API server is away."""

    def set(self, key: str, value: Any) -> None:
        raise AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR))


def test_the_newest_snapshot_stands_in_label_state_store_and_log(
    context: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), LiveProgress(context) as live:
        live.update(at(10))
        live.update(at(640))
    label = "shard 3/12 · 640/2048 · 9.8 img/s · p95 2.1 s"
    assert context["task_state_store"]["progress"]["done"] == 640
    assert context["task_state_store"]["progress"]["label"] == label
    assert template(context) == label
    assert caplog.messages == [label]


def test_before_there_is_progress_the_label_is_the_shard(context: dict[str, Any]) -> None:
    assert template({"task": {"shard": {"shard": 2, "shards": 12}}}) == "shard 3/12"


def test_progress_is_shown_while_the_work_goes_on(context: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SHOW_EVERY", 0.01)
    with LiveProgress(context) as live:
        live.update(at(640))
        deadline = time.monotonic() + 10
        while "progress" not in context["task_state_store"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert context["task_state_store"]["progress"]["done"] == 640


def test_work_that_fails_still_leaves_its_last_progress(context: dict[str, Any]) -> None:
    def work() -> None:
        with LiveProgress(context) as live:
            live.update(at(640))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert context["task_state_store"]["progress"]["done"] == 640


def test_progress_that_cannot_be_shown_fails_nothing(context: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    context["task_state_store"] = Unavailable()
    with LiveProgress(context) as live:
        live.update(at(640))
    assert "progress could not be shown" in caplog.text
