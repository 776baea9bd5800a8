"""The object store and the tables, reached through Airflow connections.

`glm4v_store` is an `aws` connection (login and password are the key pair; extra: `endpoint_url`, `region_name`),
`glm4v_tables` a `postgres` one. A connection that does not exist is a `SettingsError` that says how to add it, never
a silent fall-back to whatever credentials the machine happens to hold; an Airflow that does not answer when it is asked
for one is a `TransientError`.

Knows nothing of what is read or written. Secrets stay in the returned client and URL: log neither, put neither in XCom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from glm4v_ops.errors import SettingsError, TransientError

if TYPE_CHECKING:
    S3Client = Any

STORE_CONN_ID = "glm4v_store"
TABLES_CONN_ID = "glm4v_tables"

_STORE_REMEDY = (
    "airflow connections add {id} --conn-type aws --conn-login ACCESS_KEY --conn-password SECRET_KEY "
    '--conn-extra \'{{"endpoint_url": "https://s3.example.com", "region_name": "us-east-1"}}\''
)
_TABLES_REMEDY = (
    "airflow connections add {id} --conn-type postgres --conn-host HOST --conn-port 5432 "
    "--conn-schema DATABASE --conn-login USER --conn-password PASSWORD"
)


def store_client(conn_id: str = STORE_CONN_ID) -> S3Client:
    """A boto3 S3 client with the connection's keys, endpoint and role, and the pipeline's own retries and timeouts."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    from airflow.providers.amazon.aws.utils.connection_wrapper import AwsConnectionWrapper

    from glm4v_ops.source import store

    connection = _require(conn_id, _STORE_REMEDY)
    with store.as_store_errors():
        hook = S3Hook(aws_conn_id=conn_id)
        # The hook would ask for the connection again and, where Airflow then does not answer, take the machine's own
        # credentials and Amazon's endpoint without a word.
        hook.conn_config = AwsConnectionWrapper(conn=connection, botocore_config=store.config())
        return hook.get_conn()


def tables_dsn(conn_id: str = TABLES_CONN_ID) -> str:
    """The tables' libpq URL, options of the connection's extra (`sslmode`, …) included where libpq knows them."""
    from psycopg.pq import Conninfo

    connection = _require(conn_id, _TABLES_REMEDY)
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    options = {name: value for name, value in connection.extra_dejson.items() if name in known}
    user = quote(connection.login or "", safe="")
    password = f":{quote(connection.password, safe='')}" if connection.password else ""
    port = f":{connection.port}" if connection.port else ""
    place = f"{quote(connection.host or '', safe='')}{port}/{quote(connection.schema or '', safe='')}"
    return f"postgresql://{user}{password}@{place}" + (
        f"?{urlencode(options, quote_via=quote)}" if options else ""  # libpq does not read "+" as a space
    )


def _require(conn_id: str, remedy: str) -> Connection:
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        if fault := _fault_of_airflow(conn_id):
            raise TransientError(
                f"Airflow did not answer when it was asked for the connection {conn_id!r}: {fault}",
                remedy="are the api-server and its database up?",
            ) from error
        raise SettingsError(f"there is no Airflow connection {conn_id!r}", remedy=remedy.format(id=conn_id)) from error


def _fault_of_airflow(conn_id: str) -> str:
    """Why the api-server gave no connection; "" when it says that there is none, or when no task is running.

    To its caller the SDK says "not found" in all these cases (`ExecutionAPISecretsBackend.get_connection`), so the
    api-server is asked once more.
    """
    from airflow.sdk.exceptions import ErrorType
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import ErrorResponse, GetConnection

    comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if comms is None:
        return ""
    try:
        reply = comms.send(GetConnection(conn_id=conn_id))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no word about the connection
        return f"{type(error).__name__}: {error}"
    if isinstance(reply, ErrorResponse):
        return "" if reply.error is ErrorType.CONNECTION_NOT_FOUND else reply.error.value
    return "it did a moment later"
