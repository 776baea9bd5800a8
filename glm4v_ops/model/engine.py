"""Pixels to words, image first: encode, prefill `[user][image]` once, run every task from that prefix.

Plain and correct on CPU and GPU: one batch at a time, left padded, rows that have stopped are dropped from
it. Knows nothing of buckets, caches of answers, or whether an answer is any good.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Literal

import torch
from PIL import Image

from glm4v_ops.errors import Cancelled, Glm4vError, GpuUnavailable, ModelRefused
from glm4v_ops.model.faults import is_device_lost, is_out_of_memory
from glm4v_ops.model.identity import resolve
from glm4v_ops.model.loading import Checkpoint, load
from glm4v_ops.model.prompt import build_prompt, read_answer
from glm4v_ops.model.reference import asking_plainly, reference_picture, shows_reference
from glm4v_ops.model.runner import Context, Runner
from glm4v_ops.model.sampler import Draft, Sampler
from glm4v_ops.quality.garble import judge_answer
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import Recipe, TaskName

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """One task's answer about one image. `latency_ms` runs from the start of its batch to its last token."""

    text: str
    finish_reason: Literal["stop", "length"]
    tokens_in: int
    tokens_out: int
    latency_ms: float


@dataclass(frozen=True, slots=True)
class ModelFault:
    """The model raised on this image alone; the rest of its batch was answered."""

    message: str


Answers = dict[TaskName, Answer | ModelFault]


