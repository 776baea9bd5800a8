"""What the shard path costs beside the model, and whether its memory stays flat. Prints JSON; exit 1 over a bound.

    python -m benchmarks.annotate [--only ratio|memory] [--images N] [--recipe FILE]

Ratios: one shard of generated postcards through the whole path (a real object store, real tables for the cache, the
recipe's real model), its wall time over the time spent in the model during the same run, and over the time of the same
model on the same pictures already decoded, with nothing else running. The first misses a path that slows the model
down beside it, the second is the noisier; both are held to the bound. The model is loaded before.

Memory: the peak of a process that annotates 5,000 images over that of one that annotates 1,000, on the same real store
and tables. The model is a stand-in that waits a little and answers a sentence: what is measured is the path, and the
real model's own memory would only hide a growth. The images are few pictures with different bytes each; of a hundred,
ten are JPEGs cut off half way and two are decompression bombs, since what is rejected must leave nothing behind either.
Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.memory import peak_mb
from demo.hostile import hostile_files
from demo.parts import ObjectStore, Postgres
from demo.postcards import postcards
from glm4v_ops.annotate import ShardReport, annotate_shard
from glm4v_ops.answers import AnsweringEngine
from glm4v_ops.cache import AnswerCache
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import Recipe, TaskName, load_recipe
from glm4v_ops.settings import S3Uri
from glm4v_ops.sink.postgres import migrate
from glm4v_ops.source import manifest as manifests
from glm4v_ops.source import store as stores
from glm4v_ops.source.image import decode

if TYPE_CHECKING:
    from PIL import Image

    from glm4v_ops.model.engine import Answer

RATIO_BOUND = 1.15
MEMORY_BOUND = 1.1
SMALL, LARGE = 1_000, 5_000

_DAY = date(2026, 11, 20)
#: A seed the demo model was not trained on; what it answers does not matter here, only that the pictures are usual.
_SEED = 424_242
#: Different pictures among those of the memory benchmark.
_PICTURES = 25
#: Seconds the stand-in takes an image: longer than fetching and decoding one, so that the queues fill up.
_PACE_S = 0.004


class Waiting:
    """The stand-in: looks at no pixel, answers a sentence."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def answer(
        self, images: Sequence[Image.Image], tasks: Sequence[TaskName], cancel: threading.Event | None = None
    ) -> list[dict[TaskName, Answer]]:
        from glm4v_ops.model.engine import Answer

        time.sleep(_PACE_S * len(images))
        return [
            {task: Answer("A plain picture of nothing in particular.", "stop", 200, 12, 1.0) for task in tasks}
            for _ in images
        ]


def measure_ratio(client: Any, dsn: str, recipe_file: Path, images: int) -> dict[str, Any]:
    """The whole path beside the model, on `images` postcards."""
    from glm4v_ops.model.engine import Engine

    base = recipe_file.parent
    engine = Engine.load(load_recipe(recipe_file), base=base)
    cards = list(postcards(seed=_SEED, count=images))
    _upload(client, "drop", {f"ratio/{card.name}": card.data for card in cards})
    decoded = [decode(card.data, engine.recipe.image) for card in cards]
    size = engine.recipe.run.batch_size
    by_area = sorted(decoded, key=lambda each: -each.image.width * each.image.height)
    tasks: list[TaskName] = list(engine.recipe.tasks)
    engine.answer([each.image for each in by_area[:size]], tasks)  # the first batch warms caches and threads up
    started = time.perf_counter()
    for start in range(0, images, size):
        engine.answer([each.image for each in by_area[start : start + size]], tasks)
    alone = time.perf_counter() - started
    report = _annotate(client, dsn, "ratio/", engine.recipe, engine, base)
    found = ratios(report.wall_seconds, model=report.model_seconds, model_alone=alone)
    return {"images": images, **found, "passed": found["passed"] and "model_error" not in report.by_outcome}


def ratios(wall: float, *, model: float, model_alone: float) -> dict[str, Any]:
    """The path's seconds beside the model's, in the same run and alone; passed when both are within the bound."""
    return {
        "wall_seconds": round(wall, 3),
        "model_seconds": round(model, 3),
        "model_alone_seconds": round(model_alone, 3),
        "ratio": round(wall / model, 4),
        "ratio_to_model_alone": round(wall / model_alone, 4),
        "bound": RATIO_BOUND,
        "passed": max(wall / model, wall / model_alone) <= RATIO_BOUND,
    }


