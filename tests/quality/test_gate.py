from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pytest

from glm4v_ops.quality.gate import EXAMPLES, Tally, check, tally
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import GateSection
from glm4v_ops.result import to_table
from tests.sink.rows import row


@dataclass(frozen=True)
class Listed:
    key: str
    shard: int


MANIFEST = [Listed(f"图/{index}", index // 3) for index in range(8)]  # shards of 3, 3 and 2


def _part(*indexes: int, failed: tuple[int, ...] = (), cached: bool = False) -> pa.Table:
    return to_table(
        [
            row(
                MANIFEST[index].key,
                Outcome.UNREADABLE if index in failed else Outcome.OK,
                shard=MANIFEST[index].shard,
                cached=cached,
            )
            for index in indexes
        ]
    )


def _report(*parts: pa.Table, limit: float = 0.5) -> tuple[bool, dict[str, bool], Tally]:
    counted = tally(MANIFEST, parts)
    report = check(counted, GateSection(max_failure_rate=limit))
    return report.passed, {rule.name: rule.passed for rule in report.rules}, counted


def test_a_day_with_each_row_once_passes_and_is_counted() -> None:
    passed, _, counted = _report(_part(0, 1), _part(2), _part(3, 4, 5, failed=(4,)), _part(6, 7, cached=True))
    assert passed
    assert (counted.manifest_rows, counted.rows, counted.ok, counted.quarantined, counted.cached) == (8, 8, 7, 1, 2)
    assert counted.by_outcome == {Outcome.OK: 7, Outcome.UNREADABLE: 1}
    assert counted.examples == {Outcome.UNREADABLE: ("图/4",)}


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([_part(0, 1, 2), _part(3, 4, 5), _part(6)], id="the last row is lacking"),
        pytest.param([_part(0, 1, 2), _part(6, 7)], id="a shard is lacking"),
        pytest.param([_part(0, 1, 2), _part(3, 5), _part(6, 7)], id="a row in the middle is lacking"),
        pytest.param([_part(0, 1, 1), _part(3, 4, 5), _part(6, 7)], id="one lacks and one stands twice"),
        pytest.param([_part(0, 1, 2), _part(3, 4, 5), _part(3, 4, 5), _part(6, 7)], id="a part stands twice"),
        pytest.param([_part(0, 1, 2), _part(6, 7), _part(3, 4, 5)], id="out of order"),
        pytest.param([], id="nothing"),
    ],
)
def test_counts_that_do_not_reconcile_fail_the_day(parts: list[pa.Table]) -> None:
    passed, rules, counted = _report(*parts, limit=1.0)
    assert not passed
    assert rules == {"counts reconcile": False, "failure rate": True}
    assert counted.contradictions


def test_equal_counts_with_another_key_fail_the_day() -> None:
    foreign = to_table([row("other", shard=2), row(MANIFEST[7].key, shard=2)])
    passed, _, counted = _report(_part(0, 1, 2), _part(3, 4, 5), foreign)
    assert not passed
    assert (counted.rows, counted.without_result, counted.without_manifest) == (8, 1, 1)
    assert counted.contradictions == ("图/6 (no result)", "other (not in the manifest)")


def test_results_of_a_shard_the_manifest_lacks_fail_the_day() -> None:
    extra = to_table([row("other", shard=9)])
    passed, _, counted = _report(_part(0, 1, 2), _part(3, 4, 5), _part(6, 7), extra)
    assert not passed
    assert counted.without_manifest == 1


def test_too_many_failures_fail_the_day_and_name_a_few_images() -> None:
    parts = [_part(0, 1, 2, failed=(0, 1, 2)), _part(3, 4, 5, failed=(3, 4, 5)), _part(6, 7)]
    report = check(tally(MANIFEST, parts), GateSection(max_failure_rate=0.74))
    assert [rule.passed for rule in report.rules] == [True, False]
    examples = report.rules[1].examples["unreadable"]
    assert examples == tuple(listed.key for listed in MANIFEST[:EXAMPLES])
    assert "FAIL failure rate: 75.00% (6 of 8) (limit 74.00%)" in report.text()
    assert "unreadable: 图/0, 图/1" in report.text()
    assert check(tally(MANIFEST, parts), GateSection(max_failure_rate=0.75)).passed


def test_a_day_without_images_passes() -> None:
    assert check(tally([], []), GateSection(max_failure_rate=0.0)).passed


def test_the_report_is_json() -> None:
    report = check(tally(MANIFEST, [_part(*range(8), failed=(1,))]), GateSection())
    kept = json.loads(json.dumps(report.to_json()))
    assert kept["passed"] is False
    assert kept["by_outcome"] == {"ok": 7, "unreadable": 1}
    assert [rule["name"] for rule in kept["rules"]] == ["counts reconcile", "failure rate"]


def test_manifest_and_parts_are_read_side_by_side_a_shard_at_a_time() -> None:
    ahead = 0
    furthest = 0

    def listed() -> Iterator[Listed]:
        nonlocal ahead, furthest
        for index in range(300):
            ahead += 1
            furthest = max(furthest, ahead)
            yield Listed(f"k{index}", index // 10)

    def parts() -> Iterator[pa.Table]:
        nonlocal ahead
        for start in range(0, 300, 10):
            ahead -= 10
            yield to_table([row(f"k{index}", shard=index // 10) for index in range(start, start + 10)])

    assert check(tally(listed(), parts()), GateSection()).passed
    assert furthest <= 30
