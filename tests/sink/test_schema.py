from __future__ import annotations

from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from glm4v_ops.result import COLUMNS
from glm4v_ops.sink.schema import RESULT_COMMENTS, ROW_TABLES, VERSION_TABLE, metadata


@pytest.fixture
def connection(tables: str) -> Any:
    with psycopg.connect(tables) as connection:
        yield connection


def test_the_row_tables_have_the_columns_of_a_result_in_that_order() -> None:
    for name in ROW_TABLES:
        assert tuple(metadata.tables[name].columns.keys()) == COLUMNS
    assert tuple(RESULT_COMMENTS) == COLUMNS


def test_the_migrations_lead_to_the_schema(tables: str) -> None:
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(tables))
    config = Config()
    config.set_main_option("script_location", "glm4v_ops.sink:migrations")
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.check(config)  # raises when autogenerate would change anything: columns, types, comments, indexes
    engine.dispose()


def test_a_column_the_database_lacks_is_seen_by_that_check(tables: str) -> None:
    with psycopg.connect(tables) as connection:
        connection.execute("ALTER TABLE runs DROP COLUMN gate")
    with pytest.raises(Exception, match="New upgrade operations detected"):
        test_the_migrations_lead_to_the_schema(tables)


def test_checks_and_primary_keys_are_those_of_the_schema(connection: Any) -> None:
    for table in metadata.sorted_tables:
        rows = connection.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype IN ('c', 'p', 'f')",
            (table.name,),
        ).fetchall()
        assert {name for (name,) in rows} == {constraint.name for constraint in table.constraints}


def test_every_column_of_every_table_has_its_comment_in_the_database(connection: Any) -> None:
    rows = connection.execute(
        "SELECT c.relname, a.attname, col_description(c.oid, a.attnum), obj_description(c.oid)"
        " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relname = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped",
        ([table.name for table in metadata.sorted_tables],),
    ).fetchall()
    said = {(table, column): comment for table, column, comment, _ in rows}
    wanted = {(table.name, column.name): column.comment for table in metadata.sorted_tables for column in table.columns}
    assert said == wanted
    assert all(wanted.values())
    assert all(about for *_, about in rows)


def test_the_row_tables_are_partitioned_by_day(connection: Any) -> None:
    rows = connection.execute(
        "SELECT partrelid::regclass::text, pg_get_partkeydef(partrelid) FROM pg_partitioned_table ORDER BY 1"
    ).fetchall()
    assert rows == [("annotations", "LIST (day)"), ("quarantine", "LIST (day)")]


def test_there_is_one_line_of_migrations_under_a_version_table_of_our_own(connection: Any) -> None:
    config = Config()
    config.set_main_option("script_location", "glm4v_ops.sink:migrations")
    (head,) = ScriptDirectory.from_config(config).get_heads()
    assert connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall() == [(head,)]
    assert VERSION_TABLE == "glm4v_alembic_version"


def test_the_tables_can_be_taken_down_again(tables: str) -> None:
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(tables))
    config = Config()
    config.set_main_option("script_location", "glm4v_ops.sink:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert sa.inspect(connection).get_table_names() == [VERSION_TABLE]
    engine.dispose()
