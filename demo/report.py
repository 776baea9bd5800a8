"""What a start of the demo has shown, read back from the tables and held against what was promised.

Every figure comes from the tables, the bucket's listing or the truth file at the time of asking; nothing is taken over
from the tasks' own words. `Findings.problems` is empty exactly when every promise holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from demo import drop, scoring
from demo.postcards import contact_sheet
from glm4v_ops.recipe import ImageSection
from glm4v_ops.result import Result
from glm4v_ops.sink import queries
from glm4v_ops.source.image import decode

#: What the demo model promises on postcards it has never seen.
MOST_TEXT_ERRORS = 0.03
LEAST_FACTS_RIGHT = 0.95
_SHEET_PICTURES = 20
_SHOWN_A_DAY = 2


@dataclass(frozen=True, slots=True)
class Before:
    """How a day stood before this start; `digest` is over every column of every row."""

    digest: str
    rows: int
    manifest_id: str | None
    recipe_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DayFinding:
    """One day as the tables have it now."""

    day: date
    listed: int  # objects in the bucket, without the marker
    manifest_rows: int
    ok: int
    quarantined: Mapping[str, int]
    cached: int
    images_per_s: float | None
    modelled: int  # images on which the model ran in this start's run
    comparable: bool  # the same manifest and recipe as before this start, so no row may change
    changed: bool


@dataclass(slots=True)
class Findings:
    """All days, the scores, and every promise that does not hold."""

    days: list[DayFinding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    scores: scoring.Score | None = None

    @property
    def again(self) -> bool:
        """Whether every day stood in the tables before, with the same manifest and recipe."""
        return bool(self.days) and all(each.comparable for each in self.days)


def before(dsn: str, days: Sequence[date]) -> dict[date, Before]:
    """Remember how the days stand, to compare with afterwards."""
    summaries = {each.day: each for each in queries.days(dsn)}
    found = {}
    for day in days:
        summary = summaries.get(day)
        found[day] = Before(
            digest=queries.digest_of_day(dsn, day),
            rows=_row_counts(dsn, day)[0] + _row_counts(dsn, day)[1],
            manifest_id=summary.manifest_id if summary else None,
            recipe_id=summary.recipe_id if summary else None,
        )
    return found


def examine(
    dsn: str,
    client: Any,
    runs: Mapping[date, str],
    stood: Mapping[date, Before],
    expected: Sequence[drop.Expected],
    truth: Path,
) -> Findings:
    """Hold the days of `runs` (day → the run that did it now) against what was promised."""
    findings = Findings()
    summaries = {each.day: each for each in queries.days(dsn)}
    scored: list[scoring.Row] = []
    for day, run_id in sorted(runs.items()):
        if day not in summaries:
            findings.problems.append(f"{day}: nothing was published")
            continue
        finding = _examine_day(dsn, client, run_id, stood[day], summaries[day])
        findings.days.append(finding)
        findings.problems += _broken_counts(dsn, finding)
        findings.problems += _broken_repeat(finding)
        scored += _rows_to_score(dsn, day, drop.read_truth(truth / f"{day}.jsonl"))
    findings.problems += _broken_outcomes(dsn, expected)
    findings.scores = scoring.score(scored)
    findings.problems += _broken_scores(findings.scores)
    return findings


def _examine_day(dsn: str, client: Any, run_id: str, stood: Before, summary: queries.DaySummary) -> DayFinding:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT count(*) FROM (SELECT day, dag_run_id, attempts FROM annotations"
            " UNION ALL SELECT day, dag_run_id, attempts FROM quarantine) AS row"
            " WHERE day = %s AND dag_run_id = %s AND attempts > 0",
            (summary.day, run_id),
        ).fetchone()
    same_work = (stood.manifest_id, stood.recipe_id) == (summary.manifest_id, summary.recipe_id)
    return DayFinding(
        day=summary.day,
        listed=len(drop.listing(client, summary.day)),
        manifest_rows=summary.manifest_rows,
        ok=summary.ok,
        quarantined={name.value: count for name, count in summary.by_outcome.items() if count and not name.is_ok},
        cached=summary.cached,
        images_per_s=summary.images_per_s,
        modelled=int(row[0]) if row else 0,
        comparable=same_work and stood.rows > 0,
        changed=queries.digest_of_day(dsn, summary.day) != stood.digest,
    )


def _row_counts(dsn: str, day: date) -> tuple[int, int, int]:
    """Rows in annotations, in quarantine, and different keys in both together."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM annotations WHERE day = %(day)s),"
            " (SELECT count(*) FROM quarantine WHERE day = %(day)s),"
            " (SELECT count(*) FROM (SELECT key FROM annotations WHERE day = %(day)s"
            "  UNION SELECT key FROM quarantine WHERE day = %(day)s) AS either)",
            {"day": day},
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1]), int(row[2])


def _broken_counts(dsn: str, finding: DayFinding) -> list[str]:
    ok, quarantined, keys = _row_counts(dsn, finding.day)
    problems = []
    if ok + quarantined != finding.manifest_rows:
        problems.append(f"{finding.day}: {ok} + {quarantined} rows, but {finding.manifest_rows} in the manifest")
    if keys != ok + quarantined:
        problems.append(f"{finding.day}: {ok + quarantined - keys} keys stand there twice")
    if finding.listed != finding.manifest_rows:
        problems.append(f"{finding.day}: {finding.listed} objects in the drop, {finding.manifest_rows} in the manifest")
    if (ok, quarantined) != (finding.ok, sum(finding.quarantined.values())):
        problems.append(f"{finding.day}: the row in `runs` contradicts the tables ({ok} ok, {quarantined} quarantined)")
    return problems


