from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from demo.parts import ObjectStore
from glm4v_ops.errors import SettingsError, TerminalError
from glm4v_ops.settings import S3Uri
from glm4v_ops.source import drop
from glm4v_ops.source import store as stores

DAY = date(2026, 11, 1)
MIDNIGHT = datetime(2026, 11, 2, tzinfo=UTC)
Look = Callable[..., drop.Drop]


@pytest.fixture
def client(store: ObjectStore) -> Any:
    return stores.client(
        endpoint_url=store.endpoint,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        region_name="us-east-1",
    )


@pytest.fixture
def prefix(store: ObjectStore) -> S3Uri:
    return S3Uri(store.new_bucket(), "images/2026-11-01/")


@pytest.fixture
def look(client: Any, prefix: S3Uri) -> Look:
    def at(now: datetime, *, quiet_seconds: int = 60) -> drop.Drop:
        return drop.look(
            client, prefix, DAY, marker="_SUCCESS", quiet_seconds=quiet_seconds, empty_seconds=3600, now=now
        )

    return at


def put(client: Any, prefix: S3Uri, name: str) -> datetime:
    """Upload an object; when the store says it was written."""
    client.put_object(Bucket=prefix.bucket, Key=prefix.key + name, Body=b"x")
    written: datetime = client.head_object(Bucket=prefix.bucket, Key=prefix.key + name)["LastModified"]
    return written


def test_the_marker_completes_a_drop_at_once(client: Any, prefix: S3Uri, look: Look) -> None:
    put(client, prefix, "a.png")
    assert not look(MIDNIGHT).complete
    put(client, prefix, "_SUCCESS")
    found = look(MIDNIGHT)
    assert found.complete
    assert "_SUCCESS is there" in found.because


def test_a_marker_of_another_day_completes_nothing(client: Any, prefix: S3Uri, look: Look) -> None:
    put(client, S3Uri(prefix.bucket, "images/2026-11-02/"), "_SUCCESS")
    put(client, prefix, "folder/_SUCCESS")
    assert not look(MIDNIGHT).complete


def test_without_a_marker_the_drop_is_complete_after_the_quiet_period(client: Any, prefix: S3Uri, look: Look) -> None:
    put(client, prefix, "a.png")
    newest = put(client, prefix, "b.png")
    before, after = look(newest + timedelta(seconds=59)), look(newest + timedelta(seconds=60))
    assert not before.complete
    assert before.quiet_at == newest + timedelta(seconds=60)
    assert "2 images" in before.because
    assert after.complete


def test_where_nothing_stands_silence_completes_nothing_before_its_own_time(look: Look) -> None:
    asleep = look(MIDNIGHT + timedelta(minutes=50))
    assert not asleep.complete
    assert "waiting for either until 2026-11-02 01:00:00 UTC" in asleep.because
    empty = look(MIDNIGHT + timedelta(minutes=60))
    assert empty.complete
    assert "nothing under s3://" in empty.because
    assert "an empty day" in empty.because


@pytest.mark.parametrize(
    ("now", "quiet_at"),
    [
        (timedelta(minutes=-2), timedelta(minutes=1)),
        (timedelta(minutes=10), timedelta(minutes=11)),  # an image may come right after the look
        (timedelta(minutes=59, seconds=30), timedelta(minutes=60)),
    ],
)
def test_an_upload_that_begins_late_is_looked_at_as_soon_as_it_can_be_quiet(
    look: Look, now: timedelta, quiet_at: timedelta
) -> None:
    assert look(MIDNIGHT + now).quiet_at == MIDNIGHT + quiet_at


def test_an_old_day_without_images_is_not_waited_for(look: Look) -> None:
    assert look(MIDNIGHT + timedelta(days=30)).complete


def test_the_quiet_period_never_ends_before_the_day_does(client: Any, prefix: S3Uri) -> None:
    newest = put(client, prefix, "a.png")
    future = newest.date() + timedelta(days=3)
    now = newest + timedelta(days=2)
    found = drop.look(client, prefix, future, marker="_SUCCESS", quiet_seconds=60, empty_seconds=60, now=now)
    assert not found.complete
    assert found.quiet_at == drop.end_of(future) + timedelta(seconds=60)


def test_a_day_that_has_not_ended_is_refused_at_once() -> None:
    with pytest.raises(TerminalError, match="2026-11-01 has not ended: it is 2026-11-01 23:50 UTC"):
        drop.require_ended(DAY, now=MIDNIGHT - timedelta(minutes=10))


def test_the_run_of_midnight_survives_a_clock_that_is_behind() -> None:
    drop.require_ended(DAY, now=MIDNIGHT - timedelta(seconds=20))
    drop.require_ended(DAY, now=MIDNIGHT)


def test_a_bucket_that_does_not_exist_is_a_wrong_setting_and_no_empty_drop(client: Any) -> None:
    with pytest.raises(SettingsError, match="no-such-bucket"):
        drop.look(
            client,
            S3Uri("no-such-bucket", "images/"),
            DAY,
            marker="_SUCCESS",
            quiet_seconds=0,
            empty_seconds=0,
            now=MIDNIGHT,
        )
