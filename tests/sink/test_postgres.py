from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from demo.parts import Postgres
from glm4v_ops.errors import ManifestError, PublishError, SettingsError, TablesUnavailable
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import parse_recipe
from glm4v_ops.result import Result, to_table
from glm4v_ops.sink.postgres import PublishReport, migrate, publish
from glm4v_ops.sink.queries import annotated, digest_of_day, quarantine, show
from tests.sink.rows import DAY, MANIFEST, RECIPE, row, run_info


def _publish(dsn: str, rows: list[Result], **run: Any) -> PublishReport:
    half = len(rows) // 2
    parts = [to_table(rows[:half]), to_table(rows[half:])]
    return publish(dsn, day=rows[0].day, tables=parts, run=run_info(len(rows), **run))


def _select(dsn: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query).fetchall()


ROWS_AS_STORED = "SELECT ctid, xmin, t.* FROM {} t ORDER BY key"


def _stored(dsn: str) -> list[list[tuple[Any, ...]]]:
    """Every row with its place and the transaction that wrote it: equal only when none was written again."""
    return [_select(dsn, ROWS_AS_STORED.format(name)) for name in ("annotations", "quarantine")]


MIXED = [row("a"), row("b", Outcome.MISSING), row("c"), row("d", Outcome.GARBLED, caption="<|user|>")]


def test_a_day_lands_in_annotations_and_quarantine_by_outcome(tables: str) -> None:
    report = _publish(tables, MIXED)
    assert (report.changed, report.rows, report.ok, report.quarantined) == (True, 4, 2, 2)
    assert report.by_outcome == {Outcome.OK: 2, Outcome.MISSING: 1, Outcome.GARBLED: 1}
    assert annotated(tables, DAY) == [MIXED[0], MIXED[2]]
    assert quarantine(tables, day=DAY) == [MIXED[1], MIXED[3]]


@pytest.mark.parametrize(
    "value",
    [
        "图片/夜市 😀 一、二",
        "tab\there, line\nfeed, return\rend",
        "back\\slash \\N \\. \\t \\x41",
        "\"quoted\", 'it', $$, %s, %2F, {a,b}, NULL",
        " spaces at both ends ",
        "\\N",
        "\\.",
        "\x01\x1f\x7f\ufffe",
    ],
)
def test_every_character_survives_the_way_into_the_tables(tables: str, value: str) -> None:
    rows = [row(value, caption=value, text=value, etag=value), row("k", Outcome.GARBLED, detail=value, caption=value)]
    _publish(tables, rows)
    assert show(tables, value) == [rows[0]]
    assert show(tables, "k") == [rows[1]]


def test_an_empty_text_stays_empty_and_null_stays_null(tables: str) -> None:
    rows = [row("a", text="", has_text=False), row("b", Outcome.EMPTY, text=None, caption="", sha256=None)]
    _publish(tables, rows)
    assert show(tables, "a") == rows[:1]
    assert show(tables, "b") == rows[1:]


def test_nul_is_stored_as_a_replacement_character_and_publishing_again_changes_nothing(tables: str) -> None:
    rows = [row("a\x00b", Outcome.GARBLED, caption="x\x00y", detail="\x00")]
    assert _publish(tables, rows).changed
    (stored,) = show(tables, "a\x00b")
    assert (stored.key, stored.caption, stored.detail) == ("a\ufffdb", "x\ufffdy", "\ufffd")
    assert not _publish(tables, rows).changed


def test_publishing_twice_touches_no_row(tables: str) -> None:
    first = _publish(tables, MIXED)
    before, runs = _stored(tables), _select(tables, "SELECT * FROM runs")
    second = _publish(tables, MIXED)
    assert (first.changed, second.changed) == (True, False)
    assert second.content_digest == first.content_digest == digest_of_day(tables, DAY)
    assert _stored(tables) == before
    assert _select(tables, "SELECT * FROM runs") == runs


def test_another_dag_run_with_the_same_rows_is_noted_and_touches_no_row(tables: str) -> None:
    _publish(tables, MIXED)
    before = _stored(tables)
    assert not _publish(tables, MIXED, dag_run_id="run-2").changed
    assert _stored(tables) == before
    noted = _select(tables, "SELECT dag_run_id, changed FROM runs ORDER BY run_id")
    assert noted == [("run-1", True), ("run-2", False)]


