"""`python -m glm4v_ops`: the work by hand, and questions to the tables.

Answers go to stdout, everything else to stderr. On a terminal answers are tables; piped, tab-separated lines with a
header; with `--json`, and from `annotate` always, one JSON object a line. An error is one line with a remedy;
`--debug` shows its trace.

Exit codes: 0 done (for `annotate`: every image has an outcome) · 1 an error that stays until something is changed, or
that nobody foresaw, or a `doctor` that found one · 2 wrong usage · 75 an error that may pass by itself (store or
database not answering) · 130 interrupted · 141 the reader of our output went away.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_ops.errors import Glm4vError, SettingsError, TransientError
from glm4v_ops.progress import Progress
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.settings import Settings, dsn_from_environment, recipe_path

if TYPE_CHECKING:
    from io import TextIOWrapper

EXIT_ERROR, EXIT_TRY_LATER, EXIT_INTERRUPTED, EXIT_PIPE = 1, 75, 130, 141

#: What `annotate` says of an image, in order: what a local file has, of a row's columns.
ANNOTATE_FIELDS = (
    "key", "outcome", "reason", "detail", "caption", "text", "has_text", "sha256", "width", "height", "size",
    "recipe_id", "model", "revision", "quantization", "tokens_in", "tokens_out", "latency_ms",
)  # fmt: skip

#: Seconds between two progress lines when nobody watches on a terminal.
_LINE_EVERY = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parsed = _parser().parse_args(arguments)
    _prepare_streams(debug=parsed.debug)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python flushes stdout once more as it exits; there is nobody left to read it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Glm4vError as error:
        if parsed.debug:
            traceback.print_exception(error)
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_TRY_LATER if isinstance(error, TransientError) else EXIT_ERROR
    except Exception as error:  # noqa: BLE001 - nobody has foreseen it, and it is still one line
        if parsed.debug:
            traceback.print_exception(error)
        said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        print(f"error: {said} — run it again with --debug to see where it comes from", file=sys.stderr)
        return EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m glm4v_ops", description="Captions and text for images.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the trace of an error, and the debug log")
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="one JSON object a line")
    on_device = argparse.ArgumentParser(add_help=False)
    on_device.add_argument("--recipe", metavar="FILE", help="default: GLM4V_RECIPE, or recipes/default.yaml")
    on_device.add_argument("--device", type=_device, default="auto", metavar="auto|cpu|cuda[:N]", help="default: auto")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=[common, *parents])
        added.set_defaults(run=run)
        return added

    annotate = command("annotate", _annotate, "Annotate local files: one JSON object an image on stdout.", on_device)
    annotate.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a folder to be walked in sorted order")
    command("days", _days, "The published days, newest first.", as_json)
    show = command("show", _show, "Everything known about one image, on every day it was annotated.", as_json)
    show.add_argument("key", metavar="KEY", help="the object's key in the bucket")
    quarantine = command("quarantine", _quarantine, "Images that could not be annotated, and why.", as_json)
    quarantine.add_argument("--day", type=date.fromisoformat, metavar="YYYY-MM-DD")
    quarantine.add_argument("--outcome", choices=[each.value for each in Outcome if not each.is_ok], metavar="OUTCOME")
    quarantine.add_argument("--reason", metavar="CODE", help="as it stands in the column `reason`")
    quarantine.add_argument("--limit", type=_count, default=100, metavar="N", help="default: 100; 0: all")
    command("migrate", _migrate, "Make the tables, or bring them up to this version.")
    doctor = command(
        "doctor", _doctor, "Check what the work needs, line by line; exit 1 if something fails.", on_device
    )
    doctor.add_argument("--no-model", action="store_true", help="do not load the model")
    return parser


def _device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise argparse.ArgumentTypeError(f"{name!r} is none of auto, cpu, cuda, cuda:0, …")
    return name


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows")
    return int(text)


def _prepare_streams(*, debug: bool) -> None:
    stdout: TextIOWrapper = sys.stdout  # type: ignore[assignment]
    # File names on Linux are bytes: one that is not UTF-8 must still come out as valid JSON.
    stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s", force=True)
    logging.getLogger("glm4v_ops").setLevel(logging.DEBUG if debug else logging.INFO)


def _settings(parsed: argparse.Namespace) -> Settings:
    """A recipe typed here is relative to the working directory, that of the environment is not."""
    settings = Settings.from_environment()
    return dataclasses.replace(settings, recipe=parsed.recipe or str(recipe_path(settings.recipe)))


def _annotate(parsed: argparse.Namespace) -> int:
    from glm4v_ops.annotate import annotate_local
    from glm4v_ops.answers import load_engine
    from glm4v_ops.model.identity import resolve
    from glm4v_ops.recipe import load_recipe

    for path in parsed.paths:
        if not os.path.lexists(path):
            raise SettingsError(f"there is no file or folder {path}", remedy="check the path")
    recipe_file = Path(_settings(parsed).recipe)
    recipe = resolve(load_recipe(recipe_file), recipe_file.parent)
    done = 0
    try:
        with _shown_progress() as shown:
            for result in annotate_local(
                parsed.paths,
                recipe,
                model_base=recipe_file.parent,
                progress=shown,
                engine_factory=partial(load_engine, device=parsed.device),
            ):
                row = dataclasses.asdict(result)
                _print_json({name: row[name] for name in ANNOTATE_FIELDS})
                done += 1
    except KeyboardInterrupt:
        print(f"stopped after {done} images", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


@contextmanager
def _shown_progress() -> Iterator[Callable[[Progress], None]]:
    """Progress on stderr: a bar on a terminal, now and then a line elsewhere, and how it ended."""
    last: Progress | None = None
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("annotate", total=None)

            def show(progress: Progress) -> None:
                nonlocal last
                last = progress
                bar.update(task, total=progress.total, completed=progress.done, description=_words(progress))

            yield show
    else:
        shown_at = time.monotonic()

        def line(progress: Progress) -> None:
            nonlocal last, shown_at
            last = progress
            if time.monotonic() - shown_at >= _LINE_EVERY:
                shown_at = time.monotonic()
                print(_words(progress), file=sys.stderr, flush=True)

        yield line
    if last is not None:
        ended = ", ".join(f"{count} {outcome}" for outcome, count in sorted(last.by_outcome.items()))
        print(f"{last.done} of {last.total} images: {ended or 'nothing to do'}", file=sys.stderr)


def _words(progress: Progress) -> str:
    # A local run has one shard; the rest of the label is the nightly run's.
    return progress.label().partition(" · ")[2]


def _days(parsed: argparse.Namespace) -> int:
    from glm4v_ops.sink import queries

    days = queries.days(dsn_from_environment())
    if parsed.json:
        return _print_all_json(days)
    rows = [
        {
            "day": day.day,
            "manifest": day.manifest_rows,
            "ok": day.ok,
            "quarantined": day.quarantined,
            "by outcome": " ".join(f"{name}={n}" for name, n in day.by_outcome.items() if not name.is_ok and n),
            "from cache": day.cached,
            "images/s": None if day.images_per_s is None else f"{day.images_per_s:.1f}",
            "recipe": f"{day.recipe_name} {day.recipe_id}",
            "published": f"{day.published_at:%Y-%m-%d %H:%M:%S}",
        }
        for day in days
    ]
    return _print_table(rows, nothing="no day is published yet")


def _show(parsed: argparse.Namespace) -> int:
    from glm4v_ops.sink import queries

    rows = queries.show(dsn_from_environment(), parsed.key)
    if not rows:
        raise SettingsError(f"no row has the key {parsed.key!r}", remedy="keys are whole, as in the bucket: images/…")
    if parsed.json:
        return _print_all_json(rows)
    for number, row in enumerate(rows):
        if number:
            print()
        _print_table([{"column": name, "value": value} for name, value in dataclasses.asdict(row).items()])
    return 0


def _quarantine(parsed: argparse.Namespace) -> int:
    from glm4v_ops.sink import queries

    found = queries.quarantine(
        dsn_from_environment(),
        day=parsed.day,
        outcome=Outcome(parsed.outcome) if parsed.outcome else None,
        reason=parsed.reason,
        limit=parsed.limit or None,
    )
    if parsed.json:
        return _print_all_json(found)
    columns = ("day", "key", "outcome", "reason", "detail")
    return _print_table([{name: getattr(row, name) for name in columns} for row in found], nothing="no such row")


def _migrate(parsed: argparse.Namespace) -> int:
    from glm4v_ops.sink.postgres import migrate

    print(f"the tables are at version {migrate(dsn_from_environment())}")
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from glm4v_ops.doctor import Health, examine

    failed = False
    for check in examine(_settings(parsed), device=parsed.device, with_model=not parsed.no_model):
        print(check, flush=True)
        failed = failed or check.health is Health.FAIL
    return EXIT_ERROR if failed else 0


def _print_json(row: Mapping[str, Any]) -> None:
    print(json.dumps(row, ensure_ascii=False, default=str), flush=True)


def _print_all_json(rows: Sequence[Any]) -> int:
    for row in rows:
        _print_json(dataclasses.asdict(row))
    return 0


def _print_table(rows: Sequence[Mapping[str, Any]], *, nothing: str = "") -> int:
    """A table on a terminal, tab-separated lines elsewhere."""
    if not rows:
        print(nothing, file=sys.stderr)
        return 0
    cells = [[_cell(value) for value in row.values()] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*rows[0])
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))  # Text: an answer may hold what looks like markup
        Console().print(table)
    else:
        for row in [list(rows[0]), *cells]:
            print("\t".join(" ".join(cell.split()) for cell in row))
    return 0


def _cell(value: object) -> str:
    return "" if value is None else str(value)
