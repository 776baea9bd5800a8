"""DESIGN.md's import rules, held over the whole tree.

The rules are two tables. `FOLDERS`: what the top folders may know of each other, and who may know Airflow. `UNITS`:
inside `glm4v_ops`, what each module or package may import; it is exactly what the code does, and lowest first, so that
an arrow upwards cannot be written down. Imports inside functions and under TYPE_CHECKING count: both are knowledge.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.airflow.home import ENVIRON, ROOT

#: Folder → what it may import of the folders here, and of Airflow. A longer path overrules a shorter one.
FOLDERS = {
    "glm4v_ops": {"glm4v_ops"},
    "glm4v_ops/airflow": {"glm4v_ops", "glm4v_ops.airflow", "airflow"},
    "dags": {"glm4v_ops", "glm4v_ops.airflow", "airflow"},
    "plugins": {"glm4v_ops", "glm4v_ops.airflow", "airflow"},
    "demo": {"demo", "glm4v_ops"},
    "benchmarks": {"benchmarks", "demo", "glm4v_ops"},
    "tests": {"tests", "benchmarks", "demo", "dags", "plugins", "glm4v_ops", "glm4v_ops.airflow", "airflow"},
}

#: Module or package of glm4v_ops → what else of glm4v_ops it may import. Lowest first.
UNITS: dict[str, set[str]] = {
    "quality.outcome": set(),
    "errors": {"quality.outcome"},
    "settings": {"errors"},
    "recipe": {"errors"},
    "result": {"quality.outcome"},
    "progress": {"result"},
    "quality": {"quality.outcome", "recipe"},
    "source": {"errors", "settings", "recipe", "quality.outcome"},
    "model": {"errors", "recipe", "quality", "quality.outcome"},
    "sink": {"errors", "recipe", "result", "quality.outcome"},
    "parts": {"errors", "settings", "result", "source"},
    "pictures": {"errors", "recipe", "source"},
    "cache": {"sink"},
    "footprint": {"errors", "recipe", "model"},
    "answers": {"errors", "recipe", "quality", "source", "model", "cache"},
    "annotate": {
        *("errors", "settings", "recipe", "result", "progress", "quality.outcome"),
        *("quality", "source", "parts", "pictures", "cache", "answers"),
    },
    "doctor": {"glm4v_ops", "errors", "settings", "recipe", "footprint", "source", "model", "sink"},
    "cli": {
        *("errors", "settings", "recipe", "progress", "quality.outcome"),
        *("model", "sink", "answers", "annotate", "doctor"),
    },
    "airflow": {
        *("errors", "settings", "recipe", "progress", "quality"),
        *("source", "model", "sink", "parts", "cache", "annotate"),
    },
    "__main__": {"cli"},
}

#: None of these may be loaded where Airflow parses a DAG file or loads a plugin, nor for `--help`.
HEAVY = {"torch", "transformers", "bitsandbytes", "accelerate", "pandas", "pyarrow", "numpy"}


@dataclass(frozen=True, slots=True)
class Import:
    """One import statement: `file:line` imports the module `name`."""

    file: str
    line: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def modules_under(folder: Path) -> dict[str, Path]:
    """Dotted name → file, of every module in a folder of the tree."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def ours() -> dict[str, Path]:
    """Every module of the package."""
    return modules_under(ROOT / "glm4v_ops")


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Every import in a file, wherever it stands; `from package import module` is `package.module`."""
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} is a relative import: write it out"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Import(file, node.lineno, whole if whole in ours() else str(node.module))


@cache
def tree() -> tuple[Import, ...]:
    """Every import of every file in the tree."""
    files = [path for top in {name.split("/")[0] for name in FOLDERS} for path in (ROOT / top).rglob("*.py")]
    return tuple(
        each
        for path in sorted(files)
        for each in imports_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    )


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def broken_folder_rules(imports: Iterable[Import]) -> list[str]:
    """A line for each import that `FOLDERS` does not allow."""
    known = {each for allowed in FOLDERS.values() for each in allowed}
    broken = []
    for each in imports:
        folder = max((name for name in FOLDERS if each.file.startswith(f"{name}/")), key=len)
        package = max((name for name in known if within(each.name, name)), key=len, default=None)
        if package is not None and package not in FOLDERS[folder]:
            allowed = ", ".join(sorted(FOLDERS[folder]))
            broken.append(f"{each}: {folder}/ may import of these only {allowed}")
    return broken


def unit_of(module: str) -> str:
    """The entry of `UNITS` that a module of the package belongs to."""
    inside = module.removeprefix("glm4v_ops").lstrip(".")
    return max((name for name in UNITS if within(inside, name)), key=len, default=inside or "glm4v_ops")


def edges(imports: Iterable[Import]) -> Iterator[tuple[str, str, Import]]:
    """Who imports whom between the units of the package."""
    for each in imports:
        if each.file.startswith("glm4v_ops/") and within(each.name, "glm4v_ops"):
            importer = each.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            here, there = unit_of(importer), unit_of(each.name)
            if here != there:
                yield here, there, each


def broken_unit_rules(imports: Iterable[Import]) -> list[str]:
    """A line for each import between units that `UNITS` does not allow."""
    return [
        f"{each}: `{here}` may import of glm4v_ops only {', '.join(sorted(UNITS.get(here, set()))) or 'nothing'}"
        for here, there, each in edges(imports)
        if there not in UNITS.get(here, set())
    ]


def report(lines: list[str]) -> str:
    return "\n".join(["", *lines])


def test_the_folders_know_only_what_is_below_them_and_airflow_stays_in_its_own() -> None:
    broken = broken_folder_rules(tree())
    assert not broken, report(broken)


def test_inside_the_package_imports_follow_the_table() -> None:
    broken = broken_unit_rules(tree())
    assert not broken, report(broken)


def test_the_table_allows_nothing_that_nobody_needs() -> None:
    used = {(here, there) for here, there, _ in edges(tree())}
    stale = [
        f"`{here}` no longer imports `{there}`" for here in UNITS for there in UNITS[here] if (here, there) not in used
    ]
    assert not stale, report(sorted(stale))


def test_the_table_holds_every_unit_and_no_arrow_upwards() -> None:
    assert {unit_of(module) for module in ours()} - {"glm4v_ops"} == set(UNITS)
    order = {name: place for place, name in enumerate(["glm4v_ops", *UNITS])}
    upwards = [f"{here} → {there}" for here in UNITS for there in UNITS[here] if order[there] >= order[here]]
    assert not upwards, report(upwards)


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("glm4v_ops/source/x.py", "from glm4v_ops.sink import queries", "imports glm4v_ops.sink.queries: `source` may"),
        ("glm4v_ops/quality/x.py", "from glm4v_ops import cache", "imports glm4v_ops.cache: `quality` may"),
        ("glm4v_ops/sink/x.py", "import glm4v_ops.model.engine as e", "imports glm4v_ops.model.engine: `sink` may"),
        ("glm4v_ops/recipe.py", "def f():\n  from glm4v_ops.cli import main", "imports glm4v_ops.cli: `recipe` may"),
        (
            "glm4v_ops/cli.py",
            "from glm4v_ops.airflow import assets",
            "imports glm4v_ops.airflow.assets: glm4v_ops/ may",
        ),
        ("glm4v_ops/cli.py", "from airflow.sdk import DAG", "imports airflow.sdk: glm4v_ops/ may"),
        ("glm4v_ops/airflow/x.py", "from demo.parts import Postgres", "imports demo.parts: glm4v_ops/airflow/ may"),
        ("glm4v_ops/parts.py", "import tests.shards", "imports tests.shards: glm4v_ops/ may"),
        ("glm4v_ops/parts.py", "from dags import nightly_annotation", "imports dags: glm4v_ops/ may"),
        ("glm4v_ops/parts.py", "import benchmarks", "imports benchmarks: glm4v_ops/ may"),
        ("demo/x.py", "import airflow", "imports airflow: demo/ may"),
        ("demo/x.py", "from tests.shards import png", "imports tests.shards: demo/ may"),
        ("dags/x.py", "import demo.drop", "imports demo.drop: dags/ may"),
    ],
)
def test_a_forbidden_import_is_named_by_its_line_and_its_rule(file: str, line: str, said: str) -> None:
    imports = list(imports_of(line, file))
    broken = broken_folder_rules(imports) + broken_unit_rules(imports)
    number = line.count("\n") + 1
    assert any(each.startswith(f"{file}:{number} {said}") for each in broken), report(broken)


def answer_of(code: str, **environ: str) -> dict[str, list[str]]:
    """What a fresh interpreter prints last, as JSON; Airflow in it is one of no consequence."""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **ENVIRON, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, list[str]] = json.loads(finished.stdout.splitlines()[-1])
    return answer


#: What a dag-processor does: load the plugins, parse the DAG files.
PARSE = """
import json, os, sys
from airflow import plugins_manager
from airflow.dag_processing.dagbag import DagBag
plugins = plugins_manager.get_plugin_info(["name"])
bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
errors = [*bag.import_errors.values(), *plugins_manager.get_import_errors().values()]
names = [each["name"] for each in plugins]
print(json.dumps({"loaded": sorted(sys.modules), "dags": sorted(bag.dags), "plugins": names, "errors": errors}))
"""

HELP = """
import contextlib, json, runpy, sys
sys.argv = ["glm4v_ops", "--help"]
with contextlib.suppress(SystemExit):
    runpy.run_module("glm4v_ops", run_name="__main__")
