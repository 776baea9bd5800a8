from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from demo.parts import ObjectStore
from glm4v_ops.errors import ManifestError, SettingsError, StoreUnavailable
from glm4v_ops.settings import S3Uri
from glm4v_ops.source import manifest as manifests
from glm4v_ops.source.manifest import Listed, Manifest
from tests.source.conftest import client_for

DAY = date(2026, 11, 20)
SOURCE = S3Uri("drop", "images/2026-11-20/")
WHEN = datetime(2026, 11, 20, 3, 4, 5, 678000, tzinfo=UTC)

#: Keys that a careless URL or a careless listing would change.
HARD_KEYS = [
    "a b.jpg",
    "lit%2Fslash.png",
    "100%.png",
    "plus+plus.png",
    "q?x=1&y=2.png",
    "hash#x.png",
    "quo\"te'.png",
    "<xml>&amp;.png",
    "tab\tx.png",
    "tilde~(1)!*,;=@$.png",
    "é.png",
    "😀.png",
    "图片/天 空.png",
]


def listing(count: int, prefix: str = "images/") -> Iterator[Listed]:
    return (Listed(f"{prefix}{n:07}.jpg", f"{n:032x}", None, 1000 + n, WHEN) for n in range(count))


def write(entries: Any, path: Path, shard_size: int = 3, source: S3Uri = SOURCE) -> Manifest:
    return manifests.write(entries, path, source=source, day=DAY, shard_size=shard_size)


def freeze(client: Any, source: S3Uri, work: S3Uri, shard_size: int = 4) -> Manifest:
    return manifests.freeze(client, source=source, work=work, day=DAY, shard_size=shard_size, exclude="_SUCCESS")


@pytest.fixture
def source(store: ObjectStore) -> S3Uri:
    return S3Uri(store.new_bucket(), "images/2026-11-20/")


@pytest.fixture
def work(store: ObjectStore) -> S3Uri:
    return S3Uri(store.new_bucket(), "glm4v")


def put(client: Any, source: S3Uri, *names: str, data: bytes = b"data") -> None:
    for name in names:
        client.put_object(Bucket=source.bucket, Key=source.key + name, Body=data)


def test_a_frozen_day_is_read_back_as_it_was_listed(client: Any, source: S3Uri, work: S3Uri) -> None:
    put(client, source, *[f"{n:02}.jpg" for n in range(10)])
    manifest = freeze(client, source, work)
    assert (manifest.images, manifest.bytes, manifest.shards) == (10, 40, 3)
    assert manifest.uri == f"{work}/manifests/2026-11-20/{manifest.manifest_id}.parquet"
    assert re.fullmatch("[0-9a-f]{12}", manifest.manifest_id)
    assert manifest.source == str(source)
    assert manifests.open(client, manifest.uri) == manifest
    rows = list(manifests.iter_rows(client, manifest.uri))
    assert [row.key for row in rows] == [f"{source.key}{n:02}.jpg" for n in range(10)]
    assert [row.shard for row in rows] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert [manifests.read_shard(client, manifest.uri, shard) for shard in range(3)] == [rows[:4], rows[4:8], rows[8:]]
    head = client.head_object(Bucket=source.bucket, Key=rows[0].key)
    assert rows[0].etag == head["ETag"].strip('"')
    assert '"' not in rows[0].etag
    assert (rows[0].size, rows[0].version_id) == (4, None)
    assert rows[0].last_modified == head["LastModified"]
    assert rows[0].last_modified.tzinfo is not None


def test_hard_keys_survive_listing_and_freezing(client: Any, source: S3Uri, work: S3Uri) -> None:
    put(client, source, *HARD_KEYS)
    rows = manifests.iter_rows(client, freeze(client, source, work).uri)
    assert {row.key for row in rows} == {source.key + key for key in HARD_KEYS}


def test_the_marker_folders_and_other_prefixes_are_left_out(client: Any, source: S3Uri, work: S3Uri) -> None:
    put(client, source, "a.jpg", "_SUCCESS", "camera/_SUCCESS", "camera/", "x_SUCCESS")
    client.put_object(Bucket=source.bucket, Key="images/2026-11-21/b.jpg", Body=b"other day")
    rows = manifests.iter_rows(client, freeze(client, source, work).uri)
    assert [row.key for row in rows] == [f"{source.key}a.jpg", f"{source.key}x_SUCCESS"]


def test_a_day_without_images_is_a_manifest_of_no_shards(client: Any, source: S3Uri, work: S3Uri) -> None:
    put(client, source, "_SUCCESS")
    manifest = freeze(client, source, work)
    assert (manifest.images, manifest.bytes, manifest.shards) == (0, 0, 0)
    assert manifests.open(client, manifest.uri) == manifest
    assert list(manifests.iter_rows(client, manifest.uri)) == []
    with pytest.raises(ManifestError, match="no shard 0"):
        manifests.read_shard(client, manifest.uri, 0)