def measure_memory(client: Any, environ: dict[str, str], recipe_file: Path) -> dict[str, Any]:
    """Peak memory of a process with many images over that of one with few."""
    cards = [card.data for card in postcards(seed=_SEED, count=_PICTURES)]
    jpeg = max((data for data in cards if data.startswith(b"\xff\xd8")), key=len)
    bomb = next(each.data for each in hostile_files() if each.outcome is Outcome.OVERSIZED)
    broken = {Outcome.UNREADABLE: jpeg[: len(jpeg) // 2], Outcome.OVERSIZED: bomb}
    peaks = {}
    for images in (SMALL, LARGE):
        prefix = f"memory-{images}/"
        objects = {
            # Bytes after the end of a picture are not looked at: the same picture, another digest.
            f"{prefix}{number:06d}": broken.get(outcome_of(number), cards[number % len(cards)])
            + f"#{images}.{number}".encode()
            for number in range(images)
        }
        _upload(client, "drop", objects)
        command = [sys.executable, "-m", "benchmarks.annotate", "--child", prefix, "--recipe", str(recipe_file)]
        finished = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise SystemExit(f"the process with {images} images failed:\n{finished.stderr}")
        peaks[images] = json.loads(finished.stdout)
    small, large = peaks[SMALL]["peak_mb"], peaks[LARGE]["peak_mb"]
    return {
        "peak_mb": {str(images): peak["peak_mb"] for images, peak in peaks.items()},
        "before_mb": {str(images): peak["before_mb"] for images, peak in peaks.items()},
        "seconds": {str(images): peak["seconds"] for images, peak in peaks.items()},
        "ratio": round(large / small, 4),
        "bound": MEMORY_BOUND,
        "passed": large / small <= MEMORY_BOUND,
    }


def outcome_of(number: int) -> Outcome:
    """How an image of the memory benchmark must end: of a hundred, ten are cut off half way, two are enormous."""
    if number % 10 == 3:
        return Outcome.UNREADABLE
    return Outcome.OVERSIZED if number % 50 == 8 else Outcome.OK


def child(prefix: str, recipe_file: Path) -> dict[str, Any]:
    """In a process of its own: annotate everything under `prefix` with the stand-in, and say what memory it took."""
    from glm4v_ops.model import engine as _torch_counts_before  # noqa: F401

    before = peak_mb()
    recipe = load_recipe(recipe_file).with_revision("stand-in")
    report = _annotate(stores.client(), os.environ["GLM4V_DSN"], prefix, recipe, Waiting(recipe), None)
    if report.by_outcome != Counter(outcome_of(number).value for number in range(report.images)):
        raise SystemExit(f"not every image ended as it should: {report}")
    return {"before_mb": before, "peak_mb": peak_mb(), "seconds": round(report.wall_seconds, 1)}


def _annotate(
    client: Any, dsn: str, prefix: str, recipe: Recipe, engine: AnsweringEngine, base: Path | None
) -> ShardReport:
    """One shard of everything under `prefix`."""
    work = S3Uri("work", prefix.strip("/"))
    frozen = manifests.freeze(client, source=S3Uri("drop", prefix), work=work, day=_DAY, shard_size=1_000_000)
    with AnswerCache(dsn) as cache:
        return annotate_shard(
            client=client,
            source_bucket="drop",
            work=work,
            manifest_uri=frozen.uri,
            shard=0,
            recipe=recipe,
            model_base=base,
            cache=cache,
            dag_run_id="benchmark",
            try_number=1,
            cancel=threading.Event(),
            progress=lambda _: None,
            engine_factory=lambda _recipe, _base: engine,
        )


def _upload(client: Any, bucket: str, objects: dict[str, bytes]) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [
            pool.submit(client.put_object, Bucket=bucket, Key=key, Body=data) for key, data in objects.items()
        ]:
            done.result()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.annotate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["ratio", "memory"], help="default: both")
    parser.add_argument("--images", type=int, default=192, help="images for the ratio; default: 192")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parents[1] / "recipes" / "demo.yaml")
    parser.add_argument("--child", metavar="PREFIX", help=argparse.SUPPRESS)
    parsed = parser.parse_args(argv)
    if parsed.child:
        print(json.dumps(child(parsed.child, parsed.recipe)))
        return 0
    found: dict[str, dict[str, Any]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="glm4v-benchmark-") as folder,
        ObjectStore.start(Path(folder) / "store") as store,
        Postgres.start(Path(folder) / "postgres") as postgres,
    ):
        for bucket in ("drop", "work"):
            store.bucket(bucket)
        dsn = postgres.new_database()
        migrate(dsn)
        os.environ.update(store.environ())
        client = stores.client()
        if parsed.only != "memory":
            found["ratio"] = measure_ratio(client, dsn, parsed.recipe, parsed.images)
        if parsed.only != "ratio":
            found["memory"] = measure_memory(client, {**store.environ(), "GLM4V_DSN": dsn}, parsed.recipe)
    passed = all(each["passed"] for each in found.values())
    print(json.dumps({**found, "passed": passed}, indent=2))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
