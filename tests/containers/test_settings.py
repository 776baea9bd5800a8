"""The containers' settings and secrets: where each comes from, and where it must not be."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from cryptography.fernet import Fernet

from demo.stack import ROOT
from glm4v_ops.settings import S3Uri, Settings, dsn_from_environment
from tests.containers.files import (
    COMPOSE,
    DOCKERFILE,
    EXAMPLE,
    airflow_services,
    argv,
    copied_into_context,
    fill,
    interpolated,
    variables,
)


def test_the_example_and_the_compose_file_name_the_same_variables() -> None:
    assert set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE)) == set(variables(EXAMPLE))


def test_nothing_starts_on_an_example_that_was_only_copied() -> None:
    secrets = {name for name, value in variables(EXAMPLE).items() if not value}
    assert secrets == {
        "AIRFLOW_FERNET_KEY",
        "AIRFLOW_JWT_SECRET",
        "AIRFLOW_SECRET_KEY",
        "AIRFLOW_ADMIN_PASSWORD",
        "AIRFLOW_DB_PASSWORD",
        "TABLES_PASSWORD",
        "REDIS_PASSWORD",
        "S3_ACCESS_KEY",
        "S3_SECRET_KEY",
    }
    with pytest.raises(AssertionError, match=r"is missing a value: see \.env\.example"):
        interpolated(yaml.safe_load(COMPOSE), variables(EXAMPLE))


def test_the_lines_of_the_example_make_every_secret_for_the_owners_eyes_alone(dotenv: Path) -> None:
    assert stat.S_IMODE(dotenv.stat().st_mode) == 0o600
    made = variables(dotenv.read_text(encoding="utf-8"))
    secrets = [made[name] for name, value in variables(EXAMPLE).items() if not value]
    assert len(set(secrets)) == len(secrets)
    Fernet(made["AIRFLOW_FERNET_KEY"])
    assert all(re.fullmatch(r"[0-9a-f]{64}|[\w-]{43}=", secret) for secret in secrets)
    assert {name: made[name] for name, value in variables(EXAMPLE).items() if value} == {
        name: value for name, value in variables(EXAMPLE).items() if value
    }


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, f"{path}/{key}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from leaves(each, f"{path}/{number}")
    else:
        yield path, str(value)


#: Names that say so, and URLs and connections that hold a password.
SECRET = re.compile(r"(PASSWORD|SECRET|ACCESS_KEY|FERNET_KEY|_AUTH|_DSN|AIRFLOW_CONN_\w+)$")
WITH_PASSWORD = re.compile(r"://[^/@]*:[^/@]*@")


def test_every_secret_comes_from_the_env_file(compose: dict[str, Any], tmp_path: Path) -> None:
    other = interpolated(yaml.safe_load(COMPOSE), variables(fill(tmp_path).read_text(encoding="utf-8")))
    differ = {path for (path, mine), (_, its) in zip(leaves(compose), leaves(other), strict=True) if mine != its}
    secret = {path for path, value in leaves(compose) if SECRET.search(path) or WITH_PASSWORD.search(value)}
    assert secret - differ == set()
    assert len({path.rsplit("/", 1)[-1] for path in secret}) > 10
    assert not re.search(r"^\s*(ARG|ENV)\b.*(PASSWORD|SECRET|KEY)", DOCKERFILE, re.MULTILINE)


def test_the_env_file_stays_out_of_the_history_and_the_image() -> None:
    assert "/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert not copied_into_context(".env")


class Asked(dict[str, str]):
    """An environment that remembers what it was asked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.names: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.names.add(key)
        return super().get(key, default)


def test_the_settings_are_known_and_those_of_the_example_are_the_defaults(services: dict[str, Any]) -> None:
    asked = Asked(services["airflow-init"]["environment"])
    assert Settings.from_environment(asked) == Settings()
    assert urlsplit(dsn_from_environment(asked)).path == "/glm4v"
    given = {name for each in services.values() for name in each.get("environment", ()) if name.startswith("GLM4V_")}
    assert given == asked.names | {"GLM4V_GPU_QUEUE"}
    assert (ROOT / asked["GLM4V_RECIPE"]).is_file()


def test_the_store_makes_the_buckets_that_the_settings_name(services: dict[str, Any]) -> None:
    (option,) = [each for each in argv(services["seaweedfs"]) if each.startswith("-bucket=")]
    places = (variables(EXAMPLE)[name] for name in ("GLM4V_SOURCE", "GLM4V_WORK"))
    assert option.removeprefix("-bucket=").split(",") == [S3Uri.parse(each, setting="").bucket for each in places]


def test_the_connections_lead_to_the_services_with_their_credentials(services: dict[str, Any]) -> None:
    environ = services["airflow-worker-gpu"]["environment"]
    store, tables = (json.loads(environ[f"AIRFLOW_CONN_GLM4V_{name}"]) for name in ("STORE", "TABLES"))
    keys = services["seaweedfs"]["environment"]
    assert store == {
        "conn_type": "aws",
        "login": keys["AWS_ACCESS_KEY_ID"],
        "password": keys["AWS_SECRET_ACCESS_KEY"],
        "extra": {"endpoint_url": "http://seaweedfs:8333", "region_name": "us-east-1"},
    }
    password = services["postgres"]["environment"]["TABLES_PASSWORD"]
    place = f"{tables['login']}:{tables['password']}@{tables['host']}:{tables['port']}/{tables['schema']}"
    assert (tables["conn_type"], place) == ("postgres", f"glm4v:{password}@postgres:5432/glm4v")
    assert services["airflow-init"]["environment"]["GLM4V_DSN"] == f"postgresql://{place}"


def test_airflow_reaches_its_database_its_queue_and_itself(services: dict[str, Any]) -> None:
    for name, service in airflow_services(services).items():
        environ = service["environment"]
        database = urlsplit(environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"])
        given = services["postgres"]["environment"]
        assert (database.username, database.password) == (given["POSTGRES_USER"], given["POSTGRES_PASSWORD"]), name
        assert (database.hostname, database.port, database.path) == ("postgres", 5432, f"/{given['POSTGRES_DB']}")
        assert environ["AIRFLOW__CELERY__RESULT_BACKEND"] == f"db+{database.geturl()}"
        queue = urlsplit(environ["AIRFLOW__CELERY__BROKER_URL"])
        asked = argv(services["redis"])[argv(services["redis"]).index("--requirepass") + 1]
        assert (queue.hostname, queue.password) == ("redis", asked)
        assert services["redis"]["environment"]["REDISCLI_AUTH"] == asked
        assert environ["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://airflow-apiserver:8080/execution/"
