"""A shard to annotate, on a real store and real tables, and an engine that answers by looking at pixels.

The shard loop is what is tested with it, so the engine here is a plain deterministic one that keeps a record of
what it was asked; `tests/test_annotate.py` also runs the real one.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from PIL import Image

from demo.parts import ObjectStore
from glm4v_ops import parts
from glm4v_ops.annotate import ShardReport, annotate_shard
from glm4v_ops.cache import Cache, NoCache
from glm4v_ops.model.engine import Answer, ModelFault
from glm4v_ops.progress import Progress
from glm4v_ops.recipe import Recipe, TaskName
from glm4v_ops.result import Result, from_table
from glm4v_ops.settings import S3Uri
from glm4v_ops.source import manifest as manifests
from glm4v_ops.source import store

DAY = date(2026, 11, 20)


def recipe(*, part_size: int = 8, batch_size: int = 3, **sections: Any) -> Recipe:
    """A resolved recipe with parts and batches small enough to see them."""
    content = {
        "name": "test",
        "model": {"id": "test/pixels", "revision": "r1"},
        "image": {"max_side": 448, "max_pixels": 50_000_000},
        "tasks": {
            "caption": {"prompt": "Describe the image.", "max_new_tokens": 96},
            "text": {"prompt": "Read out all text.", "max_new_tokens": 128},
        },
        "run": {"part_size": part_size, "batch_size": batch_size, "fetchers": 4, "decoders": 2, "shard_size": 10_000},
    }
    return Recipe.model_validate({**content, **sections})


def png(number: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture that says its number in its colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number // 256, number % 256, 77)).save(buffer, "PNG")
    return buffer.getvalue()


def number_of(image: Image.Image) -> int:
    """The number that `png` put into the picture."""
    red, green, _ = image.getpixel((1, 1))  # type: ignore[misc]
    return int(red) * 256 + int(green)


class PixelEngine:
    """Says what colour a picture has. `before` is called with the numbers of each batch before it is answered."""

    def __init__(self, recipe: Recipe, before: Callable[[list[int]], None] = lambda _: None) -> None:
        self.recipe = recipe
        self.before = before
        self.batches: list[tuple[list[int], tuple[TaskName, ...]]] = []
        self.sizes: list[list[tuple[int, int]]] = []
        self.raising: set[int] = set()
        self.text = "Line one.\nNo. {number}"

    @property
    def asked(self) -> list[int]:
        """The number of every picture asked about, in order, once for each time."""
        return [number for numbers, _ in self.batches for number in numbers]

    def answer(
        self, images: Sequence[Image.Image], tasks: Sequence[TaskName], cancel: threading.Event | None = None
    ) -> list[dict[TaskName, Answer | ModelFault]]:
        numbers = [number_of(image) for image in images]
        self.before(numbers)
        self.batches.append((numbers, tuple(tasks)))
        self.sizes.append([image.size for image in images])
        return [{task: self._answer(number, task) for task in tasks} for number in numbers]

    def _answer(self, number: int, task: TaskName) -> Answer | ModelFault:
        if number in self.raising:
            return ModelFault("RuntimeError: a bad picture")
        text = f"A plain picture, the {number}th of its kind." if task == "caption" else self.text.format(number=number)
        return Answer(text=text, finish_reason="stop", tokens_in=100, tokens_out=10, latency_ms=5.0)


@dataclass
class Shard:
    """Objects in a bucket of their own, frozen into a manifest of one shard."""

    client: Any
    bucket: str
    work: S3Uri
    uri: str
    recipe: Recipe
    cache: Cache = field(default_factory=NoCache)
    cancel: threading.Event = field(default_factory=threading.Event)
    progress: list[Progress] = field(default_factory=list)
    loads: int = 0

    def run(
        self, engine: PixelEngine | None, *, try_number: int = 1, client: Any = None, **changes: Any
    ) -> ShardReport:
        """Annotate it. `changes` replace arguments of `annotate_shard`."""

        def load(recipe: Recipe, base: Path | None) -> PixelEngine:
            assert engine is not None
            self.loads += 1
            return engine

        arguments: dict[str, Any] = {
            "client": self.client,
            "source_bucket": self.bucket,
            "work": self.work,
            "manifest_uri": self.uri,
            "shard": 0,
            "recipe": self.recipe,
            "model_base": None,
            "cache": self.cache,
            "dag_run_id": "run",
            "try_number": try_number,
            "cancel": self.cancel,
            "progress": self.progress.append,
            "engine_factory": load,
        }
        return annotate_shard(**{**arguments, **changes})

    def folder(self, recipe: Recipe | None = None) -> S3Uri:
        manifest = manifests.open(self.client, self.uri)
        recipe_id = (recipe or self.recipe).recipe_id
        return parts.results_folder(self.work, day=DAY, recipe_id=recipe_id, manifest_id=manifest.manifest_id)

    def parts(self) -> list[parts.Part]:
        return parts.existing(self.client, self.folder())

    def rows(self, recipe: Recipe | None = None) -> list[Result]:
        return [row for table in parts.tables(self.client, self.folder(recipe)) for row in from_table(table)]


def make_shard(running: ObjectStore, objects: dict[str, bytes], recipe: Recipe) -> Shard:
    """Upload `objects` and freeze them; the keys are under `images/`."""
    client = store.client(
        endpoint_url=running.endpoint,
        aws_access_key_id=running.access_key,
        aws_secret_access_key=running.secret_key,
        region_name="us-east-1",
    )
    bucket, work = running.new_bucket(), S3Uri(running.new_bucket(), "glm4v")
    for key, data in objects.items():
        client.put_object(Bucket=bucket, Key=f"images/{key}", Body=data)
    frozen = manifests.freeze(client, source=S3Uri(bucket, "images/"), work=work, day=DAY, shard_size=10_000)
    return Shard(client=client, bucket=bucket, work=work, uri=frozen.uri, recipe=recipe)


def plain(count: int) -> dict[str, bytes]:
    """`count` different pictures, in key order by number."""
    return {f"{number:05d}.png": png(number) for number in range(count)}
