"""The README says what is there: files, commands, settings, outcomes and columns are held against the code."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from glm4v_ops.quality.outcome import MEANING
from glm4v_ops.settings import Settings
from glm4v_ops.sink.schema import RESULT_COMMENTS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "demo/README.md", ROOT / "benchmarks/README.md"]


def tree() -> dict[str, str]:
    """Path → what the file tree says of it."""
    block = README.partition("## What is where")[2].split("```")[1]
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in block.strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name, _, says = line.strip().partition(" ")
        path = "".join(folders[:depth]) + name
        if name.endswith("/"):
            folders[depth:] = [name]
        found[path] = says.strip()
    return found


def rows(heading: str) -> dict[str, str]:
    """The rows `| \\`name\\` | says |` below a heading."""
    below = README.partition(heading)[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([^`|]+)` \| (.*) \|$", below, re.MULTILINE))


def test_the_tree_names_every_module_and_nothing_that_is_not_there() -> None:
    named = {path for path in tree() if path.endswith(".py")}
    there = {
        str(path.relative_to(ROOT))
        for folder in ("dags", "plugins", "glm4v_ops")
        for path in (ROOT / folder).rglob("*.py")
        if not path.name.startswith("__") and "migrations" not in path.parts
    }
    assert named == there
    for path in tree():
        assert (ROOT / path).exists(), path


def test_every_outcome_stands_there_with_its_meaning() -> None:
    assert rows("Every image ends in exactly one outcome") == {
        outcome.value: meaning for outcome, meaning in MEANING.items()
    }


def test_every_column_stands_there_with_its_comment() -> None:
    found = rows("## The tables")
    assert list(found) == list(RESULT_COMMENTS)
    assert {name: says for name, says in found.items() if name != "outcome"} == {
        name: comment for name, comment in RESULT_COMMENTS.items() if name != "outcome"
    }


def test_every_setting_stands_there_with_its_default() -> None:
    found = rows("**Settings**")
    defaults = Settings()
    for field in fields(Settings):
        assert f"`{getattr(defaults, field.name)}`" in found[f"GLM4V_{field.name.upper()}"]


def test_every_make_target_exists_and_every_one_is_told() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", README, re.MULTILINE)) == targets - {"help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_ours_exists_with_its_options(page: Path) -> None:
    commands = re.findall(
        r"python -m ((?:glm4v_ops|demo|benchmarks)[.\w]*)([^`\n#]*)", page.read_text(encoding="utf-8")
    )
    assert commands
    for module, arguments in sorted(set(commands)):
        words = arguments.split()
        command = words[:1] if module == "glm4v_ops" and words and words[0].isalpha() else []
        told = subprocess.run(
            [sys.executable, "-m", module, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, f"{module} {command}: {told.stderr}"
        for option in (word for word in words if word.startswith("--")):
            assert option in told.stdout, f"{module} {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
