from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo.airflow_api import AirflowApi
from demo.process import PartFailed, kept_processes
from demo.stack import ROOT, SLOTS, AlreadyRunning, Stack, main
from tests.demo.processes import asked, command_line, gone_within, listening

#: Whole stacks, on a busy machine.
pytestmark = pytest.mark.timeout(900)

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
    script = f"""
set -e
. '{stack.state / "env"}'
python -c '{program}'
psql "$GLM4V_DSN" -Atc "SELECT count(*) FROM annotations"
airflow pools get gpu --output plain
"""
    # A shell without programs of its own: this machine's psql, if it has one, would hide that ours is not found.
    bare = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    finished = subprocess.run(
        ["/bin/sh", "-c", script], cwd=tmp_path, env=bare, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert re.match(r"\['drop', 'is-it-ready', 'work'\]\n\((\d+),\)\n\1\n", finished.stdout), finished.stdout
    assert "one slot a GPU" in finished.stdout


def test_a_second_start_on_the_same_folder_says_which_one_is_running(stack: Stack) -> None:
    with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}, since .* STATE="):
        Stack.start(stack.state)
    assert stack.api.get("pools/gpu")["slots"] == SLOTS


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the starts of this file, one after the other: setting up Airflow's database is half of a start."""
    return tmp_path_factory.mktemp("up") / "state"


def test_a_component_that_dies_is_reported_with_its_log_and_takes_the_rest_along(no_dags: Path, state: Path) -> None:
    with pytest.raises(PartFailed, match=r"(?s)ended by itself.*no_such_module.*the whole log is"):
        # A setting the api-server cannot start with.
        Stack.start(state, dags=no_dags, settings={"AIRFLOW__CORE__AUTH_MANAGER": "no_such_module.AuthManager"})
    for part in PARTS:
        assert kept_processes(state / part) == []


@dataclass(frozen=True)
class Up:
    """`make up` in a process of its own, ready, with what it has said so far."""

    process: subprocess.Popen[str]
    state: Path
    said: str

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


def start(state: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "demo.stack", "--state", str(state)]
    return subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **options)


@pytest.fixture(scope="module")
def up(state: Path) -> Iterator[Up]:
    """One start for the tests that follow; the last of them stops it."""
    with start(state, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            assert process.stdout is not None
            said = ""
            while "Ctrl-C stops it" not in said:
                line = process.stdout.readline()
                assert line, f"it has ended: {said}"
                said += line
            yield Up(process, state, said)
        finally:
            process.kill()
    assert all(gone_within(120, state / part) for part in PARTS)


def test_make_up_says_where_airflow_is_and_who_may_log_in(up: Up) -> None:
    shown = dict(re.findall(r"^  (Airflow|user|password) +(\S+)$", up.said, re.MULTILINE))
    assert shown["Airflow"].startswith("http://127.0.0.1:")
    with closing(AirflowApi(shown["Airflow"], shown["user"], shown["password"])) as api:
        assert api.get("pools/gpu")["slots"] == SLOTS


def test_ctrl_c_stops_everything_even_when_pressed_twice_and_the_next_start_is_killed_without_a_trace(up: Up) -> None:
    started = psutil.Process(up.process.pid).children(recursive=True)
    assert len(started) >= 12
    up.process.send_signal(signal.SIGINT)
    assert up.line().startswith("stopping")
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(120) == 0
    assert up.line() == "stopped\n"
    for part in PARTS:
        assert kept_processes(up.state / part) == []
    # A zombie has ended, and whose task it is to collect it is not ours to say.
    assert not any(asked(started, lambda each: each.is_running() and each.status() != psutil.STATUS_ZOMBIE))

    again = start(up.state, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not any("scheduler" in line for line in asked(kept_processes(up.state / "airflow"), command_line)):
            assert again.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        again.kill()
        again.wait()
    assert all(gone_within(120, up.state / part) for part in PARTS)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_the_command_in_order_and_no_other_cuts_that_short(number: signal.Signals) -> None:
    program = """
from time import sleep
from demo.stack import stop_on_signals
stop_on_signals()
try:
    print("up", flush=True)
    sleep(600)
except KeyboardInterrupt:
    print("in order", input(), flush=True)
"""
    command = [sys.executable, "-c", program]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        try:
            assert process.stdin
            assert process.stdout
            assert process.stderr
            assert process.stdout.readline() == "up\n"
            process.send_signal(number)
            assert process.stderr.readline().startswith("stopping")
            for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                process.send_signal(other)
            process.stdin.write("to the end\n")
            process.stdin.flush()
            assert process.stdout.readline() == "in order to the end\n"
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_the_command_reports_a_folder_in_use_in_one_line(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        assert main(["--state", str(stack.state)]) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err.startswith("error: a stack is already running on ")


def make_clean(folder: Path, state: Path) -> subprocess.CompletedProcess[str]:
    """`make clean` on a copy of the Makefile: it also clears the folder it runs in, which must not be this one."""
    shutil.copy(ROOT / "Makefile", folder)
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "clean", f"STATE={state}", f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=folder, env=ours, capture_output=True, text=True, check=False)


def test_make_clean_removes_a_state_folder_that_nobody_uses(tmp_path: Path) -> None:
    state = tmp_path / "a state"
    (state / "store").mkdir(parents=True)
    (state / "lock").write_text("process 1, since yesterday")
    cleaned = make_clean(tmp_path, state)
    assert (cleaned.returncode, cleaned.stderr) == (0, "")
    assert not state.exists()


def test_make_clean_leaves_alone_what_is_no_state_folder(tmp_path: Path) -> None:
    state = tmp_path / "photos"
    state.mkdir()
    (state / "only copy.jpg").write_bytes(b"pixels")
    refused = make_clean(tmp_path, state)
    assert refused.returncode != 0
    assert f"{state} is not a state folder" in refused.stderr
    assert (state / "only copy.jpg").read_bytes() == b"pixels"


def test_make_clean_leaves_alone_what_a_running_stack_uses(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "data").write_bytes(b"rows")
    with (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = make_clean(tmp_path, state)
    assert refused.returncode != 0
    assert f"a stack is running on {state}" in refused.stderr
    assert (state / "data").read_bytes() == b"rows"
