"""The object store: one client, its faults named for what to do next, and the few calls everyone needs.

Promises: no botocore error leaves `as_store_errors()`. A store that does not answer, answers 5xx or asks to slow
down is `StoreUnavailable`, after the client's own retries, and so is what passes by itself (a token that ran out,
a conflict with another request); a wrong key, a missing bucket or a request the store will never accept is
`SettingsError`, an archived object `TerminalError`, naming the bucket or object. Every write is one PUT, or a
multipart upload that appears whole: nobody sees half an object.

Does not know what the objects hold. A missing object is the caller's to judge: `exists` asks, and `get_bytes`
raises `ManifestError`, because it is called for objects that the pipeline wrote itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as NotConnected
from urllib3.exceptions import HTTPError

from glm4v_ops.errors import Glm4vError, ManifestError, SettingsError, StoreUnavailable, TerminalError
from glm4v_ops.settings import S3Uri

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Connections kept open by one client. At least `run.fetchers`' upper bound (256), or threads would open and throw
#: away a connection for every object; idle ones cost a file descriptor.
POOL_SIZE = 256

#: Seconds. A store in the same region answers in milliseconds; a stalled read is retried, not waited out.
CONNECT_TIMEOUT = 5
READ_TIMEOUT = 30

#: Tries of one call, the first included, with the SDK's growing pauses between them (about 20 s in all).
ATTEMPTS = 6

#: The HTTP status of a request that the store does not know: the one 5xx that no second try changes.
_NOT_IMPLEMENTED = 501

_NOT_FOUND = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchVersion"})
_CHANGED = frozenset({"412", "PreconditionFailed"})
#: Codes with a 4xx status that are the store's trouble, not ours, or that the next try may not meet.
_TRY_LATER = frozenset(
    {
        *("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "429"),
        *("OperationAborted", "ConditionalRequestConflict", "ExpiredToken", "RequestTimeTooSkewed"),
    }
)
#: What a person can do when it does not pass.
_REMEDIES = {
    "ExpiredToken": "a new try reads the credentials again: renew them where they are kept",
    "RequestTimeTooSkewed": "set this machine's clock",
}

#: What the SDK raises when no whole answer came back; every other error of its own is a matter of settings.
_NO_ANSWER = (HTTPClientError, NotConnected, IncompleteReadError, HTTPError, Boto3Error)


def config() -> Config:
    """The SDK's settings of every client of ours."""
    return Config(
        retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=POOL_SIZE,
        # Checksum trailers are an AWS extension that many S3 stores refuse.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def client(**options: Any) -> Any:
    """A boto3 S3 client, safe to share between threads; keys and endpoint from boto3's own chain unless given.

    `options` go to `boto3.client` (`endpoint_url`, `aws_access_key_id`, …); a `config` is merged over ours.
    """
    merged = config().merge(options.pop("config", Config()))
    try:
        # A session of its own: boto3's default one must not be used by several threads while it makes a client.
        return boto3.session.Session().client("s3", config=merged, **options)
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise _cannot_ask(error, "") from error


@contextmanager
def as_store_errors(what: S3Uri | str = "") -> Iterator[None]:
    """Raise the SDK's faults as `StoreUnavailable` or `SettingsError` (module's docstring), naming `what`."""
    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error, HTTPError) as error:
        raise as_store_error(error, what) from error


def is_missing(error: ClientError) -> bool:
    """Whether the store says that there is no such object (a missing bucket is another matter)."""
    return _code(error) in _NOT_FOUND


def is_changed(error: ClientError) -> bool:
    """Whether the store says that the object is no longer the one asked for (`If-Match`)."""
    return _code(error) in _CHANGED


def as_store_error(error: BaseException, what: S3Uri | str = "") -> Glm4vError:
    """The one mapping from the SDK's errors to ours."""
    if isinstance(error, Boto3Error) and isinstance(error.__context__, ClientError):
        error = error.__context__  # an upload's failure hides what the store said
    if isinstance(error, ClientError):
        return _from_response(error, what)
    if isinstance(error, _NO_ANSWER):
        return StoreUnavailable(f"the object store did not answer{_at(what)}: {error}", remedy="is it running?")
    return _cannot_ask(error, what)


def _cannot_ask(error: BaseException, what: S3Uri | str) -> SettingsError:
    return SettingsError(
        f"the object store cannot be asked{_at(what)}: {error}",
        remedy="set AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the Airflow connection",
    )


