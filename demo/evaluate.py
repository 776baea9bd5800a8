"""How right the demo model is: `python -m demo.evaluate --count 500 --seed 1001 --quantization nf4`.

Pictures go the pipeline's own way: file bytes, its decoder, its engine with `recipes/demo.yaml`. Prints one JSON
object: the scores of `demo.scoring`, what was asked of which checkpoint, and how long it took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from demo.postcards import draw
from demo.scoring import score
from glm4v_ops.errors import Glm4vError, ModelRefused
from glm4v_ops.model.engine import Answer, Engine, ModelFault
from glm4v_ops.recipe import Quantization, Recipe, load_recipe
from glm4v_ops.source.image import decode

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "demo.yaml"


def _recipe(model: Path | None, quantization: str, dtype: str | None) -> Recipe:
    recipe = load_recipe(RECIPE)
    changed: dict[str, Any] = {"quantization": Quantization(quantization)}
    if model:
        changed["id"] = str(model.resolve())
    if dtype:
        changed["dtype"] = dtype
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changed)})


def evaluate(
    model: Path | None = None,
    *,
    count: int,
    seed: int,
    quantization: str = "nf4",
    dtype: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Score the checkpoint in the folder `model` (default: the recipe's) on `count` pictures of `seed`."""
    recipe = _recipe(model, quantization, dtype)
    engine = Engine.load(recipe, base=RECIPE.parent, device=device)
    rows: list[dict[str, Any]] = []
    seconds, batch = 0.0, recipe.run.batch_size
    for first in range(0, count, batch):
        cards = [draw(seed, index) for index in range(first, min(count, first + batch))]
        images = [decode(card.data, recipe.image).image for card in cards]
        started = time.monotonic()
        answers = engine.answer(images, ["caption", "text"])
        seconds += time.monotonic() - started
        for index, (card, answer) in enumerate(zip(cards, answers, strict=True), first):
            caption, text = (_said(reply, index) for reply in answer.values())
            rows.append({"caption": caption, "text": text, "true_text": card.text, "facts": card.facts})
        print(f"{len(rows)} of {count} pictures", end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        **score(rows),
        "seed": seed,
        "quantization": quantization,
        "dtype": engine.recipe.model.dtype,
        "device": str(engine.device),
        "revision": engine.recipe.model.revision,
        "seconds": round(seconds, 1),
    }


def _said(reply: Answer | ModelFault, index: int) -> str:
    if isinstance(reply, ModelFault):  # a score would hide it
        raise ModelRefused(
            f"the model raised on picture {index}: {reply.message}", remedy="mend the model, then score it"
        )
    return reply.text


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500, metavar="N", help="pictures (default 500)")
    parser.add_argument("--seed", type=int, default=1001, metavar="S", help="their series; 0 was trained on")
    parser.add_argument("--quantization", choices=[each.value for each in Quantization], default="nf4")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], help="default: the recipe's")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint (default: the recipe's)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error("--count must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        found = evaluate(
            options.model,
            count=options.count,
            seed=options.seed,
            quantization=options.quantization,
            dtype=options.dtype,
            device=options.device,
        )
    except Glm4vError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, ensure_ascii=False, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
