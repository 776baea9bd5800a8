"""A connection to the tables, and what its failures mean to the caller.

Promises: no call waits for ever (connect, lock, statement and idle timeouts are set), a lost or refusing server, or one
that only reads for now, is `TablesUnavailable` (retry), wrong credentials are `SettingsError`, missing tables are
`PublishError` with the command that makes them, and no message ever holds the DSN's password. Knows nothing of what
the tables hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict

from glm4v_ops.errors import Glm4vError, PublishError, SettingsError, TablesUnavailable

#: Seconds to wait for the server to accept a connection.
CONNECT_TIMEOUT_S = 10
#: Milliseconds one statement may run: the longest is the swap of a day of a million rows, some minutes.
STATEMENT_TIMEOUT_MS = 30 * 60 * 1000
#: Milliseconds to wait for a lock: another publish of the same day holds it while it swaps, some minutes.
LOCK_TIMEOUT_MS = 10 * 60 * 1000
#: Milliseconds a transaction may sit between statements: publishing reads result parts from the object store there.
IDLE_TIMEOUT_MS = 15 * 60 * 1000

MIGRATE_REMEDY = "run python -m glm4v_ops migrate"

#: SQLSTATEs of a server that answered and will say no again: authentication, unknown role, unknown database.
_WRONG_SETTING = (pg.InvalidPassword, pg.InvalidAuthorizationSpecification, pg.InvalidCatalogName)
#: What libpq says for the same while connecting, where psycopg has no SQLSTATE to go by.
_WRONG_SETTING_WORDS = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    'role "',
    'database "',
)
#: What PostgreSQL calls an internal error and a new connection may not meet: a standby, or a pause that was too long.
_PASSING = (pg.ReadOnlySqlTransaction, pg.IdleInTransactionSessionTimeout)
_MISSING_SCHEMA = (pg.UndefinedTable, pg.UndefinedColumn, pg.UndefinedObject, pg.InvalidSchemaName)


def describe(dsn: str) -> str:
    """The DSN as a person may read it in a log: user, host, port and database, never the password."""
    options = _options(dsn)
    host = options.get("host") or options.get("hostaddr") or "localhost"
    port = f":{options['port']}" if "port" in options else ""
    user = f"{options['user']}@" if "user" in options else ""
    return f"{user}{host}{port}/{options.get('dbname', '')}"


def connect(dsn: str, *, purpose: str, autocommit: bool = False) -> psycopg.Connection[tuple[Any, ...]]:
    """Connect; `purpose` is shown in pg_stat_activity. Raises `TablesUnavailable` or `SettingsError`."""
    _options(dsn)
    with table_errors(dsn):
        return psycopg.connect(
            dsn,
            autocommit=autocommit,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=f"glm4v_ops {purpose}",
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
        )


@contextmanager
def transaction(dsn: str, *, purpose: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """One transaction on a connection of its own: committed when the block ends, rolled back when it raises."""
    with table_errors(dsn), connect(dsn, purpose=purpose) as connection:
        bound(connection)
        yield connection


def bound(connection: psycopg.Connection[tuple[Any, ...]], *, local: bool = True) -> None:
    """Set the timeouts, and the output formats that digests rely on, for this transaction (or this session)."""
    settings = {
        "statement_timeout": str(STATEMENT_TIMEOUT_MS),
        "lock_timeout": str(LOCK_TIMEOUT_MS),
        "idle_in_transaction_session_timeout": str(IDLE_TIMEOUT_MS),
        "timezone": "UTC",
        "datestyle": "ISO",
        "extra_float_digits": "1",
    }
    for name, value in settings.items():
        connection.execute("SELECT set_config(%s, %s, %s)", (name, value, local))


@contextmanager
def table_errors(dsn: str) -> Iterator[None]:
    """Turn psycopg's errors into ours, by what the caller should do next. Other errors pass through untouched."""
    try:
        yield
    except psycopg.Error as error:
        raise _translated(error, describe(dsn)) from error


def _translated(error: psycopg.Error, where: str) -> Glm4vError:
    said = " ".join((error.diag.message_primary or str(error)).split())
    if isinstance(error, _MISSING_SCHEMA):
        return PublishError(f"the tables in {where} are not as this version needs them: {said}", remedy=MIGRATE_REMEDY)
    if isinstance(error, pg.InsufficientPrivilege):
        return PublishError(
            f"the database user may not do this in {where}: {said}", remedy="grant it, or use the owner"
        )
    if isinstance(error, _WRONG_SETTING) or _refused_at_the_door(error):
        return SettingsError(f"the database {where} refused the connection: {said}", remedy="check GLM4V_DSN")
    if isinstance(error, _PASSING):
        return TablesUnavailable(f"the database {where} broke off: {said}", remedy="is it the primary, and well?")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return TablesUnavailable(f"the database {where} did not answer: {said}", remedy="is it running and reachable?")
    return PublishError(f"the database {where} refused the rows: {said}", remedy="see the cause with --debug")


def _refused_at_the_door(error: psycopg.Error) -> bool:
    """Failed while connecting, for a reason that a retry will not cure."""
    while_connecting = isinstance(error, psycopg.OperationalError) and error.diag.sqlstate is None
    return while_connecting and any(
        words in str(error) and (words[-1] != '"' or "does not exist" in str(error)) for words in _WRONG_SETTING_WORDS
    )


def _options(dsn: str) -> dict[str, Any]:
    try:
        return dict(conninfo_to_dict(dsn))
    except psycopg.ProgrammingError:
        # libpq quotes the piece it could not read, and that piece may be the password.
        raise SettingsError(
            "the database's DSN is not a libpq URL",
            remedy="set e.g. GLM4V_DSN=postgresql://user:password@host/database",
        ) from None
