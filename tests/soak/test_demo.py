"""`make demo` as a person runs it: stopped in the middle, begun again, run once more."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from demo.process import kept_processes
from tests.airflow.home import ROOT

pytestmark = [pytest.mark.soak, pytest.mark.timeout(2400)]

#: The least at which the broken files are among them.
IMAGES = 100


def demo(state: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-u", "-m", "demo.run", "--images", str(IMAGES), "--state", str(state)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def left_running(state: Path) -> list[str]:
    folders = [state / name for name in ("store", "postgres", "airflow")]
    return [process.name() for folder in folders for process in kept_processes(folder)]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_demo_that_was_stopped_goes_on_and_a_further_one_changes_nothing(
    tmp_path: Path, stop: signal.Signals
) -> None:
    state = tmp_path / "state"
    first = demo(state)
    assert first.stdout is not None
    seen = []
    for line in first.stdout:
        seen.append(line)
        if re.search(r"annotate: (\d+ )?running", line):
            break
    assert first.poll() is None, "".join(seen)
    first.send_signal(stop)
    rest, _ = first.communicate(timeout=120)
    if stop is signal.SIGINT:
        assert (first.returncode, left_running(state)) == (130, []), rest
        assert "the next start goes on from there" in rest

    again = demo(state)
    told, _ = again.communicate()
    assert again.returncode == 0, told
    assert "caption facts right" in told

    last = demo(state)
    told, _ = last.communicate()
    assert last.returncode == 0, told
    assert "it changed no row; the model ran on no image" in told
    assert left_running(state) == []
