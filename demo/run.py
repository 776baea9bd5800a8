"""`make demo`: three days of pictures through the whole pipeline, and a report that holds the result to its promises.

    python -m demo.run [--images N] [--state DIR]

Starts the stack, fills the drop of yesterday and of the two days before (UTC), runs yesterday as the nightly run and
the others as a backfill, shows how far they are, reports from the tables, and stops everything it started. The exit
status is 0 exactly when every promise held. A second start uses what is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from demo import drop, nights, report
from demo.hostile import hostile_files
from demo.stack import Stack, stop_on_signals
from glm4v_ops.errors import Glm4vError

#: With fewer pictures a day the broken files would be so large a share of it that the gate stops the day, rightly.
LEAST_FOR_HOSTILE = 100


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    stop_on_signals()
    began = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else 140, soft_wrap=not sys.stdout.isatty())
    try:
        with Stack.start(options.state, say=lambda line: console.print(line, highlight=False)) as stack:
            console.print(f"ready after {time.monotonic() - began:.0f} s; Airflow: {stack.url}\n", highlight=False)
            findings = run(stack, console, options.images)
    except KeyboardInterrupt:
        console.print("stopped before the end; what is finished is kept, the next start goes on from there")
        return 130
    except Glm4vError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console.print(f"{time.monotonic() - began:.0f} s in all; everything is stopped.", highlight=False)
    if not findings.problems:
        console.print("Look at it in the Airflow UI, or query the tables:  make up")
    return 1 if findings.problems else 0


def run(stack: Stack, console: Console, images: int) -> report.Findings:
    """Fill the drop, run the days, examine. Raises `RunFailed` when a run fails."""
    days = nights.days_before()
    client, truth = stack.store.client(), stack.state / "truth"
    expected = _fill(client, days, images, truth, console)
    stood = report.before(stack.dsn, days)
    nights.wait_for_dag(stack)
    yesterday, *older = days
    runs = {yesterday: nights.start_nightly(stack, yesterday)}
    older.sort()
    runs |= dict(zip(older, nights.start_backfill(stack, older[0], older[-1]), strict=True))
    with _shown(console) as show:
        nights.follow(stack, list(runs.items()), show)
    findings = report.examine(stack.dsn, client, runs, stood, expected, truth)
    sheets = report.write_sheets(stack.dsn, client, sorted(days), stack.state / "contact-sheets")
    console.print()
    report.show(console, findings, sheets)
    return findings


def _fill(client: object, days: list[date], images: int, truth: Path, console: Console) -> list[drop.Expected]:
    """The drops of all days; broken and unusual files go into yesterday's. Returns how those must end."""
    hostile = hostile_files() if images >= LEAST_FOR_HOSTILE else ()
    if not hostile:
        console.print(f"(no broken files among fewer than {LEAST_FOR_HOSTILE} pictures a day: the gate would stop it)")
    for day in days:
        files = hostile if day == days[0] else ()
        filled = drop.fill(client, day, images=images, hostile=files, truth=truth / f"{day}.jsonl")
        place = f"s3://{drop.BUCKET}/{drop.prefix(day)}"
        console.print(f"{place}  {filled.uploaded} uploaded, {filled.kept} there already", highlight=False)
    return [drop.Expected(drop.prefix(days[0]) + each.name, str(each.outcome)) for each in hostile]


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[list[nights.RunView]], None]]:
    """How to show the runs: in place on a terminal, else a line whenever one has changed."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            yield lambda views: live.update(Text("\n".join(nights.summary(views))))
        return
    last: dict[str, str] = {}

    def lines(views: list[nights.RunView]) -> None:
        for view, line in zip(views, nights.summary(views), strict=True):
            if last.get(view.run_id) != line:
                last[view.run_id] = line
                print(line, flush=True)

    yield lines


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="pictures a day (default 200)")
    parser.add_argument("--state", type=Path, default=Path(".demo"), help="folder for everything it keeps")
    options = parser.parse_args(arguments)
    if options.images < 1:
        parser.error("--images must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
