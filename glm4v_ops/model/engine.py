"""Pixels to words, image first: encode, prefill `[user][image]` once, run every task from that prefix.

Plain and correct on CPU and GPU: one batch at a time, left padded, rows that have stopped are dropped from
it. Knows nothing of buckets, caches of answers, or whether an answer is any good.
"""

from __future__ import annotations

import copy
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal

import torch
from PIL import Image, ImageDraw, ImageFont

from glm4v_ops.errors import Cancelled, GpuUnavailable, ModelRefused
from glm4v_ops.model.identity import resolve
from glm4v_ops.model.loading import Checkpoint, load
from glm4v_ops.model.prompt import Prompt, build_prompt, read_answer
from glm4v_ops.quality.garble import judge_answer
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import Recipe, TaskName, TaskSection

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


@dataclass(slots=True)
class _Prefix:
    """`[user][image]` of a batch, prefilled: the KV cache, which of its positions are real, where text goes on."""

    cache: Any
    mask: torch.Tensor  # (rows, length), 1 for real positions
    next_position: torch.Tensor  # (rows, 1)
    tokens: list[int]  # real positions of each row


class Engine:
    """A loaded model that answers a recipe's tasks. One engine a process, one call at a time."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe) -> None:
        self.checkpoint, self.recipe = checkpoint, recipe
        self.device = checkpoint.device
        self._prompts: dict[TaskName, Prompt] = {
            name: build_prompt(checkpoint.tokenizer, task.prompt, thinking=recipe.model.thinking)
            for name, task in recipe.tasks.items()
        }
        prefixes = {prompt.prefix for prompt in self._prompts.values()}
        if len(prefixes) != 1:
            raise ModelRefused(
                "the chat template puts a task's text before the image", remedy="use the checkpoint's own template"
            )
        self._prefix_ids = prefixes.pop()

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        *,
        base: Path | None = None,
        device: str = "auto",
        progress: Callable[[str], None] = log.info,
    ) -> Engine:
        """Load the recipe's checkpoint and make it answer a reference picture.

        `base` is the folder a relative `model.id` starts from. Raises `ModelRefused`, `GpuUnavailable`.
        """
        started = time.monotonic()
        recipe = resolve(recipe, base)
        engine = cls(load(recipe, base=base, device=device, progress=progress), recipe)
        engine.self_test()
        progress(f"{recipe.model_name} answers after {time.monotonic() - started:.1f} s on {engine.device}")
        return engine

    def self_test(self) -> None:
        """One reference answer a task. Raises `ModelRefused` when the model raises, says nothing, or talks garbage."""
        for task, answer in self.answer([reference_picture()], list(self._prompts))[0].items():
            if isinstance(answer, ModelFault):
                raise ModelRefused(f"the self-test's {task} raised: {answer.message}", remedy="check the checkpoint")
            verdict = judge_answer(task, self.recipe.tasks[task].prompt, answer.text, answer.finish_reason)
            # A small limit in the recipe may cut a good answer short: that is no broken model.
            if verdict.outcome not in (Outcome.OK, Outcome.TRUNCATED):
                raise ModelRefused(
                    f"the self-test's {task} is {verdict.outcome.value} ({verdict.reason}): {answer.text[:80]!r}",
                    remedy="the weights, the dtype or the tokenizer are not what the recipe says",
                )

    def answer(self, images: Sequence[Image.Image], tasks: Sequence[TaskName], cancel: Event | None = None) -> list[Answers]:
        """Answer `tasks` about each RGB image, in order. At most the recipe's batch size at once.

        A batch that raises is halved until the one image that raises is alone: its answers are `ModelFault`.
        Raises `Cancelled` within one token of `cancel`, `GpuUnavailable` when the device is lost or full.
        """
        size = self.recipe.run.batch_size
        found: list[Answers] = []
        for start in range(0, len(images), size):
            found += self._guarded(images[start : start + size], tasks, cancel)
        return found

    def _guarded(self, images: Sequence[Image.Image], tasks: Sequence[TaskName], cancel: Event | None) -> list[Answers]:
        try:
            return self._batch(images, tasks, cancel)
        except (Cancelled, GpuUnavailable):
            raise
        except Exception as error:  # noqa: BLE001 - whatever the model raises on one image is that image's fault
            message = f"{type(error).__name__}: {error}"
            full = isinstance(error, torch.OutOfMemoryError)
            if not full and (isinstance(error, torch.AcceleratorError) or "CUDA error" in message):
                raise GpuUnavailable(f"the GPU failed: {message}", remedy="see nvidia-smi and dmesg") from error
            if len(images) == 1:
                if full:
                    raise GpuUnavailable(f"no memory for one image: {message}", remedy="lower image.max_side") from error
                return [dict.fromkeys(tasks, ModelFault(message))]
            log.warning("a batch of %d raised (%s): halving it", len(images), message)
        half = len(images) // 2
        return self._guarded(images[:half], tasks, cancel) + self._guarded(images[half:], tasks, cancel)

    @torch.inference_mode()
    def _batch(self, images: Sequence[Image.Image], tasks: Sequence[TaskName], cancel: Event | None) -> list[Answers]:
        started = time.monotonic()
        prefix = self._prefill_images(images)
        seeds = [zlib.crc32(image.tobytes()) for image in images]
        found: list[Answers] = [{} for _ in images]
        for number, task in enumerate(tasks, start=1):
            own = prefix if number == len(tasks) else copy.deepcopy(prefix)
            for row, answer in self._run_task(own, task, seeds, started, cancel):
                found[row][task] = answer
        return found

    def _prefill_images(self, images: Sequence[Image.Image]) -> _Prefix:
        model, config = self.checkpoint.model.model, self.checkpoint.model.config
        inputs = self.checkpoint.image_processor(images=list(images), return_tensors="pt")
        grid = inputs["image_grid_thw"].to(self.device)
        # The dtype of the module that receives them: the first vision parameter may be a packed 4-bit one.
        pixels = inputs["pixel_values"].to(self.device, model.visual.patch_embed.proj.weight.dtype)
        features = model.get_image_features(pixels, grid).pooler_output
        counts = [len(feature) for feature in features]
        length = len(self._prefix_ids) + max(counts)
        pad = self.checkpoint.tokenizer.pad_token_id
        rows = [[*self._prefix_ids, *[config.image_token_id] * count] for count in counts]
        ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=self.device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=self.device)
        # Not `ids == image_token_id` alone: a pad may share an id with a special token.
        is_image = (ids == config.image_token_id) & mask.bool()
        positions, _ = model.get_rope_index(ids, is_image.int(), image_grid_thw=grid, attention_mask=mask)
        embeds = model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter(is_image.unsqueeze(-1), torch.cat(list(features)).to(embeds.dtype))
        output = model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True
        )
        following = positions.amax(dim=(0, 2)).unsqueeze(1) + 1
        return _Prefix(output.past_key_values, mask, following, [len(row) for row in rows])

    def _run_task(
        self, prefix: _Prefix, task: TaskName, seeds: list[int], started: float, cancel: Event | None
    ) -> Iterable[tuple[int, Answer]]:
        """Decode one task for every row; yields (row, answer) as rows stop. Uses `prefix` up."""
        settings, suffix = self.recipe.tasks[task], self._prompts[task].suffix
        rows = list(range(len(seeds)))  # the original row at each place of the shrinking batch
        written: list[list[int]] = [[] for _ in rows]
        choose = _Chooser(settings, [settings.seed * 2**32 + seed for seed in seeds], self.device)
        ids = torch.tensor(suffix, device=self.device).expand(len(rows), -1)
        cache, mask, position = prefix.cache, prefix.mask, prefix.next_position
        while True:
            if cancel is not None and cancel.is_set():
                raise Cancelled("stopped while decoding")
            logits, mask, position = self._forward(ids, cache, mask, position)
            tokens = choose(logits, rows, written)
            going = []
            for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
                stopped = token in self.checkpoint.stop_ids
                if not stopped:
                    written[row].append(token)
                if stopped or len(written[row]) >= settings.max_new_tokens:
                    yield row, Answer(
                        text=read_answer(self.checkpoint.tokenizer, written[row]),
                        finish_reason="stop" if stopped else "length",
                        tokens_in=prefix.tokens[row] + len(suffix),
                        tokens_out=len(written[row]) + stopped,
                        latency_ms=1000 * (time.monotonic() - started),
                    )
                else:
                    going.append(place)
            if not going:
                return
            if len(going) < len(rows):
                kept = torch.tensor(going, device=self.device)
                cache.batch_select_indices(kept)
                mask, position = mask[kept], position[kept]
                rows, tokens = [rows[place] for place in going], [tokens[place] for place in going]
            ids = torch.tensor(tokens, device=self.device).unsqueeze(1)

    def _forward(
        self, ids: torch.Tensor, cache: Any, mask: torch.Tensor, position: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Feed `ids` (rows, n); returns fp32 logits of the last (rows, vocabulary), the grown mask, the next position."""
        steps = torch.arange(ids.shape[1], device=self.device)
        mask = torch.cat([mask, mask.new_ones(ids.shape)], dim=1)
        output = self.checkpoint.model.model.language_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(position + steps).expand(3, -1, -1),
            past_key_values=cache,
            use_cache=True,
        )
        logits = self.checkpoint.model.lm_head(output.last_hidden_state[:, -1]).float()
        if not torch.isfinite(logits).all():
            raise FloatingPointError(f"logits are not finite in {self.recipe.model.dtype}")
        return logits, mask, position + len(steps)


