from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks import annotate
from benchmarks.annotate import measure_memory, outcome_of, ratios
from demo.parts import ObjectStore, Postgres
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.sink.postgres import migrate
from tests.airflow.home import ROOT


@pytest.mark.parametrize(
    ("model", "model_alone", "passed"), [(100.0, 100.0, True), (100.1, 90.0, False), (90.0, 100.1, False)]
)
def test_the_path_is_held_against_the_model_in_the_same_run_and_alone(
    model: float, model_alone: float, passed: bool
) -> None:
    found = ratios(115.0, model=model, model_alone=model_alone)
    assert found["passed"] is passed
    assert found["ratio"] == pytest.approx(115 / model, abs=1e-4)
    assert found["ratio_to_model_alone"] == pytest.approx(115 / model_alone, abs=1e-4)


def test_of_a_hundred_images_ten_are_cut_off_and_two_are_enormous() -> None:
    ends = Counter(outcome_of(number) for number in range(annotate.LARGE))
    hundreds = annotate.LARGE // 100
    assert ends == {
        Outcome.OK: 88 * hundreds,
        Outcome.UNREADABLE: 10 * hundreds,
        Outcome.OVERSIZED: 2 * hundreds,
    }


def test_the_memory_of_two_shards_of_good_and_broken_images_is_measured(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotate, "SMALL", 20)
    monkeypatch.setattr(annotate, "LARGE", 60)
    dsn = postgres.new_database()
    migrate(dsn)
    with ObjectStore.start(tmp_path) as store:  # of its own: the buckets' names are the benchmark's
        for bucket in ("drop", "work"):
            store.bucket(bucket)
        environ = {**store.environ(), "GLM4V_DSN": dsn}
        found = measure_memory(store.client(), environ, ROOT / "recipes" / "demo.yaml")
    assert found["peak_mb"].keys() == {"20", "60"}
    assert found["passed"] is (found["peak_mb"]["60"] / found["peak_mb"]["20"] <= annotate.MEMORY_BOUND)
