"""The services of the compose file, and the commands they run, held against what is installed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from demo.stack import ROOT
from glm4v_ops.cli import _parser
from tests.containers.files import (
    COMPOSE,
    DOCKERFILE,
    EXAMPLE,
    airflow_services,
    argv,
    commands,
    environment,
    is_one_shot,
)

#: Programs of the images that are not ours to check: theirs is the documentation.
FOREIGN = {
    "airflow": {"curl"},
    "postgres": {"pg_isready"},
    "redis": {"redis-server", "redis-cli", "grep"},
    "seaweedfs": {"curl"},
}


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
