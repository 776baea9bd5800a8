"""One server process, started so that it cannot outlive us, with its output in a log file.

Promises: the process runs under `demo/keeper.py`, so it and all its descendants end when `stop` is called, when this
process exits, and when this process is killed -9. Whatever still escapes (the keeper was killed too) carries a tag in
its environment, by which `clear_leftovers` finds it on the next start; no process without the tag is ever touched.
Knows nothing of what the servers are.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from glm4v_ops.errors import Glm4vError

HOST = "127.0.0.1"
#: Environment variable by which our processes are known; its value is the state folder.
TAG = "GLM4V_KEPT_FOR"
_KEEPER = Path(__file__).with_name("keeper.py")


class PartFailed(Glm4vError):
    """A server did not start, or ended by itself; the message holds the end of its log."""


class Kept:
    """A running command with a keeper."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        folder: Path,
        environ: Mapping[str, str] | None = None,
        user: str | None = None,
        stop_signal: int = 15,
        grace: float = 10.0,
    ) -> None:
        """Start `command` with its output appended to `folder/name.log`; returns at once."""
        self.name = name
        self.log = folder / f"{name}.log"
        self._grace = grace
        options = ["--signal", str(int(stop_signal)), "--grace", str(grace), *(["--user", user] if user else [])]
        with self.log.open("ab") as log:
            self._start_of_log = log.tell()
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_KEEPER), *options, "--", *map(str, command)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**(os.environ if environ is None else environ), TAG: str(folder.resolve())},
                start_new_session=True,  # a Ctrl-C in the terminal is ours to pass on, in our order
            )
        self.pid = self._keeper.pid

    @property
    def alive(self) -> bool:
        return self._keeper.poll() is None

    def wait_until(self, ready: Callable[[], bool], *, seconds: float, remedy: str = "") -> None:
        """Wait for `ready()`. Raises `PartFailed` when the process ends first or `seconds` pass."""
        deadline = time.monotonic() + seconds
        while not ready():
            self.check(remedy=remedy)
            if time.monotonic() > deadline:
                raise PartFailed(f"{self.name} was not ready after {seconds:.0f} s{self.tail()}", remedy=remedy)
            time.sleep(0.05)

    def check(self, *, remedy: str = "") -> None:
        """Raises `PartFailed` with the end of the log when the process has ended."""
        if not self.alive:
            status = self._keeper.returncode
            remedy = remedy or f"read {self.log}"
            raise PartFailed(f"{self.name} ended by itself (exit status {status}){self.tail()}", remedy=remedy)

    def tail(self, lines: int = 15) -> str:
        """The end of what this process wrote, set off from the message before it."""
        with self.log.open("rb") as log:
            log.seek(max(self._start_of_log, self.log.stat().st_size - 20_000))
            text = log.read().decode(errors="replace")
        return "".join(f"\n    {line}" for line in text.splitlines()[-lines:]) + ("\n" if text else "")

    def ask_to_stop(self) -> None:
        """Begin the stop; `stop` waits for its end. Lets several processes stop at the same time."""
        if self._keeper.stdin and not self._keeper.stdin.closed:
            self._keeper.stdin.close()

    def stop(self) -> None:
        """End the process and all its descendants, and wait until they are gone. May be called again."""
        self.ask_to_stop()
        try:
            self._keeper.wait(self._grace + 10)
        except subprocess.TimeoutExpired:
            for process in psutil.Process(self.pid).children(recursive=True):
                _signal(process.kill)
            self._keeper.kill()
            self._keeper.wait()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 nobody listens on now; someone else may take one before we do, so starters try again."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def is_free(port: int) -> bool:
    """Whether this port of 127.0.0.1 could be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def kept_processes(folder: Path) -> list[psutil.Process]:
    """Every running process that was started for this state folder, by the tag in its environment."""
    tag, found = str(folder.resolve()), []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TAG) == tag and process.pid != os.getpid():
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended while we looked, or another user's: not ours
    return found


def clear_leftovers(folder: Path, *, seconds: float = 15.0) -> int:
    """End what an earlier start for this folder left running; returns how many processes that were."""
    left = kept_processes(folder)
    for process in left:
        _signal(process.terminate)
    _, alive = psutil.wait_procs(left, timeout=seconds)
    for process in alive:
        _signal(process.kill)
    psutil.wait_procs(alive, timeout=5)
    return len(left)


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
        send()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, from its first byte on."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