def test_the_same_objects_give_the_same_manifest_and_it_is_not_written_again(
    client: Any, source: S3Uri, work: S3Uri
) -> None:
    put(client, source, "a.jpg", "b.jpg")
    first = freeze(client, source, work)
    parsed = S3Uri.parse(first.uri, setting="uri")
    written = client.head_object(Bucket=parsed.bucket, Key=parsed.key)
    client.put_object(Bucket=parsed.bucket, Key=parsed.key, Body=b"kept as it is")
    assert freeze(client, source, work) == first
    assert client.get_object(Bucket=parsed.bucket, Key=parsed.key)["Body"].read() == b"kept as it is"
    assert written["ContentLength"] > 100


def test_a_late_upload_makes_another_manifest_and_leaves_the_first_standing(
    client: Any, source: S3Uri, work: S3Uri
) -> None:
    put(client, source, "a.jpg")
    first = freeze(client, source, work)
    put(client, source, "b.jpg")
    second = freeze(client, source, work)
    assert first.manifest_id != second.manifest_id
    assert manifests.open(client, first.uri) == first
    assert manifests.open(client, second.uri).images == 2


def test_a_bucket_with_versions_pins_each_image_to_the_version_that_was_listed(
    client: Any, source: S3Uri, work: S3Uri
) -> None:
    client.put_bucket_versioning(Bucket=source.bucket, VersioningConfiguration={"Status": "Enabled"})
    put(client, source, *HARD_KEYS, data=b"old")
    put(client, source, *HARD_KEYS, data=b"newer")
    put(client, source, "deleted.jpg")
    client.delete_object(Bucket=source.bucket, Key=f"{source.key}deleted.jpg")
    rows = list(manifests.iter_rows(client, freeze(client, source, work).uri))
    assert sorted(row.key for row in rows) == sorted(source.key + key for key in HARD_KEYS)
    for row in rows:
        answer = client.get_object(Bucket=source.bucket, Key=row.key, VersionId=row.version_id)
        assert answer["Body"].read() == b"newer"


def test_a_store_that_does_not_know_of_versions_is_listed_without_them(
    store: ObjectStore, source: S3Uri, work: S3Uri
) -> None:
    client = client_for(store)
    put(client, source, "a.jpg")
    said = {"Error": {"Code": "NotImplemented", "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": 501}}
    answer = SimpleNamespace(status_code=501), said
    client.meta.events.register("before-call.s3.GetBucketVersioning", lambda **_: answer)
    rows = list(manifests.iter_rows(client, freeze(client, source, work).uri))
    assert [(row.key, row.version_id) for row in rows] == [(f"{source.key}a.jpg", None)]


def test_the_id_depends_on_every_field_that_names_the_contents_and_on_nothing_else(tmp_path: Path) -> None:
    entry = Listed("a", "e", None, 1, WHEN)

    def id_of(*entries: Listed, shard_size: int = 3, source: S3Uri = SOURCE) -> str:
        return write(entries, tmp_path / "m.parquet", shard_size, source).manifest_id

    other_time = replace(entry, last_modified=datetime(2000, 1, 1, tzinfo=UTC))
    assert id_of(entry) == id_of(other_time)
    different = [
        id_of(entry),
        id_of(),
        id_of(entry, entry),
        id_of(entry, shard_size=4),
        id_of(entry, source=S3Uri("drop", "elsewhere/")),
        id_of(replace(entry, key="b")),
        id_of(replace(entry, etag="f")),
        id_of(replace(entry, version_id="")),
        id_of(replace(entry, version_id="v")),
        id_of(replace(entry, size=2)),
        id_of(replace(entry, key="ae", etag="")),
    ]
    assert len(set(different)) == len(different)


@pytest.mark.parametrize(("images", "shard_size", "groups"), [(9, 3, [3, 3, 3]), (10, 4, [4, 4, 2]), (2, 9, [2])])
def test_there_is_one_row_group_a_shard(images: int, shard_size: int, groups: list[int], tmp_path: Path) -> None:
    manifest = write(listing(images), tmp_path / "m.parquet", shard_size)
    metadata = pq.ParquetFile(tmp_path / "m.parquet").metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == groups
    assert (manifest.shards, manifest.images) == (len(groups), images)
    assert manifest.bytes == sum(entry.size for entry in listing(images))


def test_a_shard_longer_than_a_chunk_stays_one_row_group(tmp_path: Path) -> None:
    write(listing(10_000), tmp_path / "m.parquet", 9_999)
    metadata = pq.ParquetFile(tmp_path / "m.parquet").metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [9_999, 1]


