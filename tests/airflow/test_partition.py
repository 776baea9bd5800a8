from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from glm4v_ops.airflow.partition import resolve_day
from glm4v_ops.errors import SettingsError

DAY = date(2026, 11, 20)


def test_the_partition_key_is_the_day() -> None:
    assert resolve_day({"partition_key": "2026-11-20", "params": {"day": None}}) == DAY


def test_without_a_key_the_parameter_is_the_day() -> None:
    assert resolve_day({"partition_key": None, "params": {"day": "2026-11-20"}}) == DAY


def test_key_and_parameter_may_agree() -> None:
    assert resolve_day({"partition_key": "2026-11-20", "params": {"day": "2026-11-20"}}) == DAY


@pytest.mark.parametrize("context", [{}, {"params": {}}, {"partition_key": None, "params": {"day": None}}])
def test_a_run_that_names_no_day_fails_and_never_guesses(context: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="names no day") as refused:
        resolve_day(context)
    assert "partition key" in refused.value.remedy


def test_a_key_and_a_parameter_that_disagree_fail() -> None:
    with pytest.raises(SettingsError, match=r"2026-11-20.*2026-11-19"):
        resolve_day({"partition_key": "2026-11-20", "params": {"day": "2026-11-19"}})


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "20261120", "2026-W47-5", "2026-11-20T00:00:00"])
def test_what_is_not_the_name_of_a_partition_fails(text: str) -> None:
    with pytest.raises(SettingsError, match="not a date like"):
        resolve_day({"partition_key": text})