class _Chooser:
    """The next token of each row: greedy at temperature 0, else sampled with a generator of the row's own."""

    def __init__(self, settings: TaskSection, seeds: list[int], device: torch.device) -> None:
        from transformers import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

        self._temperature = settings.temperature
        self._penalty = (
            RepetitionPenaltyLogitsProcessor(settings.repetition_penalty) if settings.repetition_penalty > 1 else None
        )
        self._top_p = TopPLogitsWarper(settings.top_p) if settings.top_p < 1 else None
        self._generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]

    def __call__(self, logits: torch.Tensor, rows: list[int], written: list[list[int]]) -> list[int]:
        if self._penalty is not None:
            for place, row in enumerate(rows):
                if written[row]:
                    past = torch.tensor([written[row]], device=logits.device)
                    logits[place] = self._penalty(past, logits[place : place + 1])[0]
        if self._temperature == 0:
            return logits.argmax(dim=-1).tolist()
        logits = logits / self._temperature
        if self._top_p is not None:
            logits = self._top_p(None, logits)
        chances = torch.softmax(logits, dim=-1)
        return [
            int(torch.multinomial(chances[place], 1, generator=self._generators[row])) for place, row in enumerate(rows)
        ]


def reference_picture() -> Image.Image:
    """What the self-test asks about: a red circle above the word OPEN, on white, 448 x 336 pixels."""
    picture = Image.new("RGB", (448, 336), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((174, 40, 274, 140), fill=(220, 30, 30))
    draw.text((224, 250), "OPEN", fill="black", anchor="mm", font=ImageFont.load_default(size=44))
    return picture
