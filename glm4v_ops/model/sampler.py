"""The next token of each row: greedy at temperature 0, else drawn.

Every row draws from a generator of its own, seeded by the recipe's seed and the image, so an answer does not depend on
what else is in its batch. Knows tokens and logits only.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from glm4v_ops.recipe import TaskSection


@dataclass(slots=True)
class Draft:
    """One row's answer as far as it is written."""

    row: int  # the image's place in the batch as it came
    tokens_in: int
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)


class Sampler:
    """Chooses tokens by one task's settings."""

    def __init__(self, settings: TaskSection, device: torch.device) -> None:
        from transformers import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

        self._seed = settings.seed
        self._device = device
        self._temperature = settings.temperature
        self._penalty = RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)
        self._top_p = TopPLogitsWarper(settings.top_p)

    def draft(self, row: int, image: Image.Image, tokens_in: int) -> Draft:
        """An empty answer about `image`."""
        # 32 bits, both mixed into all of them: the CPU's generator ignores the upper half of a seed.
        seed = zlib.crc32(str(self._seed).encode(), zlib.crc32(image.tobytes()))
        return Draft(row, tokens_in, torch.Generator(self._device).manual_seed(seed))

    def choose(self, logits: torch.Tensor, drafts: Sequence[Draft]) -> list[int]:
        """One token a draft. `logits` (drafts, vocabulary) is changed."""
        if self._penalty.penalty != 1.0:
            for place, draft in enumerate(drafts):
                # Only what the answer itself has said: the prompt's words may well come again.
                said = torch.tensor([draft.ids], dtype=torch.long, device=self._device)
                logits[place] = self._penalty(said, logits[place : place + 1])[0]
        if self._temperature == 0:
            return logits.argmax(dim=-1).tolist()
        chances = torch.softmax(self._top_p(None, logits / self._temperature), dim=-1)
        return [
            int(torch.multinomial(row, 1, generator=draft.generator))
            for row, draft in zip(chances, drafts, strict=True)
        ]
