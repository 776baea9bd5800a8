"""Pictures ready for the model: fetched objects decoded ahead of it, in order, a bounded number at a time.

While the model works, a feeder thread takes objects from the fetcher and a small pool decodes them, so that the next
window of pictures is ready when the model asks. Memory is bounded by construction: the feeder blocks once `ahead`
pictures wait in the queue, so at most `ahead` + 1 decoded pictures exist beside those the caller holds.

An image that cannot be decoded is a picture with its rejection; any other error (the store is down) is raised to the
caller at its place in the order, after every picture before it. Closing the iterator stops feeder and pool and waits
for them.
Knows nothing of where the objects come from, and nothing of the model.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from glm4v_ops.errors import Cancelled, ImageRejected
from glm4v_ops.recipe import ImageSection
from glm4v_ops.source.fetch import Fetched
from glm4v_ops.source.image import Decoded, decode
from glm4v_ops.source.manifest import ManifestRow

#: Seconds between looks at the cancel event while no picture is ready.
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Picture:
    """One manifest row, decoded or rejected, never both. `sha256` is None when the bytes were not read whole."""

    row: ManifestRow
    sha256: str | None
    decoded: Decoded | None
    rejected: ImageRejected | None


def decoded_ahead(
    source: Callable[[threading.Event], Iterator[Fetched]],
    *,
    limits: ImageSection,
    decoders: int,
    ahead: int,
    cancel: threading.Event,
) -> Generator[Picture, None, None]:
    """Decode what `source(stop)` fetches; it must end soon after `stop` is set. Raises `Cancelled` once `cancel` is."""
    stop = threading.Event()
    ready: queue.Queue[Future[Picture] | None] = queue.Queue(maxsize=ahead)
    pool = ThreadPoolExecutor(decoders, thread_name_prefix="decode")

    def feed() -> None:
        try:
            for fetched in source(stop):
                if stop.is_set():
                    break
                ready.put(pool.submit(_decoded, fetched, limits))
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            failed: Future[Picture] = Future()
            failed.set_exception(error)
            ready.put(failed)
        ready.put(None)

    feeder = threading.Thread(target=feed, name="feeder", daemon=True)
    feeder.start()
    try:
        while (future := _next(ready, cancel)) is not None:
            yield future.result()
    finally:
        stop.set()
        while feeder.is_alive():
            _drain(ready)
            feeder.join(0.01)
        pool.shutdown(wait=True, cancel_futures=True)


def _next(ready: queue.Queue[Future[Picture] | None], cancel: threading.Event) -> Future[Picture] | None:
    while not cancel.is_set():
        try:
            return ready.get(timeout=_POLL_S)
        except queue.Empty:
            continue
    raise Cancelled("stopped while waiting for pictures")


def _drain(ready: queue.Queue[Future[Picture] | None]) -> None:
    """Make room, so that a feeder blocked on a full queue can see that it should stop."""
    while not ready.empty():
        ready.get_nowait()


def _decoded(fetched: Fetched, limits: ImageSection) -> Picture:
    if fetched.data is None:
        return Picture(fetched.row, None, None, fetched.rejected)
    try:
        decoded = decode(fetched.data, limits)
    except ImageRejected as rejected:
        return Picture(fetched.row, hashlib.sha256(fetched.data).hexdigest(), None, rejected.bare())
    return Picture(fetched.row, decoded.sha256, decoded, None)