def _from_response(error: ClientError, what: S3Uri | str) -> Glm4vError:
    response: Mapping[str, Any] = error.response
    code, status = _code(error), _status(error)
    if status == _NOT_IMPLEMENTED:
        remedy = "point AWS_ENDPOINT_URL_S3, or the Airflow connection, at a store that does"
        return SettingsError(f"the object store does not know this request{_at(what)}: {error}", remedy=remedy)
    if status >= 500 or code in _TRY_LATER:
        remedy = _REMEDIES.get(code, "try again later")
        return StoreUnavailable(f"the object store is in trouble{_at(what)}: {error}", remedy=remedy)
    if code == "NoSuchBucket":
        return _no_bucket(response.get("Error", {}).get("BucketName") or getattr(what, "bucket", str(what)))
    if code in _NOT_FOUND or code in _CHANGED or code == "InvalidRange":
        problem = "there is no object" if code in _NOT_FOUND else "the object is not what it was"
        return ManifestError(f"{problem}{_at(what)}", remedy="was the work area cleared or written to by others?")
    if code == "InvalidObjectState":
        remedy = "restore it from the archive (aws s3api restore-object), and run again once it is back"
        return TerminalError(f"the object{_at(what)} is archived: {error}", remedy=remedy)
    if status in (401, 403):
        return SettingsError(f"the object store refuses these credentials{_at(what)}: {error}", remedy="check the keys")
    return SettingsError(f"the object store refuses the request{_at(what)}: {error}", remedy="check the settings")


def _no_bucket(bucket: str) -> SettingsError:
    return SettingsError(f"there is no bucket {bucket!r}", remedy="create it, or correct GLM4V_SOURCE or GLM4V_WORK")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _at(what: S3Uri | str) -> str:
    return f" at {what}" if what else ""


def get_bytes(client: Any, uri: S3Uri) -> bytes:
    """The whole object. For objects known to be small: recipes, result parts."""
    with as_store_errors(uri):
        response = client.get_object(Bucket=uri.bucket, Key=uri.key)
        data: bytes = response["Body"].read()
        return data


def put_bytes(client: Any, uri: S3Uri, data: bytes, content_type: str = "application/octet-stream") -> None:
    """Write the object in one request: it appears whole or not at all."""
    with as_store_errors(uri):
        client.put_object(Bucket=uri.bucket, Key=uri.key, Body=data, ContentType=content_type)


def put_once(client: Any, uri: S3Uri, data: bytes, content_type: str = "application/octet-stream") -> bool:
    """Write the object unless it stands already; whether it was written now. Of two who write at once, one does.

    A store without conditional writes is asked first instead, and two at once may then both write.
    """
    with as_store_errors(uri):
        try:
            client.put_object(Bucket=uri.bucket, Key=uri.key, Body=data, ContentType=content_type, IfNoneMatch="*")
            return True
        except ClientError as error:
            if _code(error) in _CHANGED:
                return False
            if _status(error) != _NOT_IMPLEMENTED:
                raise
    if exists(client, uri):
        return False
    put_bytes(client, uri, data, content_type)
    return True


def put_file(client: Any, uri: S3Uri, path: Path, content_type: str = "application/octet-stream") -> None:
    """Upload a file of any size, in parts when it is large; memory holds one part (8 MiB) at a time."""
    one_at_a_time = TransferConfig(use_threads=False)
    with as_store_errors(uri):
        client.upload_file(str(path), uri.bucket, uri.key, {"ContentType": content_type}, Config=one_at_a_time)


def exists(client: Any, uri: S3Uri) -> bool:
    """Whether the object is there now."""
    with as_store_errors(uri):
        try:
            client.head_object(Bucket=uri.bucket, Key=uri.key)
        except ClientError as error:
            if not is_missing(error):
                raise
            # HEAD has no body, so a missing bucket is a plain 404 too; this tells them apart.
            require_bucket(client, uri.bucket)
            return False
        return True


def require_bucket(client: Any, bucket: str) -> None:
    """Raises `SettingsError` naming the bucket when there is none: without it, every object in it looks deleted."""
    try:
        client.head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError, HTTPError) as error:
        missing = isinstance(error, ClientError) and is_missing(error)
        raise (_no_bucket(bucket) if missing else as_store_error(error, bucket)) from error


def keeps_versions(client: Any, uri: S3Uri) -> bool:
    """Whether the bucket keeps, or has kept, versions; a store that does not know the question keeps none."""
    with as_store_errors(uri):
        try:
            return "Status" in client.get_bucket_versioning(Bucket=uri.bucket)
        except ClientError as error:
            if _status(error) != _NOT_IMPLEMENTED:
                raise
            return False


def list_keys(client: Any, prefix: S3Uri) -> Iterator[str]:
    """Keys that begin with the prefix, page by page, in the store's order."""
    with as_store_errors(prefix):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=prefix.bucket, Prefix=prefix.key):
            for entry in page.get("Contents", ()):
                yield entry["Key"]