print(json.dumps({"loaded": sorted(sys.modules)}))
"""

#: Every module as the first of the package that a process imports; third-party packages are loaded once.
ALONE = """
import importlib, json, sys, traceback
failed = []
for name in NAMES:
    for loaded in [each for each in sys.modules if each.split(".")[0] == "glm4v_ops"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception as error:
        failed.append(f"{name}: {traceback.format_exception_only(error)[-1].strip()}")
print(json.dumps({"failed": failed}))
"""


def test_parsing_the_dags_and_loading_the_plugin_loads_nothing_heavy(tmp_path: Path) -> None:
    folders = {"AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path), "AIRFLOW__CORE__PLUGINS_FOLDER": str(tmp_path)}
    without, found = answer_of(PARSE, **folders), answer_of(PARSE)
    assert found["errors"] == []
    assert set(found["dags"]) - set(without["dags"]) >= {"nightly_annotation"}
    assert set(found["plugins"]) - set(without["plugins"]) == {"glm4v"}
    assert "glm4v_ops.airflow.operators" in found["loaded"]
    assert HEAVY & (set(found["loaded"]) - set(without["loaded"])) == set()


def test_help_loads_nothing_heavy_and_no_airflow() -> None:
    loaded = set(answer_of(HELP)["loaded"])
    assert "glm4v_ops.cli" in loaded
    assert (HEAVY | {"airflow", "boto3", "psycopg", "sqlalchemy"}) & loaded == set()


def test_every_module_can_be_the_first_to_be_imported() -> None:
    """Were there a circle, the module that closes it could not be imported before the others."""
    names = [name for name in ours() if ".migrations" not in name and name != "glm4v_ops.__main__"]
    code = ALONE.replace("NAMES", repr(names))
    assert answer_of(code)["failed"] == []
