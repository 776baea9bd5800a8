"""`make demo` up to its first run and after its last; the runs between are those of tests/demo/test_nights.py."""

from __future__ import annotations

import fcntl
import io
from datetime import date
from pathlib import Path

import pytest
from rich.console import Console

from demo import drop, run
from demo.hostile import hostile_files
from demo.nights import RunView
from demo.parts import ObjectStore

_days = iter(range(1000))


def days(number: int) -> list[date]:
    """Days that no other test fills: the demo's bucket has one name."""
    return [date.fromordinal(720_000 + next(_days)) for _ in range(number)]


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=140, soft_wrap=True, force_terminal=terminal), file


def test_the_drop_of_each_day_is_filled_with_as_many_pictures_as_asked_for(store: ObjectStore, tmp_path: Path) -> None:
    store.bucket(drop.BUCKET)
    client, (shown, said), three = store.client(), console(), days(3)
    assert run._fill(client, three, 2, tmp_path, shown) == []
    for day in three:
        assert len(drop.listing(client, day)) == 2
        assert len(drop.read_truth(tmp_path / f"{day}.jsonl")) == 2
        assert f"s3://drop/images/{day}/  2 uploaded, 0 there already" in said.getvalue()
    assert "no broken files" in said.getvalue()


def test_the_first_day_of_a_large_drop_holds_the_broken_files_and_what_must_become_of_them_is_known(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len([each for each in hostile_files() if not each.outcome.is_ok]) < 0.10 * run.LEAST_FOR_HOSTILE
    monkeypatch.setattr(run, "LEAST_FOR_HOSTILE", 2)  # drawing a hundred would take a while
    store.bucket(drop.BUCKET)
    client, (shown, said), two = store.client(), console(), days(2)
    expected = run._fill(client, two, 2, tmp_path, shown)
    first, second = (drop.listing(client, day) for day in two)
    assert {each.key for each in expected} == {drop.prefix(two[0]) + each.name for each in hostile_files()}
    assert {each.key for each in expected} < {*first}
    assert len(first) == 2 + len(expected)
    assert len(second) == 2
    outcomes = {each.key.removeprefix(drop.prefix(two[0])): each.outcome for each in expected}
    assert outcomes == {each.name: each.outcome.value for each in hostile_files()}
    assert "no broken files" not in said.getvalue()


def view(state: str) -> RunView:
    return RunView(
        day=date(2026, 11, 20), run_id="nightly", state=state, tasks={"freeze": "success", "annotate": state}
    )


def test_without_a_terminal_a_run_has_a_line_whenever_it_changed(capsys: pytest.CaptureFixture[str]) -> None:
    shown, _ = console()
    with run._shown(shown) as show:
        for state in ("queued", "queued", "running", "running", "success"):
            show([view(state)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("2026-11-20" in line for line in lines)


def test_on_a_terminal_the_runs_are_shown_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    shown, said = console(terminal=True)
    with run._shown(shown) as show:
        show([view("running")])
        show([view("success")])
    assert capsys.readouterr().out == ""
    assert "2026-11-20" in said.getvalue()


def test_a_folder_that_is_in_use_ends_in_one_line_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "stop_on_signals", lambda: None)  # they are this process's own
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run.main(["--state", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.err.startswith(f"error: a stack is already running on {tmp_path}")
    assert "STATE=" in told.err
    assert "Traceback" not in told.err


def test_what_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run.main(["--images", "0"])
    assert left.value.code == 2
    assert "--images must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.main(["--help"])
    assert "--images" in capsys.readouterr().out
