"""What people ask of the tables: which days stand there, what became of a key, what is in quarantine, did a row change.

Reads only. Knows nothing of how the answers are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.result import COLUMNS, Result, from_rows
from glm4v_ops.sink.connection import transaction

_COLUMN_LIST = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))

_DAYS = """
SELECT DISTINCT ON (day) day, manifest_rows, ok, quarantined, by_outcome, cached, images_per_s,
       recipe_id, recipes.name AS recipe_name, model, revision, quantization,
       manifest_id, dag_run_id, changed, content_digest, published_at
FROM runs JOIN recipes USING (recipe_id)
ORDER BY day DESC, run_id DESC
LIMIT %s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaySummary:
    """What stands in the tables for one day, and the run that last published it."""

    day: date
    manifest_rows: int
    ok: int
    quarantined: int
    by_outcome: dict[Outcome, int]
    cached: int
    images_per_s: float | None
    recipe_id: str
    recipe_name: str
    model: str
    revision: str
    quantization: str
    manifest_id: str
    dag_run_id: str
    changed: bool  # false: that run found exactly these rows already there
    content_digest: str
    published_at: datetime


def days(dsn: str, *, limit: int | None = None) -> list[DaySummary]:
    """The published days, newest first. The counts are those that publishing verified; no row is counted here."""
    with transaction(dsn, purpose="days") as connection, connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_DAYS, (limit,)).fetchall()
    return [
        DaySummary(**{**row, "by_outcome": {Outcome(name): count for name, count in row["by_outcome"].items()}})
        for row in rows
    ]


def show(dsn: str, key: str) -> list[Result]:
    """Every row of this key, newest day first; `outcome` says which table a row stands in."""
    query = sql.SQL(
        "SELECT {0} FROM annotations WHERE key = %(key)s UNION ALL SELECT {0} FROM quarantine WHERE key = %(key)s"
        " ORDER BY day DESC"
    ).format(_COLUMN_LIST)
    return _results(dsn, "show", query, {"key": key.replace("\x00", "\ufffd")})


def annotated(dsn: str, day: date, *, limit: int | None = None) -> list[Result]:
    """The rows of `annotations` of one day, in key order."""
    query = sql.SQL('SELECT {} FROM annotations WHERE day = %(day)s ORDER BY key COLLATE "C" LIMIT %(limit)s')
    return _results(dsn, "annotations", query.format(_COLUMN_LIST), {"day": day, "limit": limit})


def quarantine(
    dsn: str,
    *,
    day: date | None = None,
    outcome: Outcome | None = None,
    reason: str | None = None,
    limit: int | None = 100,
) -> list[Result]:
    """Rows of `quarantine`, newest day first, then by key; every filter left out lets all rows through."""
    filters = {"day": day, "outcome": None if outcome is None else outcome.value, "reason": reason}
    filters = {name: value for name, value in filters.items() if value is not None}
    where = sql.SQL(" AND ").join(
        [sql.SQL("true"), *(sql.SQL("{} = {}").format(sql.Identifier(n), sql.Placeholder(n)) for n in filters)]
    )
    query = sql.SQL('SELECT {} FROM quarantine WHERE {} ORDER BY day DESC, key COLLATE "C" LIMIT %(limit)s')
    return _results(dsn, "quarantine", query.format(_COLUMN_LIST, where), {**filters, "limit": limit})


def digest_of_day(dsn: str, day: date) -> str:
    """SHA-256 over every column of the day's rows in both tables, in key order: equal digests, no row changed."""
    with transaction(dsn, purpose="digest") as connection:
        return digest(connection, day)


def digest(connection: psycopg.Connection[Any], day: date | None) -> str:
    """As `digest_of_day`, inside a caller's `transaction`; without a day, of the rows in the table `staging`."""
    if day is None:
        source = sql.SQL("SELECT {} FROM staging").format(_COLUMN_LIST)
    else:
        source = sql.SQL(
            "SELECT {0} FROM annotations WHERE day = {1} UNION ALL SELECT {0} FROM quarantine WHERE day = {1}"
        ).format(_COLUMN_LIST, sql.Literal(day))
    # A digest of digests: 32 bytes a row stand in memory, not the row.
    query = sql.SQL(
        "SELECT encode(sha256(coalesce(string_agg(sha256(convert_to(ROW({0})::text, 'UTF8')), ''"
        " ORDER BY key COLLATE \"C\"), '')), 'hex') FROM ({1}) AS day_rows"
    ).format(_COLUMN_LIST, source)
    row = connection.execute(query).fetchone()
    return str(row[0]) if row is not None else ""


def _results(dsn: str, purpose: str, query: sql.Composed, values: dict[str, Any]) -> list[Result]:
    with transaction(dsn, purpose=purpose) as connection, connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(query, values).fetchall()
    return from_rows(rows)
