"""Which day a run is about: its partition key, or the parameter `day`; never a guess.

`airflow dags test`, a plain trigger and `dag.test()` start a run without a partition key; such a run must say the
day. "Yesterday" or "the newest" would make the same run mean another day tomorrow.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from glm4v_ops.errors import SettingsError

_REMEDY = 'trigger it with a partition key, or with --conf \'{"day": "2026-11-20"}\''


def resolve_day(context: Mapping[str, Any]) -> date:
    """The run's day. Raises `SettingsError` when there is none, it is no date, or key and parameter disagree."""
    key = context.get("partition_key")
    asked = context.get("params", {}).get("day")
    if key and asked and key != asked:
        raise SettingsError(f"this run has the partition key {key!r} and the parameter day {asked!r}", remedy=_REMEDY)
    text = key or asked
    if not text:
        raise SettingsError("this run names no day: no partition key, no parameter `day`", remedy=_REMEDY)
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise SettingsError(f"the run's day is {text!r}, not a date like 2026-11-20", remedy=_REMEDY) from error
    if day.isoformat() != text:  # "20261120" and "2026-W47-5" are ISO dates too, but not the name of a partition
        raise SettingsError(f"the run's day is {text!r}, not a date like 2026-11-20", remedy=_REMEDY)
    return day
