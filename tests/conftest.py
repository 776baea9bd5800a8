"""Real parts for every test that needs one: started once per test process, gone when it ends.

`store` is SeaweedFS with an S3 endpoint and keys, `postgres` is PostgreSQL with a password, `stack` is both and
Airflow (a store and a PostgreSQL of its own). Take a bucket or a
database of your own (`store.new_bucket()`, `postgres.new_database()`), and tests never meet.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.parts import ObjectStore, Postgres
from demo.stack import ROOT, Stack

# Before anything imports torch. The tests run in two processes, and these models are too small to gain from threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A developer's own settings must not reach the tests, nor the tests a developer's buckets and tables.
for _name in [name for name in os.environ if name.startswith(("AWS_", "GLM4V_", "AIRFLOW", "PG"))]:
    del os.environ[_name]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    with _removed_after(tmp_path_factory.mktemp("store"), request) as folder, ObjectStore.start(folder) as running:
        yield running


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Postgres]:
    folder = tmp_path_factory.mktemp("postgres")
    with _removed_after(folder, request), Postgres.start(folder, durable=False) as running:
        yield running


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The whole stack with a real scheduler, for the project's DAGs and those in tests/demo/dags. Starts in 30 s."""
    dags = tmp_path_factory.mktemp("dags")
    for source in [*(ROOT / "dags").glob("*.py"), *(ROOT / "tests/demo/dags").glob("*.py")]:
        shutil.copy(source, dags)
    # Airflow's own pause before a killed task's next try is five minutes.
    settings = {"AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1"}
    # Two processes may start one each: port 8080 is for neither.
    with (
        _removed_after(tmp_path_factory.mktemp("stack"), request) as folder,
        Stack.start(folder, dags=dags, settings=settings, port=0) as running,
    ):
        yield running


@contextmanager
def _removed_after(folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """pytest keeps the folders of three runs, and a server's is a gigabyte: kept only when something failed."""
    yield folder
    if not request.session.testsfailed:
        shutil.rmtree(folder)
