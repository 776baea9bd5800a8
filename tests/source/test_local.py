from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glm4v_ops.errors import Cancelled, SettingsError, StoreUnavailable
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.source.fetch import Fetched
from glm4v_ops.source.local import fetch_local, rows_of
from glm4v_ops.source.manifest import ManifestRow


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "pictures"
    (root / "sub 图").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in ("b.png", "a%2F.png", ".DS_Store", "sub 图/字.png", ".hidden/c.png", "empty"):
        (root / name).write_bytes(b"" if name == "empty" else name.encode())
    return root


def fetched(*paths: str, max_bytes: int = 100) -> list[Fetched]:
    return list(fetch_local(rows_of(paths), max_bytes=max_bytes))


def why(result: Fetched) -> tuple[Outcome, str]:
    assert result.data is None
    assert result.rejected is not None
    return result.rejected.outcome, result.rejected.reason


@pytest.mark.usefixtures("folder")
def test_a_folder_is_walked_in_order_without_hidden_files() -> None:
    results = fetched("pictures")
    assert [result.row.key for result in results] == [
        "pictures/a%2F.png",
        "pictures/b.png",
        "pictures/empty",
        "pictures/sub 图/字.png",
    ]
    assert [result.data for result in results] == [b"a%2F.png", b"b.png", b"", "sub 图/字.png".encode()]


@pytest.mark.usefixtures("folder")
def test_a_row_has_the_path_as_given_the_size_and_no_etag() -> None:
    [row] = rows_of(["./pictures/b.png"])
    assert (row.key, row.etag, row.version_id, row.size, row.shard) == ("./pictures/b.png", "", None, 5, 0)
    assert row.last_modified.timestamp() == pytest.approx(os.stat("pictures/b.png").st_mtime)


@pytest.mark.usefixtures("folder")
def test_a_hidden_file_named_itself_is_read() -> None:
    assert [result.data for result in fetched("pictures/.DS_Store")] == [b".DS_Store"]


@pytest.mark.usefixtures("folder")
def test_a_path_that_is_not_there_is_missing() -> None:
    assert [why(result) for result in fetched("nowhere.png", "pictures/b.png/below")] == [(Outcome.MISSING, "gone")] * 2


def test_a_file_deleted_since_it_was_listed_is_missing(folder: Path) -> None:
    rows = list(rows_of([folder / "b.png"]))
    (folder / "b.png").unlink()
    assert why(next(fetch_local(rows, max_bytes=100))) == (Outcome.MISSING, "gone")


@pytest.mark.usefixtures("folder")
def test_a_file_over_the_byte_limit_is_oversized() -> None:
    assert why(fetched("pictures/b.png", max_bytes=4)[0]) == (Outcome.OVERSIZED, "bytes")
    assert fetched("pictures/b.png", max_bytes=5)[0].data == b"b.png"


def failing_at(monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Opening any file below here, or looking into the folder `name`, is answered by this error of the system."""
    scandir = os.scandir

    def refuse(path: Any, *_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code), os.fspath(path))

    def scan(path: Any = ".") -> Any:
        return refuse(path) if Path(path).name == name else scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG])
def test_a_file_that_may_not_be_read_is_unreadable(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, "", code)
    assert why(fetched("pictures/b.png")[0]) == (Outcome.UNREADABLE, "not_read")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "code",
    [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ENOSPC, errno.ETIMEDOUT, errno.ENOTCONN],
)
def test_a_fault_of_the_machine_is_no_outcome_of_the_file(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, "sub 图", code)
    with pytest.raises(StoreUnavailable, match=r"pictures/b\.png cannot be read") as caught:
        fetched("pictures/b.png")
    assert caught.value.remedy
    with pytest.raises(StoreUnavailable, match="pictures/sub 图 cannot be read"):
        list(rows_of(["pictures"]))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["pictures", "sub 图"])
def test_a_folder_that_may_not_be_read_is_named_not_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, name, errno.EACCES)
    with pytest.raises(SettingsError, match=f"the folder .*{name} cannot be read: Permission denied") as caught:
        list(rows_of(["pictures"]))
    assert caught.value.remedy


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert why(fetched(str(folder / "pipe"))[0]) == (Outcome.UNSUPPORTED, "not_a_file")


@pytest.mark.usefixtures("folder")
def test_files_are_read_only_when_they_are_asked_for() -> None:
    taken: list[str] = []

    def rows() -> Iterator[ManifestRow]:
        for row in rows_of(["pictures"]):
            taken.append(row.key)
            yield row

    results = fetch_local(rows(), max_bytes=100)
    next(results)
    assert taken == ["pictures/a%2F.png"]


@pytest.mark.usefixtures("folder")
def test_setting_cancel_stops_the_reading() -> None:
    cancel = threading.Event()
    results = fetch_local(rows_of(["pictures"]), max_bytes=100, cancel=cancel)
    next(results)
    cancel.set()
    with pytest.raises(Cancelled):
        next(results)
