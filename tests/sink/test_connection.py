from __future__ import annotations

import psycopg
import pytest
from psycopg import errors as pg

from demo.parts import Postgres
from glm4v_ops.errors import PublishError, SettingsError, TablesUnavailable
from glm4v_ops.sink.connection import connect, describe, table_errors, transaction

SECRET = "hunter2-and-more"


def test_a_dsn_is_described_without_its_password() -> None:
    assert describe(f"postgresql://ann:{SECRET}@db.example:5433/glm4v") == "ann@db.example:5433/glm4v"
    assert describe(f"host=/run/pg dbname=glm4v password={SECRET}") == "/run/pg/glm4v"


@pytest.mark.parametrize("dsn", [f"postgresql://ann:{SECRET} x@h:port/db", SECRET, f"password={SECRET} {SECRET}"])
def test_a_dsn_that_cannot_be_read_is_a_setting_and_is_not_repeated(dsn: str) -> None:
    with pytest.raises(SettingsError) as caught:
        connect(dsn, purpose="test")
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"
    assert caught.value.__suppress_context__


def test_a_port_nobody_listens_on_may_work_later(postgres: Postgres) -> None:
    with pytest.raises(TablesUnavailable, match="did not answer"):
        connect(postgres.dsn("postgres").replace(f":{postgres.port}/", ":1/"), purpose="test")


@pytest.mark.parametrize(
    ("wrong", "right"), [("another-word", "password"), ("nobody:", "user"), ("/nowhere", "database")]
)
def test_wrong_credentials_are_a_setting(postgres: Postgres, wrong: str, right: str) -> None:
    dsn = postgres.dsn("postgres")
    there = {"password": postgres.password, "user": f"{postgres.USER}:", "database": "/postgres"}[right]
    before, _, after = dsn.rpartition(there)
    with pytest.raises(SettingsError, match="refused the connection") as caught:
        connect(before + wrong + after, purpose="test")
    assert postgres.password not in str(caught.value)


def test_missing_tables_name_the_command_that_makes_them(postgres: Postgres) -> None:
    dsn = postgres.new_database()
    with pytest.raises(PublishError, match="run python -m glm4v_ops migrate"), transaction(dsn, purpose="t") as c:
        c.execute("SELECT * FROM annotations")


def test_a_user_without_rights_is_told_so(tables: str, postgres: Postgres) -> None:
    with psycopg.connect(tables) as owner:
        owner.execute("DROP ROLE IF EXISTS stranger")
        owner.execute("CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
    dsn = tables.replace(f"{postgres.USER}:{postgres.password}@", "stranger:stranger@")
    with pytest.raises(PublishError, match="may not do this"), transaction(dsn, purpose="test") as connection:
        connection.execute("SELECT * FROM annotations")


def test_a_server_that_goes_away_in_the_middle_may_work_later(tables: str) -> None:
    def lost() -> None:
        with transaction(tables, purpose="test") as connection, psycopg.connect(tables) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
            connection.execute("SELECT 1")

    with pytest.raises(TablesUnavailable):
        lost()


def test_a_server_that_only_reads_for_now_may_write_later(tables: str) -> None:
    def write() -> None:
        with transaction(tables, purpose="test") as connection:
            connection.execute("SET TRANSACTION READ ONLY")
            connection.execute("CREATE TABLE never (a int)")

    with pytest.raises(TablesUnavailable, match="read-only"):
        write()


def test_a_transaction_that_was_ended_for_its_silence_may_be_tried_again() -> None:
    """Raised here: from a real server libpq reads this or a closed connection, whichever comes first."""
    with pytest.raises(TablesUnavailable, match="idle-in-transaction"), table_errors("postgresql://host/db"):
        raise pg.IdleInTransactionSessionTimeout("terminating connection due to idle-in-transaction timeout")


def test_errors_that_are_not_the_databases_pass_through(tables: str) -> None:
    with pytest.raises(KeyError), table_errors(tables):
        raise KeyError("mine")


def test_a_transaction_that_raises_is_rolled_back_and_one_that_ends_is_committed(tables: str) -> None:
    def half() -> None:
        with transaction(tables, purpose="test") as connection:
            connection.execute("CREATE TABLE half (a int)")
            raise KeyError("mine")

    with pytest.raises(KeyError):
        half()
    with transaction(tables, purpose="test") as connection:
        connection.execute("CREATE TABLE whole (a int)")
    with transaction(tables, purpose="test") as connection:
        row = connection.execute("SELECT to_regclass('half'), to_regclass('whole')").fetchone()
    assert row == (None, "whole")


def test_a_transaction_waits_for_nothing_for_ever_and_says_who_it_is(tables: str) -> None:
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    with transaction(tables, purpose="purpose 2026-11-20") as connection:
        values = [connection.execute(f"SHOW {name}").fetchone() for name in names]
        named = connection.execute("SHOW application_name").fetchone()
    assert all(value not in (None, ("0",)) for value in values)
    assert named == ("glm4v_ops purpose 2026-11-20",)
