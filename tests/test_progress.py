from __future__ import annotations

import dataclasses

import pytest

from glm4v_ops.progress import Meter, Progress
from glm4v_ops.quality.outcome import Outcome
from tests.sink.rows import row


def test_the_label_says_where_a_shard_is() -> None:
    progress = Progress(
        shard=2,
        shards=12,
        done=640,
        total=2048,
        images_per_s=9.84,
        p50_s=0.9,
        p95_s=1.42,
        cached=0,
        resumed=0,
        by_outcome={"ok": 640},
    )
    assert progress.label() == "shard 3/12 · 640/2048 · 9.8 img/s · p95 1.4 s"
    more = dataclasses.replace(progress, cached=5, p95_s=None, by_outcome={"ok": 630, "garbled": 7, "missing": 3})
    assert more.label() == "shard 3/12 · 640/2048 · 9.8 img/s · 5 from cache · 10 quarantined"


def test_a_batch_counts_at_once_and_its_rows_do_not_count_twice() -> None:
    meter = Meter(shard=0, shards=1, total=10, resumed=4)
    meter.add_batch(3, [10, 20, 30])
    assert meter.snapshot().done == 7
    meter.add_rows([row("a"), row("b", cached=True), row("c", outcome=Outcome.MISSING)])
    snapshot = meter.snapshot()
    assert (snapshot.done, snapshot.cached, snapshot.by_outcome) == (7, 1, {"ok": 2, "missing": 1})


def test_percentiles_are_in_seconds_and_unknown_before_the_first_answer() -> None:
    meter = Meter(shard=0, shards=1, total=100, resumed=0)
    assert (meter.snapshot().p50_s, meter.snapshot().p95_s) == (None, None)
    meter.add_batch(100, [float(milliseconds) for milliseconds in range(1, 101)])
    assert meter.snapshot().p50_s == pytest.approx(0.051)
    assert meter.snapshot().p95_s == pytest.approx(0.096)
