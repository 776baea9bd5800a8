from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any, ClassVar

import pytest
from botocore.config import Config
from botocore.response import StreamingBody
from urllib3.exceptions import SSLError

from demo.parts import ObjectStore
from glm4v_ops.errors import Cancelled, SettingsError, StoreUnavailable
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.settings import S3Uri
from glm4v_ops.source import fetch
from glm4v_ops.source import manifest as manifests
from glm4v_ops.source.fetch import Fetched, fetch_all
from glm4v_ops.source.manifest import ManifestRow
from tests.served import served
from tests.source.conftest import IMPATIENT, client_for
from tests.source.test_manifest import HARD_KEYS

WHEN = datetime(2026, 11, 20, tzinfo=UTC)


def row(key: str, etag: str = "e", size: int = 4, version_id: str | None = None) -> ManifestRow:
    return ManifestRow(key, etag, version_id, size, WHEN, 0)


def frozen(client: Any, bucket: str) -> list[ManifestRow]:
    listed = manifests.list_objects(client, S3Uri(bucket, ""))
    return [ManifestRow(each.key, each.etag, each.version_id, each.size, each.last_modified, 0) for each in listed]


def fetched(client: Any, bucket: str, rows: Any, **options: Any) -> list[Fetched]:
    return list(fetch_all(client, bucket, rows, **{"max_bytes": 1000, "workers": 4, "ahead": 6, **options}))


def why(result: Fetched) -> tuple[Outcome, str] | None:
    assert (result.data is None) != (result.rejected is None)
    return (result.rejected.outcome, result.rejected.reason) if result.rejected else None


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("fetch")}


@pytest.fixture
def bucket(store: ObjectStore, client: Any) -> str:
    """A bucket with 40 objects that hold their own keys."""
    name = store.new_bucket()
    for number in range(40):
        client.put_object(Bucket=name, Key=f"{number:02}", Body=f"data of {number:02}".encode())
    return name


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (4, 6), (16, 3), (8, 100)])
def test_every_row_comes_back_in_manifest_order_with_its_bytes(
    workers: int, ahead: int, client: Any, bucket: str
) -> None:
    rows = frozen(client, bucket)
    results = fetched(client, bucket, rows, workers=workers, ahead=ahead)
    assert [result.row for result in results] == rows
    assert [result.data for result in results] == [f"data of {number:02}".encode() for number in range(40)]
    assert not threads()


def test_no_rows_are_no_results(client: Any, bucket: str) -> None:
    assert fetched(client, bucket, []) == []


def test_hard_keys_go_round_from_listing_through_the_manifest_to_their_bytes(store: ObjectStore, client: Any) -> None:
    bucket = store.new_bucket()
    for key in HARD_KEYS:
        client.put_object(Bucket=bucket, Key=f"天/{key}", Body=key.encode())
    work = S3Uri(store.new_bucket(), "")
    day = date(2026, 11, 20)
    manifest = manifests.freeze(client, source=S3Uri(bucket, "天/"), work=work, day=day, shard_size=5)
    results = fetched(client, bucket, manifests.iter_rows(client, manifest.uri))
    assert {result.row.key: result.data for result in results} == {f"天/{key}": key.encode() for key in HARD_KEYS}


def test_an_object_deleted_after_the_manifest_is_missing_gone(client: Any, bucket: str) -> None:
    rows = frozen(client, bucket)
    client.delete_object(Bucket=bucket, Key="03")
    results = fetched(client, bucket, rows)
    assert [why(result) for result in results if result.rejected] == [(Outcome.MISSING, "gone")]
    assert why(results[3]) == (Outcome.MISSING, "gone")


def test_an_object_replaced_after_the_manifest_is_missing_changed(client: Any, bucket: str) -> None:
    rows = frozen(client, bucket)
    client.put_object(Bucket=bucket, Key="03", Body=b"DATA of 03")  # as many bytes as before
    results = fetched(client, bucket, rows)
    assert why(results[3]) == (Outcome.MISSING, "changed")
    assert sum(result.rejected is not None for result in results) == 1


def test_an_object_written_again_with_the_same_bytes_is_the_same_object(client: Any, bucket: str) -> None:
    rows = frozen(client, bucket)
    client.put_object(Bucket=bucket, Key="03", Body=b"data of 03")
    assert why(fetched(client, bucket, rows)[3]) is None


