"""The manifest: a day's objects, listed once and frozen, so that no two tasks can disagree about them.

Promises: the listing is streamed into a Parquet file with one row group a shard, so writing holds one shard in
memory and `read_shard` fetches one shard's bytes, whatever the day's size. The same objects with the same contents
give the same `manifest_id` and the same object name, and a manifest once written is never written again. In a
bucket with versioning the version is pinned, so an overwritten image is still the one that was listed.

Does not know what the objects hold, nor whether the drop is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from glm4v_ops.errors import ManifestError
from glm4v_ops.settings import S3Uri
from glm4v_ops.source import store

#: The Parquet key that holds the manifest's own fields, and the layout they are in.
_METADATA = b"glm4v_manifest"
_LAYOUT = 1

#: Rows turned into Arrow memory at a time while a shard fills up: plain Python objects take five times the room.
_CHUNK = 4096

#: Bytes read in one request from the end of the file, for its footer; and the least read anywhere else.
_TAIL = 1 << 16
_READ_AHEAD = 1 << 18


@dataclass(frozen=True, slots=True)
class Listed:
    """One object as the store lists it. `etag` without quotes; `version_id` only where the bucket keeps versions."""

    key: str
    etag: str
    version_id: str | None
    size: int  # bytes
    last_modified: datetime  # UTC


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One image to annotate, and the shard it belongs to."""

    key: str
    etag: str
    version_id: str | None
    size: int  # bytes
    last_modified: datetime  # UTC
    shard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What travels between tasks instead of the rows: where they are, and how many."""

    day: date
    uri: str
    manifest_id: str  # 12 hex digits naming the rows and how they are cut into shards
    images: int
    bytes: int
    shards: int
    shard_size: int
    source: str  # the prefix that was listed; its bucket is where the keys are


_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("version_id", pa.string()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("last_modified", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
    ]
)


def freeze(client: Any, *, source: S3Uri, work: S3Uri, day: date, shard_size: int, exclude: str = "") -> Manifest:
    """List `source` and keep the manifest under `work`. Folders and objects named `exclude` (the marker) are left out.

    A day without images is a manifest of no shards, not an error: the caller decides what that means.
    """
    with tempfile.TemporaryDirectory(prefix="glm4v-manifest-") as folder:
        path = Path(folder) / "manifest.parquet"
        manifest = write(
            list_objects(client, source, exclude=exclude),
            path,
            source=source,
            day=day,
            shard_size=shard_size,
            name=lambda manifest_id: str(work.child("manifests", day.isoformat(), f"{manifest_id}.parquet")),
        )
        uri = _parse(manifest.uri)
        if not store.exists(client, uri):
            store.put_file(client, uri, path, "application/vnd.apache.parquet")
    return manifest


def list_objects(client: Any, source: S3Uri, *, exclude: str = "") -> Iterator[Listed]:
    """The objects under a prefix, one page (1,000) in memory: with version ids if the bucket keeps versions."""
    with store.as_store_errors(source):
        versioned = store.keeps_versions(client, source)
        call, field = ("list_object_versions", "Versions") if versioned else ("list_objects_v2", "Contents")
        for page in client.get_paginator(call).paginate(Bucket=source.bucket, Prefix=source.key):
            for entry in page.get(field, ()):
                key: str = entry["Key"]
                if key.endswith("/") or key.rpartition("/")[2] == exclude or not entry.get("IsLatest", True):
                    continue
                yield Listed(
                    key=key,
                    etag=entry["ETag"].strip('"'),
                    version_id=entry.get("VersionId"),
                    size=entry["Size"],
                    last_modified=entry["LastModified"].astimezone(UTC),
                )


def write(
    listed: Iterable[Listed], path: Path, *, source: S3Uri, day: date, shard_size: int, name: Callable[[str], str] = str
) -> Manifest:
    """Write a listing of any length to the Parquet file `path`; `name` makes the manifest's URI from its id."""
    digest = hashlib.sha256(f"{_LAYOUT}\n{source}\n{shard_size}\n".encode())
    entries = iter(listed)
    images = total = shards = 0
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        while batches := list(_shard_batches(entries, shards, shard_size, digest)):
            table = pa.Table.from_batches(batches, _SCHEMA)
            writer.write_table(table, row_group_size=shard_size)
            images += table.num_rows
            total += pc.sum(table["size"]).as_py()
            shards += 1
        manifest_id = digest.hexdigest()[:12]
        manifest = Manifest(
            day=day,
            uri=name(manifest_id),
            manifest_id=manifest_id,
            images=images,
            bytes=total,
            shards=shards,
            shard_size=shard_size,
            source=str(source),
        )
        fields = {**dataclasses.asdict(manifest), "day": day.isoformat(), "layout": _LAYOUT}
        writer.add_key_value_metadata({_METADATA.decode(): json.dumps(fields, ensure_ascii=False)})
    return manifest


