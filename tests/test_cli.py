from __future__ import annotations

import dataclasses
import json
import logging
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from demo.parts import Postgres
from demo.postcards import postcards
from glm4v_ops.cli import main
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import load_recipe
from glm4v_ops.result import to_table
from glm4v_ops.sink.postgres import migrate, publish
from tests.shards import PixelEngine, png, recipe
from tests.sink.rows import DAY, RECIPE, row, run_info

ROOT = Path(__file__).parents[1]
BEFORE = DAY - timedelta(days=1)
NOWHERE = "postgresql://somebody:hush-hush@127.0.0.1:1/none"
#: What the issue promises of a line of `annotate`, in this order.
FIELDS = ["key", "outcome", "reason", "caption", "text", "has_text", "sha256", "width", "height", "recipe_id"]


@dataclasses.dataclass(frozen=True)
class Ran:
    """What one command left behind."""

    code: int | str | None
    out: str
    err: str

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def table(self) -> list[list[str]]:
        return [line.split("\t") for line in self.out.splitlines()]


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command in this process."""
    root, package = logging.getLogger(), logging.getLogger("glm4v_ops")
    handlers, levels = root.handlers, (root.level, package.level)
    root.handlers = []  # the command sets up its own, and closes those it finds

    def call(*arguments: str | Path) -> Ran:
        code: int | str | None
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as stopped:
            code = stopped.code
        return Ran(code, *capsys.readouterr())

    yield call
    root.handlers = handlers
    root.setLevel(levels[0])
    package.setLevel(levels[1])


def process(*arguments: str | Path, module: str = "glm4v_ops", **environ: str) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def finished(started: subprocess.Popen[str]) -> Ran:
    out, err = started.communicate(timeout=120)
    return Ran(started.returncode, out, err)


def is_one_line_with_a_remedy(err: str) -> bool:
    return err.startswith("error: ") and err.count("\n") == 1 and " — " in err


# --- annotate -------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe whose checkpoint is a folder that is there, and holds no weights."""
    (tmp_path / "配方" / "model").mkdir(parents=True)
    (tmp_path / "配方" / "model" / "config.json").write_text("{}")
    path = tmp_path / "配方" / "recipe.yaml"
    path.write_text(recipe(model={"id": "./model"}, batch_size=1).to_yaml(), encoding="utf-8")
    return path


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> PixelEngine:
    """The engine that `annotate` gets in place of the real one."""
    made = PixelEngine(recipe())

    def load(resolved: Any, _base: Path | None, device: str = "auto") -> PixelEngine:
        made.recipe = resolved
        return made

    monkeypatch.setattr("glm4v_ops.answers.load_engine", load)
    return made


def folder_of(tmp_path: Path, files: dict[str, bytes]) -> Path:
    folder = tmp_path / "pictures"
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_a_folder_becomes_one_json_object_an_image_in_order(
    run: Run, engine: PixelEngine, recipe_file: Path, tmp_path: Path
) -> None:
    engine.text = "营业时间：早上九点 {number}"
    files = {
        "a b%2F+.png": png(1),
        "broken.png": png(2)[:40],
        "page.jpg": b"<!DOCTYPE html>",
        "zero.png": b"",
        "图片/第一 张.png": png(3),
    }
    folder = folder_of(tmp_path, files)
    ran = run("annotate", folder, "--recipe", recipe_file)
    rows = ran.json
    assert ran.code == 0
    assert [row["key"] for row in rows] == [str(folder / name) for name in files]
    assert [row["outcome"] for row in rows] == ["ok", "unreadable", "unsupported", "unreadable", "ok"]
    assert [name for name in rows[0] if name in FIELDS] == FIELDS
    assert all(row.keys() == rows[0].keys() for row in rows)
    last = rows[-1]
    assert (last["text"], last["has_text"], last["reason"]) == ("营业时间：早上九点 3", True, "")
    assert (last["width"], last["height"], len(last["sha256"])) == (64, 48, 64)
    assert "营业时间：早上九点" in ran.out, "as it is, not as escapes"
    assert (rows[1]["caption"], rows[1]["text"], rows[1]["has_text"]) == (None, None, None)
    assert all(row["reason"] for row in rows if row["outcome"] != "ok")
    assert {row["recipe_id"] for row in rows} == {engine.recipe.recipe_id}
    assert rows[0]["revision"].startswith("sha256:")
    assert ran.err.splitlines()[-1] == "5 of 5 images: 2 ok, 2 unreadable, 1 unsupported"


