"""The benchmarks' bounds, held at full size."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.airflow.home import ROOT


@pytest.mark.soak
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("script", ["manifest", "annotate"])
def test_the_bounds_of_the_benchmark_hold(script: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{script}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
