from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.module_loading import import_string

from demo.parts import ObjectStore
from glm4v_ops.airflow.sensors import DropTrigger, WaitForDrop
from glm4v_ops.errors import SettingsError, TerminalError, TransientError

PREFIX = "images/2026-11-01/"


@pytest.fixture
def sensor() -> WaitForDrop:
    return WaitForDrop(task_id="wait_for_drop")


def trigger(bucket: str, **changes: Any) -> DropTrigger:
    now = datetime.now(UTC)
    arguments: dict[str, Any] = {
        "prefix": f"s3://{bucket}/{PREFIX}",
        "day": "2026-11-01",
        "marker": "_SUCCESS",
        "quiet_seconds": 86_400,
        "deadline": (now + timedelta(seconds=30)).isoformat(),
        "poll_seconds": 0.05,
        "quiet_at": (now + timedelta(days=1)).isoformat(),
    }
    return DropTrigger(**{**arguments, **changes})


async def first_event(waiting: DropTrigger) -> dict[str, str]:
    async for event in waiting.run():
        payload: dict[str, str] = event.payload
        return payload
    raise AssertionError("the trigger ended without an event")


def test_a_complete_drop_never_defers(
    sensor: WaitForDrop, context: dict[str, Any], drop: str, store: ObjectStore
) -> None:
    store.client().put_object(Bucket=drop, Key=PREFIX + "_SUCCESS", Body=b"")
    assert sensor.execute(context) == "2026-11-01"


def test_a_drop_that_is_not_complete_defers_with_what_the_trigger_needs(
    sensor: WaitForDrop, context: dict[str, Any], drop: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLM4V_QUIET_SECONDS", "3600")
    store.client().put_object(Bucket=drop, Key=PREFIX + "a.png", Body=b"x")
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context)
    waiting = deferred.value.trigger
    assert isinstance(waiting, DropTrigger)
    assert waiting.prefix == f"s3://{drop}/{PREFIX}"
    assert waiting.quiet_seconds == 3600
    assert deferred.value.method_name == "resume"


def test_a_day_that_has_not_ended_fails_at_once(
    sensor: WaitForDrop, context: dict[str, Any], drop: str, store: ObjectStore
) -> None:
    today = datetime.now(UTC).date() + timedelta(days=1)
    with pytest.raises(TerminalError, match="has not ended"):
        sensor.execute({**context, "partition_key": today.isoformat()})


def test_a_run_without_a_day_fails_at_once(sensor: WaitForDrop, context: dict[str, Any], drop: str) -> None:
    with pytest.raises(SettingsError, match="names no day"):
        sensor.execute({**context, "partition_key": None})


def test_the_trigger_survives_being_written_down_and_holds_no_credentials(store_connection: ObjectStore) -> None:
    path, arguments = trigger("drop").serialize()
    written = json.dumps(arguments)
    again = import_string(path)(**json.loads(written))
    assert again.serialize() == (path, arguments)
    assert store_connection.secret_key not in written
    assert store_connection.access_key not in written


def test_the_trigger_fires_when_the_marker_appears(drop: str, store: ObjectStore) -> None:
    async def scenario() -> dict[str, str]:
        store.client().put_object(Bucket=drop, Key=PREFIX + "a.png", Body=b"x")
        waiting = asyncio.create_task(first_event(trigger(drop)))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        await asyncio.to_thread(store.client().put_object, Bucket=drop, Key=PREFIX + "_SUCCESS", Body=b"")
        return await waiting

    assert asyncio.run(scenario())["status"] == "complete"


def test_the_trigger_fires_when_the_quiet_period_is_over(drop: str, store: ObjectStore) -> None:
    store.client().put_object(Bucket=drop, Key=PREFIX + "a.png", Body=b"x")
    now = datetime.now(UTC).isoformat()
    event = asyncio.run(first_event(trigger(drop, quiet_seconds=1, quiet_at=now)))
    assert event["status"] == "complete"
    assert "1 images" in event["message"]


def test_until_the_quiet_period_can_be_over_only_the_marker_is_asked_for(drop: str, store: ObjectStore) -> None:
    store.client().put_object(Bucket=drop, Key=PREFIX + "a.png", Body=b"x")
    waiting = trigger(drop, quiet_seconds=0)
    assert waiting._look(datetime.now(UTC) + timedelta(hours=1)) is None  # a listing would find it complete
    seen = waiting._look(datetime.now(UTC) - timedelta(seconds=1))
    assert seen is not None
    assert seen.complete


def test_the_deadline_ends_the_wait_and_says_what_was_waited_for(
    sensor: WaitForDrop, context: dict[str, Any], drop: str, store: ObjectStore
) -> None:
    store.client().put_object(Bucket=drop, Key=PREFIX + "a.png", Body=b"x")
    now = datetime.now(UTC)
    waiting = trigger(drop, deadline=(now + timedelta(seconds=0.5)).isoformat(), quiet_at=now.isoformat())
    event = asyncio.run(first_event(waiting))
    assert event["status"] == "late"
    with pytest.raises(TransientError, match=r"the drop of 2026-11-01 was not complete by .* 1 images"):
        sensor.resume(context, event)


def test_a_store_that_does_not_answer_does_not_end_the_wait(
    drop: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from demo.process import free_ports

    monkeypatch.setattr("glm4v_ops.source.store.ATTEMPTS", 1)
    away = {"conn_type": "aws", "login": "a", "password": "b"}
    extra = {"endpoint_url": f"http://127.0.0.1:{free_ports(1)[0]}", "region_name": "us-east-1"}
    monkeypatch.setenv("AIRFLOW_CONN_GLM4V_STORE", json.dumps({**away, "extra": extra}))
    waiting = trigger(drop, deadline=(datetime.now(UTC) + timedelta(seconds=1)).isoformat())
    event = asyncio.run(first_event(waiting))
    assert event["status"] == "late"
    assert "did not answer" in event["message"]


def test_a_wrong_setting_ends_the_wait_at_once(
    sensor: WaitForDrop, context: dict[str, Any], store_connection: ObjectStore
) -> None:
    event = asyncio.run(first_event(trigger("no-such-bucket", quiet_at=datetime.now(UTC).isoformat())))
    assert event["status"] == "refused"
    with pytest.raises(SettingsError, match="no-such-bucket"):
        sensor.resume(context, event)
