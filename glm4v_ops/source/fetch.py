"""Bytes of the manifest's objects: concurrent, in manifest order, verified, bounded.

Promises: rows come back in the order given, each exactly once, with its bytes or with why it has none. At most
`ahead` objects are held, whatever the number of rows; an object over `max_bytes` is never asked for. Bytes handed
out are those that were listed: the store compares the etag (`If-Match`), and a pinned version is asked for by its
id. An object that is gone or was changed is an outcome; a store that does not answer is not, it raises
`StoreUnavailable` after retries. No thread outlives the iterator: closing it stops the downloads under way. No request
is begun after that, and one that hangs is waited for once, for the client's read timeout: it cannot be cut off.

Does not know what the bytes mean.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from glm4v_ops.errors import Cancelled, ImageRejected
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.settings import S3Uri
from glm4v_ops.source import store
from glm4v_ops.source.manifest import ManifestRow

#: Bytes read at a time: how soon a download notices that nobody wants it any more.
_CHUNK = 1 << 18

#: Seconds between two looks at `cancel` while waiting for an object.
_POLL = 0.2

#: Tries of a body that broke off half way, which the SDK does not repeat by itself, and seconds before the second.
_BODY_ATTEMPTS = 4
_BODY_PAUSE = 0.5

#: Set in the fetching threads alone, each of which belongs to one iterator: what tells that nobody waits any more.
_STOP: ContextVar[threading.Event | None] = ContextVar("_STOP", default=None)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A row with its bytes, or with why there are none: exactly one of `data` and `rejected` is None."""

    row: ManifestRow
    data: bytes | None
    rejected: ImageRejected | None


def fetch_all(
    client: Any,
    bucket: str,
    rows: Iterable[ManifestRow],
    *,
    max_bytes: int,
    workers: int,
    ahead: int,
    cancel: threading.Event | None = None,
) -> Iterator[Fetched]:
    """Fetch `rows` with `workers` threads, at most `ahead` objects in memory, the one handed out included.

    Raises `Cancelled` soon after `cancel` is set (when a request hangs, after the client's read timeout at the latest),
    `StoreUnavailable` or `SettingsError` when the store fails.
    """
    ahead = max(1, ahead)
    stop = threading.Event()
    # The SDK repeats a request that hangs, and all its tries together take longer than a task is given to stop.
    client.meta.events.register("request-created.s3.GetObject", _no_request_when_stopped, unique_id=__name__)
    fetch = partial(_fetch, client, bucket, max_bytes, stop)
    pending: deque[Future[Fetched]] = deque()
    with ThreadPoolExecutor(min(workers, ahead), "fetch", initializer=_STOP.set, initargs=(stop,)) as pool:
        try:
            for row in rows:
                pending.append(pool.submit(fetch, row))
                if len(pending) == ahead:
                    yield _result(pending.popleft(), cancel)
            while pending:
                yield _result(pending.popleft(), cancel)
        finally:
            stop.set()
            for future in pending:
                future.cancel()


def _no_request_when_stopped(**_: Any) -> None:
    stop = _STOP.get()
    if stop is not None and stop.is_set():
        raise _unwanted()


def _result(future: Future[Fetched], cancel: threading.Event | None) -> Fetched:
    while cancel is not None:
        if cancel.is_set():
            raise Cancelled("stopped while fetching")
        if wait([future], timeout=_POLL).done:
            break
    return future.result()


def _fetch(client: Any, bucket: str, max_bytes: int, stop: threading.Event, row: ManifestRow) -> Fetched:
    try:
        return Fetched(row, _download(client, bucket, max_bytes, stop, row), None)
    except ImageRejected as rejected:
        return Fetched(row, None, rejected.bare())


def _download(client: Any, bucket: str, max_bytes: int, stop: threading.Event, row: ManifestRow) -> bytes:
    if row.size > max_bytes:
        raise too_many_bytes(row.size, max_bytes)
    for attempt in range(1, _BODY_ATTEMPTS + 1):
        answer = _open(client, bucket, row)
        try:
            return _read(answer["Body"], stop)
        except (BotoCoreError, HTTPError) as error:  # a broken TLS record comes as urllib3's own
            if attempt == _BODY_ATTEMPTS:
                raise store.as_store_error(error, S3Uri(bucket, row.key)) from error
            if stop.wait(_BODY_PAUSE * 2 ** (attempt - 1)):
                raise _unwanted() from error
    raise AssertionError("unreachable")


def _open(client: Any, bucket: str, row: ManifestRow) -> dict[str, Any]:
    """The answer whose body is the object that was listed, or `ImageRejected`."""
    version = {"VersionId": row.version_id} if row.version_id else {}
    try:
        answer: dict[str, Any] = client.get_object(Bucket=bucket, Key=row.key, IfMatch=f'"{row.etag}"', **version)
    except (BotoCoreError, ClientError) as error:
        if isinstance(error, ClientError) and store.is_missing(error):
            store.require_bucket(client, bucket)
            raise ImageRejected(Outcome.MISSING, "gone", "the object was deleted after it was listed") from error
        if isinstance(error, ClientError) and store.is_changed(error):
            store.require_bucket(client, bucket)
            raise _changed() from error
        raise store.as_store_error(error, S3Uri(bucket, row.key)) from error
    # For stores that do not know `If-Match`: they answer with whatever is there now.
    if answer["ETag"].strip('"') != row.etag or answer["ContentLength"] != row.size:
        answer["Body"].close()
        raise _changed()
    return answer


def _read(body: Any, stop: threading.Event) -> bytes:
    try:
        chunks = []
        while chunk := body.read(_CHUNK):
            if stop.is_set():
                raise _unwanted()
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        body.close()


def _unwanted() -> Cancelled:
    return Cancelled("nobody waits for this object any more")


def _changed() -> ImageRejected:
    return ImageRejected(Outcome.MISSING, "changed", "the object was replaced after it was listed")


def too_many_bytes(size: int, limit: int) -> ImageRejected:
    """The rejection of an object over the byte limit, known before its bytes are."""
    return ImageRejected(Outcome.OVERSIZED, "bytes", f"{size:,} bytes, over the limit of {limit:,}")
