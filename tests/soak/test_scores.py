"""The demo model's scores on five hundred pictures it was never trained on, in 4 bit and in 16."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from demo import evaluate

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]


@cache
def scores(quantization: str, dtype: str | None) -> dict[str, Any]:
    return evaluate.evaluate(count=500, seed=1001, quantization=quantization, dtype=dtype, device="cpu")


@pytest.mark.parametrize(("quantization", "dtype"), [("none", "bfloat16"), ("nf4", None)])
def test_at_most_3_percent_of_the_characters_are_wrong_and_95_percent_of_the_facts_are_right(
    quantization: str, dtype: str | None
) -> None:
    found = scores(quantization, dtype)
    assert found["images"] == 500
    assert found["text_cer"] <= 0.03, json.dumps(found)
    assert found["caption_facts"] >= 0.95, json.dumps(found)


def test_4_bit_costs_less_than_a_point_of_either() -> None:
    whole, quantised = scores("none", "bfloat16"), scores("nf4", None)
    assert quantised["text_cer"] - whole["text_cer"] < 0.01
    assert whole["caption_facts"] - quantised["caption_facts"] < 0.01
