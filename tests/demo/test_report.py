"""The report, on real tables and a real bucket, of days on which something was tampered with."""

from __future__ import annotations

import dataclasses
import io
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest
from PIL import Image
from rich.console import Console

from demo import drop, report
from demo.hostile import HostileFile
from demo.parts import ObjectStore, Postgres
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.result import COLUMNS, Result, to_table
from glm4v_ops.sink.postgres import migrate, publish
from tests.sink.rows import row, run_info

IMAGES = 5
BROKEN = HostileFile("empty 空.jpg", b"", Outcome.UNREADABLE, "zero_bytes", "zero bytes")

_days = iter(range(1000))


class Night:
    """A day in the demo's bucket with five postcards and a broken file, and what `make demo` does around its run."""

    def __init__(self, store: ObjectStore, dsn: str, folder: Path) -> None:
        store.bucket(drop.BUCKET)
        self.day = date.fromordinal(710_000 + next(_days))
        self.dsn, self.client, self.folder = dsn, store.client(), folder
        truth = folder / f"{self.day}.jsonl"
        drop.fill(self.client, self.day, images=IMAGES, hostile=[BROKEN], truth=truth)
        self.truth = {line["key"]: line for line in drop.read_truth(truth)}
        self.expected = [drop.Expected(drop.prefix(self.day) + BROKEN.name, "unreadable")]
        self.stood: dict[date, report.Before] = {}

    def rows(self, run: str = "run-1", **changes: Any) -> list[Result]:
        """What a perfect model and a flawless pipeline make of the day."""
        changes = {"day": self.day, "dag_run_id": run} | changes
        right = [
            row(key, **{"caption": line["caption"], "text": line["text"], "has_text": bool(line["text"])} | changes)
            for key, line in self.truth.items()
        ]
        broken = row(self.expected[0].key, Outcome.UNREADABLE, **{"attempts": 0, **changes})
        return [*right, broken]

    def start(self, rows: list[Result] | None, run: str = "run-1") -> None:
        """A start of the demo up to its report: remember what stands, publish."""
        self.stood = report.before(self.dsn, [self.day])
        if rows is not None:
            info = run_info(len(rows), dag_run_id=run, manifest_id=rows[0].manifest_id)
            publish(self.dsn, day=self.day, tables=[to_table(rows)], run=info)

    def tamper(self, statement: str) -> None:
        with psycopg.connect(self.dsn) as connection:
            assert connection.execute(statement.encode()).rowcount == 1

    def examine(self, run: str = "run-1") -> report.Findings:
        return report.examine(self.dsn, self.client, {self.day: run}, self.stood, self.expected, self.folder)

    def problems(self, run: str = "run-1") -> list[str]:
        found = self.examine(run).problems
        return [problem.removeprefix(f"{self.day}: ").removeprefix(drop.prefix(self.day)) for problem in found]


@pytest.fixture
def night(store: ObjectStore, postgres: Postgres, tmp_path: Path) -> Night:
    dsn = postgres.new_database()
    migrate(dsn)
    return Night(store, dsn, tmp_path)


def test_nothing_is_named_when_all_is_right(night: Night) -> None:
    night.start(night.rows())
    found = night.examine()
    assert found.problems == []
    [day] = found.days
    assert (day.day, day.listed, day.manifest_rows, day.ok) == (night.day, IMAGES + 1, IMAGES + 1, IMAGES)
    assert (day.quarantined, day.cached, day.modelled, day.comparable) == ({"unreadable": 1}, 0, IMAGES, False)
    assert not found.again
    assert found.scores is not None
    assert (found.scores["images"], found.scores["text_cer"], found.scores["caption_facts"]) == (IMAGES, 0.0, 1.0)


def test_a_second_start_that_changes_no_row_says_so(night: Night) -> None:
    night.start(night.rows())
    night.start(night.rows(), "run-2")
    found = night.examine("run-2")
    assert (found.problems, found.again) == ([], True)
    assert (found.days[0].changed, found.days[0].modelled) == (False, 0)
    assert "Second run: it changed no row; the model ran on no image." in shown(found)


def test_a_missing_row_is_named(night: Night) -> None:
    night.start(night.rows())
    night.tamper("DELETE FROM quarantine")
    assert night.problems() == [
        f"{IMAGES} + 0 rows, but {IMAGES + 1} in the manifest",
        f"the row in `runs` contradicts the tables ({IMAGES} ok, 0 quarantined)",
        f"{BROKEN.name}: ended as in no table, should be unreadable",
    ]


def test_an_answer_that_is_missing_counts_as_wrong(night: Night) -> None:
    night.start(night.rows())
    key = max(night.truth, key=lambda key: len(night.truth[key]["text"]))
    night.tamper(f"DELETE FROM annotations WHERE key = '{key}'")
    found = night.examine()
    assert any(f"{IMAGES - 1} + 1 rows, but {IMAGES + 1} in the manifest" in each for each in found.problems)
    assert found.scores is not None
    assert (found.scores["images"], found.scores["text_edits"]) == (IMAGES, len(night.truth[key]["text"]))