@pytest.mark.parametrize("column", ["caption", "etag", "attempts", "annotated_at", "latency_ms", "has_text"])
def test_any_changed_value_changes_the_digest_and_the_day(tables: str, column: str) -> None:
    other: dict[str, Any] = {
        "caption": "A blue circle.",
        "etag": "e2",
        "attempts": 3,
        "annotated_at": MIXED[0].annotated_at + timedelta(microseconds=1),
        "latency_ms": None,
        "has_text": False,
    }
    before = _publish(tables, MIXED)
    changed = [dataclasses.replace(MIXED[0], **{column: other[column]}), *MIXED[1:]]
    after = _publish(tables, changed)
    assert after.changed
    assert after.content_digest != before.content_digest
    assert annotated(tables, DAY) == [changed[0], changed[2]]


def test_an_image_that_moves_to_quarantine_leaves_annotations(tables: str) -> None:
    _publish(tables, MIXED)
    moved = [row("a", Outcome.EMPTY), *MIXED[1:]]
    _publish(tables, moved)
    assert [result.key for result in annotated(tables, DAY)] == ["c"]
    assert [result.key for result in quarantine(tables, day=DAY)] == ["a", "b", "d"]


def test_a_smaller_manifest_takes_the_old_rows_away_and_leaves_other_days(tables: str) -> None:
    other = DAY - timedelta(days=1)
    _publish(tables, [dataclasses.replace(result, day=other) for result in MIXED])
    _publish(tables, MIXED)
    before = digest_of_day(tables, other)
    _publish(tables, MIXED[:2], dag_run_id="run-2")
    assert [len(annotated(tables, DAY)), len(quarantine(tables, day=DAY))] == [1, 1]
    assert digest_of_day(tables, other) == before


def test_a_row_changed_by_hand_is_put_right_by_the_next_publish(tables: str) -> None:
    _publish(tables, MIXED)
    with psycopg.connect(tables) as connection:
        connection.execute("UPDATE annotations SET caption = 'by hand' WHERE key = 'a'")
    assert _publish(tables, MIXED).changed
    assert show(tables, "a") == [MIXED[0]]


def test_an_empty_day_can_be_published(tables: str) -> None:
    _publish(tables, MIXED)
    report = publish(tables, day=DAY, tables=[], run=run_info(0, dag_run_id="run-2"))
    assert (report.changed, report.rows) == (True, 0)
    assert annotated(tables, DAY) == []


@pytest.mark.parametrize(
    ("rows", "listed", "said"),
    [
        ([row("a"), row("b")], 3, "2 results of 2026-11-20 for 3 manifest rows"),
        ([row("a"), row("b")], 1, "2 results of 2026-11-20 for 1 manifest rows"),
        ([row("a"), row("b"), row("a", Outcome.EMPTY)], 3, "stand twice.*'a'"),
        ([row("a"), row("b", day=DAY + timedelta(days=1))], 2, "another day.*'b'"),
        ([row("a"), row("b", recipe_id="another")], 2, "another day, recipe or manifest.*'b'"),
        ([row("a"), row("b", manifest_id="another")], 2, "another day, recipe or manifest.*'b'"),
    ],
)
def test_rows_that_contradict_the_manifest_are_refused(tables: str, rows: list[Result], listed: int, said: str) -> None:
    _publish(tables, MIXED)
    before = _stored(tables)
    with pytest.raises(ManifestError, match=said):
        publish(tables, day=DAY, tables=[to_table(rows)], run=run_info(listed))
    assert _stored(tables) == before


def test_a_part_with_other_columns_is_refused(tables: str) -> None:
    table = to_table(MIXED).drop_columns(["latency_ms"])
    with pytest.raises(ManifestError, match="other columns"):
        publish(tables, day=DAY, tables=[table], run=run_info(4))


def test_a_fault_while_reading_the_parts_leaves_the_day_as_it_was(tables: str) -> None:
    _publish(tables, MIXED)
    before = _stored(tables)

    def parts() -> Iterator[pa.Table]:
        yield to_table(MIXED[:1])
        raise OSError("the store went away")

    with pytest.raises(OSError, match="went away"):
        publish(tables, day=DAY, tables=parts(), run=run_info(1, dag_run_id="run-2"))
    assert _stored(tables) == before


