"""The tables in PostgreSQL: making them, and swapping a day in one transaction.

Publishing promises:
- readers see the old day or the new day, never a mixture: one transaction, no lock that stops a reader;
- a crash at any moment leaves the day as it was;
- publishing the same rows again touches neither `annotations` nor `quarantine`: the rows' digest is compared with that
  of what stands there. The run is noted in `runs` with changed = false, once a DAG run;
- two publishes of a day wait for each other; the later one wins;
- memory holds one part.

PostgreSQL cannot store the character NUL in text: it becomes U+FFFD here. An answer with either is garbled by the
checks, so such a row stands in `quarantine` whichever it holds. Knows nothing of the gate: who publishes has asked it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.types.json import Jsonb

from glm4v_ops.errors import ManifestError, PublishError, SettingsError
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import Recipe
from glm4v_ops.result import COLUMNS, RESULT_SCHEMA
from glm4v_ops.sink.connection import connect, table_errors, transaction
from glm4v_ops.sink.queries import digest

log = logging.getLogger(__name__)

#: First half of every advisory lock key: "GLM4" in ASCII, so that another program's locks are not ours by accident.
_LOCKS = 0x474C4D34
#: Second half while migrating; days are ordinals, counted from 1.
_MIGRATING = 0
#: Rows turned into Python objects at once while copying a part.
_COPY_ROWS = 1_000
#: Keys named in a message.
_EXAMPLES = 5

_COLUMN_LIST = sql.SQL(", ").join(map(sql.Identifier, COLUMNS))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """Where a day's rows come from, as it is written to `runs` and `recipes`. `recipe` has its model resolved."""

    dag_run_id: str
    recipe: Recipe
    manifest_id: str
    manifest_uri: str
    manifest_rows: int
    parts: tuple[str, ...] = ()  # URIs, in manifest order
    images_per_s: float | None = None
    model_seconds: float | None = None
    gpu_seconds: float | None = None
    gate: Mapping[str, Any] | None = None  # GateReport.to_json()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishReport:
    """What publishing did. `changed` is false when the day already held exactly these rows."""

    day: date
    changed: bool
    rows: int
    ok: int
    quarantined: int
    by_outcome: dict[Outcome, int] = field(default_factory=dict)
    cached: int = 0
    content_digest: str = ""


def migrate(dsn: str) -> str:
    """Bring the tables, and their comments, to this version; returns the revision. Safe to repeat and to race."""
    import sqlalchemy as sa
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext

    from glm4v_ops.sink.schema import VERSION_TABLE

    engine = sa.create_engine(
        "postgresql+psycopg://", creator=lambda: connect(dsn, purpose="migrate"), poolclass=sa.pool.NullPool
    )
    config = Config()
    config.set_main_option("script_location", "glm4v_ops.sink:migrations")
    try:
        with table_errors(dsn), engine.begin() as connection:
            encoding = connection.scalar(sa.text("SHOW server_encoding"))
            if encoding != "UTF8":
                raise SettingsError(
                    f"the database is encoded in {encoding}", remedy="create it with ENCODING 'UTF8' TEMPLATE template0"
                )
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:a, :b)"), {"a": _LOCKS, "b": _MIGRATING})
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            _write_comments(connection)
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            return str(context.get_current_revision())
    except sa.exc.DBAPIError as error:
        with table_errors(dsn):
            raise error.orig or error from error


def _write_comments(connection: Any) -> None:
    """The comments are documentation: they follow `schema` without a migration of their own."""
    from sqlalchemy.schema import SetColumnComment, SetTableComment

    from glm4v_ops.sink.schema import metadata

    for table in metadata.sorted_tables:
        connection.execute(SetTableComment(table))
        for column in table.columns:
            connection.execute(SetColumnComment(column))


def publish(dsn: str, *, day: date, tables: Iterable[pa.Table], run: RunInfo) -> PublishReport:
    """Make `tables` (result parts, read one at a time) the day's rows, all of them or none.

    Raises `ManifestError` when the rows are not exactly one for each manifest row of this day, recipe and manifest;
    `PublishError` when the tables are not as needed; `TablesUnavailable` when the database failed. Whatever is
    raised, also by `tables`, the day stays as it was.
    """
    # A transaction of its own: attaching takes a lock that publishes of other days wait for, so it is held shortly.
    # An empty partition changes nothing for a reader.
    with transaction(dsn, purpose=f"partition {day}") as connection:
        _lock_day(connection, day)
        for name in ("annotations", "quarantine"):
            _ensure_partition(connection, name, day)
    with transaction(dsn, purpose=f"publish {day}") as connection:
        connection.execute("CREATE TEMP TABLE staging (LIKE annotations) ON COMMIT DROP")
        for table in tables:
            _stage(connection, table)
        report = _verified(connection, day, run)
        _lock_day(connection, day)
        changed = digest(connection, day) != report.content_digest
        report = dataclasses.replace(report, changed=changed)
        if changed:
            _swap(connection, day)
        _note_run(connection, report, run)
    log.info("published %s: %d ok, %d quarantined, changed: %s", day, report.ok, report.quarantined, changed)
    return report


def _lock_day(connection: psycopg.Connection[Any], day: date) -> None:
    connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", (_LOCKS, day.toordinal()))


def _ensure_partition(connection: psycopg.Connection[Any], parent: str, day: date) -> None:
    """Made alone and then attached: CREATE … PARTITION OF would lock every reader of the whole table out."""
    name = f"{parent}_{day:%Y_%m_%d}"
    found = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_inherits WHERE inhparent = %s::regclass AND inhrelid = c.oid)"
        " FROM (SELECT to_regclass(%s)::oid AS oid) AS c WHERE c.oid IS NOT NULL",
        (parent, name),
    ).fetchone()
    if found is not None:
        if not found[0]:
            raise PublishError(
                f"table {name} exists but is no partition of {parent}", remedy="attach, rename or drop it"
            )
        return
    names = {"name": sql.Identifier(name), "parent": sql.Identifier(parent), "day": sql.Literal(day.isoformat())}
    connection.execute(sql.SQL("CREATE TABLE {name} (LIKE {parent} INCLUDING ALL)").format(**names))
    connection.execute(sql.SQL("ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES IN ({day})").format(**names))