def test_a_pinned_version_is_read_though_it_was_replaced_and_deleted_since(store: ObjectStore, client: Any) -> None:
    bucket = store.new_bucket()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for key in ("a", "b"):
        client.put_object(Bucket=bucket, Key=key, Body=b"listed")
    rows = frozen(client, bucket)
    client.put_object(Bucket=bucket, Key="a", Body=b"replaced")
    client.delete_object(Bucket=bucket, Key="b")
    assert [result.data for result in fetched(client, bucket, rows)] == [b"listed", b"listed"]
    client.delete_object(Bucket=bucket, Key="a", VersionId=rows[0].version_id)
    assert [why(result) for result in fetched(client, bucket, rows)] == [(Outcome.MISSING, "gone"), None]


def test_an_empty_object_is_fetched_as_no_bytes(store: ObjectStore, client: Any) -> None:
    bucket = store.new_bucket()
    client.put_object(Bucket=bucket, Key="empty", Body=b"")
    assert [result.data for result in fetched(client, bucket, frozen(client, bucket))] == [b""]


def test_an_object_over_the_byte_limit_is_oversized_and_never_asked_for(
    client_of_a_store_that_is_down: Any, client: Any, bucket: str
) -> None:
    [result] = fetched(client_of_a_store_that_is_down, bucket, [row("big", size=1001)])
    assert why(result) == (Outcome.OVERSIZED, "bytes")
    assert why(fetched(client, bucket, frozen(client, bucket)[:1], max_bytes=10)[0]) is None


def test_a_store_that_is_down_is_no_outcome(client_of_a_store_that_is_down: Any) -> None:
    with pytest.raises(StoreUnavailable):
        fetched(client_of_a_store_that_is_down, "bucket", [row("a")] * 20)
    assert not threads()


def test_a_wrong_key_is_no_outcome(store: ObjectStore, bucket: str) -> None:
    with pytest.raises(SettingsError):
        fetched(client_for(store, aws_secret_access_key="wrong"), bucket, [row("00")])


def test_a_missing_bucket_is_no_outcome_and_is_named(client: Any) -> None:
    with pytest.raises(SettingsError, match="no bucket 'no-such-bucket'"):
        fetched(client, "no-such-bucket", [row("a")])


def test_no_more_objects_are_held_than_asked_for_however_slow_the_reader(client: Any, bucket: str) -> None:
    asked: list[str] = []
    client.meta.events.register(
        "before-call.s3.GetObject", lambda params, **_: asked.append(params["url_path"]), unique_id="asked"
    )
    try:
        results = fetch_all(client, bucket, frozen(client, bucket), max_bytes=1000, workers=4, ahead=5)
        for handed_out in range(1, 10):
            next(results)
            time.sleep(0.05)
            assert len(asked) <= handed_out + 4
        results.close()  # type: ignore[attr-defined]
    finally:
        client.meta.events.unregister("before-call.s3.GetObject", unique_id="asked")


def test_rows_are_taken_no_further_ahead_than_objects(client: Any, bucket: str) -> None:
    taken: list[ManifestRow] = []

    def rows() -> Iterator[ManifestRow]:
        for each in frozen(client, bucket):
            taken.append(each)
            yield each

    results = fetch_all(client, bucket, rows(), max_bytes=1000, workers=4, ahead=5)
    next(results)
    assert len(taken) == 5
    results.close()  # type: ignore[attr-defined]


def test_closing_the_iterator_early_leaves_no_thread(client: Any, bucket: str) -> None:
    results = fetch_all(client, bucket, frozen(client, bucket), max_bytes=1000, workers=8, ahead=20)
    next(results)
    assert threads()
    results.close()  # type: ignore[attr-defined]
    assert not threads()


def test_setting_cancel_stops_the_fetching(client: Any, bucket: str) -> None:
    cancel = threading.Event()
    results = fetch_all(client, bucket, frozen(client, bucket), max_bytes=1000, workers=4, ahead=5, cancel=cancel)
    next(results)
    cancel.set()
    with pytest.raises(Cancelled):
        next(results)
    assert not threads()