def test_the_listing_is_taken_no_faster_than_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streaming: what was listed and not yet written never exceeds one shard, whatever the listing's length."""
    taken, written, most = 0, 0, 0
    original = pq.ParquetWriter.write_table

    def counting(self: Any, table: Any, **options: Any) -> None:
        nonlocal written, most
        most = max(most, taken - written)
        original(self, table, **options)
        written += table.num_rows

    def entries() -> Iterator[Listed]:
        nonlocal taken
        for entry in listing(1000):
            taken += 1
            yield entry

    monkeypatch.setattr(pq.ParquetWriter, "write_table", counting)
    write(entries(), tmp_path / "m.parquet", 50)
    assert (written, most) == (1000, 50)


def test_the_pages_of_a_listing_are_asked_for_one_at_a_time(
    client: Any, source: S3Uri, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(client, source, *[f"{n:04}" for n in range(1005)])
    pages: list[str] = []
    client.meta.events.register("before-call.s3.ListObjectsV2", lambda **_: pages.append("page"), unique_id="pages")
    try:
        rows = manifests.list_objects(client, source)
        assert len(list(itertools.islice(rows, 1000))) == 1000
        assert pages == ["page"]
        assert len(list(rows)) == 5
        assert pages == ["page"] * 2
    finally:
        client.meta.events.unregister("before-call.s3.ListObjectsV2", unique_id="pages")


def test_a_shard_is_read_without_reading_the_file(client: Any, work: S3Uri, tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    uri = work.child("m.parquet")
    noise = (replace(entry, etag=hashlib.md5(entry.key.encode()).hexdigest()) for entry in listing(100_000))
    manifests.write(noise, path, source=SOURCE, day=DAY, shard_size=1000)
    client.upload_file(str(path), uri.bucket, uri.key)
    got: list[int] = []
    client.meta.events.register(
        "after-call.s3.GetObject", lambda parsed, **_: got.append(parsed["ContentLength"]), unique_id="got"
    )
    try:
        rows = manifests.read_shard(client, uri, 40)
    finally:
        client.meta.events.unregister("after-call.s3.GetObject", unique_id="got")
    assert [row.key for row in rows] == [entry.key for entry in itertools.islice(listing(100_000), 40_000, 41_000)]
    assert sum(got) < path.stat().st_size / 2
    assert len(got) <= 4


@pytest.mark.parametrize("shard", [-1, 3, 1000])
def test_a_shard_that_does_not_exist_contradicts_the_manifest(
    shard: int, client: Any, source: S3Uri, work: S3Uri
) -> None:
    put(client, source, *[f"{n:02}.jpg" for n in range(10)])
    with pytest.raises(ManifestError, match=f"no shard {shard}"):
        manifests.read_shard(client, freeze(client, source, work).uri, shard)


@pytest.mark.parametrize("data", [b"", b"PAR1 not really PAR1", b"x" * 100_000])
def test_an_object_that_is_no_parquet_file_is_no_manifest(data: bytes, client: Any, work: S3Uri) -> None:
    client.put_object(Bucket=work.bucket, Key="m.parquet", Body=data)
    with pytest.raises(ManifestError):
        manifests.open(client, f"s3://{work.bucket}/m.parquet")


def test_a_parquet_file_of_someone_elses_is_no_manifest(client: Any, work: S3Uri, tmp_path: Path) -> None:
    write(listing(3), tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    pq.write_table(table.replace_schema_metadata({}), tmp_path / "other.parquet")
    client.upload_file(str(tmp_path / "other.parquet"), work.bucket, "m.parquet")
    with pytest.raises(ManifestError, match="no manifest of this version"):
        manifests.open(client, f"s3://{work.bucket}/m.parquet")


def test_a_manifest_that_is_gone_is_named(client: Any, work: S3Uri) -> None:
    with pytest.raises(ManifestError, match=str(work.child("gone.parquet"))):
        manifests.open(client, work.child("gone.parquet"))


def test_a_source_bucket_that_does_not_exist_is_named(client: Any, work: S3Uri) -> None:
    with pytest.raises(SettingsError, match="no bucket 'no-such-bucket'"):
        freeze(client, S3Uri("no-such-bucket", "images/"), work)


def test_a_store_that_is_down_is_unavailable(client_of_a_store_that_is_down: Any, work: S3Uri) -> None:
    with pytest.raises(StoreUnavailable):
        freeze(client_of_a_store_that_is_down, S3Uri("bucket", "images/"), work)
    with pytest.raises(StoreUnavailable):
        manifests.open(client_of_a_store_that_is_down, work.child("m.parquet"))
