"""The container files, read as Docker reads them: no Docker engine is needed, and none is asked.

Compose's `${NAME:?…}` is resolved here as Compose does it, with a `.env` made the way `.env.example` says. What only
an engine could show (that the image builds, that images have these tags) is not shown here.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from demo.stack import ROOT

COMPOSE = (ROOT / "docker-compose.yaml").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PINS = dict(
    line.split("==", 1) for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if "==" in line
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


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


def copied_into_context(path: str) -> bool:
    """Whether .dockerignore lets the path through: the last line that matches decides."""
    let = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#") and fnmatch.fnmatch(path, line.removeprefix("!")):
            let = line.startswith("!")
    return let