def _stage(connection: psycopg.Connection[Any], table: pa.Table) -> None:
    """Copy one part into staging."""
    if table.schema.names != RESULT_SCHEMA.names or table.schema.types != RESULT_SCHEMA.types:
        raise ManifestError("a result part has other columns than this version", remedy="annotate the day again")
    copy_in = sql.SQL("COPY staging ({}) FROM STDIN").format(_COLUMN_LIST)
    with connection.cursor() as cursor, cursor.copy(copy_in) as copy:
        for row in _rows(table):
            copy.write_row(row)


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    for batch in table.to_batches(max_chunksize=_COPY_ROWS):
        columns = [column.to_pylist() for column in batch.columns]
        for row in zip(*columns, strict=True):
            yield tuple(value.replace("\x00", "\ufffd") if isinstance(value, str) else value for value in row)


def _verified(connection: psycopg.Connection[Any], day: date, run: RunInfo) -> PublishReport:
    """Count what was staged and hold it against the manifest. Raises `ManifestError`."""
    foreign = connection.execute(
        "SELECT key FROM staging WHERE day <> %s OR recipe_id <> %s OR manifest_id <> %s LIMIT %s",
        (day, run.recipe.recipe_id, run.manifest_id, _EXAMPLES),
    ).fetchall()
    if foreign:
        raise ManifestError(f"rows of another day, recipe or manifest among those of {day}: {_named(foreign)}")
    twice = connection.execute(
        "SELECT key FROM staging GROUP BY key HAVING count(*) > 1 LIMIT %s", (_EXAMPLES,)
    ).fetchall()
    if twice:
        raise ManifestError(f"keys that stand twice in the results of {day}: {_named(twice)}")
    counted = connection.execute(
        "SELECT outcome, count(*), count(*) FILTER (WHERE cached) FROM staging GROUP BY outcome ORDER BY outcome"
    ).fetchall()
    by_outcome = {Outcome(outcome): rows for outcome, rows, _ in counted}
    rows = sum(by_outcome.values())
    if rows != run.manifest_rows:
        raise ManifestError(
            f"{rows} results of {day} for {run.manifest_rows} manifest rows", remedy="annotate the missing shards"
        )
    ok = by_outcome.get(Outcome.OK, 0)
    return PublishReport(
        day=day,
        changed=True,
        rows=rows,
        ok=ok,
        quarantined=rows - ok,
        by_outcome=by_outcome,
        cached=sum(cached for _, _, cached in counted),
        content_digest=digest(connection, None),
    )


def _named(rows: list[tuple[Any, ...]]) -> str:
    return ", ".join(repr(row[0]) for row in rows)


def _swap(connection: psycopg.Connection[Any], day: date) -> None:
    for name, rule in (("annotations", "outcome = 'ok'"), ("quarantine", "outcome <> 'ok'")):
        target = sql.Identifier(name)
        connection.execute(sql.SQL("DELETE FROM {} WHERE day = %s").format(target), (day,))
        connection.execute(
            sql.SQL("INSERT INTO {} ({}) SELECT {} FROM staging WHERE {}").format(
                target, _COLUMN_LIST, _COLUMN_LIST, sql.SQL(rule)
            )
        )


def _note_run(connection: psycopg.Connection[Any], report: PublishReport, run: RunInfo) -> None:
    """One row in `runs`, unless this DAG run already noted just that: a retried publish task changes nothing at all."""
    latest = connection.execute(
        "SELECT dag_run_id, content_digest FROM runs WHERE day = %s ORDER BY run_id DESC LIMIT 1", (report.day,)
    ).fetchone()
    if not report.changed and latest == (run.dag_run_id, report.content_digest):
        return
    recipe = run.recipe
    connection.execute(
        "INSERT INTO recipes (recipe_id, name, yaml, content, model, revision, quantization)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (
            recipe.recipe_id,
            recipe.name,
            recipe.to_yaml(),
            Jsonb(recipe.model_dump(mode="json"), dumps=_json),
            recipe.model_name,
            recipe.model.revision,
            recipe.model.quantization.value,
        ),
    )
    values = {
        "day": report.day,
        "dag_run_id": run.dag_run_id,
        "recipe_id": recipe.recipe_id,
        "manifest_id": run.manifest_id,
        "manifest_uri": run.manifest_uri,
        "manifest_rows": run.manifest_rows,
        "ok": report.ok,
        "quarantined": report.quarantined,
        "by_outcome": Jsonb({outcome.value: rows for outcome, rows in report.by_outcome.items()}),
        "cached": report.cached,
        "parts": list(run.parts),
        "content_digest": report.content_digest,
        "changed": report.changed,
        "images_per_s": run.images_per_s,
        "model_seconds": run.model_seconds,
        "gpu_seconds": run.gpu_seconds,
        "gate": None if run.gate is None else Jsonb(dict(run.gate), dumps=_json),
    }
    connection.execute(
        sql.SQL("INSERT INTO runs ({}) VALUES ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, values)), sql.SQL(", ").join(map(sql.Placeholder, values))
        ),
        values,
    )


def _json(value: Any) -> str:
    """jsonb cannot hold NUL either: a prompt or an example key with one must not stop a day."""
    return json.dumps(value, ensure_ascii=False).replace("\\u0000", "\\ufffd")