def test_paths_are_taken_in_the_order_given_and_a_dangling_link_is_missing(
    run: Run, engine: PixelEngine, recipe_file: Path, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, {"b.png": png(2), "a.png": png(1)})
    (folder / "gone.png").symlink_to(folder / "nowhere")
    ran = run("annotate", folder / "gone.png", folder / "b.png", folder / "a.png", "--recipe", recipe_file)
    assert [(Path(row["key"]).name, row["outcome"]) for row in ran.json] == [
        ("gone.png", "missing"),
        ("b.png", "ok"),
        ("a.png", "ok"),
    ]
    assert ran.code == 0


def test_a_file_name_that_is_not_utf8_comes_out_as_valid_json(
    run: Run, engine: PixelEngine, recipe_file: Path, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path, {})
    folder.mkdir()
    name = os.fsencode(folder) + b"/\xff\xfe.png"
    Path(os.fsdecode(name)).write_bytes(png(1))
    ran = run("annotate", folder, "--recipe", recipe_file)
    assert ran.code == 0
    assert os.fsencode(ran.json[0]["key"]) == name


def test_a_model_that_raises_on_an_image_is_an_outcome_and_no_error(
    run: Run, engine: PixelEngine, recipe_file: Path, tmp_path: Path
) -> None:
    engine.raising = {1}
    ran = run("annotate", folder_of(tmp_path, {"a.png": png(1), "b.png": png(2)}), "--recipe", recipe_file)
    assert [(row["outcome"], row["reason"]) for row in ran.json] == [("model_error", "model_raised"), ("ok", "")]
    assert ran.code == 0


