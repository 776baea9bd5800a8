"""Raw answers to a window of pictures: from the cache where it has them, from the model where not.

Each task is looked up by (sha256, answer_id) for itself, so a changed caption prompt pays for captions only. Pictures
with the same bytes are asked about once a window. Batches are of nearly one length and sorted by size, so that a batch
pads little, and every batch's answers are stored before the next begins: a kill costs one batch. Only answers are
stored, never a fault of the model; of two workers that answer the same, the first one's answer stands for both.

The model is loaded at the first answer the cache does not hold. Knows nothing of outcomes: answers are not judged here.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from glm4v_ops.cache import AnswerKey, Cache, CachedAnswer
from glm4v_ops.errors import Cancelled, ModelRefused
from glm4v_ops.quality.garble import TASK_ORDER
from glm4v_ops.recipe import Recipe, TaskName
from glm4v_ops.source.image import Decoded

if TYPE_CHECKING:
    from PIL import Image

    from glm4v_ops.model.engine import Answer, ModelFault

log = logging.getLogger(__name__)


class AnsweringEngine(Protocol):
    """What is needed of `glm4v_ops.model.engine.Engine`."""

    @property
    def recipe(self) -> Recipe: ...

    def answer(
        self, images: Sequence[Image.Image], tasks: Sequence[TaskName], cancel: threading.Event | None = None
    ) -> Sequence[Mapping[TaskName, Answer | ModelFault]]: ...


EngineFactory = Callable[[Recipe, Path | None], AnsweringEngine]


def load_engine(recipe: Recipe, base: Path | None, device: str = "auto") -> AnsweringEngine:
    """The real engine. Takes seconds to minutes."""
    from glm4v_ops.model.engine import Engine

    return Engine.load(recipe, base=base, device=device)


@dataclass(slots=True)
class Answered:
    """What is known about one picture: a raw answer or the model's fault for every task."""

    replies: dict[TaskName, CachedAnswer | ModelFault]
    ran: bool = False  # the model ran on this picture
    latency_ms: float | None = None  # to its last token, when the model ran


class Answerer:
    """Answers windows of pictures. Not thread-safe: one thread runs the model."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        base: Path | None,
        cache: Cache,
        engine_factory: EngineFactory,
        cancel: threading.Event,
        on_batch: Callable[[list[Answered]], None],
    ) -> None:
        self.model_seconds = 0.0
        self.tasks: tuple[TaskName, ...] = tuple(task for task in TASK_ORDER if task in recipe.tasks)
        self.answer_ids = {task: recipe.answer_id(task) for task in self.tasks}
        self._recipe = recipe
        self._base = base
        self._cache = cache
        self._engine_factory = engine_factory
        self._cancel = cancel
        self._on_batch = on_batch
        self._engine: AnsweringEngine | None = None

    def answer(self, images: Mapping[str, Decoded]) -> dict[str, Answered]:
        """Every task's answer for every image, by the image's sha256. Raises `Cancelled` between batches."""
        answered = self._look_up(images)
        for tasks, missing in self._missing(answered).items():
            for batch in _even_batches(
                sorted(missing, key=lambda sha: _area(images[sha])), self._recipe.run.batch_size
            ):
                if self._cancel.is_set():
                    raise Cancelled("stopped between two batches")
                self._ask({sha: images[sha] for sha in batch}, tasks, answered)
                self._on_batch([answered[sha] for sha in batch])
        return answered

    def _look_up(self, images: Mapping[str, Decoded]) -> dict[str, Answered]:
        pairs = [(sha, self.answer_ids[task]) for sha in images for task in self.tasks]
        known = self._cache.lookup(pairs) if pairs else {}
        return {
            sha: Answered({task: known[key] for task in self.tasks if (key := (sha, self.answer_ids[task])) in known})
            for sha in images
        }

    def _missing(self, answered: Mapping[str, Answered]) -> dict[tuple[TaskName, ...], list[str]]:
        """Which pictures lack which tasks, so that pictures that lack the same go through the model together."""
        missing: dict[tuple[TaskName, ...], list[str]] = defaultdict(list)
        for sha, found in answered.items():
            if lacking := tuple(task for task in self.tasks if task not in found.replies):
                missing[lacking].append(sha)
        return missing

    def _ask(self, batch: Mapping[str, Decoded], tasks: Sequence[TaskName], answered: dict[str, Answered]) -> None:
        """One batch through the model, and its answers into the cache."""
        engine = self._engine or self._load()
        started = time.perf_counter()
        replies = engine.answer([decoded.image for decoded in batch.values()], tasks, self._cancel)
        self.model_seconds += time.perf_counter() - started
        fresh: dict[AnswerKey, CachedAnswer] = {}
        for sha, by_task in zip(batch, replies, strict=True):
            found = answered[sha]
            found.ran = True
            for task in tasks:
                reply = _reply(by_task[task])
                found.replies[task] = reply
                if isinstance(reply, CachedAnswer):
                    fresh[sha, self.answer_ids[task]] = reply
            found.latency_ms = _latency(by_task.values())
        standing = self._cache.store(fresh) if fresh else {}
        for sha in batch:
            for task in tasks:
                # Another worker may have answered meanwhile: what stands is what every later run will say.
                if answer := standing.get((sha, self.answer_ids[task])):
                    answered[sha].replies[task] = answer

    def _load(self) -> AnsweringEngine:
        engine = self._engine_factory(self._recipe, self._base)
        if engine.recipe.recipe_id != self._recipe.recipe_id:
            raise ModelRefused(
                f"the model that was loaded is {engine.recipe.model_name} at {engine.recipe.model.revision}, "
                f"the run is for {self._recipe.model_name} at {self._recipe.model.revision}",
                remedy="the checkpoint changed under the run: start a new run, or pin its revision",
            )
        self._engine = engine
        return engine


def _reply(reply: Answer | ModelFault) -> CachedAnswer | ModelFault:
    from glm4v_ops.model.engine import Answer

    if isinstance(reply, Answer):
        return CachedAnswer(reply.text, reply.finish_reason, reply.tokens_in, reply.tokens_out)
    return reply


def _latency(replies: Iterable[Answer | ModelFault]) -> float | None:
    """Milliseconds to the last token of the last task that answered; None when every task failed."""
    from glm4v_ops.model.engine import Answer

    return max((reply.latency_ms for reply in replies if isinstance(reply, Answer)), default=None)


def _area(decoded: Decoded) -> tuple[int, int]:
    """What a picture costs the model, largest first: a batch too big for the memory fails at once, not after hours."""
    width, height = decoded.image.size
    return (-width * height, width)


def _even_batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """As few batches of at most `size` as can be, of nearly the same length: 61 by 16 is 16, 15, 15, 15."""
    count = -(-len(items) // size)
    for batch in range(count):
        yield items[batch * len(items) // count : (batch + 1) * len(items) // count]
