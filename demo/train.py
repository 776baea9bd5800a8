"""Train the demo model from nothing, in one command on one GPU: `python -m demo.train`.

Prints loss and speed as it goes, saves its state every few minutes and resumes from it, ends with the
scores of `demo.evaluate` on pictures of a seed never trained on. Only the dense path below is its own;
the weights are those of transformers' class, and a test holds that both paths give the same logits.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Glm4vForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.glm4v.modeling_glm4v import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from demo.blueprint import MERGE, PATCH, STOP_TOKENS, build_config, build_image_processor, build_model, build_tokenizer
from demo.postcards import render
from demo.stream import Stream

CAPTION_PROMPT = "Describe the image."
TEXT_PROMPT = "Read out all text."
#: Pictures of this seed are trained on; every other seed is unseen.
TRAINING_SEED = 0
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
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


def encode(model: Glm4vForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Features (n, tokens, hidden) of equally sized images, pixels uint8 (n, height, width, 3).

    The same arithmetic as `model.model.visual`, but attention sees (n, heads, patches, dim) at once where
    transformers, without flash-attn, walks over the images one by one.
    """
    visual = model.model.visual
    count, height, width, _ = pixels.shape
    rows, columns = height // PATCH, width // PATCH
    mean, std = (torch.tensor(value, device=pixels.device).view(1, 3, 1, 1) for value in (MEAN, STD))
    image = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    image = image.reshape(count, 3, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH)
    patches = image.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(count, rows * columns, 3, PATCH * PATCH)
    # A still image fills both frames of the temporal patch: the kernel's two halves add up.
    kernel = visual.patch_embed.proj.weight.sum(dim=2).reshape(visual.patch_embed.embed_dim, -1)
    hidden = F.linear(patches.flatten(2), kernel, visual.patch_embed.proj.bias)
    hidden = visual.post_conv_layernorm(hidden)
    grid = torch.tensor([[1, rows, columns]], device=pixels.device)
    positions = get_vision_position_ids(grid, MERGE).to(pixels.device)
    cos, sin = visual.rotary_pos_emb(hidden, positions)
    zeros = torch.zeros(rows * columns, hidden.shape[-1], device=pixels.device)
    learned = visual.embeddings(
        zeros, torch.tensor([rows * columns], device=pixels.device), grid, positions[:, 0], positions[:, 1]
    )
    hidden = hidden + learned.to(hidden.dtype)
    for block in visual.blocks:
        hidden = hidden + _attend(block.attn, block.norm1(hidden), cos, sin)
        hidden = hidden + block.mlp(block.norm2(hidden))
    hidden = visual.post_layernorm(hidden).reshape(-1, MERGE, MERGE, hidden.shape[-1]).permute(0, 3, 1, 2)
    kernel = visual.downsample.weight.reshape(visual.downsample.out_channels, -1)
    merged = F.linear(hidden.reshape(hidden.shape[0], -1), kernel, visual.downsample.bias)
    return visual.merger(merged).reshape(count, rows * columns // MERGE**2, -1)


def _attend(attention: nn.Module, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    count, length, width = hidden.shape
    query, key, value = attention.qkv(hidden).reshape(count, length, 3, attention.num_heads, -1).unbind(2)
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return attention.proj(mixed.transpose(1, 2).reshape(count, length, width))


class Question:
    """One prompt: its token ids around the image's placeholder, rendered by the checkpoint's own chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: str, image_token_id: int) -> None:
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        rendered = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(rendered, add_special_tokens=False).input_ids
        at = ids.index(image_token_id)
        self.before, self.after = ids[:at], ids[at + 1 :]


def answer_loss(
    model: Glm4vForConditionalGeneration, features: torch.Tensor, question: Question, answers: torch.Tensor, rows: int
) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens (n, length; -1 is no token), given features (n, tokens, hidden)."""
    count, image_tokens, _ = features.shape
    language, device = model.model.language_model, features.device
    answers = answers[:, : int((answers >= 0).sum(1).max())].long()
    before, after = (torch.tensor(ids, device=device).expand(count, -1) for ids in (question.before, question.after))
    embed = language.embed_tokens
    hidden = torch.cat([embed(before), features, embed(after), embed(answers[:, :-1].clamp(min=0))], dim=1)
    positions = mrope_positions(len(question.before), rows, image_tokens // rows, hidden.shape[1], device)
    # Padding stands on the right, after every real token: causal attention alone keeps it unseen.
    output = language(inputs_embeds=hidden, position_ids=positions.unsqueeze(1).expand(3, count, -1), use_cache=False)
    start = before.shape[1] + image_tokens + after.shape[1] - 1
    logits = model.lm_head(output.last_hidden_state[:, start:])
    return F.cross_entropy(logits.flatten(0, 1).float(), answers.flatten(), ignore_index=-1)


def mrope_positions(before: int, rows: int, columns: int, length: int, device: torch.device) -> torch.Tensor:
    """Positions (3, length) of text, one image of rows x columns tokens, text: as `Glm4vModel.get_rope_index` gives."""
    text = torch.arange(length, device=device).expand(3, -1).clone()
    cells = torch.arange(rows * columns, device=device)
    image = torch.stack([torch.zeros_like(cells), cells // columns, cells % columns]) + before
    text[:, before : before + rows * columns] = image
    text[:, before + rows * columns :] += max(rows, columns) - rows * columns
    return text


def quantised_linears(model: Glm4vForConditionalGeneration) -> list[nn.Parameter]:
    """The weights that NF4 will hold in 4 bit: the language model's linear layers."""
    layers = model.model.language_model.layers
    return [module.weight for module in layers.modules() if isinstance(module, nn.Linear)]


def nf4_roundtrip(weight: torch.Tensor) -> torch.Tensor:
    """The weight as NF4 gives it back: blocks of 64, scaled by their largest magnitude, nearest of 16 levels."""
    levels = torch.tensor(NF4_LEVELS, device=weight.device)
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    borders = (levels[1:] + levels[:-1]) / 2
    return (levels[torch.bucketize(blocks / scale, borders)] * scale).reshape(weight.shape)


class Trainer:
    """Optimiser, schedule and state. One step is one batch: every picture with both questions."""

    def __init__(self, model: Glm4vForConditionalGeneration, arguments: argparse.Namespace) -> None:
        self.model, self.steps, self.step = model, arguments.steps, 0
        matrices, others = [], []
        for name, parameter in model.named_parameters():
            hidden = parameter.ndim == 2 and (".blocks." in name or ".layers." in name or ".merger." in name)
            (matrices if hidden else others).append(parameter)
        self.optimisers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=arguments.lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=arguments.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
        ]
        self.peak = arguments.lr
        self.quantise_from = int(arguments.steps * 0.7)

    def learning_rate(self) -> float:
        """Warm-up over 300 steps, flat, then straight down to nothing over the last 45 %."""
        rest = (self.steps - self.step) / (0.45 * self.steps)
        return self.peak * min(1.0, (self.step + 1) / 300, max(rest, 0.0))

    def advance(self, losses: Any) -> tuple[float, ...]:
        """One step on `losses()`. In the last part every other step sees the weights as NF4 gives them back.

        The gradient is then taken at the rounded weights and applied to the exact ones (straight-through),
        so that the model comes to sit where rounding does not hurt it.
        """
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.learning_rate()
        exact = []
        if self.step >= self.quantise_from and self.step % 2:
            for weight in quantised_linears(self.model):
                exact.append((weight, weight.data))
                weight.data = nf4_roundtrip(weight.data)
        values = losses()
        sum(values).backward()
        for weight, data in exact:
            weight.data = data
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        return tuple(value.detach() for value in values)

    def save(self, folder: Path, drawn: int) -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, optimiser in enumerate(self.optimisers):
            for index, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{number}.{index}.{key}": torch.as_tensor(v) for key, v in state.items()}
        temporary = folder / "state.safetensors.new"
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, temporary, {"step": str(self.step), "drawn": str(drawn)}
        )
        temporary.replace(folder / "state.safetensors")

    def resume(self, folder: Path) -> int:
        """Pictures drawn before; 0 when there is nothing to resume."""
        path = folder / "state.safetensors"
        if not path.exists():
            return 0
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path, device=str(next(self.model.parameters()).device))
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        for number, optimiser in enumerate(self.optimisers):
            content = optimiser.state_dict()
            for name, value in tensors.items():
                if name.startswith(f"optimiser.{number}."):
                    _, _, index, key = name.split(".")
                    content["state"].setdefault(int(index), {})[key] = value.cpu() if key == "step" else value
            optimiser.load_state_dict(content)
        self.step = int(metadata["step"])
        return int(metadata["drawn"])


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train for `--steps` steps, or until `--stop-after` minutes have passed; returns the facts for the model card."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(
        render(TRAINING_SEED + 1, index)[1].caption for index in range(arguments.vocabulary_sample)
    )
    config = build_config(tokenizer)
    model = build_model(config).to(device)
    trainer = Trainer(model, arguments)
    drawn_before = trainer.resume(arguments.state)
    stop_id = tokenizer.convert_tokens_to_ids(STOP_TOKENS[0])
    questions = [Question(tokenizer, prompt, config.image_token_id) for prompt in (CAPTION_PROMPT, TEXT_PROMPT)]
    stream = Stream(
        tokenizer, stop_id, seed=TRAINING_SEED, first=drawn_before, workers=arguments.workers,
        capacity=arguments.capacity, device=device,
    )  # fmt: skip
    started = saved = reported = time.monotonic()
    while stream.ready < arguments.fill:
        time.sleep(0.2)
    print(f"step {trainer.step}: {stream.drawn} pictures at hand after {time.monotonic() - started:.0f} s", flush=True)

    def losses() -> tuple[torch.Tensor, ...]:
        pixels, captions, texts = stream.batch(arguments.batch)
        with torch.autocast(device.type, torch.bfloat16):
            features = encode(model, pixels)
            rows = pixels.shape[1] // (PATCH * MERGE)
            return tuple(
                answer_loss(model, features, question, answers, rows)
                for question, answers in zip(questions, (captions, texts), strict=True)
            )

    history: list[torch.Tensor] = []
    loop_started, first_step = time.monotonic(), trainer.step
    while trainer.step < arguments.steps:
        history.append(torch.stack(trainer.advance(losses)))
        now = time.monotonic()
        if trainer.step % 100 == 0 or trainer.step == arguments.steps:
            caption, text = torch.stack(history).mean(0).tolist()
            history = []
            speed = (trainer.step - first_step) * arguments.batch / (now - loop_started)
            drawn = drawn_before + stream.drawn
            print(
                f"step {trainer.step}/{arguments.steps} · caption {caption:.4f} · text {text:.4f} · "
                f"{speed:.0f} images/s · {drawn} drawn · {now - started:.0f} s",
                flush=True,
            )
            reported = now
        out_of_time = arguments.stop_after is not None and now - started > 60 * arguments.stop_after
        if now - saved > 120 or out_of_time or trainer.step == arguments.steps:
            trainer.save(arguments.state, drawn_before + stream.drawn)
            saved = now
        if out_of_time:
            break
    facts = {"steps": trainer.step, "drawn": drawn_before + stream.drawn, "seconds": round(reported - started)}
    export(model, tokenizer, arguments.out)
    return facts


def export(model: Glm4vForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the checkpoint as a hub checkpoint of the family is: bf16 safetensors, tokenizer, processor, template."""
    import copy

    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    build_image_processor().save_pretrained(folder)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo/model"), help="the checkpoint's folder")
    parser.add_argument(
        "--state", type=Path, default=Path(".demo/training"), help="where training state is kept, to resume"
    )
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=256, help="pictures a step, each with both questions")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--workers", type=int, default=16, help="processes that draw")
    parser.add_argument("--capacity", type=int, default=16384, help="pictures kept of each size, a multiple of 16")
    parser.add_argument("--fill", type=int, default=6000, help="pictures drawn before the first step")
    parser.add_argument("--vocabulary-sample", type=int, default=3000, help="captions read for the word list")
    parser.add_argument("--stop-after", type=float, help="minutes; state is saved, the next start goes on from there")
    parser.add_argument("--evaluate", type=int, default=500, help="pictures of an unseen seed to score at the end")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    options.state.mkdir(parents=True, exist_ok=True)
    facts = train(options)
    if options.evaluate and facts["steps"] >= options.steps:
        from demo.evaluate import evaluate

        facts["scores"] = evaluate(
            options.out, count=options.evaluate, seed=1001, quantization="none", device=options.device
        )
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