def test_an_empty_folder_is_done_at_once(run: Run, engine: PixelEngine, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = run("annotate", tmp_path / "empty", "--recipe", recipe_file)
    assert (ran.code, ran.out, ran.err) == (0, "", "0 of 0 images: nothing to do\n")


def test_the_recipe_is_named_by_the_option_or_the_environment(
    run: Run, engine: PixelEngine, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = folder_of(tmp_path, {"a.png": png(1)}) / "a.png"
    monkeypatch.setenv("GLM4V_RECIPE", str(recipe_file))
    named = run("annotate", picture)
    assert named.json[0]["recipe_id"] == engine.recipe.recipe_id
    monkeypatch.setenv("GLM4V_RECIPE", "/no/such/file.yaml")
    assert run("annotate", picture, "--recipe", recipe_file).json[0]["recipe_id"] == named.json[0]["recipe_id"]
    refused = run("annotate", picture)
    assert (refused.code, refused.out) == (1, "")
    assert "/no/such/file.yaml" in refused.err


def test_a_path_that_is_not_there_is_refused_before_anything_is_done(
    run: Run, engine: PixelEngine, recipe_file: Path, tmp_path: Path
) -> None:
    here = folder_of(tmp_path, {"a.png": png(1)})
    ran = run("annotate", here, tmp_path / "没有", "--recipe", recipe_file)
    assert (ran.code, ran.out, engine.asked) == (1, "", [])
    assert is_one_line_with_a_remedy(ran.err)
    assert f"there is no file or folder {tmp_path / '没有'}" in ran.err


@pytest.mark.parametrize(
    ("was", "by", "said"),
    [
        (
            "max_new_tokens: 96",
            "max_new_tokens: 0",
            "tasks.caption.max_new_tokens: should be greater than or equal to 1",
        ),
        ("tasks:", "tasks: [", "is not YAML"),
        ("id: ./model", "id: ./elsewhere", "no checkpoint at ./elsewhere"),
        ("id: ./model", "id: a/b/c", "a/b/c is neither a folder with a config.json nor a hub id"),
    ],
)
def test_a_wrong_recipe_or_checkpoint_is_one_line_with_a_remedy(
    was: str, by: str, said: str, run: Run, recipe_file: Path
) -> None:
    text = recipe_file.read_text(encoding="utf-8")
    assert was in text
    recipe_file.write_text(text.replace(was, by, 1), encoding="utf-8")
    ran = run("annotate", recipe_file, "--recipe", recipe_file)
    assert (ran.code, ran.out) == (1, "")
    assert is_one_line_with_a_remedy(ran.err)
    assert said in ran.err


def test_a_folder_that_is_no_checkpoint_is_refused_by_the_real_engine(
    run: Run, recipe_file: Path, tmp_path: Path
) -> None:
    picture = folder_of(tmp_path, {"a.png": png(1)}) / "a.png"
    ran = run("annotate", picture, "--recipe", recipe_file, "--device", "cpu")
    assert (ran.code, ran.out) == (1, "")
    assert is_one_line_with_a_remedy(f"error: {ran.err.partition('error: ')[2]}")


def test_a_model_hub_that_does_not_answer_is_an_error_that_may_pass(tmp_path: Path) -> None:
    picture = folder_of(tmp_path, {"a.png": png(1)}) / "a.png"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    ran = finished(process("annotate", picture, "--recipe", ROOT / "recipes" / "default.yaml", **offline))
    assert (ran.code, ran.out) == (75, "")
    assert is_one_line_with_a_remedy(ran.err)
    assert "zai-org/GLM-4.6V-Flash" in ran.err


def test_ctrl_c_stops_at_once_and_says_what_was_done(recipe_file: Path, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {f"{number:02}.png": png(number) for number in range(12)})
    arguments = ("annotate", folder, "--recipe", recipe_file)
    running = process(*arguments, module="tests.pixel_cli", GLM4V_TEST_HANG_AT="5")
    assert running.stdout is not None
    assert running.stderr is not None
    lines = [running.stdout.readline() for _ in range(4)]  # the first window: four batches of one
    assert "hanging\n" in iter(running.stderr.readline, "")
    running.send_signal(signal.SIGINT)
    ran = finished(running)
    assert [Path(json.loads(line)["key"]).name for line in lines] == ["00.png", "01.png", "02.png", "03.png"]
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.splitlines()[-1] == "stopped after 4 images"
    assert "Traceback" not in ran.err


def test_a_reader_that_goes_away_ends_annotate_quietly(recipe_file: Path, tmp_path: Path) -> None:
    # More lines than a pipe holds, so that the writer is still writing when the reader goes.
    folder = folder_of(tmp_path, {f"{number:03}.png": png(number) for number in range(250)})
    running = process("annotate", folder, "--recipe", recipe_file, module="tests.pixel_cli")
    assert running.stdout is not None
    assert running.stderr is not None
    assert json.loads(running.stdout.readline())["outcome"] == "ok"
    running.stdout.close()
    said = running.stderr.read()
    assert running.wait(timeout=60) == 141
    running.stderr.close()
    assert not any(word in said for word in ("Traceback", "Broken", "ignored")), said


def test_the_demo_model_answers_from_the_command_line(tmp_path: Path) -> None:
    cards = list(postcards(seed=987_654, count=3))
    suffix = Path(cards[0].name).suffix
    folder = folder_of(tmp_path, {**{card.name: card.data for card in cards}, f"图片{suffix}": cards[0].data})
    file = ROOT / "recipes" / "demo.yaml"
    ran = finished(process("annotate", folder, "--recipe", file, "--device", "cpu"))
    assert ran.code == 0, ran.err
    assert sorted(Path(row["key"]).name for row in ran.json) == sorted(path.name for path in folder.iterdir())
    assert {row["outcome"] for row in ran.json} == {"ok"}
    assert all(row["caption"] for row in ran.json)
    assert all(row["has_text"] == bool(row["text"].strip()) for row in ran.json)
    assert {row["model"] for row in ran.json} == {load_recipe(file).model_name}
    by_name = {Path(row["key"]).name: row for row in ran.json}
    assert by_name[f"图片{suffix}"]["caption"] == by_name[cards[0].name]["caption"]


# --- days, show, quarantine -----------------------------------------------------------------------------------------

KEY = "images/图片/天 空%2F.png"
ROWS = [
    row(KEY, caption="一只红色的猫。", text="第一行\n第二行\t完"),
    row("images/b.png", Outcome.EMPTY, reason="no_answer"),
    row("images/坏.png", Outcome.GARBLED, reason="mojibake", detail="a\nb [red]x[/red]"),
]


def on(day: date) -> list[Any]:
    return [to_table([dataclasses.replace(each, day=day) for each in ROWS])]


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> str:
    """Two published days."""
    dsn = postgres.new_database()
    migrate(dsn)
    for day in (BEFORE, DAY):
        publish(dsn, day=day, tables=on(day), run=run_info(3, dag_run_id=f"run-{day}", images_per_s=2.5))
    return dsn


@pytest.fixture
def tables(dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("GLM4V_DSN", dsn)
    return dsn


def test_days_are_lines_of_columns_for_a_pipe(run: Run, tables: str) -> None:
    ran = run("days")
    header, *lines = ran.table
    assert header[:7] == ["day", "manifest", "ok", "quarantined", "by outcome", "from cache", "images/s"]
    assert [line[:7] for line in lines] == [
        [f"{day}", "3", "1", "2", "empty=1 garbled=1", "0", "2.5"] for day in (DAY, BEFORE)
    ]
    assert lines[0][7] == f"demo {RECIPE.recipe_id}"
    assert (ran.code, ran.err) == (0, "")


def test_days_are_objects_with_json(run: Run, tables: str) -> None:
    newest, older = run("days", "--json").json
    assert (newest["day"], older["day"]) == (f"{DAY}", f"{BEFORE}")
    assert {name: count for name, count in newest["by_outcome"].items() if count} == {"ok": 1, "empty": 1, "garbled": 1}


def test_a_chinese_key_is_shown_on_every_day(run: Run, tables: str) -> None:
    newest, older = run("show", KEY, "--json").json
    assert [newest["day"], older["day"]] == [f"{DAY}", f"{BEFORE}"]
    assert (newest["key"], newest["caption"], newest["text"]) == (KEY, "一只红色的猫。", "第一行\n第二行\t完")
    ran = run("show", KEY)
    first, second = ran.out.split("\n\n")
    assert ["text", "第一行 第二行 完"] in [line.split("\t") for line in first.splitlines()]
    assert f"day\t{BEFORE}" in second
    assert ran.code == 0


def test_a_key_in_quarantine_is_shown_with_its_reason(run: Run, tables: str) -> None:
    found = run("show", "images/坏.png", "--json").json[0]
    assert (found["outcome"], found["reason"], found["text"]) == ("garbled", "mojibake", None)


def test_a_key_that_nobody_knows_is_an_error(run: Run, tables: str) -> None:
    ran = run("show", "图片/没有.png")
    assert (ran.code, ran.out) == (1, "")
    assert is_one_line_with_a_remedy(ran.err)
    assert "图片/没有.png" in ran.err


def test_quarantine_is_filtered_by_day_and_outcome(run: Run, tables: str) -> None:
    def found(*options: str) -> list[tuple[str, str]]:
        return [(row["day"], row["key"]) for row in run("quarantine", "--json", *options).json]

    b, bad = "images/b.png", "images/坏.png"
    assert found() == [(f"{DAY}", b), (f"{DAY}", bad), (f"{BEFORE}", b), (f"{BEFORE}", bad)]
    assert found("--day", f"{BEFORE}") == [(f"{BEFORE}", b), (f"{BEFORE}", bad)]
    assert found("--outcome", "garbled") == [(f"{DAY}", bad), (f"{BEFORE}", bad)]
    assert found("--day", f"{DAY}", "--outcome", "empty") == [(f"{DAY}", b)]
    assert found("--reason", "mojibake", "--day", f"{DAY}") == [(f"{DAY}", bad)]
    assert found("--limit", "1") == [(f"{DAY}", b)]
    assert len(found("--limit", "0")) == 4


def test_quarantine_is_one_line_a_row_whatever_a_detail_holds(run: Run, tables: str) -> None:
    assert run("quarantine", "--day", f"{DAY}").table == [
        ["day", "key", "outcome", "reason", "detail"],
        [f"{DAY}", "images/b.png", "empty", "no_answer", "a sentence"],
        [f"{DAY}", "images/坏.png", "garbled", "mojibake", "a b [red]x[/red]"],
    ]


def test_nothing_found_is_no_error_and_says_so_on_stderr(run: Run, tables: str) -> None:
    ran = run("quarantine", "--outcome", "refused")
    assert (ran.code, ran.out, ran.err) == (0, "", "no such row\n")
    assert run("quarantine", "--outcome", "refused", "--json") == Ran(0, "", "")


def test_migrate_makes_the_tables_and_may_be_run_again(
    run: Run, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLM4V_DSN", postgres.new_database())
    refused = run("days")
    assert refused.code == 1
    assert is_one_line_with_a_remedy(refused.err)
    assert "python -m glm4v_ops migrate" in refused.err
    first, second = run("migrate"), run("migrate")
    assert first.code == second.code == 0
    assert first.out == second.out
    assert first.out.startswith("the tables are at version ")
    assert run("days") == Ran(0, "", "no day is published yet\n")


def test_on_a_terminal_it_is_a_table_and_an_answer_is_no_markup(dsn: str) -> None:
    outside, inside = pty.openpty()
    command = [sys.executable, "-m", "glm4v_ops", "quarantine", "--day", f"{DAY}"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "GLM4V_DSN": dsn, "COLUMNS": "160", "TERM": "xterm"}
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=inside) as running:
        os.close(inside)
        shown = b""
        while chunk := read_terminal(outside):
            shown += chunk
    os.close(outside)
    assert running.returncode == 0
    text = shown.decode()
    assert "images/坏.png" in text
    assert "[red]x[/red]" in text
    assert "─" in text or "━" in text


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # what Linux says at the end of a terminal
        return b""


def test_chinese_comes_out_as_utf8_whatever_the_locale(dsn: str) -> None:
    poor = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "GLM4V_DSN": dsn}
    ran = finished(process("show", KEY, "--json", **poor))
    assert ran.code == 0, ran.err
    assert '"caption": "一只红色的猫。"' in ran.out, "as it is, not as escapes"


def test_a_reader_that_goes_away_ends_a_listing_quietly(postgres: Postgres) -> None:
    dsn = postgres.new_database()
    migrate(dsn)
    many = [row(f"images/{number:05}.png", Outcome.EMPTY) for number in range(3000)]
    publish(dsn, day=DAY, tables=[to_table(many)], run=run_info(3000))
    command = 'set -o pipefail; "$0" -m glm4v_ops quarantine --limit 0 | head -1'
    environ = {**os.environ, "GLM4V_DSN": dsn, "PYTHONPATH": str(ROOT)}
    piped = subprocess.run(
        ["bash", "-c", command, sys.executable], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert (piped.returncode, piped.stdout, piped.stderr) == (141, "day\tkey\toutcome\treason\tdetail\n", "")


# --- errors ---------------------------------------------------------------------------------------------------------

ASKING = [("days",), ("show", "a"), ("quarantine",), ("migrate",)]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("annotate",),
        ("annotate", "x", "--device", "tpu"),
        ("annotate", "x", "--device", "cuda:"),
        ("show",),
        ("show", "a", "b"),
        ("quarantine", "--day", "yesterday"),
        ("quarantine", "--day", "2026-02-30"),
        ("quarantine", "--outcome", "ok"),
        ("quarantine", "--limit", "-1"),
        ("quarantine", "--limit", "ten"),
        ("days", "--verbose"),
    ],
)
def test_wrong_usage_exits_2_and_shows_the_usage(arguments: tuple[str, ...], run: Run) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("usage: python -m glm4v_ops")


@pytest.mark.parametrize("command", ["", "annotate", "days", "show", "quarantine", "migrate", "doctor"])
def test_every_command_has_its_help(command: str, run: Run) -> None:
    ran = run(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"usage: python -m glm4v_ops {command}".rstrip())


@pytest.mark.parametrize("arguments", ASKING)
def test_a_database_that_does_not_answer_exits_75_with_one_line(
    arguments: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLM4V_DSN", NOWHERE)
    ran = run(*arguments)
    assert (ran.code, ran.out) == (75, "")
    assert is_one_line_with_a_remedy(ran.err)
    assert "somebody@127.0.0.1:1/none did not answer" in ran.err
    assert "hush-hush" not in ran.err


@pytest.mark.parametrize("arguments", ASKING)
def test_no_database_named_exits_1_with_one_line(arguments: tuple[str, ...], run: Run) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out) == (1, "")
    assert is_one_line_with_a_remedy(ran.err)
    assert "GLM4V_DSN is not set" in ran.err


def test_a_wrong_password_is_a_setting_and_is_not_shown(
    run: Run, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = conninfo_to_dict(postgres.dsn("postgres"))["port"]
    monkeypatch.setenv("GLM4V_DSN", f"postgresql://postgres:hush-hush@127.0.0.1:{port}/postgres")
    ran = run("days")
    assert ran.code == 1
    assert is_one_line_with_a_remedy(ran.err)
    assert "hush-hush" not in ran.err


def test_debug_shows_the_trace_and_the_code_stays(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4V_DSN", NOWHERE)
    ran = run("days", "--debug")
    assert ran.code == 75
    assert "Traceback (most recent call last)" in ran.err
    assert "psycopg.OperationalError" in ran.err, "with the cause"
    assert is_one_line_with_a_remedy(f"{ran.err.splitlines()[-1]}\n")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ZeroDivisionError("by\nnothing"), "ZeroDivisionError: by nothing"),
        (AssertionError(), "AssertionError"),
        (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    ],
)
def test_an_error_that_nobody_foresaw_is_one_line_and_debug_shows_its_trace(
    raised: Exception, said: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def days(_: str) -> None:
        raise raised

    monkeypatch.setenv("GLM4V_DSN", NOWHERE)
    monkeypatch.setattr("glm4v_ops.sink.queries.days", days)
    ran = run("days")
    assert (ran.code, ran.out) == (1, "")
    assert is_one_line_with_a_remedy(ran.err)
    assert ran.err.startswith(f"error: {said} — ")
    assert "--debug" in ran.err
    traced = run("days", "--debug")
    assert traced.code == 1
    assert "Traceback (most recent call last)" in traced.err
    assert f"{traced.err.splitlines()[-1]}\n" == ran.err


def test_the_real_command_leaves_no_trace_either() -> None:
    ran = finished(process("days", GLM4V_DSN=NOWHERE))
    assert (ran.code, ran.out) == (75, "")
    assert is_one_line_with_a_remedy(ran.err)
