from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.module_loading import import_string

from demo.parts import ObjectStore
from glm4v_ops.airflow.sensors import DropTrigger, WaitForDrop
from glm4v_ops.errors import SettingsError, StoreUnavailable, TerminalError, TransientError

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
        "empty_seconds": 86_400,
        "deadline": (now + timedelta(minutes=10)).isoformat(),
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
    monkeypatch.setenv("GLM4V_EMPTY_SECONDS", "7200")
    store.client().put_object(Bucket=drop, Key=PREFIX + "a.png", Body=b"x")
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context)
    waiting = deferred.value.trigger
    assert isinstance(waiting, DropTrigger)
    assert waiting.prefix == f"s3://{drop}/{PREFIX}"
    assert (waiting.quiet_seconds, waiting.empty_seconds) == (3600, 7200)
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


def test_a_trigger_that_comes_back_after_its_deadline_looks_once_more(drop: str, store: ObjectStore) -> None:
    store.client().put_object(Bucket=drop, Key=PREFIX + "_SUCCESS", Body=b"")
    past = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    event = asyncio.run(first_event(trigger(drop, deadline=past, poll_seconds=3600)))
    assert event["status"] == "complete"


def test_neither_a_store_nor_an_airflow_that_does_not_answer_ends_the_wait(
    drop: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.client().put_object(Bucket=drop, Key=PREFIX + "_SUCCESS", Body=b"")
    waiting = trigger(drop)
    look, faults = waiting._look, [StoreUnavailable("the store did not answer"), TransientError("nor did Airflow")]

    def troubled(quiet_at: datetime) -> Any:
        if faults:
            raise faults.pop()
        return look(quiet_at)

    monkeypatch.setattr(waiting, "_look", troubled)
    assert asyncio.run(first_event(waiting))["status"] == "complete"
    assert faults == []


def test_the_deadline_says_that_the_store_did_not_answer(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glm4v_ops.source.store.ATTEMPTS", 1)
    with socket.socket() as deaf:  # bound and not listening: nobody else gets the port, and nobody answers there
        deaf.bind(("127.0.0.1", 0))
        extra = {"endpoint_url": f"http://127.0.0.1:{deaf.getsockname()[1]}", "region_name": "us-east-1"}
        away = {"conn_type": "aws", "login": "a", "password": "b", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_GLM4V_STORE", json.dumps(away))
        event = asyncio.run(first_event(trigger("drop", deadline=datetime.now(UTC).isoformat())))
    assert event["status"] == "late"
    assert "did not answer" in event["message"]


def test_a_wrong_setting_ends_the_wait_at_once(
    sensor: WaitForDrop, context: dict[str, Any], store_connection: ObjectStore
) -> None:
    event = asyncio.run(first_event(trigger("no-such-bucket", quiet_at=datetime.now(UTC).isoformat())))
    assert event["status"] == "refused"
    with pytest.raises(SettingsError, match="no-such-bucket"):
        sensor.resume(context, event)
