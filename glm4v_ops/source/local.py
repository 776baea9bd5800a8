"""Local files in place of a bucket, for the command line: the same rows, the same `Fetched`.

Promises: a folder is walked in sorted order, one folder's names in memory at a time; one file's bytes are read when
it is asked for. Every path given is a row: a path that is not there is `missing`, as a deleted object would be.
Files whose name begins with a dot are left out of a folder (a desktop's litter), not when named themselves. Nothing
else is: a folder that cannot be read is `SettingsError`. A file that may not be read is `unreadable`; when it is the
machine that cannot (a failing disk, no more open files), that is `StoreUnavailable`.

Does not know of etags: a local file has none, and is whatever it is when it is read.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from glm4v_ops.errors import Cancelled, ImageRejected, SettingsError, StoreUnavailable
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.source.fetch import Fetched, too_many_bytes
from glm4v_ops.source.manifest import ManifestRow

#: Why a file cannot be read that lie with the file; all others are the machine's.
_ITS_OWN = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG})


def rows_of(paths: Iterable[str | os.PathLike[str]]) -> Iterator[ManifestRow]:
    """A row for each file named, and for each file below each folder named. `key` is the path as given.

    Raises `SettingsError` for a folder that cannot be read, `StoreUnavailable` when that is the machine's fault.
    """
    for given in paths:
        if os.path.isdir(given):
            for folder, folders, names in os.walk(given, onerror=_refuse):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(names):
                    if not name.startswith("."):
                        yield _row(os.path.join(folder, name))
        else:
            yield _row(os.fspath(given))


def _refuse(error: OSError) -> None:
    """By itself `os.walk` leaves out such a folder, and says nothing."""
    if error.errno not in _ITS_OWN | {errno.ENOENT, errno.ENOTDIR}:
        raise _machine_fault(error.filename, error) from error
    raise SettingsError(
        f"the folder {error.filename} cannot be read: {error.strerror}",
        remedy="let this user read it, or name the files and folders that are meant",
    ) from error


def _machine_fault(path: str, error: OSError) -> StoreUnavailable:
    return StoreUnavailable(
        f"{path} cannot be read: {error.strerror}",
        remedy="that is this machine's trouble: look at its disk, its memory and its limit of open files (ulimit -n)",
    )


def _row(path: str) -> ManifestRow:
    try:
        found = os.stat(path)
    except OSError:  # `fetch_local` says what became of it, as it would had the file gone a moment later
        return ManifestRow(path, "", None, 0, datetime.fromtimestamp(0, UTC), 0)
    return ManifestRow(path, "", None, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC), 0)


def fetch_local(
    rows: Iterable[ManifestRow], *, max_bytes: int, cancel: threading.Event | None = None
) -> Iterator[Fetched]:
    """The rows with their bytes, one in memory at a time."""
    for row in rows:
        if cancel is not None and cancel.is_set():
            raise Cancelled("stopped while reading files")
        yield _fetch(row, max_bytes)


def _fetch(row: ManifestRow, max_bytes: int) -> Fetched:
    try:
        return Fetched(row, _read(row.key, max_bytes), None)
    except ImageRejected as rejected:
        return Fetched(row, None, rejected.bare())


def _read(path: str, max_bytes: int) -> bytes:
    try:
        # Looked at before it is opened: opening a pipe would wait for someone to write to it.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageRejected(Outcome.UNSUPPORTED, "not_a_file", f"{path} is a pipe, socket or device")
        with Path(path).open("rb") as file:
            data = file.read(max_bytes + 1)
            if len(data) > max_bytes:
                raise too_many_bytes(os.fstat(file.fileno()).st_size, max_bytes)
            return data
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageRejected(Outcome.MISSING, "gone", f"there is no file {path}") from error
    except OSError as error:
        if error.errno not in _ITS_OWN:
            raise _machine_fault(path, error) from error
        raise ImageRejected(Outcome.UNREADABLE, "not_read", f"the file cannot be read: {error.strerror}") from error
