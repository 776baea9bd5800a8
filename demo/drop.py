"""The demo's image drop: a day's postcards in the bucket, with the truth about them kept beside, on this machine.

Promises: the pictures of a day depend on the date alone; what is there already is not written again, so etags stay,
and with them the manifest; the marker object comes last. The truth file of a day (`truth/<day>.jsonl`, one JSON object
a picture, `key` and `etag` included) is complete before the marker is written. Whatever else lies under the day's
prefix (a file somebody tries out) is left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from demo import postcards
from demo.hostile import HostileFile

BUCKET = "drop"
MARKER = "_SUCCESS"


@dataclass(frozen=True, slots=True)
class Filled:
    """What filling a day's drop did."""

    day: date
    uploaded: int
    kept: int  # there already, with the same content


@dataclass(frozen=True, slots=True)
class Expected:
    """A file that must end in a given outcome."""

    key: str
    outcome: str


def prefix(day: date) -> str:
    return f"images/{day.isoformat()}/"


def seed(day: date) -> int:
    """Seeds of their own a day, far from those the model was trained on (small numbers)."""
    return 1_000_000_000 + day.toordinal()


def listing(client: Any, day: date) -> dict[str, str]:
    """Key → etag of everything under the day's prefix but the marker."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix(day))
    found = {each["Key"]: each["ETag"].strip('"') for page in pages for each in page.get("Contents", [])}
    found.pop(prefix(day) + MARKER, None)
    return found


def fill(client: Any, day: date, *, images: int, hostile: Iterable[HostileFile], truth: Path) -> Filled:
    """Put `images` postcards and the `hostile` files of a day into the drop."""
    present = listing(client, day)
    told = read_truth(truth) if truth.exists() else []
    known = {line["key"]: line for line in told if line["etag"] == present.get(line["key"])}

    def wanted() -> Iterator[tuple[str, bytes | None, dict[str, Any] | None]]:
        """Key, bytes and truth of each file; no bytes where it is known to be there: drawing is slow."""
        for index in range(images):
            key = prefix(day) + postcards.plan(seed(day), index).name
            if key in known:
                yield key, None, known[key]
            else:
                drawn = postcards.draw(seed(day), index)
                yield key, drawn.data, drawn.truth()
        for each in hostile:
            yield prefix(day) + each.name, each.data, each.truth

    lines: list[dict[str, Any]] = []
    uploaded = total = 0
    with ThreadPoolExecutor(8) as pool:
        puts = []
        for key, data, line in wanted():
            total += 1
            # Of pictures this small the etag is the MD5 of the content, in S3 as in SeaweedFS.
            etag = present[key] if data is None else _md5(data)
            if data is not None and etag != present.get(key):
                uploaded += 1
                puts.append(pool.submit(client.put_object, Bucket=BUCKET, Key=key, Body=data))
            if line is not None:
                lines.append({**line, "key": key, "etag": etag})
        for put in puts:
            put.result()
    _write_truth(truth, lines, known)
    client.put_object(Bucket=BUCKET, Key=prefix(day) + MARKER, Body=b"")
    return Filled(day, uploaded, total - uploaded)


def read_truth(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_truth(path: Path, lines: list[dict[str, Any]], known: dict[str, Any]) -> None:
    """Pictures of an earlier, larger start stay in the bucket, so their truth stays too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {str(line["key"]): line for line in lines}
    merged = {**known, **written}
    text = "".join(json.dumps(merged[key], ensure_ascii=False) + "\n" for key in sorted(merged))
    half = path.with_suffix(".half")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