def _shard_batches(entries: Iterator[Listed], shard: int, shard_size: int, digest: Any) -> Iterator[pa.RecordBatch]:
    """The next shard's rows, hashed on their way into Arrow memory."""
    left = shard_size
    while chunk := list(islice(entries, min(left, _CHUNK))):
        left -= len(chunk)
        for each in chunk:
            # JSON, so that no key can be made to look like the end of one row and the start of another.
            digest.update(json.dumps([each.key, each.etag, each.version_id, each.size]).encode())
        columns = [[getattr(each, field) for each in chunk] for field in _SCHEMA.names[:-1]]
        yield pa.RecordBatch.from_pydict(
            dict(zip(_SCHEMA.names, [*columns, [shard] * len(chunk)], strict=True)), _SCHEMA
        )


def open(client: Any, uri: S3Uri | str) -> Manifest:
    """The manifest's own fields, from the end of the file. Raises `ManifestError` when it is none of ours."""
    with _reading(client, uri) as parquet:
        return _fields(parquet, uri)


def read_shard(client: Any, uri: S3Uri | str, shard: int) -> list[ManifestRow]:
    """The rows of one shard, in manifest order."""
    with _reading(client, uri) as parquet:
        shards = _fields(parquet, uri).shards
        if not 0 <= shard < shards:
            raise ManifestError(f"{uri} has no shard {shard}: it has {shards}", remedy="was it made by this run?")
        return list(_rows(parquet, shard))


def iter_rows(client: Any, uri: S3Uri | str) -> Iterator[ManifestRow]:
    """Every row in manifest order, one shard in memory."""
    with _reading(client, uri) as parquet:
        for shard in range(_fields(parquet, uri).shards):
            yield from _rows(parquet, shard)


def _rows(parquet: pq.ParquetFile, shard: int) -> Iterator[ManifestRow]:
    table = parquet.read_row_group(shard, use_threads=False)
    return (ManifestRow(*values) for values in zip(*(column.to_pylist() for column in table.columns), strict=True))


def _fields(parquet: pq.ParquetFile, uri: S3Uri | str) -> Manifest:
    fields = json.loads((parquet.metadata.metadata or {}).get(_METADATA, b"{}"))
    if fields.pop("layout", None) != _LAYOUT or not parquet.schema_arrow.equals(_SCHEMA):
        raise ManifestError(f"{uri} is no manifest of this version", remedy="freeze the day again")
    manifest = Manifest(**{**fields, "day": date.fromisoformat(fields["day"])})
    found = (parquet.metadata.num_rows, parquet.metadata.num_row_groups)
    if found != (manifest.images, manifest.shards):
        raise ManifestError(f"{uri} says (images, shards) {(manifest.images, manifest.shards)} and holds {found}")
    return manifest


@contextmanager
def _reading(client: Any, uri: S3Uri | str) -> Iterator[pq.ParquetFile]:
    parsed = _parse(uri)
    with io.BufferedReader(_RangeReader(client, parsed), buffer_size=_READ_AHEAD) as source:
        try:
            with pq.ParquetFile(source, memory_map=False, pre_buffer=False) as parquet:
                yield parquet
        except pa.ArrowInvalid as error:
            raise ManifestError(f"{uri} is not a Parquet file: {error}", remedy="freeze the day again") from error


def _parse(uri: S3Uri | str) -> S3Uri:
    return uri if isinstance(uri, S3Uri) else S3Uri.parse(uri, setting="the manifest's URI")


class _RangeReader(io.RawIOBase):
    """One unchanging object as a seekable file: each read is one ranged GET, the end of it is fetched once."""

    def __init__(self, client: Any, uri: S3Uri) -> None:
        super().__init__()
        self._client = client
        self._uri = uri
        self._position = 0
        self._etag: str | None = None
        self._tail = b""
        self._size = 0
        self._tail, answer = self._get(f"bytes=-{_TAIL}")
        self._etag = answer["ETag"]
        # A store may answer a suffix longer than the object with the whole object and no range.
        self._size = int(answer.get("ContentRange", f"/{len(self._tail)}").rpartition("/")[2])

    def _get(self, span: str) -> tuple[bytes, dict[str, Any]]:
        matching = {"IfMatch": self._etag} if self._etag else {}
        with store.as_store_errors(self._uri):
            answer = self._client.get_object(Bucket=self._uri.bucket, Key=self._uri.key, Range=span, **matching)
            return answer["Body"].read(), answer

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._size)
        if end <= self._position:
            return 0
        tail = self._size - len(self._tail)
        if self._position >= tail:
            data = self._tail[self._position - tail : end - tail]
        else:
            data, _ = self._get(f"bytes={self._position}-{end - 1}")
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
