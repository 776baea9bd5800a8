"""A small glm4v checkpoint that knows five pictures by heart.

The demo model's own class, tokenizer, template and image path, two layers deep, taught here in seconds what to answer
about a handful of pictures of different sizes. So it looks at pixels, stops by itself and passes the engine's
self-test, as random weights cannot; asked about anything else it answers by rote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import Glm4vConfig
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

from demo.blueprint import build_config, build_model, build_tokenizer
from glm4v_ops.model.reference import reference_picture
from glm4v_ops.recipe import Recipe, TaskName

PROMPTS: dict[TaskName, str] = {"caption": "描述这张图片。", "text": "Read out all text."}


def picture(size: tuple[int, int], colour: str, word: str) -> Image.Image:
    """A square of `colour` and a word, on white."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.rectangle((width // 4, height // 8, width * 3 // 4, height // 2), fill=colour)
    if word:
        font = ImageFont.load_default(size=height // 6)
        draw.text((width // 2, height * 3 // 4), word, fill="black", anchor="mm", font=font)
    return image


#: Pictures of different sizes and what the model says of them: caption and text.
KNOWN: list[tuple[Image.Image, str, str]] = [
    (reference_picture(), "A red circle above a word.", "OPEN"),
    (picture((448, 224), "blue", "SALE"), "A blue box over a word, wide.", "SALE"),
    (picture((224, 448), "green", "Nr. 7"), "一个绿色的方块。", "Nr. 7"),
    (picture((320, 320), "black", "茶"), "A black box.", "茶\n¥12"),
    (picture((300, 200), "orange", ""), "An orange box and no word at all.", ""),
]
PICTURES = [image for image, _, _ in KNOWN]
SAID: list[dict[TaskName, str]] = [{"caption": caption, "text": text} for _, caption, text in KNOWN]


def recipe(folder: Path, tasks: dict[TaskName, dict[str, Any]] | None = None, **model: Any) -> Recipe:
    """A recipe for the checkpoint in `folder`: fp32, unquantised, batches of four, unless said otherwise."""
    settings = tasks or {name: {"max_new_tokens": 40} for name in PROMPTS}
    return Recipe.model_validate(
        {
            "name": "test",
            "model": {"id": str(folder), "quantization": "none", "dtype": "float32", **model},
            "tasks": {name: {"prompt": PROMPTS[name], **changes} for name, changes in settings.items()},
            "run": {"batch_size": 4},
        }
    )


def export(folder: Path) -> Path:
    """Teach a new model and write it as a hub checkpoint is: safetensors (fp32), tokenizer, template, processor."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(5 * [caption for _, caption, _ in KNOWN])
    processor = Glm4vImageProcessorPil(size={"shortest_edge": 2 * 112 * 112, "longest_edge": 2 * 168 * 140})
    config = _smaller(build_config(tokenizer))
    model = build_model(config)
    _learn(model, _lessons(tokenizer, processor, config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _smaller(config: Glm4vConfig) -> Glm4vConfig:
    """Half as wide, two layers deep; every quantised size is still a multiple of 64."""
    sizes = config.to_dict()
    width = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.08}
    sizes["text_config"] |= {**width, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes["vision_config"] |= {**width, "depth": 2, "num_heads": 2, "out_hidden_size": 128}
    return Glm4vConfig(**sizes)


def _lessons(tokenizer: Any, processor: Any, config: Any) -> dict[str, torch.Tensor]:
    """All pictures with all answers as one right-padded batch; only answers count for the loss."""
    asked = [(image, task, said[task]) for image, said in zip(PICTURES, SAID, strict=True) for task in PROMPTS]
    images = processor(images=[image for image, _, _ in asked], return_tensors="pt")
    rows, labels = [], []
    for (_, task, answer), grid in zip(asked, images["image_grid_thw"], strict=True):
        question = (
            f"[gMASK]<sop><|user|>\n<|begin_of_image|>{'<|image|>' * (int(grid.prod()) // 4)}<|end_of_image|>"
            f"{PROMPTS[task]}<|assistant|>\n"
        )
        prompt = tokenizer(question, add_special_tokens=False)["input_ids"]
        reply = tokenizer(answer + "<|user|>", add_special_tokens=False)["input_ids"]
        rows.append(prompt + reply)
        labels.append([-100] * len(prompt) + reply)
    length = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "labels": torch.tensor([row + [-100] * (length - len(row)) for row in labels]),
        **images,
    }


def _learn(model: Any, lessons: dict[str, torch.Tensor]) -> None:
    """Some 30 steps; well past the point where the answers are right, so that 4 bits do not change them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(200):
        loss = model(**lessons).loss
        if loss.item() < 0.004:
            return
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    raise AssertionError(f"the test checkpoint did not learn its pictures: loss {loss.item():.3f}")