class Engine:
    """A loaded model that answers a recipe's tasks. One engine a process, one call at a time."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self.recipe = recipe
        self.device = checkpoint.device
        self._runner = Runner(checkpoint)
        self._tokenizer = checkpoint.tokenizer
        self._stop_ids = checkpoint.stop_ids
        self._tested = False  # it once answered about the reference picture
        prompts = {
            task: build_prompt(checkpoint.tokenizer, settings.prompt, thinking=recipe.model.thinking)
            for task, settings in recipe.tasks.items()
        }
        self._prefix, *others = {prompt.prefix for prompt in prompts.values()}
        self._suffixes = {task: prompt.suffix for task, prompt in prompts.items()}
        if others:
            raise ModelRefused(
                "the chat template puts a task's text before the image", remedy="use the checkpoint's own template"
            )

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        *,
        base: Path | None = None,
        device: str = "auto",
        progress: Callable[[str], None] = log.info,
    ) -> Engine:
        """Load the recipe's checkpoint and make it answer about a reference picture.

        `base` is the folder a relative `model.id` starts from. Raises `ModelRefused`, `GpuUnavailable`, and
        `TransientError` when the model hub does not answer.
        """
        started = time.monotonic()
        recipe = resolve(recipe, base)
        checkpoint = load(recipe, base=base, device=device, progress=progress)
        engine = cls(checkpoint, recipe)
        cls(checkpoint, asking_plainly(recipe)).self_test()
        engine._tested = True
        progress(f"{recipe.model_name} answers after {time.monotonic() - started:.1f} s on {engine.device}")
        return engine

    def self_test(self) -> None:
        """One reference answer a task. Raises `ModelRefused` when the model raises, talks garbage, or does not see."""
        said = []
        for task, answer in self.answer([reference_picture()], list(self.recipe.tasks))[0].items():
            if isinstance(answer, ModelFault):
                # The one image that a good model must be able to answer about is nobody's fault but the model's.
                raise ModelRefused(
                    f"the self-test's {task} raised: {answer.message}",
                    remedy="check the checkpoint's files against their origin, and model.dtype",
                )
            verdict = judge_answer(task, self.recipe.tasks[task].prompt, answer.text, answer.finish_reason)
            # A model may have more to say than the limit allows: that is no broken model.
            if verdict.outcome not in (Outcome.OK, Outcome.TRUNCATED):
                raise ModelRefused(
                    f"the self-test's {task} is {verdict.outcome.value} ({verdict.reason}): {answer.text[:80]!r}",
                    remedy="the weights, the dtype or the tokenizer are not what the recipe says, "
                    f"or tasks.{task}.prompt is in a language this model does not speak",
                )
            said.append(answer.text)
        if not shows_reference(said):
            raise ModelRefused(
                f"the self-test shows a red circle above the word OPEN, and the answers name neither: {said}",
                remedy="the vision tower's weights or its quantisation are broken: check them against their origin; "
                "or the recipe's prompts ask neither for what is shown nor for the text",
            )

    def answer(
        self, images: Sequence[Image.Image], tasks: Sequence[TaskName], cancel: Event | None = None
    ) -> list[Answers]:
        """Answer `tasks` about each RGB image, in order. At most the recipe's batch size at once.

        A batch that raises is halved until the one image that raises is alone: its answers are `ModelFault`, if a
        model that was loaded by `load` still answers about the reference picture. Raises `Cancelled` within one
        forward pass of `cancel`, `GpuUnavailable` when the device is lost or full, or answers about nothing any more.
        """
        size, cancel = self.recipe.run.batch_size, cancel or Event()
        found: list[Answers] = []
        for start in range(0, len(images), size):
            found += self._answer_or_halve(images[start : start + size], tasks, cancel)
        return found

    def _answer_or_halve(
        self, images: Sequence[Image.Image], tasks: Sequence[TaskName], cancel: Event
    ) -> list[Answers]:
        try:
            return self._answer_batch(images, tasks, cancel)
        except Glm4vError:
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            if is_device_lost(error):
                raise GpuUnavailable(f"{self.device} failed: {message}", remedy="see nvidia-smi and dmesg") from error
            if len(images) == 1 and is_out_of_memory(error):
                raise GpuUnavailable(f"no memory for one image: {message}", remedy="lower image.max_side") from error
        # Outside of `except`: the error's traceback would hold the failed batch's memory.
        if len(images) == 1:
            if self._tested:
                self._require_sound(tasks, cancel, message)
            return [dict.fromkeys(tasks, ModelFault(message))]
        log.warning("a batch of %d raised (%s): halving it", len(images), message)
        half = len(images) // 2
        return self._answer_or_halve(images[:half], tasks, cancel) + self._answer_or_halve(images[half:], tasks, cancel)

    def _require_sound(self, tasks: Sequence[TaskName], cancel: Event, fault: str) -> None:
        """Before an image is blamed: the picture that was answered about at loading must be answered about now.

        A broken device or library raises in more ways than can be listed.
        """
        try:
            self._answer_batch([reference_picture()], tasks, cancel)
        except Glm4vError:
            raise
        except Exception as error:
            raise GpuUnavailable(
                f"{self.device} fails on every picture ({type(error).__name__}: {error}), first with: {fault}",
                remedy="see nvidia-smi and dmesg; a fresh process may do better",
            ) from error

    @torch.inference_mode()
    def _answer_batch(self, images: Sequence[Image.Image], tasks: Sequence[TaskName], cancel: Event) -> list[Answers]:
        started = time.monotonic()
        _stop_if(cancel)
        prefix = self._runner.read_images(self._prefix, images)
        found: list[Answers] = [{} for _ in images]
        for task in tasks:
            context = prefix if task == tasks[-1] else prefix.fork()
            for draft, stopped in self._write(task, context, images, cancel):
                found[draft.row][task] = Answer(
                    text=read_answer(self._tokenizer, draft.ids),
                    finish_reason="stop" if stopped else "length",
                    tokens_in=draft.tokens_in,
                    tokens_out=len(draft.ids) + stopped,
                    latency_ms=1000 * (time.monotonic() - started),
                )
        return found

    def _write(
        self, task: TaskName, context: Context, images: Sequence[Image.Image], cancel: Event
    ) -> Iterator[tuple[Draft, bool]]:
        """Decode one task for every row: each finished draft as it ends, and whether the model ended it.

        Uses `context` up: the rows that have ended are dropped from it.
        """
        settings, suffix = self.recipe.tasks[task], self._suffixes[task]
        sampler = Sampler(settings, self.device)
        drafts = [
            sampler.draft(row, image, tokens_in=length + len(suffix))
            for row, (image, length) in enumerate(zip(images, context.lengths, strict=True))
        ]
        ids = torch.tensor([suffix] * len(drafts), device=self.device)
        while True:
            _stop_if(cancel)
            tokens = sampler.choose(self._runner.read_tokens(context, ids), drafts)
            going = []
            for place, (draft, token) in enumerate(zip(drafts, tokens, strict=True)):
                if token in self._stop_ids:
                    yield draft, True
                    continue
                draft.ids.append(token)
                if len(draft.ids) == settings.max_new_tokens:
                    yield draft, False
                else:
                    going.append(place)
            if not going:
                return
            if len(going) < len(drafts):
                context.keep(going)
                drafts = [drafts[place] for place in going]
            ids = torch.tensor([[draft.ids[-1]] for draft in drafts], device=self.device)


def _stop_if(cancel: Event) -> None:
    if cancel.is_set():
        raise Cancelled("stopped while the model was answering", remedy="run it again")
