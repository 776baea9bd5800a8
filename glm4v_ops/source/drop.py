"""Is a day's drop complete: has everything arrived that will arrive?

Two signs, either is enough: the marker object stands under the day's prefix, or nothing has been written there
for the quiet period, counted from the newest object or from the end of the day, whichever is later. Where nothing
stands yet, silence is no sign that everything has come: it is waited for longer, until `empty_seconds` after the day's
end, and only then the day is an empty one. Stateless: every look judges by the store and the clock alone, so whoever
waits may be restarted at any time.

Knows nothing of who waits, or how often they look. A late upload after a quiet period is not seen: the manifest
freezes what was there, and the day can be run again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING

from glm4v_ops.errors import TerminalError
from glm4v_ops.settings import S3Uri

if TYPE_CHECKING:
    from typing import Any

    S3Client = Any

#: The scheduler's clock and this one may differ by this much; a run at midnight must not fail over it.
CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Drop:
    """What one look saw. `because` is a sentence for the log."""

    complete: bool
    because: str
    #: The earliest moment at which silence can make it complete; until then only the marker can change the answer.
    quiet_at: datetime


def end_of(day: date) -> datetime:
    """Midnight UTC after `day`."""
    return datetime.combine(day + timedelta(days=1), time(), tzinfo=UTC)


def require_ended(day: date, *, now: datetime) -> None:
    """Raises `TerminalError` when `day` is not over in UTC: its drop cannot be complete, and waiting is no remedy."""
    if now < end_of(day) - CLOCK_SKEW:
        raise TerminalError(
            f"the day {day.isoformat()} has not ended: it is {now.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
            remedy="run days up to yesterday; the nightly run takes this one after midnight UTC",
        )


def marker_stands(client: S3Client, prefix: S3Uri, marker: str) -> bool:
    """Whether the marker object exists under the prefix."""
    from glm4v_ops.source import store

    return store.exists(client, prefix.child(marker))


def look(
    client: S3Client,
    prefix: S3Uri,
    day: date,
    *,
    marker: str,
    quiet_seconds: int,
    empty_seconds: int,
    now: datetime,
) -> Drop:
    """One look at the drop. Lists the prefix when there is no marker; raises `StoreUnavailable`, `SettingsError`."""
    from glm4v_ops.source import manifest

    if marker_stands(client, prefix, marker):
        return Drop(True, f"{prefix.child(marker)} is there", now)
    count, newest = 0, end_of(day)
    for listed in manifest.list_objects(client, prefix, exclude=marker):
        count += 1
        newest = max(newest, listed.last_modified)
    if not count:
        return _look_at_nothing(prefix, day, marker, quiet_seconds, empty_seconds, now)
    quiet_at = newest + timedelta(seconds=quiet_seconds)
    what = f"{count:,} images under {prefix}, no {marker}, quiet since {newest:%Y-%m-%d %H:%M:%S} UTC"
    if now >= quiet_at:
        return Drop(True, f"{what}: longer than {quiet_seconds} s", quiet_at)
    return Drop(False, f"{what}: waiting for {marker}, or until {quiet_at:%Y-%m-%d %H:%M:%S} UTC", quiet_at)


def _look_at_nothing(
    prefix: S3Uri, day: date, marker: str, quiet_seconds: int, empty_seconds: int, now: datetime
) -> Drop:
    empty_at = end_of(day) + timedelta(seconds=empty_seconds)
    what = f"nothing under {prefix}, no {marker}"
    if now >= empty_at:
        return Drop(True, f"{what}, {empty_seconds} s after the day's end: an empty day", empty_at)
    # What comes now is quiet only after the quiet period.
    soonest = max(now, end_of(day)) + timedelta(seconds=quiet_seconds)
    return Drop(False, f"{what}: waiting for either until {empty_at:%Y-%m-%d %H:%M:%S} UTC", min(soonest, empty_at))
