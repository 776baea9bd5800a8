"""A migrated database for each test."""

from __future__ import annotations

import pytest

from demo.parts import Postgres
from glm4v_ops.sink.postgres import migrate


@pytest.fixture
def tables(postgres: Postgres) -> str:
    """The DSN of a migrated database of the test's own."""
    dsn = postgres.new_database()
    migrate(dsn)
    return dsn
