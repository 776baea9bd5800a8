from __future__ import annotations

import http.server
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from demo.parts import ObjectStore
from glm4v_ops.errors import Glm4vError, ManifestError, SettingsError, StoreUnavailable, TerminalError, TransientError
from glm4v_ops.recipe import RunSection
from glm4v_ops.settings import S3Uri
from glm4v_ops.source import store as s3
from tests.served import served
from tests.source.conftest import IMPATIENT, client_for

CALLS: dict[str, Callable[[Any, S3Uri], object]] = {
    "get_bytes": s3.get_bytes,
    "put_bytes": lambda client, uri: s3.put_bytes(client, uri, b"x"),
    "put_file": lambda client, uri: s3.put_file(client, uri, Path(__file__)),
    "exists": s3.exists,
    "list_keys": lambda client, uri: list(s3.list_keys(client, uri)),
}


def test_what_is_written_is_read_back_and_listed(store: ObjectStore, client: Any, tmp_path: Path) -> None:
    bucket = S3Uri(store.new_bucket(), "")
    s3.put_bytes(client, bucket.child("a", "字.bin"), b"\0bytes", "image/png")
    large = tmp_path / "large"
    large.write_bytes(b"0123456789" * 2_000_000)  # more than one part of a multipart upload
    s3.put_file(client, bucket.child("b"), large)
    assert s3.get_bytes(client, bucket.child("a", "字.bin")) == b"\0bytes"
    assert s3.get_bytes(client, bucket.child("b")) == large.read_bytes()
    assert list(s3.list_keys(client, bucket)) == ["a/字.bin", "b"]
    assert list(s3.list_keys(client, bucket.child("a/"))) == ["a/字.bin"]
    assert s3.exists(client, bucket.child("b"))
    assert not s3.exists(client, bucket.child("c"))
    head = client.head_object(Bucket=bucket.bucket, Key="a/字.bin")
    assert head["ContentType"] == "image/png"


def test_listing_goes_on_past_the_first_page(store: ObjectStore, client: Any) -> None:
    bucket = S3Uri(store.new_bucket(), "")
    for number in range(1005):
        client.put_object(Bucket=bucket.bucket, Key=f"{number:04}")
    assert list(s3.list_keys(client, bucket)) == [f"{number:04}" for number in range(1005)]


@pytest.mark.parametrize("call", CALLS)
def test_a_store_that_is_down_is_unavailable(call: str, client_of_a_store_that_is_down: Any) -> None:
    with pytest.raises(StoreUnavailable, match="did not answer"):
        CALLS[call](client_of_a_store_that_is_down, S3Uri("bucket", "key"))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrong", ["aws_access_key_id", "aws_secret_access_key"])
def test_a_wrong_key_is_a_matter_of_settings(call: str, wrong: str, store: ObjectStore) -> None:
    bucket = store.new_bucket()
    with pytest.raises(SettingsError, match="credentials"):
        CALLS[call](client_for(store, **{wrong: "wrong"}), S3Uri(bucket, "key"))


@pytest.mark.parametrize("call", ["get_bytes", "exists", "list_keys"])
def test_a_missing_bucket_is_named(call: str, client: Any) -> None:
    with pytest.raises(SettingsError, match="there is no bucket 'no-such-bucket'"):
        CALLS[call](client, S3Uri("no-such-bucket", "key"))


def test_a_missing_object_of_our_own_contradicts_the_work_area(store: ObjectStore, client: Any) -> None:
    uri = S3Uri(store.new_bucket(), "part.parquet")
    with pytest.raises(ManifestError, match=str(uri)):
        s3.get_bytes(client, uri)


@pytest.mark.parametrize("name", ["UPPER", "a b", ""])
def test_a_bucket_name_no_store_takes_is_a_matter_of_settings(name: str, client: Any) -> None:
    with pytest.raises(SettingsError):
        s3.get_bytes(client, S3Uri(name, "key"))


def test_an_endpoint_that_is_no_address_is_a_matter_of_settings() -> None:
    with pytest.raises(SettingsError, match="AWS_ENDPOINT_URL_S3"):
        s3.client(endpoint_url="not an address", region_name="us-east-1")


def test_no_credentials_at_all_are_a_matter_of_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    nobody = s3.client(endpoint_url="http://127.0.0.1:1", region_name="us-east-1", config=IMPATIENT)
    with pytest.raises(SettingsError, match="AWS_ACCESS_KEY_ID"):
        s3.get_bytes(nobody, S3Uri("bucket", "key"))


