"""Train the demo model from nothing, in one command on one GPU: `python -m demo.train`.

Prints loss and speed as it goes, saves its state every few minutes and resumes from it, ends with the
scores of `demo.evaluate` on pictures of a seed never trained on. Only the dense path below is its own;
the weights are those of transformers' class, and a test holds that both paths give the same losses.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everyone in the field writes it
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Glm4vForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.glm4v.modeling_glm4v import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from demo.blueprint import MERGE, PATCH, STOP_TOKENS, build_config, build_image_processor, build_model, build_tokenizer
from demo.postcards import plan
from demo.stream import CAPTION_TOKENS, LETTERS, TEXT_TOKENS, Stream

CAPTION_PROMPT = "Describe the image."
TEXT_PROMPT = "Read out all text."
#: Pictures of this seed are trained on; every other seed is unseen.
TRAINING_SEED = 0
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
#: From this share of the time on, every other step sees the weights as NF4 gives them back.
QUANTISE_FROM = 0.7
#: The 16 levels of NormalFloat4 (QLoRA, arXiv 2305.14314, appendix E), as bitsandbytes has them.
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@lru_cache(maxsize=64)
def _constant(values: tuple[Any, ...], device: torch.device) -> torch.Tensor:
    """The values on the device, sent there once: each sending makes the training thread wait for the device."""
    return torch.tensor(values, device=device)


@lru_cache(maxsize=64)
def _grid(rows: int, columns: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Grid (1, 3) and positions (patches, 2) of one image of rows x columns patches."""
    grid = torch.tensor([[1, rows, columns]])
    return grid.to(device), get_vision_position_ids(grid, MERGE).to(device)


def encode(model: Glm4vForConditionalGeneration, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, tokens, hidden) and patches (n, patches, hidden) of images, pixels uint8 (n, height, width, 3).

    The same arithmetic as `model.model.visual`, but attention sees (n, heads, patches, dim) at once where
    transformers, without flash-attn, walks over the images one by one.
    """
    visual, device = model.model.visual, pixels.device
    count, height, width, _ = pixels.shape
    rows, columns = height // PATCH, width // PATCH
    mean, std = (_constant(value, device).view(1, 3, 1, 1) for value in (MEAN, STD))
    image = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    image = image.reshape(count, 3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
    patches = image.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(count, rows * columns, 3, PATCH * PATCH)
    # A still image fills both frames of the temporal patch: the kernel's two halves add up.
    kernel = visual.patch_embed.proj.weight.sum(dim=2).reshape(visual.patch_embed.embed_dim, -1)
    hidden = F.linear(patches.flatten(2), kernel, visual.patch_embed.proj.bias)
    hidden = visual.post_conv_layernorm(hidden)
    grid, positions = _grid(rows, columns, device)
    cos, sin = visual.rotary_pos_emb(hidden, positions)
    zeros = torch.zeros(rows * columns, hidden.shape[-1], device=device)
    learned = visual.embeddings(zeros, grid[:, 1] * grid[:, 2], grid, positions[:, 0], positions[:, 1])
    hidden = hidden + learned.to(hidden.dtype)
    run = _compiled_block if device.type == "cuda" else _block
    for block in visual.blocks:
        hidden = run(block, hidden, cos, sin)
    seen = visual.post_layernorm(hidden)
    hidden = seen.reshape(-1, MERGE, MERGE, hidden.shape[-1]).permute(0, 3, 1, 2)
    kernel = visual.downsample.weight.reshape(visual.downsample.out_channels, -1)
    merged = F.linear(hidden.reshape(hidden.shape[0], -1), kernel, visual.downsample.bias)
    return visual.merger(merged).reshape(count, rows * columns // MERGE**2, -1), seen


def _block(block: Any, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    attention, (count, length, width) = block.attn, hidden.shape
    query, key, value = attention.qkv(block.norm1(hidden)).reshape(count, length, 3, attention.num_heads, -1).unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    hidden = hidden + attention.proj(mixed.transpose(1, 2).reshape(count, length, width))
    return hidden + block.mlp(block.norm2(hidden))


_compiled_block = torch.compile(_block, dynamic=True)


class Question:
    """One prompt: its token ids around the image's placeholder, rendered by the checkpoint's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: str, image_token_id: int) -> None:
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        rendered = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(rendered, add_special_tokens=False).input_ids
        at = ids.index(image_token_id)
        self.before, self.after = tuple(ids[:at]), tuple(ids[at + 1 :])


