from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from demo.process import PartFailed, kept_processes
from demo.stack import ROOT, SLOTS, AlreadyRunning, Stack, main
from tests.demo.test_parts import gone_within, listening

PARTS = ("store", "postgres", "airflow")


@pytest.fixture
def no_dags(tmp_path: Path) -> Path:
    folder = tmp_path / "dags"
    folder.mkdir()
    return folder


def test_every_part_listens_on_loopback_alone(stack: Stack) -> None:
    for part in PARTS:
        addresses = listening(kept_processes(stack.state / part))
        assert addresses == {"127.0.0.1"}, part


def test_airflow_runs_as_its_four_components(stack: Stack) -> None:
    health = stack.api.health()
    assert {name: health[name]["status"] for name in health} == dict.fromkeys(
        ("metadatabase", "scheduler", "triggerer", "dag_processor"), "healthy"
    )


def test_the_pool_gpu_has_a_slot_a_core(stack: Stack) -> None:
    assert stack.api.get("pools/gpu")["slots"] == SLOTS


def test_the_connections_are_there_and_do_not_show_their_passwords(stack: Stack) -> None:
    for name in ("glm4v_store", "glm4v_tables"):
        shown = stack.api.get(f"connections/{name}")
        assert shown["password"] not in (stack.store.secret_key, stack.postgres.password)
    assert stack.store.endpoint in stack.api.get("connections/glm4v_store")["extra"]


def test_what_it_keeps_secret_is_readable_by_its_owner_alone_and_in_no_log(stack: Stack) -> None:
    for path in ("env", "airflow/keys.json", "airflow/passwords.json", "store/keys.json", "postgres/keys.json"):
        assert stat.S_IMODE((stack.state / path).stat().st_mode) == 0o600, path
    hidden = (stack.password, stack.store.secret_key, stack.postgres.password)
    for log in stack.state.rglob("*.log"):
        text = log.read_text(errors="replace")
        assert not [secret for secret in hidden if secret in text], log


def test_a_shell_that_reads_the_env_file_reaches_every_part(stack: Stack, tmp_path: Path) -> None:
    program = """
import boto3, psycopg
print(sorted(bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]))
import os; print(psycopg.connect(os.environ["GLM4V_DSN"]).execute("SELECT count(*) FROM annotations").fetchone())
import glm4v_ops
"""
    script = f". '{stack.state / 'env'}'; python -c '{program}' && airflow pools get gpu --output plain"
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    finished = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=bare, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("['drop', 'is-it-ready', 'work']\n(")
    assert "one slot a GPU" in finished.stdout


def test_a_second_start_on_the_same_folder_says_which_one_is_running(stack: Stack) -> None:
    with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}, since .* STATE="):
        Stack.start(stack.state)
    assert stack.api.get("pools/gpu")["slots"] == SLOTS


def test_a_component_that_dies_is_reported_with_its_log_and_takes_the_rest_along(no_dags: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(PartFailed, match=r"(?s)ended by itself.*no_such_module.*the whole log is"):
        # A setting the api-server cannot start with.
        Stack.start(state, dags=no_dags, settings={"AIRFLOW__CORE__AUTH_MANAGER": "no_such_module.AuthManager"})
    for part in PARTS:
        assert kept_processes(state / part) == []


@pytest.fixture
def up(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """`make up` in a process of its own, ready."""
    state = tmp_path / "state"
    process = subprocess.Popen(
        [sys.executable, "-m", "demo.stack", "--state", str(state)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "Ctrl-C stops it" in line:
            break
    assert process.poll() is None, said
    try:
        yield process, state
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        assert all(gone_within(30, state / part) for part in PARTS)


def test_sigterm_stops_everything_and_the_next_start_is_killed_without_a_trace(
    up: tuple[subprocess.Popen[str], Path],
) -> None:
    process, state = up
    ports = {
        connection.laddr.port
        for part in PARTS
        for each in kept_processes(state / part)
        for connection in each.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(ports) >= 12
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0
    for part in PARTS:
        assert kept_processes(state / part) == []
    open_now = psutil.net_connections(kind="inet")
    still = {each.laddr.port for each in open_now if each.laddr and each.status == psutil.CONN_LISTEN}
    assert not ports & still

    again = subprocess.Popen(
        [sys.executable, "-m", "demo.stack", "--state", str(state)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not any("scheduler" in " ".join(each.cmdline()) for each in kept_processes(state / "airflow")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    again.kill()
    again.wait()
    assert all(gone_within(30, state / part) for part in PARTS)


def test_the_command_reports_a_folder_in_use_in_one_line(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        assert main(["--state", str(stack.state)]) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err.startswith("error: a stack is already running on ")
