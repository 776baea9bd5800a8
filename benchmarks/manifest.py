"""What a day's listing costs: time, and the memory of the process that freezes it. Prints JSON; exit 1 over the bound.

    python -m benchmarks.manifest [--keys 200000] [--shard-size 4096]

A bucket of 200,000 objects takes many minutes to fill, so the listing alone is generated: ListObjectsV2 goes to a small
HTTP server here that answers with pages of made-up keys, as S3 would. Everything else is real: the product's own boto3
client parses those pages, and the manifest is written to and read from a real object store.

A process of its own freezes the day, then reads every shard back. Its peak memory, with all that it imports, must stay
under the bound in both; and the shards must hold exactly the keys that were listed, none lost, none twice. Needs Linux
(/proc).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from benchmarks.memory import peak_mb
from demo.parts import ObjectStore
from glm4v_ops.settings import S3Uri
from glm4v_ops.source import manifest as manifests
from glm4v_ops.source import store as stores
from glm4v_ops.source.manifest import Listed

KEYS = 200_000
BOUND_MB = 300
SHARD_SIZE = 4096

_DAY = date(2026, 11, 20)
_PREFIX = f"images/{_DAY}/"
_WHEN = datetime(2026, 11, 20, 3, 4, 5, tzinfo=UTC)
#: Keys a page, as S3 has it.
_PAGE = 1000


def listed(number: int) -> Listed:
    """The object with this number; keys come in the order of the numbers, digests compress as badly as real ones."""
    digest = hashlib.md5(str(number).encode()).hexdigest()
    return Listed(f"{_PREFIX}camera/{number:09}/照片 {digest[:8]}.jpg", digest, None, int(digest[:5], 16), _WHEN)


def page(start: int, keys: int) -> str:
    """One page of the listing, as S3 answers ListObjectsV2."""
    end = min(start + _PAGE, keys)
    more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < keys else ""
    contents = "".join(
        f"<Contents><Key>{quote(each.key)}</Key><LastModified>{each.last_modified:%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
        f"<ETag>&quot;{each.etag}&quot;</ETag><Size>{each.size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for each in map(listed, range(start, end))
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>drop</Name><KeyCount>{end - start}</KeyCount><MaxKeys>{_PAGE}</MaxKeys><EncodingType>url</EncodingType>"
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>{more}{contents}</ListBucketResult>"
    )


@contextmanager
def serving(keys: int) -> Iterator[str]:
    """A server on 127.0.0.1 that lists `keys` objects; its address."""

    class Listing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            body = page(int(asked.get("continuation-token", ["0"])[0]), keys).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """A line a page is of no use."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Listing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def measure(store: ObjectStore, *, keys: int, shard_size: int) -> dict[str, Any]:
    """Freeze `keys` listed keys in a process of its own, with `store` for everything but the listing."""
    command = [sys.executable, "-m", "benchmarks.manifest", "--keys", str(keys), "--shard-size", str(shard_size)]
    with serving(keys) as listing:
        where = ["--child", listing, "--source", store.new_bucket(), "--work", store.new_bucket()]
        finished = subprocess.run(
            [*command, *where],
            cwd=Path(__file__).parents[1],
            env={**os.environ, **store.environ()},
            capture_output=True,
            text=True,
            check=False,
        )
    if finished.returncode:
        raise SystemExit(f"the process that freezes failed:\n{finished.stderr}")
    found: dict[str, Any] = json.loads(finished.stdout)
    passed = found["fault"] is None and found["peak_mb"] <= BOUND_MB
    return {"keys": keys, **found, "bound_mb": BOUND_MB, "passed": passed}


def child(listing: str, source: str, work: str, *, keys: int, shard_size: int) -> dict[str, Any]:
    """In a process of its own: freeze, read every shard back, and say what it took."""
    client = stores.client()
    client.meta.events.register("before-send.s3.ListObjectsV2", lambda request, **_: _redirect(request, listing))
    before = peak_mb()
    started = time.perf_counter()
    manifest = manifests.freeze(
        client, source=S3Uri(source, _PREFIX), work=S3Uri(work, ""), day=_DAY, shard_size=shard_size
    )
    frozen, frozen_mb = time.perf_counter() - started, peak_mb()
    shards = (manifests.read_shard(client, manifest.uri, shard) for shard in range(manifest.shards))
    rows = (Listed(row.key, row.etag, row.version_id, row.size, row.last_modified) for shard in shards for row in shard)
    fault = difference(map(listed, range(keys)), rows)
    return {
        "shards": manifest.shards,
        "freeze_seconds": round(frozen, 2),
        "keys_per_s": round(keys / frozen),
        "read_seconds": round(time.perf_counter() - started - frozen, 2),
        "before_mb": before,
        "freeze_peak_mb": frozen_mb,
        "peak_mb": peak_mb(),
        "fault": fault if manifest.images == keys else f"the manifest counts {manifest.images} images",
    }


def difference(wanted: Iterable[Listed], rows: Iterable[Listed]) -> str | None:
    """The first place where the shards do not hold what was listed: a key lost, doubled or changed."""
    for number, (want, row) in enumerate(zip_longest(wanted, rows)):
        if want != row:
            return f"row {number} is {row}, listed was {want}"
    return None


def _redirect(request: Any, listing: str) -> None:
    request.url = urlsplit(request.url)._replace(scheme="http", netloc=listing).geturl()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.manifest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=KEYS, help=f"default: {KEYS}")
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help=f"default: {SHARD_SIZE}")
    for option in ("--child", "--source", "--work"):
        parser.add_argument(option, help=argparse.SUPPRESS)
    parsed = parser.parse_args(argv)
    if parsed.child:
        found = child(parsed.child, parsed.source, parsed.work, keys=parsed.keys, shard_size=parsed.shard_size)
        print(json.dumps(found))
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="glm4v-benchmark-") as folder,
        ObjectStore.start(Path(folder) / "store") as store,
    ):
        measured = measure(store, keys=parsed.keys, shard_size=parsed.shard_size)
    print(json.dumps(measured, indent=2, ensure_ascii=False))
    return 0 if measured["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