def test_keys_and_endpoint_come_from_the_environment(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in store.environ().items():
        monkeypatch.setenv(name, value)
    bucket = store.new_bucket()
    uri = S3Uri(bucket, "x")
    s3.put_bytes(s3.client(), uri, b"1")
    assert s3.get_bytes(s3.client(), uri) == b"1"


def test_no_secret_stands_in_an_error(store: ObjectStore) -> None:
    with pytest.raises(SettingsError) as caught:
        s3.get_bytes(client_for(store, aws_secret_access_key="hush-hush"), S3Uri(store.new_bucket(), "key"))
    assert "hush-hush" not in str(caught.value)
    assert store.secret_key not in str(caught.value)


class _Troubled(http.server.BaseHTTPRequestHandler):
    """A store that answers, but not with what was asked for."""

    status = 503
    code = "SlowDown"

    def do_GET(self) -> None:
        body = f"<Error><Code>{self.code}</Code><Message>trouble</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def troubled(store: ObjectStore, status: int, code: str) -> Iterator[Any]:
    """A client of a store that gives the same answer to everything."""
    handler = type("Troubled", (_Troubled,), {"status": status, "code": code})
    with served(handler) as port:
        yield client_for(store, endpoint_url=f"http://127.0.0.1:{port}", config=IMPATIENT)


def refusal(store: ObjectStore, status: int, code: str) -> Glm4vError:
    with troubled(store, status, code) as client, pytest.raises(Glm4vError, match="s3://bucket/key") as caught:
        s3.get_bytes(client, S3Uri("bucket", "key"))
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (503, "SlowDown"),
        (500, "InternalError"),
        (400, "RequestTimeout"),
        (429, "TooManyRequests"),
        (409, "OperationAborted"),
        (409, "ConditionalRequestConflict"),
    ],
)
def test_server_faults_conflicts_and_requests_to_slow_down_may_pass(status: int, code: str, store: ObjectStore) -> None:
    assert isinstance(refusal(store, status, code), StoreUnavailable)


@pytest.mark.parametrize(
    ("status", "code", "remedy"), [(400, "ExpiredToken", "renew"), (403, "RequestTimeTooSkewed", "clock")]
)
def test_a_token_that_ran_out_and_a_clock_that_is_wrong_may_pass_and_say_what_helps(
    status: int, code: str, remedy: str, store: ObjectStore
) -> None:
    error = refusal(store, status, code)
    assert isinstance(error, TransientError)
    assert remedy in error.remedy


def test_an_archived_object_must_be_restored_by_somebody_and_is_no_matter_of_the_keys(store: ObjectStore) -> None:
    error = refusal(store, 403, "InvalidObjectState")
    assert isinstance(error, TerminalError)
    assert "archived" in error.message
    assert "restore" in error.remedy
    assert "credentials" not in str(error)


def test_a_request_that_the_store_does_not_know_is_not_tried_again(store: ObjectStore) -> None:
    assert isinstance(refusal(store, 501, "NotImplemented"), SettingsError)


def test_a_store_that_does_not_know_of_versions_keeps_none_and_one_in_trouble_may_keep_some(store: ObjectStore) -> None:
    with troubled(store, 501, "NotImplemented") as client:
        assert not s3.keeps_versions(client, S3Uri("bucket", "images/"))
    with troubled(store, 503, "SlowDown") as client, pytest.raises(StoreUnavailable):
        s3.keeps_versions(client, S3Uri("bucket", "images/"))


def test_the_client_keeps_a_connection_for_every_fetcher_a_recipe_may_ask_for(client: Any) -> None:
    most = next(rule.le for rule in RunSection.model_fields["fetchers"].metadata if hasattr(rule, "le"))
    assert client.meta.config.max_pool_connections >= most


def test_the_client_repeats_a_call_before_it_gives_up(client: Any) -> None:
    assert client.meta.config.retries["total_max_attempts"] == s3.ATTEMPTS > 1


class _Plain(http.server.BaseHTTPRequestHandler):
    """A store of one object that knows no conditional writes."""

    held: dict[str, bytes]

    def do_HEAD(self) -> None:
        self._answer(200 if self.path in ("/bucket", *self.held) else 404)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "If-None-Match" in self.headers:
            return self._answer(501, b"<Error><Code>NotImplemented</Code><Message>no such header</Message></Error>")
        self.held[self.path] = body
        return self._answer(200)

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_store_without_conditional_writes_is_asked_first(store: ObjectStore) -> None:
    held: dict[str, bytes] = {}
    handler = type("Plain", (_Plain,), {"held": held})
    with served(handler) as port:
        client = client_for(store, endpoint_url=f"http://127.0.0.1:{port}", config=IMPATIENT)
        uri = S3Uri("bucket", "part")
        assert s3.put_once(client, uri, b"first") is True
        assert s3.put_once(client, uri, b"second") is False
    assert [body for body in held.values() if b"first" in body] == list(held.values())