class _Store(http.server.BaseHTTPRequestHandler):
    """A store with faults a real one shows once a month."""

    protocol_version = "HTTP/1.1"
    faults: ClassVar[int] = 0
    etag: ClassVar[str] = "e"
    body: ClassVar[bytes] = b"data"
    asked: ClassVar[list[str]]
    release: ClassVar[threading.Event]

    def do_GET(self) -> None:
        kind = type(self)
        kind.asked.append(self.path)
        if self.path.endswith("silent"):
            self.hang()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{kind.etag}"')
        self.send_header("Content-Length", str(len(kind.body)))
        self.end_headers()
        if kind.faults:
            kind.faults -= 1
            self.wfile.write(kind.body[:2])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
        elif self.path.endswith("stalls"):
            self.wfile.write(kind.body[:2])
            self.wfile.flush()
            self.hang()
        else:
            self.wfile.write(kind.body)

    def hang(self) -> None:
        """Until the test has ended."""
        type(self).release.wait()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def faulty(store: ObjectStore) -> Iterator[tuple[type[_Store], Any]]:
    handler: type[_Store] = type("Faulty", (_Store,), {"asked": [], "release": threading.Event()})
    with served(handler) as port:
        yield handler, client_for(store, endpoint_url=f"http://127.0.0.1:{port}", config=IMPATIENT)
        handler.release.set()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_BODY_PAUSE", 0.001)


@pytest.mark.usefixtures("no_pause")
def test_a_body_that_breaks_off_is_asked_for_again(faulty: tuple[type[_Store], Any]) -> None:
    handler, client = faulty
    handler.faults = 2
    assert fetched(client, "bucket", [row("a")])[0].data == b"data"


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("faults", [2, 1000])
def test_a_connection_that_breaks_in_the_middle_of_a_body_is_no_outcome(
    client: Any, bucket: str, monkeypatch: pytest.MonkeyPatch, faults: int
) -> None:
    read, left = StreamingBody.read, [faults]

    def breaking(self: StreamingBody, amount: int | None = None) -> bytes:
        if left[0]:
            left[0] -= 1
            raise SSLError("bad record mac")  # urllib3's own: botocore does not translate it
        return read(self, amount)

    rows = frozen(client, bucket)[:1]
    monkeypatch.setattr(StreamingBody, "read", breaking)
    if faults == 2:
        assert fetched(client, bucket, rows)[0].data == b"data of 00"
    else:
        with pytest.raises(StoreUnavailable, match="bad record mac"):
            fetched(client, bucket, rows)


def test_what_is_kept_of_a_rejected_object_holds_no_frames(client: Any, bucket: str) -> None:
    rows = frozen(client, bucket)
    client.delete_object(Bucket=bucket, Key="03")
    rejected = fetched(client, bucket, rows)[3].rejected
    assert rejected is not None
    assert (rejected.__traceback__, rejected.__cause__, rejected.__context__) == (None, None, None)


@pytest.mark.usefixtures("no_pause")
def test_a_body_that_always_breaks_off_is_a_fault_of_the_store_never_a_short_image(
    faulty: tuple[type[_Store], Any],
) -> None:
    handler, client = faulty
    handler.faults = 1000
    with pytest.raises(StoreUnavailable):
        fetched(client, "bucket", [row("a")])


def test_a_store_that_does_not_know_if_match_does_not_pass_off_another_object(faulty: tuple[type[_Store], Any]) -> None:
    handler, client = faulty
    handler.etag = "other"
    assert why(fetched(client, "bucket", [row("a")])[0]) == (Outcome.MISSING, "changed")
    handler.etag, handler.body = "e", b"longer than listed"
    assert why(fetched(client, "bucket", [row("a")])[0]) == (Outcome.MISSING, "changed")


def test_cancel_waits_out_a_request_that_hangs_and_makes_no_other(
    store: ObjectStore, faulty: tuple[type[_Store], Any]
) -> None:
    """One request hangs before its headers, the other in its body; both would be repeated were they still wanted."""
    handler, client = faulty
    cancel = threading.Event()

    class Cancelling(list[str]):
        def append(self, path: str) -> None:
            super().append(path)
            if len(self) == 2:  # both are under way
                cancel.set()

    handler.asked = Cancelling()
    several = Config(retries={"total_max_attempts": 3, "mode": "standard"}, read_timeout=5)
    patient = client_for(store, endpoint_url=client.meta.endpoint_url, config=several)
    rows = [row("silent"), row("stalls")]
    with pytest.raises(Cancelled):
        next(fetch_all(patient, "bucket", rows, max_bytes=9, workers=2, ahead=2, cancel=cancel))
    assert not handler.release.is_set()  # nobody has let them go
    assert not threads()  # so nothing more can be asked for
    assert sorted(handler.asked) == ["/bucket/silent", "/bucket/stalls"]
