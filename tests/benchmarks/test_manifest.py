from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.manifest import difference, listed, measure
from demo.parts import ObjectStore


def test_what_was_listed_is_what_the_shards_hold_and_memory_is_bounded(store: ObjectStore) -> None:
    found = measure(store, keys=3_000, shard_size=700)
    assert found["fault"] is None
    assert (found["keys"], found["shards"], found["passed"]) == (3_000, 5, True)
    assert 0 < found["before_mb"] <= found["freeze_peak_mb"] <= found["peak_mb"] < found["bound_mb"]


def test_too_much_memory_does_not_pass(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.manifest.BOUND_MB", 1)
    assert measure(store, keys=10, shard_size=4)["passed"] is False


def test_a_listing_of_no_keys_is_a_manifest_of_no_shards(store: ObjectStore) -> None:
    found = measure(store, keys=0, shard_size=4)
    assert (found["shards"], found["fault"]) == (0, None)


def test_keys_come_in_the_order_a_store_lists_them() -> None:
    keys = [listed(number).key.encode() for number in (0, 9, 10, 99, 100, 12_345, 199_999)]
    assert keys == sorted(keys)


def test_a_lost_a_doubled_and_a_changed_row_are_seen() -> None:
    rows = [listed(number) for number in range(5)]
    assert difference(rows, iter(rows)) is None
    for wrong in (
        rows[:-1],
        rows[1:],
        [*rows, rows[-1]],
        [*rows[:2], *rows[1:]],
        [replace(rows[0], size=1), *rows[1:]],
    ):
        assert difference(rows, wrong) is not None