@pytest.mark.parametrize(
    ("event", "table"),
    [("DELETE", "annotations"), ("INSERT", "annotations"), ("INSERT", "quarantine"), ("INSERT", "runs")],
)
def test_a_server_killed_in_the_middle_of_the_swap_leaves_the_day_as_it_was(
    tables: str, event: str, table: str
) -> None:
    _publish(tables, MIXED)
    before, runs = _stored(tables), _select(tables, "SELECT * FROM runs")
    with psycopg.connect(tables) as connection:
        connection.execute(
            "CREATE FUNCTION nap() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$"
        )
        connection.execute(f"CREATE TRIGGER nap AFTER {event} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION nap()")
    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(_publish, tables, [row("new"), *MIXED[1:]], dag_run_id="run-2")
        _kill_the_sleeper(tables)
        with pytest.raises(TablesUnavailable):
            publishing.result()
    assert _stored(tables) == before
    assert _select(tables, "SELECT * FROM runs") == runs


def _kill_the_sleeper(dsn: str) -> None:
    """Terminate the session that sleeps in the trigger, as soon as there is one."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(600):
            killed = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event = 'PgSleep'"
            ).fetchall()
            if killed:
                return
            threading.Event().wait(0.05)
    raise AssertionError("nobody slept")


def test_readers_see_the_old_day_or_the_new_one_never_a_mixture(tables: str) -> None:
    old = [row(f"{index:03}", caption="old") for index in range(150)]
    new = [row(f"{index:03}", Outcome.EMPTY if index % 3 else Outcome.OK, caption="new") for index in range(120)]
    _publish(tables, old)
    seen: set[tuple[int, tuple[str, ...]]] = set()
    stop, reading = threading.Event(), threading.Barrier(3)

    def look(connection: psycopg.Connection) -> None:
        rows = connection.execute("SELECT caption FROM annotations UNION ALL SELECT caption FROM quarantine").fetchall()
        seen.add((len(rows), tuple(sorted({caption for (caption,) in rows}))))

    def read() -> None:
        with psycopg.connect(tables, autocommit=True) as connection:
            look(connection)
            reading.wait(60)
            while not stop.is_set():
                look(connection)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            reading.wait(60)  # until each reads, or the first turns would be over before
            deadline = time.monotonic() + 60
            for turn in count():
                _publish(tables, old if turn % 2 else new, dag_run_id=f"turn-{turn}")
                if turn >= 5 and (len(seen) > 1 or time.monotonic() > deadline):
                    break
        finally:
            stop.set()
        for reader in readers:
            reader.result()
    assert seen == {(150, ("old",)), (120, ("new",))}


def test_a_reader_that_stays_does_not_hold_up_the_first_publish_of_a_day(tables: str) -> None:
    with psycopg.connect(tables) as reader:
        reader.execute("SELECT count(*) FROM annotations, quarantine")  # its lock stands until the block ends
        assert _publish(tables, MIXED).changed
        assert reader.execute("SELECT count(*) FROM annotations").fetchone() == (2,)


def test_two_publishes_of_one_day_at_once_leave_the_rows_of_one_of_them(tables: str) -> None:
    versions = [[row(f"{index:03}", caption=f"version {v}") for index in range(100)] for v in range(4)]
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda v: _publish(tables, versions[v], dag_run_id=f"run-{v}"), range(4)))
    assert all(report.changed for report in reports)
    assert digest_of_day(tables, DAY) in {report.content_digest for report in reports}
    (latest,) = _select(tables, "SELECT content_digest FROM runs ORDER BY run_id DESC LIMIT 1")
    assert latest == (digest_of_day(tables, DAY),)


def test_several_days_are_published_at_once(tables: str) -> None:
    days = [DAY - timedelta(days=back) for back in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda day: _publish(tables, [dataclasses.replace(r, day=day) for r in MIXED]), days))
    assert _select(tables, "SELECT count(*), count(DISTINCT day) FROM annotations") == [(12, 6)]


def test_each_day_is_a_partition_of_its_own_with_the_tables_indexes(tables: str) -> None:
    _publish(tables, MIXED)
    assert _select(tables, "SELECT tableoid::regclass::text, count(*) FROM annotations GROUP BY 1") == [
        ("annotations_2026_11_20", 2)
    ]
    loose = "SELECT count(*) FROM pg_class c WHERE relname LIKE '%_2026_11_20%idx' AND NOT relispartition"
    assert _select(tables, loose) == [(0,)]


def test_a_table_in_the_way_of_a_partition_is_named(tables: str) -> None:
    with psycopg.connect(tables) as connection:
        connection.execute("CREATE TABLE quarantine_2026_11_20 (a int)")
    with pytest.raises(PublishError, match="quarantine_2026_11_20 exists"):
        _publish(tables, MIXED)


def test_the_database_itself_refuses_a_row_in_the_wrong_table(tables: str) -> None:
    _publish(tables, MIXED)
    with psycopg.connect(tables) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("UPDATE annotations SET outcome = 'empty'")
    with psycopg.connect(tables) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("UPDATE quarantine SET outcome = 'ok'")


def test_a_run_keeps_where_its_rows_came_from(tables: str) -> None:
    gate = {"passed": True, "examples": ["图\x00"]}
    run: dict[str, Any] = {
        "parts": ("s3://w/1.parquet", 's3://w/2, "x".parquet'),
        "images_per_s": 9.5,
        "model_seconds": 12.25,
        "gate": gate,
    }
    report = _publish(tables, MIXED, **run)
    (noted,) = _select(
        tables,
        "SELECT day, dag_run_id, recipe_id, manifest_id, manifest_uri, manifest_rows, ok, quarantined, by_outcome,"
        " cached, parts, content_digest, changed, images_per_s, model_seconds, gpu_seconds, gate FROM runs",
    )
    info = run_info(4)
    assert noted == (
        *(DAY, "run-1", RECIPE.recipe_id, MANIFEST, info.manifest_uri, 4, 2, 2),
        *({"ok": 2, "missing": 1, "garbled": 1}, 0, list(run["parts"]), report.content_digest, True),
        *(9.5, 12.25, None, {"passed": True, "examples": ["图\ufffd"]}),
    )


def test_a_recipe_is_kept_so_that_it_can_be_read_back(tables: str) -> None:
    _publish(tables, MIXED)
    (kept,) = _select(tables, "SELECT recipe_id, name, yaml, content, model, revision, quantization FROM recipes")
    assert kept[:2] == (RECIPE.recipe_id, "demo")
    assert parse_recipe(kept[2], name="kept") == RECIPE
    assert kept[3] == json.loads(RECIPE.model_dump_json())
    assert kept[4:] == (RECIPE.model_name, "sha256:abc123", "nf4")


def test_parts_are_read_one_at_a_time(tables: str) -> None:
    alive = most = 0

    class Part:
        """Counts how many parts stand in memory."""

        def __init__(self, index: int) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            self._table = to_table([row(f"{index:02}")])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._table, name)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    parts: Callable[[], Iterator[Any]] = lambda: (Part(index) for index in range(20))  # noqa: E731
    assert publish(tables, day=DAY, tables=parts(), run=run_info(20)).rows == 20
    assert most <= 2  # the next is made before the loop lets go of the last


def test_migrating_again_and_at_once_is_harmless(postgres: Postgres) -> None:
    dsn = postgres.new_database()
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(migrate, [dsn] * 3)) == {"0001"}
    _publish(dsn, MIXED)
    before = _stored(dsn)
    assert migrate(dsn) == "0001"
    assert _stored(dsn) == before


def test_migrating_leaves_other_programs_tables_alone(postgres: Postgres) -> None:
    dsn = postgres.new_database()
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text); INSERT INTO alembic_version VALUES ('x')")
    migrate(dsn)
    assert _select(dsn, "SELECT * FROM alembic_version") == [("x",)]


def test_migrating_a_database_that_is_not_utf8_is_refused(postgres: Postgres) -> None:
    with psycopg.connect(postgres.dsn("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    with pytest.raises(SettingsError, match="encoded in LATIN1"):
        migrate(postgres.dsn("latin"))


def test_migrating_an_unreachable_database_may_work_later(postgres: Postgres) -> None:
    with pytest.raises(TablesUnavailable):
        migrate(postgres.dsn("postgres").replace(f":{postgres.port}/", ":1/"))


def test_publishing_without_tables_names_the_command_that_makes_them(postgres: Postgres) -> None:
    with pytest.raises(PublishError, match="run python -m glm4v_ops migrate"):
        _publish(postgres.new_database(), MIXED)
