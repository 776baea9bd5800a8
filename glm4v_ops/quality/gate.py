"""The gate: a day's results against its manifest and the recipe's limits, before anything is published.

Counting streams: both sides come in manifest order, shard by shard, and one shard's keys stand in memory at a time.
Nothing here raises or stops a day: the report says which rule failed and which images; who asked decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol

import pyarrow as pa

from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import GateSection

#: Keys named for each outcome or contradiction: enough to look at, short enough for a log.
EXAMPLES = 5


class Listed(Protocol):
    """A manifest row, as far as the gate looks at it (`glm4v_ops.source.manifest.ManifestRow`)."""

    @property
    def key(self) -> str: ...

    @property
    def shard(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Tally:
    """A day counted. Build one with `tally`; `examples` are the first keys of each outcome, in manifest order."""

    manifest_rows: int = 0
    rows: int = 0
    by_outcome: dict[Outcome, int] = field(default_factory=dict)
    cached: int = 0
    examples: dict[Outcome, tuple[str, ...]] = field(default_factory=dict)
    without_result: int = 0
    without_manifest: int = 0
    twice: int = 0
    contradictions: tuple[str, ...] = ()  # the first of the three counts above, as "key (what is wrong)"

    @property
    def ok(self) -> int:
        return self.by_outcome.get(Outcome.OK, 0)

    @property
    def quarantined(self) -> int:
        return self.rows - self.ok

    @property
    def failure_rate(self) -> float:
        """Quarantined rows / manifest rows; 0 for a day without images."""
        return self.quarantined / self.manifest_rows if self.manifest_rows else 0.0

    def add(self, table: pa.Table) -> Tally:
        """This and one more result part (`glm4v_ops.result.RESULT_SCHEMA`)."""
        outcomes = [Outcome(value) for value in table.column("outcome").to_pylist()]
        keys = table.column("key").to_pylist()
        examples = dict(self.examples)
        for key, outcome in zip(keys, outcomes, strict=True):
            known = examples.get(outcome, ())
            if len(known) < EXAMPLES and not outcome.is_ok:
                examples[outcome] = (*known, key)
        return replace(
            self,
            rows=self.rows + table.num_rows,
            by_outcome=dict(Counter(self.by_outcome) + Counter(outcomes)),
            cached=self.cached + sum(table.column("cached").to_pylist()),
            examples=examples,
        )

    def compare(self, listed: Counter[str], found: Counter[str]) -> Tally:
        """This and one shard whose manifest lists `listed` and whose results are `found`."""
        lacking, foreign = listed - found, found - listed
        twice = {key: count - 1 for key, count in found.items() if count > 1 and key in listed}
        foreign = Counter({key: count for key, count in foreign.items() if key not in twice})
        said = [
            *(f"{key} (no result)" for key in lacking),
            *(f"{key} (not in the manifest)" for key in foreign),
            *(f"{key} (more than one result)" for key in twice),
        ]
        return replace(
            self,
            manifest_rows=self.manifest_rows + listed.total(),
            without_result=self.without_result + lacking.total(),
            without_manifest=self.without_manifest + foreign.total(),
            twice=self.twice + sum(twice.values()),
            contradictions=(*self.contradictions, *said)[:EXAMPLES],
        )


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One rule's finding: what the limit was, what was measured, and images to look at."""

    name: str
    limit: str
    value: str
    passed: bool
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GateReport:
    """All rules' findings for one day."""

    tally: Tally
    rules: tuple[RuleResult, ...]

    @property
    def passed(self) -> bool:
        return all(rule.passed for rule in self.rules)

    def text(self) -> str:
        """The report as a task's log shows it, failed rules with their images."""
        lines = [
            f"gate {'passed' if self.passed else 'FAILED'}: {self.tally.manifest_rows} in the manifest, "
            f"{self.tally.ok} ok, {self.tally.quarantined} quarantined, {self.tally.cached} from the cache"
        ]
        for rule in self.rules:
            lines.append(f"  {'ok  ' if rule.passed else 'FAIL'} {rule.name}: {rule.value} (limit {rule.limit})")
            for name, keys in rule.examples.items():
                lines.append(f"         {name}: {', '.join(keys)}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The report as `runs.gate` keeps it."""
        return {
            "passed": self.passed,
            "manifest_rows": self.tally.manifest_rows,
            "rows": self.tally.rows,
            "by_outcome": {outcome.value: count for outcome, count in self.tally.by_outcome.items()},
            "cached": self.tally.cached,
            "rules": [
                {
                    "name": rule.name,
                    "limit": rule.limit,
                    "value": rule.value,
                    "passed": rule.passed,
                    "examples": {name: list(keys) for name, keys in rule.examples.items()},
                }
                for rule in self.rules
            ],
        }


def tally(manifest: Iterable[Listed], parts: Iterable[pa.Table]) -> Tally:
    """Count a day: every manifest row against every result, both streamed in manifest order.

    A result out of order counts as not in the manifest, and the row it belongs to as without result.
    """
    counted = _Results(parts)
    listed = _shards((row.shard, row.key) for row in manifest)
    found = _shards(counted)
    total = Tally()
    here, there = next(listed, None), next(found, None)
    while here is not None or there is not None:
        if there is None or (here is not None and here[0] < there[0]):
            assert here is not None
            total = total.compare(here[1], Counter())
            here = next(listed, None)
        elif here is None or there[0] < here[0]:
            total = total.compare(Counter(), there[1])
            there = next(found, None)
        else:
            total = total.compare(here[1], there[1])
            here, there = next(listed, None), next(found, None)
    return replace(
        total,
        rows=counted.tally.rows,
        by_outcome=counted.tally.by_outcome,
        cached=counted.tally.cached,
        examples=counted.tally.examples,
    )


def check(counted: Tally, limits: GateSection) -> GateReport:
    """Hold a day's counts against the rules."""
    wrong = counted.without_result + counted.without_manifest + counted.twice
    reconcile = RuleResult(
        name="counts reconcile",
        limit="each manifest row once",
        value=(
            f"{counted.rows} results for {counted.manifest_rows} manifest rows, "
            f"{counted.without_result} without result, {counted.without_manifest} not in the manifest, "
            f"{counted.twice} twice"
        ),
        passed=wrong == 0 and counted.rows == counted.manifest_rows,
        examples={"contradictions": counted.contradictions} if counted.contradictions else {},
    )
    rate = RuleResult(
        name="failure rate",
        limit=f"{limits.max_failure_rate:.2%}",
        value=f"{counted.failure_rate:.2%} ({counted.quarantined} of {counted.manifest_rows})",
        passed=counted.failure_rate <= limits.max_failure_rate,
        examples={outcome.value: keys for outcome, keys in counted.examples.items()},
    )
    return GateReport(counted, (reconcile, rate))


class _Results:
    """The parts as (shard, key), counted on the way through."""

    def __init__(self, parts: Iterable[pa.Table]) -> None:
        self._parts = parts
        self.tally = Tally()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for table in self._parts:
            self.tally = self.tally.add(table)
            yield from zip(table.column("shard").to_pylist(), table.column("key").to_pylist(), strict=True)


def _shards(rows: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Counter[str]]]:
    for shard, group in groupby(rows, key=lambda row: row[0]):
        yield shard, Counter(key for _, key in group)