def _broken_repeat(finding: DayFinding) -> list[str]:
    if not finding.comparable:
        return []
    problems = []
    if finding.changed:
        problems.append(f"{finding.day}: same images, same recipe, and yet rows changed")
    if finding.modelled:
        problems.append(f"{finding.day}: the model ran again on {finding.modelled} images it had answered for")
    return problems


def _broken_outcomes(dsn: str, expected: Sequence[drop.Expected]) -> list[str]:
    problems = []
    for each in expected:
        rows = queries.show(dsn, each.key)
        ended = rows[0].outcome.value if rows else "in no table"
        if ended != each.outcome:
            problems.append(f"{each.key}: ended as {ended}, should be {each.outcome}")
    return problems


def _rows_to_score(dsn: str, day: date, truth: Sequence[Mapping[str, Any]]) -> list[scoring.Row]:
    """Every postcard whose truth is known; one that is not in `annotations` counts as answered with nothing."""
    answers = {row.key: row for row in queries.annotated(dsn, day)}
    return [
        scoring.Row(
            caption=(answers[line["key"]].caption or "") if line["key"] in answers else "",
            text=(answers[line["key"]].text or "") if line["key"] in answers else "",
            true_text=line["text"],
            facts=line["facts"],
        )
        for line in truth
    ]


def _broken_scores(scores: scoring.Score) -> list[str]:
    problems = []
    if scores["text_cer"] > MOST_TEXT_ERRORS:
        problems.append(f"text: {scores['text_cer']:.2%} of characters wrong, promised are {MOST_TEXT_ERRORS:.0%}")
    if scores["caption_facts"] < LEAST_FACTS_RIGHT:
        problems.append(f"captions: {scores['caption_facts']:.2%} right, promised are {LEAST_FACTS_RIGHT:.0%}")
    return problems


def write_sheets(dsn: str, client: Any, days: Sequence[date], folder: Path) -> dict[Path, list[Result]]:
    """A contact sheet a day, of the first pictures in key order; the rows of the pictures on it."""
    folder.mkdir(parents=True, exist_ok=True)
    sheets = {}
    for day in days:
        rows = queries.annotated(dsn, day, limit=_SHEET_PICTURES)
        pictures = []
        for row in rows:
            data = client.get_object(Bucket=drop.BUCKET, Key=row.key)["Body"].read()
            # As the model saw it: upright, on white, in its right colours, whatever the file is.
            pictures.append((row.key.rpartition("/")[2], decode(data, ImageSection()).image))
        path = folder / f"{day}.png"
        contact_sheet(pictures, path)
        sheets[path] = rows
    return sheets


def show(console: Console, findings: Findings, sheets: Mapping[Path, Sequence[Result]]) -> None:
    """The tables a person reads at the end."""
    console.print(_day_table(findings))
    console.print(_row_table(sheets))
    if findings.scores:
        scores = findings.scores
        console.print(
            f"Against the truth of {scores['images']} pictures: {scores['text_cer']:.2%} of text characters wrong, "
            f"{scores['caption_facts']:.2%} of caption facts right."
        )
    if findings.again and not any(each.changed or each.modelled for each in findings.days):
        console.print("Second run: it changed no row; the model ran on no image.", style="bold")
    for problem in findings.problems:
        console.print(f"NOT AS PROMISED  {problem}", style="bold red", markup=False)


def _day_table(findings: Findings) -> Table:
    table = Table(title="What became of every image", title_justify="left")
    for name in ("day", "in manifest", "ok", "quarantined", "from cache", "model ran on", "images/s", "rows changed"):
        table.add_column(name, justify="left" if name in ("day", "quarantined") else "right")
    for each in findings.days:
        outcomes = ", ".join(f"{count} {name}" for name, count in sorted(each.quarantined.items())) or "none"
        rate = "—" if each.images_per_s is None else f"{each.images_per_s:.1f}"
        changed = ("yes" if each.changed else "no") if each.comparable else "new"
        counts = (each.cached, each.modelled)
        table.add_row(f"{each.day}", f"{each.manifest_rows}", f"{each.ok}", outcomes, *map(str, counts), rate, changed)
    return table


def _row_table(sheets: Mapping[Path, Sequence[Result]]) -> Table:
    table = Table(title="A few rows, with the contact sheet that shows them", title_justify="left", show_lines=True)
    for name in ("picture", "caption", "text", "on the sheet"):
        table.add_column(name, overflow="fold")
    for path, rows in sheets.items():
        with_text = [row for row in rows if row.has_text][: _SHOWN_A_DAY - 1]
        chosen = [*with_text, *[row for row in rows if row not in with_text]][:_SHOWN_A_DAY]
        for row in chosen:
            name = row.key.rpartition("/")[2]
            table.add_row(*map(_plain, (name, row.caption or "", row.text or "(no text)", _short(path))))
    return table


def _plain(text: str) -> str:
    return text.replace("[", r"\[")  # square brackets are rich's markup, here they are an answer's


def _short(path: Path) -> str:
    """As a person would type it from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
