"""How far a shard is: what a task's log line, its map label and the command line show.

`Progress` is a snapshot and travels; `Meter` counts. How often a snapshot is shown is for whoever shows it to say.
Knows nothing of Airflow or terminals.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glm4v_ops.result import Result

#: Batches the images/s are taken over, so that the figure follows the work and forgets how long the model took to load.
_RATE_BATCHES = 32
#: Rows the latency percentiles are taken over; bounds the memory, and lets the figure follow the work.
_LATENCIES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A snapshot. `shard` counts from 0; times are seconds, None until the model has answered something."""

    shard: int
    shards: int
    done: int  # rows with an outcome, resumed ones included
    total: int
    images_per_s: float  # over the last batches; resumed rows do not count
    p50_s: float | None
    p95_s: float | None
    cached: int  # rows whose every answer came from the cache
    resumed: int  # rows found in parts of an earlier try
    by_outcome: Mapping[str, int]  # of the rows this call worked on

    def label(self) -> str:
        """One line, as in `shard 3/12 · 640/2048 · 9.8 img/s · p95 1.4 s`."""
        words = [
            f"shard {self.shard + 1}/{self.shards}",
            f"{self.done}/{self.total}",
            f"{self.images_per_s:.1f} img/s",
        ]
        if self.p95_s is not None:
            words.append(f"p95 {self.p95_s:.1f} s")
        if self.cached:
            words.append(f"{self.cached} from cache")
        if failed := sum(n for outcome, n in self.by_outcome.items() if outcome != "ok"):
            words.append(f"{failed} quarantined")
        return " · ".join(words)


class Meter:
    """Counts rows and times them. Not thread-safe: the thread that runs the model owns it."""

    def __init__(self, *, shard: int, shards: int, total: int, resumed: int) -> None:
        self.by_outcome: Counter[str] = Counter()
        self.cached = 0
        self.rows = 0
        self._shard, self._shards, self._total, self._resumed = shard, shards, total, resumed
        self._in_window = 0
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._reached: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=_RATE_BATCHES)

    def add_batch(self, images: int, latencies_ms: Iterable[float]) -> None:
        """The model answered `images` of the window in hand; their rows follow by `add_rows`."""
        self._in_window += images
        self._latencies.extend(latency / 1000 for latency in latencies_ms)
        self._mark()

    def add_rows(self, results: Iterable[Result]) -> None:
        """The window in hand is done."""
        self._in_window = 0
        for result in results:
            self.rows += 1
            self.cached += result.cached
            self.by_outcome[result.outcome.value] += 1
        self._mark()

    def snapshot(self) -> Progress:
        ordered = sorted(self._latencies)
        return Progress(
            shard=self._shard,
            shards=self._shards,
            done=self._resumed + self.rows + self._in_window,
            total=self._total,
            images_per_s=self._rate(),
            p50_s=_percentile(ordered, 0.50),
            p95_s=_percentile(ordered, 0.95),
            cached=self.cached,
            resumed=self._resumed,
            by_outcome=dict(self.by_outcome),
        )

    def _mark(self) -> None:
        self._reached.append((time.monotonic(), self.rows + self._in_window))

    def _rate(self) -> float:
        (first_at, first), (last_at, last) = self._reached[0], self._reached[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0


def _percentile(ordered: list[float], q: float) -> float | None:
    """The nearest-rank percentile of sorted values; None of none."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None
