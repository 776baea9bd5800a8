"""Airflow connections to the real parts, and the context of a task that runs without Airflow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from demo.parts import ObjectStore
from tests.airflow import home  # noqa: F401 - before anything imports Airflow


@pytest.fixture
def store_connection(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The Airflow connection `glm4v_store` to the real store, as an operator finds it in the environment."""
    extra = {"endpoint_url": store.endpoint, "region_name": "us-east-1"}
    connection = {"conn_type": "aws", "login": store.access_key, "password": store.secret_key, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_GLM4V_STORE", json.dumps(connection))
    return store


@pytest.fixture
def drop(store_connection: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket that the settings name as the image drop and the work area."""
    bucket = store_connection.new_bucket()
    monkeypatch.setenv("GLM4V_SOURCE", f"s3://{bucket}/images/{{day}}/")
    monkeypatch.setenv("GLM4V_WORK", f"s3://{bucket}/work")
    return bucket


class StateStore(dict[str, Any]):
    """What an operator uses of `context["task_state_store"]`."""

    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))  # Airflow takes JSON and nothing else


class TaskInstance:
    """What an operator uses of `context["ti"]`."""

    def __init__(self) -> None:
        self.try_number = 1
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, *, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))


@pytest.fixture
def context() -> dict[str, Any]:
    """A run of the partition 2026-11-01, outside Airflow's task runner."""
    return {
        "partition_key": "2026-11-01",
        "params": {"day": None, "recipe": None},
        "run_id": "scheduled__test",
        "ti": TaskInstance(),
        "task_state_store": StateStore(),
    }