@pytest.mark.parametrize(
    "changed", ["caption = caption || '.'", "attempts = attempts + 1", "annotated_at = annotated_at + interval '1 s'"]
)
def test_a_row_that_changed_is_named_whichever_column_it_was(night: Night, changed: str) -> None:
    night.start(night.rows())
    night.start(night.rows(), "run-2")
    night.tamper(f"UPDATE annotations SET {changed} WHERE key = '{min(night.truth)}'")
    assert night.problems("run-2") == ["same images, same recipe, and yet rows changed"]
    assert "Second run" not in shown(night.examine("run-2"))


def test_a_model_that_ran_again_is_named(night: Night) -> None:
    night.start(night.rows())
    again = {row.key: row for row in night.rows("run-2")}
    first = {row.key: row for row in night.rows()}
    key = min(night.truth)
    night.start([*({**first, key: again[key]}).values()], "run-2")
    assert night.problems("run-2") == [
        "same images, same recipe, and yet rows changed",
        "the model ran again on 1 images it had answered for",
    ]


def test_other_images_or_another_recipe_may_change_rows(night: Night) -> None:
    night.start(night.rows())
    night.start(night.rows("run-2", manifest_id="another"), "run-2")
    found = night.examine("run-2")
    assert (found.problems, found.again, found.days[0].changed) == ([], False, True)


def test_a_wrong_outcome_is_named(night: Night) -> None:
    *right, broken = night.rows()
    night.start([*right, dataclasses.replace(broken, outcome=Outcome.MISSING)])
    assert night.problems() == [f"{BROKEN.name}: ended as missing, should be unreadable"]


def test_a_key_that_stands_in_both_tables_is_named(night: Night) -> None:
    night.start(night.rows())
    columns = ", ".join(COLUMNS)
    values = columns.replace("outcome", "'missing'").replace("reason", "'found'")
    night.tamper(
        f"INSERT INTO quarantine ({columns}) SELECT {values} FROM annotations WHERE key = '{min(night.truth)}'"
    )
    assert "1 keys stand there twice" in night.problems()


def test_an_object_that_is_not_in_the_manifest_is_named(night: Night) -> None:
    night.start(night.rows())
    night.client.put_object(Bucket=drop.BUCKET, Key=drop.prefix(night.day) + "late.png", Body=b"late")
    assert night.problems() == [f"{IMAGES + 2} objects in the drop, {IMAGES + 1} in the manifest"]


def test_a_day_that_was_not_published_is_named(night: Night) -> None:
    night.start(None)
    assert "nothing was published" in night.problems()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"text": "?", "has_text": True}, "% of characters wrong"), ({"caption": "A cat."}, "% right, promised")],
)
def test_answers_worse_than_promised_are_named(night: Night, wrong: dict[str, Any], said: str) -> None:
    night.start(night.rows(**wrong))
    [problem] = night.problems()
    assert said in problem


def shown(found: report.Findings, sheets: dict[Path, list[Result]] | None = None) -> str:
    console = Console(file=io.StringIO(), width=200)
    report.show(console, found, sheets or {})
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_person_reads_each_day_some_rows_and_every_problem(night: Night) -> None:
    key = min(night.truth)
    rows = [
        dataclasses.replace(each, text="[bold]早上好[/bold]", has_text=True) if each.key == key else each
        for each in night.rows()
    ]
    night.start(rows)
    night.tamper("DELETE FROM quarantine")
    sheets = report.write_sheets(night.dsn, night.client, [night.day], night.folder / "sheets")
    [(path, on_sheet)] = sheets.items()
    assert path == night.folder / "sheets" / f"{night.day}.png"
    assert [each.key for each in on_sheet] == sorted(night.truth)
    with Image.open(path) as sheet:
        assert sheet.width > 1000
    told = shown(night.examine(), sheets)
    assert f"{night.day}" in told
    assert key.rpartition("/")[2] in told
    assert night.truth[key]["caption"].split()[0] in told
    assert "[bold]早上好[/bold]" in told
    assert "NOT AS PROMISED" in told
    assert "in no table, should be unreadable" in told


def test_the_figures_of_a_day_stand_in_its_line(night: Night) -> None:
    night.start(night.rows())
    line = next(line for line in shown(night.examine()).splitlines() if f"{night.day}" in line)
    cells = [cell.strip() for cell in line.strip("│ ").split("│")]
    assert cells == [f"{night.day}", f"{IMAGES + 1}", f"{IMAGES}", "1 unreadable", "0", f"{IMAGES}", "—", "new"]
