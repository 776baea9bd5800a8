"""A shard, end to end: manifest rows in, result parts out.

`annotate_shard` works through the rows of one shard that no part holds yet. Promises:

- One row, one outcome. `ImageRejected` and a model's fault on one image become outcomes here and nowhere else;
  an infrastructure fault (`TransientError`) is raised, never turned into a row.
- A kill at any moment loses at most the part in hand, and its answers are in the cache batch by batch: the next try
  resumes after the parts that are there and pays the model only for the batch it was killed in.
- Memory is flat whatever the size of the shard. At once it holds at most `2 * window + 2` decoded pictures (one with
  the model, one ready behind it: see `pictures`), as many fetched objects as the fetcher may hold, the results of the
  part in hand, and the shard's manifest rows, about half a kilobyte each. A window is a few batches, within one part.
- Parts hold manifest order. Inside a window the pictures go to the model sorted by size, so that a batch pads little.
- The model is loaded at the first answer that the cache lacks, and not at all when it lacks none (see `answers`).

`attempts` on a row is 1 when the model ran on it and 0 when every answer came from the cache or from a picture with
the same bytes in its window; the retry ladder, which will count further, is not in this release.

`annotate_local` is the same path for files, with no store, no parts and no tables. Knows nothing of Airflow.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_ops import parts
from glm4v_ops.answers import Answered, Answerer, EngineFactory, load_engine
from glm4v_ops.cache import Cache, CachedAnswer, NoCache
from glm4v_ops.errors import Cancelled, ManifestError
from glm4v_ops.pictures import Picture, decoded_ahead
from glm4v_ops.progress import Meter, Progress
from glm4v_ops.quality.garble import has_text, judge
from glm4v_ops.quality.outcome import PASSED, Outcome, Verdict
from glm4v_ops.recipe import Recipe, TaskName
from glm4v_ops.result import Result
from glm4v_ops.settings import S3Uri
from glm4v_ops.source import manifest as manifests
from glm4v_ops.source.fetch import Fetched, fetch_all
from glm4v_ops.source.image import Decoded
from glm4v_ops.source.local import fetch_local, rows_of

if TYPE_CHECKING:
    S3Client = Any

log = logging.getLogger(__name__)

#: Batches a window holds: enough to sort by size, few enough that a window of pictures stays small.
WINDOW_BATCHES = 4
#: Fetched objects that may wait for a decoder, for each download that may run.
_FETCHED_PER_FETCHER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardReport:
    """What one call did. `images` = `resumed` + the sum of `by_outcome`."""

    shard: int
    images: int
    resumed: int  # rows found in parts of an earlier try
    cached: int  # rows whose every answer came from the cache, or from a picture with the same bytes
    by_outcome: Mapping[str, int]  # of the rows this call worked on
    model_seconds: float  # inside the model's `answer`; loading it not counted
    wall_seconds: float
    parts: int  # parts the shard has now


@dataclass(frozen=True, slots=True, kw_only=True)
class _Provenance:
    """What every row of one call has in common."""

    day: date
    manifest_id: str
    shard: int
    dag_run_id: str
    try_number: int


def window_of(recipe: Recipe) -> int:
    """How many pictures are sorted and asked about together, and how many more are made ready meanwhile."""
    return min(WINDOW_BATCHES * recipe.run.batch_size, recipe.run.part_size)


def annotate_shard(
    *,
    client: S3Client,
    source_bucket: str,
    work: S3Uri,
    manifest_uri: str,
    shard: int,
    recipe: Recipe,
    model_base: Path | None,
    cache: Cache,
    dag_run_id: str,
    try_number: int,
    cancel: threading.Event,
    progress: Callable[[Progress], None],
    engine_factory: EngineFactory = load_engine,
) -> ShardReport:
    """Annotate the rows of `shard` that no part holds yet.

    `recipe` is resolved: its model's revision is what will stand on the rows. `progress` is called from this thread
    after every batch and every window. Raises `Cancelled` soon after `cancel` is set, with the finished parts safe.
    """
    started = time.monotonic()
    manifest = manifests.open(client, manifest_uri)
    rows = manifests.read_shard(client, manifest_uri, shard)
    folder = parts.results_folder(work, day=manifest.day, recipe_id=recipe.recipe_id, manifest_id=manifest.manifest_id)
    found = parts.existing(client, folder, shard)
    resumed = parts.covered(found, rows=len(rows))
    if found:
        log.info("resuming: %d of %d rows already in %d parts", resumed, len(rows), len(found))
    todo = parts.plan(found, rows=len(rows), part_size=recipe.run.part_size)
    meter = Meter(shard=shard, shards=manifest.shards, total=len(rows), resumed=resumed)
    annotator = _Annotator(
        recipe,
        model_base,
        cache,
        engine_factory,
        provenance=_Provenance(
            day=manifest.day,
            manifest_id=manifest.manifest_id,
            shard=shard,
            dag_run_id=dag_run_id,
            try_number=try_number,
        ),
        meter=meter,
        progress=progress,
        cancel=cancel,
    )

    def fetched(stop: threading.Event) -> Iterator[Fetched]:
        return fetch_all(
            client,
            source_bucket,
            (row for span in todo for row in rows[span.start : span.end]),
            max_bytes=recipe.image.max_bytes,
            workers=recipe.run.fetchers,
            ahead=_FETCHED_PER_FETCHER * recipe.run.fetchers,
            cancel=stop,
        )

    try:
        with closing(annotator.pictures(fetched)) as pictures:
            for span in todo:
                uri = parts.part_uri(folder, shard, span)
                results = [replace(result, part=str(uri)) for result in annotator.results(islice(pictures, len(span)))]
                if len(results) != len(span):
                    raise ManifestError(f"{uri} would hold {len(results)} rows", remedy="report this: rows were lost")
                if parts.write(client, uri, results):
                    log.info("wrote %s: %d rows, %d from cache", uri, len(results), sum(row.cached for row in results))
                else:
                    log.warning("%s was written meanwhile, by another try or run: its rows stay, ours are dropped", uri)
    except Cancelled as stopped:
        raise Cancelled(
            f"shard {shard} was stopped after {resumed + meter.rows} of {len(rows)} images",
            remedy="run it again: it resumes",
        ) from stopped
    return ShardReport(
        shard=shard,
        images=len(rows),
        resumed=resumed,
        cached=meter.cached,
        by_outcome=dict(meter.by_outcome),
        model_seconds=annotator.answerer.model_seconds,
        wall_seconds=time.monotonic() - started,
        parts=len(found) + len(todo),
    )


def annotate_local(
    paths: Iterable[str | Path],
    recipe: Recipe,
    *,
    model_base: Path | None,
    cancel: threading.Event | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    engine_factory: EngineFactory = load_engine,
) -> Iterator[Result]:
    """Annotate files and folders, in order, each result as soon as its window is done. `recipe` is resolved.

    Results have today's day (UTC), no manifest, no part, and the run id "cli".
    """
    rows = list(rows_of(paths))
    annotator = _Annotator(
        recipe,
        model_base,
        NoCache(),
        engine_factory,
        provenance=_Provenance(day=datetime.now(UTC).date(), manifest_id="", shard=0, dag_run_id="cli", try_number=0),
        meter=Meter(shard=0, shards=1, total=len(rows), resumed=0),
        progress=progress,
        cancel=cancel or threading.Event(),
    )
    with closing(
        annotator.pictures(lambda stop: fetch_local(rows, max_bytes=recipe.image.max_bytes, cancel=stop))
    ) as pictures:
        yield from annotator.results(pictures)


class _Annotator:
    """Fetched objects in, results out, in order: the way that `annotate_shard` and `annotate_local` share."""

    def __init__(
        self,
        recipe: Recipe,
        base: Path | None,
        cache: Cache,
        engine_factory: EngineFactory,
        *,
        provenance: _Provenance,
        meter: Meter,
        progress: Callable[[Progress], None],
        cancel: threading.Event,
    ) -> None:
        self.answerer = Answerer(
            recipe, base=base, cache=cache, engine_factory=engine_factory, cancel=cancel, on_batch=self._batch_done
        )
        self._recipe = recipe
        self._prompts = {name: task.prompt for name, task in recipe.tasks.items()}
        self._provenance = provenance
        self._meter = meter
        self._progress = progress
        self._cancel = cancel
        progress(meter.snapshot())

    def pictures(self, fetched: Callable[[threading.Event], Iterator[Fetched]]) -> Generator[Picture, None, None]:
        run = self._recipe.run
        return decoded_ahead(
            fetched,
            limits=self._recipe.image,
            decoders=run.decoders,
            ahead=window_of(self._recipe),
            cancel=self._cancel,
        )

    def results(self, pictures: Iterator[Picture]) -> Iterator[Result]:
        while results := self._window(list(islice(pictures, window_of(self._recipe)))):
            yield from results

    def _window(self, window: list[Picture]) -> list[Result]:
        # Twins (the same bytes under two keys) are one entry here, and so are asked about once.
        images = {picture.decoded.sha256: picture.decoded for picture in window if picture.decoded}
        answered = self.answerer.answer(images)
        results = []
        for picture in window:
            if picture.decoded:
                first = images.pop(picture.decoded.sha256, None) is not None
                results.append(self._answered(picture, picture.decoded, answered[picture.decoded.sha256], first=first))
            else:
                results.append(self._rejected(picture))
        self._meter.add_rows(results)
        self._progress(self._meter.snapshot())
        return results

    def _batch_done(self, batch: list[Answered]) -> None:
        self._meter.add_batch(len(batch), [found.latency_ms for found in batch if found.latency_ms is not None])
        self._progress(self._meter.snapshot())

    def _answered(self, picture: Picture, decoded: Decoded, found: Answered, *, first: bool) -> Result:
        ran = found.ran and first
        answers = {task: reply for task, reply in found.replies.items() if isinstance(reply, CachedAnswer)}
        text = answers["text"].text if "text" in answers else None
        return self._result(
            picture,
            self._verdict(picture.row.key, found),
            width=decoded.width,
            height=decoded.height,
            caption=answers["caption"].text if "caption" in answers else None,
            text=text,
            has_text=None if text is None else has_text(text),
            attempts=int(ran),
            cached=not ran and len(answers) == len(found.replies),
            tokens_in=sum(answer.tokens_in for answer in answers.values()),
            tokens_out=sum(answer.tokens_out for answer in answers.values()),
            latency_ms=found.latency_ms if ran else None,
        )

    def _rejected(self, picture: Picture) -> Result:
        rejected = picture.rejected
        assert rejected is not None, "a picture is decoded or rejected"
        return self._result(picture, Verdict(rejected.outcome, rejected.reason, rejected.detail))

    def _verdict(self, key: str, found: Answered) -> Verdict:
        """The first task that failed says how the row ended."""
        answers: dict[TaskName, CachedAnswer] = {}
        fault = PASSED
        for task in self.answerer.tasks:
            reply = found.replies[task]
            if not isinstance(reply, CachedAnswer):
                fault = Verdict(Outcome.MODEL_ERROR, "model_raised", f"{task}: {reply.message}")
                break
            answers[task] = reply
        verdict = judge(answers, prompts=self._prompts, key=key)
        return fault if verdict.outcome.is_ok else verdict

    def _result(
        self,
        picture: Picture,
        verdict: Verdict,
        *,
        width: int | None = None,
        height: int | None = None,
        caption: str | None = None,
        text: str | None = None,
        has_text: bool | None = None,
        attempts: int = 0,
        cached: bool = False,
        tokens_in: int = 0,
        tokens_out: int = 0,
        latency_ms: float | None = None,
    ) -> Result:
        row, recipe, run = picture.row, self._recipe, self._provenance
        return Result(
            day=run.day,
            key=row.key,
            etag=row.etag,
            version_id=row.version_id,
            size=row.size,
            sha256=picture.sha256,
            width=width,
            height=height,
            outcome=verdict.outcome,
            reason=verdict.reason,
            detail=verdict.detail,
            caption=caption,
            text=text,
            has_text=has_text,
            recipe_id=recipe.recipe_id,
            caption_answer_id=self.answerer.answer_ids.get("caption"),
            text_answer_id=self.answerer.answer_ids.get("text"),
            model=recipe.model_name,
            revision=recipe.model.revision,
            quantization=recipe.model.quantization.value,
            attempts=attempts,
            cached=cached,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            latency_ms=latency_ms,
            manifest_id=run.manifest_id,
            shard=run.shard,
            part="",
            dag_run_id=run.dag_run_id,
            try_number=run.try_number,
            annotated_at=datetime.now(UTC),
        )
