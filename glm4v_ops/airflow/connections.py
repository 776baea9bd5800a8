"""The object store and the tables, reached through Airflow connections.

`glm4v_store` is an `aws` connection (login and password are the key pair; extra: `endpoint_url`, `region_name`),
`glm4v_tables` a `postgres` one. A connection that does not exist is a `SettingsError` that says how to add it, never
a silent fall-back to whatever credentials the machine happens to hold.

Knows nothing of what is read or written. Secrets stay in the returned client and URL: log neither, put neither in XCom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from glm4v_ops.errors import SettingsError

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
    from botocore.config import Config

    from glm4v_ops.source import store

    # The hook would fall back to the machine's own credentials without a word.
    _require(conn_id, _STORE_REMEDY)
    config = Config(
        retries={"mode": "adaptive", "total_max_attempts": store.ATTEMPTS},
        connect_timeout=store.CONNECT_TIMEOUT,
        read_timeout=store.READ_TIMEOUT,
        max_pool_connections=store.POOL_SIZE,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    with store.as_store_errors():
        return S3Hook(aws_conn_id=conn_id, config=config).get_conn()


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
    return f"postgresql://{user}{password}@{place}" + (f"?{urlencode(options)}" if options else "")


def _require(conn_id: str, remedy: str) -> Connection:
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException as error:
        raise SettingsError(f"there is no Airflow connection {conn_id!r}", remedy=remedy.format(id=conn_id)) from error
