from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ConnectionResult, ErrorResponse, GetConnection
from psycopg.conninfo import conninfo_to_dict

from demo.parts import ObjectStore, Postgres
from glm4v_ops.airflow.connections import store_client, tables_dsn
from glm4v_ops.errors import SettingsError, TransientError
from glm4v_ops.source import store as stores


def test_the_store_is_reached_through_its_airflow_connection(store_connection: ObjectStore) -> None:
    bucket = store_connection.new_bucket()
    assert bucket in {each["Name"] for each in store_client().list_buckets()["Buckets"]}


def test_the_client_behaves_as_the_one_without_airflow(store_connection: ObjectStore) -> None:
    ours = store_client().meta.config
    theirs = stores.client(
        endpoint_url=store_connection.endpoint,
        aws_access_key_id="a",
        aws_secret_access_key="b",
        region_name="us-east-1",
    ).meta.config
    for name in ("retries", "connect_timeout", "read_timeout", "max_pool_connections"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("request_checksum_calculation", "response_checksum_validation"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_a_missing_store_connection_is_an_error_with_its_remedy_and_no_fall_back(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in store.environ().items():
        monkeypatch.setenv(name, value)  # what boto3 would silently take
    with pytest.raises(SettingsError, match="no Airflow connection 'glm4v_store'") as refused:
        store_client()
    assert refused.value.remedy.startswith("airflow connections add glm4v_store --conn-type aws")
    assert '{"endpoint_url": ' in refused.value.remedy


def test_the_tables_are_reached_through_their_airflow_connection(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = conninfo_to_dict(postgres.new_database())["dbname"]
    connection = {
        "conn_type": "postgres",
        "host": "127.0.0.1",
        "port": postgres.port,
        "login": postgres.USER,
        "password": postgres.password,
        "schema": database,
    }
    monkeypatch.setenv("AIRFLOW_CONN_GLM4V_TABLES", json.dumps(connection))
    with psycopg.connect(tables_dsn()) as opened:
        assert opened.info.dbname == database


def test_odd_characters_and_libpq_options_survive_and_airflows_own_options_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection = {
        "conn_type": "postgres",
        "host": "/var/run/a folder",
        "login": "user@corp",
        "password": "p/w:d?#%&图",
        "schema": "tab les",
        "extra": {"sslmode": "require", "options": "-c search_path=a&b+c", "cursor": "dictcursor"},
    }
    monkeypatch.setenv("AIRFLOW_CONN_GLM4V_TABLES", json.dumps(connection))
    assert conninfo_to_dict(tables_dsn()) == {
        "host": "/var/run/a folder",
        "user": "user@corp",
        "password": "p/w:d?#%&图",
        "dbname": "tab les",
        "sslmode": "require",
        "options": "-c search_path=a&b+c",
    }


def test_a_missing_tables_connection_is_an_error_with_its_remedy() -> None:
    with pytest.raises(SettingsError, match="no Airflow connection 'glm4v_tables'") as refused:
        tables_dsn()
    assert refused.value.remedy.startswith("airflow connections add glm4v_tables --conn-type postgres")


class Supervisor:
    """A running task's line to Airflow: what it says when it is asked for a connection, the last answer for good."""

    def __init__(self, *answers: ConnectionResult | ErrorResponse | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def send(self, message: Any) -> Any:
        if not isinstance(message, GetConnection):
            return None
        self.asked.append(message.conn_id)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def in_a_task(monkeypatch: pytest.MonkeyPatch, *answers: ConnectionResult | ErrorResponse | Exception) -> Supervisor:
    supervisor = Supervisor(*answers)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    return supervisor


AWAY = AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": 503}))


@pytest.mark.parametrize("get", [store_client, tables_dsn])
@pytest.mark.parametrize("answer", [AWAY, ErrorResponse(error=ErrorType.GENERIC_ERROR), EOFError("the line is dead")])
def test_an_airflow_that_does_not_answer_is_no_missing_connection(
    monkeypatch: pytest.MonkeyPatch, get: Any, answer: ErrorResponse | Exception
) -> None:
    supervisor = in_a_task(monkeypatch, answer)
    with pytest.raises(TransientError, match=r"Airflow did not answer when it was asked for the connection 'glm4v_"):
        get()
    assert supervisor.asked


@pytest.mark.parametrize("get", [store_client, tables_dsn])
def test_a_connection_airflow_does_not_know_is_a_wrong_setting_in_a_task_too(
    monkeypatch: pytest.MonkeyPatch, get: Any
) -> None:
    in_a_task(monkeypatch, ErrorResponse(error=ErrorType.CONNECTION_NOT_FOUND))
    with pytest.raises(SettingsError, match="there is no Airflow connection 'glm4v_"):
        get()


def test_an_airflow_that_goes_away_meanwhile_gives_no_other_store(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "the machine's own")
    connection = ConnectionResult(
        conn_id="glm4v_store",
        conn_type="aws",
        host=None,
        schema=None,
        port=None,
        login=store.access_key,
        password=store.secret_key,
        extra=json.dumps({"endpoint_url": store.endpoint, "region_name": "us-east-1"}),
    )
    in_a_task(monkeypatch, connection, AWAY)
    client = store_client()
    assert client.meta.endpoint_url == store.endpoint
    bucket = store.new_bucket()
    assert bucket in {each["Name"] for each in client.list_buckets()["Buckets"]}