def answer_losses(
    model: Glm4vForConditionalGeneration,
    features: torch.Tensor,
    questions: Sequence[Question],
    answers: Sequence[torch.Tensor],
    rows: int,
) -> tuple[torch.Tensor, ...]:
    """Mean cross-entropy of each question's answers (n, length; -1 is no token), given features (n, tokens, hidden)."""
    count, image_tokens, _ = features.shape
    language, device = model.model.language_model, features.device
    embed, asked = language.embed_tokens, []
    for question, answer in zip(questions, answers, strict=True):
        before, after = (_constant(ids, device).expand(count, -1) for ids in (question.before, question.after))
        parts = [embed(before), features, embed(after), embed(answer[:, :-1].long().clamp(min=0))]
        asked.append(torch.cat(parts, dim=1))
    # Padding stands on the right, after every real token: causal attention alone keeps it unseen.
    longest = max(hidden.shape[1] for hidden in asked)
    hidden = torch.cat([F.pad(hidden, (0, 0, 0, longest - hidden.shape[1])) for hidden in asked])
    first = len(questions[0].before)  # the same for every question: nothing but the image stands before its prompt
    positions = mrope_positions(first, rows, image_tokens // rows, longest, device)
    output = language(
        inputs_embeds=hidden, position_ids=positions.unsqueeze(1).expand(3, len(hidden), -1), use_cache=False
    ).last_hidden_state
    losses = []
    for question, answer, rows_of_one in zip(questions, answers, output.split(count), strict=True):
        start = first + image_tokens + len(question.after) - 1
        logits = model.lm_head(rows_of_one[:, start : start + answer.shape[1]])
        losses.append(F.cross_entropy(logits.flatten(0, 1).float(), answer.long().flatten(), ignore_index=-1))
    return tuple(losses)


def letter_loss(head: nn.Linear, patches: torch.Tensor, letters: torch.Tensor) -> torch.Tensor:
    """Which characters have their middle in each patch (n, patches, hidden): binary cross-entropy a character.

    letters (n, most, 2) as in `Parcel`. Told where the letters stand, the vision tower learns them in minutes; from
    the answers alone it would first have to find out which part of the picture an answer's letter speaks of.
    """
    count, length, _ = patches.shape
    true = patches.new_zeros((count, length + 1, head.out_features), dtype=torch.float32)
    where = letters[..., 0].long()
    picture = torch.arange(count, device=patches.device).unsqueeze(1).expand_as(where)
    true[picture, torch.where(where < 0, length, where), letters[..., 1].long().clamp(min=0)] = 1.0
    total = F.binary_cross_entropy_with_logits(head(patches).float(), true[:, :length], reduction="sum")
    return total / (where >= 0).sum().clamp(min=1)


def mrope_positions(before: int, rows: int, columns: int, length: int, device: torch.device) -> torch.Tensor:
    """Positions (3, length) of text, one image of rows x columns tokens, text: as `Glm4vModel.get_rope_index` gives."""
    text = torch.arange(length, device=device).expand(3, -1).clone()
    cells = torch.arange(rows * columns, device=device)
    image = torch.stack([torch.zeros_like(cells), cells // columns, cells % columns]) + before
    text[:, before : before + rows * columns] = image
    text[:, before + rows * columns :] += max(rows, columns) - rows * columns
    return text


def quantised_linears(model: Glm4vForConditionalGeneration) -> list[torch.Tensor]:
    """The weights that NF4 will hold in 4 bit: the language model's linear layers."""
    layers = model.model.language_model.layers
    return [module.weight for module in layers.modules() if isinstance(module, nn.Linear)]


def nf4_roundtrip(weight: torch.Tensor) -> torch.Tensor:
    """The weight as NF4 gives it back: blocks of 64, scaled by their largest magnitude, nearest of 16 levels."""
    levels = _constant(NF4_LEVELS, weight.device)
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    borders = (levels[1:] + levels[:-1]) / 2
    return (levels[torch.bucketize(blocks / scale, borders)] * scale).reshape(weight.shape)


class Trainer:
    """Optimiser, schedule and state. One step is one batch: every picture with both questions.

    The schedule follows the clock, not the count of steps: a slower card takes fewer steps in the same time.
    """

    def __init__(self, model: Glm4vForConditionalGeneration, *, lr: float, seconds: float) -> None:
        self.model, self.peak, self.seconds = model, lr, seconds
        self.step, self.trained = 0, 0.0
        device = next(model.parameters()).device
        self.letters = nn.Linear(model.config.vision_config.hidden_size, 128, device=device)
        nn.init.constant_(self.letters.bias, -7.0)  # nearly every patch is without nearly every character
        self.modules = nn.ModuleDict({"model": model, "letters": self.letters})
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            hidden = parameter.ndim == 2 and (".blocks." in name or ".layers." in name or ".merger." in name)
            (matrices if hidden else others).append(parameter)
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([*others, *self.letters.parameters()], betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]

    @property
    def progress(self) -> float:
        """How much of the training's time is over, 0 to 1."""
        return min(1.0, self.trained / self.seconds)

    def learning_rate(self) -> float:
        """Warm-up over 200 steps, flat, then straight down to nothing over the last half of the time."""
        return self.peak * min(1.0, (self.step + 1) / 200, 2 * (1 - self.progress))

    @property
    def letter_weight(self) -> float:
        """The letter head leads at first and is silent in the second half."""
        return max(0.0, 1 - 2 * self.progress)

    def advance(self, losses: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        """One step on `losses()`. In the last part every other step sees the weights as NF4 gives them back.

        The gradient is then taken at the rounded weights and applied to the exact ones (straight-through),
        so that the model comes to sit where rounding does not hurt it.
        """
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.learning_rate()
        exact = []
        if self.progress >= QUANTISE_FROM and self.step % 2:
            for weight in quantised_linears(self.model):
                exact.append((weight, weight.data))
                weight.data = nf4_roundtrip(weight.data)
        values = losses()
        torch.stack(values).sum().backward()
        for weight, data in exact:
            weight.data = data
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return tuple(value.detach() for value in values)

    def save(self, folder: Path, drawn: int) -> None:
        tensors = {f"modules.{name}": value for name, value in self.modules.state_dict().items()}
        for number, optimiser in enumerate(self.optimisers):
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{number}.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        metadata = {"step": str(self.step), "trained": str(self.trained), "drawn": str(drawn)}
        temporary = folder / "state.safetensors.new"
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)
        temporary.replace(folder / "state.safetensors")

    def resume(self, folder: Path) -> int:
        """Pictures drawn before; 0 when there is nothing to resume."""
        path = folder / "state.safetensors"
        if not path.exists():
            return 0
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path, device=str(next(self.model.parameters()).device))
        self.modules.load_state_dict({k[8:]: v for k, v in tensors.items() if k.startswith("modules.")})
        for number, optimiser in enumerate(self.optimisers):
            content = optimiser.state_dict()
            for name, value in tensors.items():
                if name.startswith(f"optimiser.{number}."):
                    _, _, index, key = name.split(".")
                    content["state"].setdefault(int(index), {})[key] = value.cpu() if key == "step" else value
            optimiser.load_state_dict(content)
        self.step, self.trained = int(metadata["step"]), float(metadata["trained"])
        return int(metadata["drawn"])


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one batch of a `Stream` says about the model: a loss for each question, and that of the letter head."""

    trainer: Trainer
    questions: Sequence[Question]
    device: torch.device

    def losses(self, pixels: torch.Tensor, *answers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"
        ):  # a CPU is slow at it
            features, patches = encode(self.trainer.model, pixels)
            rows = pixels.shape[1] // (PATCH * MERGE)
            caption, text = answer_losses(self.trainer.model, features, self.questions, answers[:2], rows)
            letters = letter_loss(self.trainer.letters, patches, answers[2])
            return caption, text, letters * self.trainer.letter_weight

    def rehearse(self, batch: int) -> None:
        """Compile, on made-up pictures; no weight changes."""
        pixels = torch.zeros((batch, 224, 336, 3), dtype=torch.uint8, device=self.device)
        made_up = [pixels.new_ones(batch, *rest) for rest in ((CAPTION_TOKENS,), (TEXT_TOKENS,), (LETTERS, 2))]
        torch.stack(self.losses(pixels, *made_up)).sum().backward()
        self.trainer.modules.zero_grad(set_to_none=True)


class Log:
    """Means of the losses and the speed, a line every 200 steps."""

    def __init__(self, trainer: Trainer, batch: int) -> None:
        self.trainer, self.batch = trainer, batch
        self._history: list[torch.Tensor] = []
        self._begun = time.monotonic()

    def add(self, values: tuple[torch.Tensor, ...], drawn: int) -> None:
        self._history.append(torch.stack(values))
        if len(self._history) == 200:
            self.write(drawn)

    def write(self, drawn: int) -> None:
        """Print the steps since the last line, if any. Raises `RuntimeError` when the loss is no number any more."""
        if not self._history:
            return
        trainer = self.trainer
        # Reading them waits for the device, so the clock is honest after it.
        caption, text, letters = torch.stack(self._history).mean(0).tolist()
        if not math.isfinite(caption + text + letters):
            raise RuntimeError(f"the loss is {caption} at step {trainer.step}: start again with a smaller --lr")
        speed = len(self._history) * self.batch / (time.monotonic() - self._begun)
        self._history, self._begun = [], time.monotonic()
        print(
            f"step {trainer.step} · {trainer.progress:.1%} · caption {caption:.4f} · text {text:.4f} · "
            f"letters {letters:.3f} · {speed:.0f} images/s · {drawn} drawn · {trainer.trained:.0f} s",
            flush=True,
        )


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train for `--minutes` in all, or stop after `--stop-after` of them; returns the facts for the model card."""
    begun = time.monotonic()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    tokenizer = build_tokenizer(plan(TRAINING_SEED + 1, index).caption for index in range(arguments.vocabulary_sample))
    config = build_config(tokenizer)
    model = build_model(config).to(device)
    if device.type == "cuda":
        for layer in model.model.language_model.layers:
            layer.compile(dynamic=True)
    trainer = Trainer(model, lr=arguments.lr, seconds=60 * arguments.minutes)
    drawn_before = trainer.resume(arguments.state)
    questions = [Question(tokenizer, prompt, config.image_token_id) for prompt in (CAPTION_PROMPT, TEXT_PROMPT)]
    lesson = Lesson(trainer, questions, device)
    with Stream(
        tokenizer, tokenizer.convert_tokens_to_ids(STOP_TOKENS[0]), seed=TRAINING_SEED, first=drawn_before,
        workers=arguments.workers, capacity=arguments.capacity, device=device,
    ) as stream:  # fmt: skip
        if device.type == "cuda":  # while the workers draw
            lesson.rehearse(arguments.batch)
        while stream.drawn < arguments.fill:
            stream.fill(1, wait=True)
        print(
            f"step {trainer.step}: {stream.drawn} pictures at hand after {time.monotonic() - begun:.0f} s", flush=True
        )

        def keep() -> None:
            # The state comes last: whoever resumes from a finished one finds its checkpoint written.
            export(model, tokenizer, arguments.out)
            trainer.save(arguments.state, drawn_before + stream.drawn)

        log, trained_before, saved, elapsed = Log(trainer, arguments.batch), trainer.trained, time.monotonic(), 0.0
        stop = math.inf if arguments.stop_after is None else 60 * arguments.stop_after
        while trainer.progress < 1.0 and elapsed <= stop:
            values = trainer.advance(lambda: lesson.losses(*stream.batch(arguments.batch)))
            elapsed = time.monotonic() - begun
            trainer.trained = trained_before + elapsed
            log.add(values, drawn_before + stream.drawn)
            if time.monotonic() - saved > 60:
                keep()
                saved = time.monotonic()
        log.write(drawn_before + stream.drawn)
        keep()
        drawn = drawn_before + stream.drawn
    return {
        "steps": trainer.step,
        "batch": arguments.batch,
        "pictures_drawn": drawn,
        "seconds": round(trainer.trained),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "finished": trainer.progress == 1.0,
    }


def export(model: Glm4vForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the checkpoint as a hub checkpoint of the family is: bf16 safetensors, tokenizer, processor, template."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    build_image_processor().save_pretrained(folder)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo/model"), help="the checkpoint's folder")
    parser.add_argument(
        "--state", type=Path, default=Path(".demo/training"), help="where training state is kept, to resume"
    )
    parser.add_argument("--minutes", type=float, default=5.6, help="time in all, over every start")
    parser.add_argument("--batch", type=int, default=256, help="pictures a step, each with both questions")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=13, help="processes that draw")
    parser.add_argument("--capacity", type=int, default=8192, help="pictures kept of each size, a multiple of 16")
    parser.add_argument("--fill", type=int, default=5000, help="pictures drawn before the first step")
    parser.add_argument("--vocabulary-sample", type=int, default=1500, help="captions read for the word list")
    parser.add_argument("--stop-after", type=float, help="minutes of this start; the next one goes on from there")
    parser.add_argument("--evaluate", type=int, default=500, help="pictures of an unseen seed to score at the end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    options.state.mkdir(parents=True, exist_ok=True)
    facts = train(options)
    if options.evaluate and facts["finished"]:
        from demo.evaluate import evaluate

        facts["scores"] = evaluate(
            options.out, count=options.evaluate, seed=1001, quantization="none", device=options.device
        )
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
