"""The demo model's scores on five hundred pictures it was never trained on, in 4 bit and in 16."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.airflow.home import ROOT

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]

WHOLE, QUANTISED = ("--quantization", "none", "--dtype", "bfloat16"), ("--quantization", "nf4")


@cache
def scores(*options: str) -> dict[str, Any]:
    """By the command, with all cores: the tests give torch one."""
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "demo.evaluate", "--count", "500", "--seed", "1001", "--device", "cpu", *options]
    ran = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.mark.parametrize("options", [WHOLE, QUANTISED])
def test_at_most_3_percent_of_the_characters_are_wrong_and_95_percent_of_the_facts_are_right(
    options: tuple[str, ...],
) -> None:
    found = scores(*options)
    assert found["images"] == 500
    assert found["text_cer"] <= 0.03, found
    assert found["caption_facts"] >= 0.95, found


def test_4_bit_costs_less_than_a_point_of_either() -> None:
    whole, quantised = scores(*WHOLE), scores(*QUANTISED)
    assert quantised["text_cer"] - whole["text_cer"] < 0.01
    assert whole["caption_facts"] - quantised["caption_facts"] < 0.01
