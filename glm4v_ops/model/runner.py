"""The forward passes: images in, a context out; token ids in, logits out.

One batch at a time, left padded. The position ids of the image's patches are two-dimensional, so positions are kept
here and never left to the model to guess. Knows nothing of tasks, of how a token is chosen, or of text.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from glm4v_ops.model.loading import Checkpoint


@dataclass(slots=True)
class Context:
    """What the rows of a batch have read so far. `read_tokens` makes it longer, `keep` drops rows."""

    cache: Any  # transformers' KV cache
    mask: torch.Tensor  # (rows, length): 1 for what was read, 0 for padding
    position: torch.Tensor  # (rows, 1): of the token to be read next

    @property
    def lengths(self) -> list[int]:
        """Tokens read by each row, padding not counted."""
        return self.mask.sum(dim=1).tolist()

    def fork(self) -> Context:
        """A copy to go on from, apart from this one."""
        return copy.deepcopy(self)

    def keep(self, places: Sequence[int]) -> None:
        kept = torch.tensor(places, device=self.mask.device)
        self.cache.batch_select_indices(kept)
        self.mask, self.position = self.mask[kept], self.position[kept]


class Runner:
    """Runs a loaded glm4v model."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.device = checkpoint.device
        self._image_processor = checkpoint.image_processor
        self._model = checkpoint.model.model
        self._lm_head = checkpoint.model.lm_head
        self._image_id: int = checkpoint.model.config.image_token_id

    def read_images(self, prefix: Sequence[int], images: Sequence[Image.Image]) -> Context:
        """Encode each image and read `prefix` and it."""
        grid, features = self._encode(images)
        rows = [[*prefix, *[self._image_id] * len(feature)] for feature in features]
        length = max(len(row) for row in rows)
        padding = [length - len(row) for row in rows]
        # Padding may have any id: the mask says what is padding, never an id, since a family may pad with a stop token.
        ids = torch.tensor([[0] * pad + row for pad, row in zip(padding, rows, strict=True)], device=self.device)
        mask = torch.tensor([[0] * pad + [1] * (length - pad) for pad in padding], device=self.device)
        is_image = ids == self._image_id
        positions, _ = self._model.get_rope_index(ids, is_image.int(), image_grid_thw=grid, attention_mask=mask)
        embeddings = self._model.get_input_embeddings()(ids)
        embeddings = embeddings.masked_scatter(is_image.unsqueeze(-1), torch.cat(features).to(embeddings.dtype))
        output = self._model.language_model(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=True
        )
        return Context(output.past_key_values, mask, positions.amax(dim=(0, 2)).unsqueeze(1) + 1)

    def _encode(self, images: Sequence[Image.Image]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The patch grid of all images, and each one's features (tokens, hidden size)."""
        inputs = self._image_processor(images=list(images), return_tensors="pt")
        grid = inputs["image_grid_thw"].to(self.device)
        # The dtype of the module that receives them: the vision tower's first parameter may be a packed 4-bit one.
        pixels = inputs["pixel_values"].to(self.device, self._model.visual.patch_embed.proj.weight.dtype)
        return grid, self._model.get_image_features(pixels, grid).pooler_output

    def read_tokens(self, context: Context, ids: torch.Tensor) -> torch.Tensor:
        """Read `ids` (rows, n) after `context`; fp32 logits of what comes next (rows, vocabulary)."""
        context.mask = torch.cat([context.mask, context.mask.new_ones(ids.shape)], dim=1)
        steps = torch.arange(ids.shape[1], device=self.device)
        output = self._model.language_model(
            input_ids=ids,
            attention_mask=context.mask,
            position_ids=(context.position + steps).expand(3, -1, -1),
            past_key_values=context.cache,
            use_cache=True,
        )
        context.position = context.position + len(steps)
        logits: torch.Tensor = self._lm_head(output.last_hidden_state[:, -1]).float()
        if not logits.isfinite().all():
            raise FloatingPointError("the model's logits are not finite")
        return logits
