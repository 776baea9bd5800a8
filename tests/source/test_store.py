from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.parts import ObjectStore
from glm4v_ops.errors import ManifestError, SettingsError, StoreUnavailable
from glm4v_ops.recipe import RunSection
from glm4v_ops.settings import S3Uri
from glm4v_ops.source import store as s3
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


@pytest.fixture(params=[(503, "SlowDown"), (500, "InternalError"), (400, "RequestTimeout"), (429, "TooManyRequests")])
def troubled(request: pytest.FixtureRequest) -> Iterator[str]:
    status, code = request.param
    handler = type("Troubled", (_Troubled,), {"status": status, "code": code})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_server_faults_and_requests_to_slow_down_may_pass(troubled: str, store: ObjectStore) -> None:
    client = client_for(store, endpoint_url=troubled, config=IMPATIENT)
    with pytest.raises(StoreUnavailable):
        s3.get_bytes(client, S3Uri("bucket", "key"))


def test_the_client_keeps_a_connection_for_every_fetcher_a_recipe_may_ask_for(client: Any) -> None:
    most = next(rule.le for rule in RunSection.model_fields["fetchers"].metadata if hasattr(rule, "le"))
    assert client.meta.config.max_pool_connections >= most


def test_the_client_repeats_a_call_before_it_gives_up(client: Any) -> None:
    assert client.meta.config.retries["total_max_attempts"] == s3.ATTEMPTS > 1
