"""What the tests ask of processes other than their own: some end while they are asked, and all take their time."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import psutil

from demo.process import kept_processes

Answer = TypeVar("Answer")


def asked(processes: Iterable[psutil.Process], question: Callable[[psutil.Process], Answer]) -> list[Answer]:
    """The answers of those that still run."""
    answers = []
    for process in processes:
        try:
            answers.append(question(process))
        except psutil.NoSuchProcess:  # ended between being listed and being asked; a zombie is one of these too
            continue
    return answers


def command_line(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


def listening(processes: Iterable[psutil.Process]) -> set[str]:
    """The addresses on which these processes take connections, or datagrams from anyone."""
    return {
        each.laddr.ip
        for found in asked(processes, lambda process: process.net_connections(kind="inet"))
        for each in found
        if each.status == psutil.CONN_LISTEN or (each.type == socket.SOCK_DGRAM and each.laddr and not each.raddr)
    }


def gone_within(seconds: float, folder: Path) -> bool:
    """Whether everything started for this state folder ends in time."""
    deadline = time.monotonic() + seconds
    while kept_processes(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
