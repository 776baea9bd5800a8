from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from glm4v_ops.model.sampler import Draft, Sampler
from glm4v_ops.recipe import TaskSection

CPU = torch.device("cpu")
RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
EVEN = torch.zeros(2, 1000)


def sampler(**settings: Any) -> Sampler:
    return Sampler(TaskSection.model_validate({"prompt": "?", **settings}), CPU)


def drafts(of: Sampler, *images: Image.Image) -> list[Draft]:
    return [of.draft(row, image, tokens_in=1) for row, image in enumerate(images)]


def test_temperature_0_takes_the_likeliest_token() -> None:
    greedy = sampler()
    assert greedy.choose(torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), drafts(greedy, RED, BLUE)) == [1, 0]


def test_a_draw_depends_on_the_picture_and_the_recipes_seed_and_on_nothing_else() -> None:
    drawn = {}
    for seed in (0, 1, 2**32, 2**63):
        drawing = sampler(temperature=1.0, seed=seed)
        red, blue = drawing.choose(EVEN.clone(), drafts(drawing, RED, BLUE))
        assert drawing.choose(EVEN.clone(), drafts(drawing, BLUE, RED)) == [blue, red]
        assert drawing.choose(EVEN[:1].clone(), drafts(drawing, RED)) == [red]
        drawn[seed] = (red, blue)
    numbers = [number for pair in drawn.values() for number in pair]
    assert len(set(numbers)) == len(numbers), "every seed and every picture draws its own"


def test_a_low_temperature_and_a_small_top_p_leave_the_likely_tokens() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, -9.0]]).repeat(2, 1)
    for settings in ({"temperature": 0.01}, {"temperature": 1.0, "top_p": 0.5}):
        drawing = sampler(**settings)
        going = drafts(drawing, RED, BLUE)
        assert {token for _ in range(50) for token in drawing.choose(logits.clone(), going)} == {0}
    drawing = sampler(temperature=1.0, top_p=0.9)
    going = drafts(drawing, RED, BLUE)
    assert {token for _ in range(50) for token in drawing.choose(logits.clone(), going)} == {0, 1}


def test_a_repetition_penalty_counts_against_what_the_same_answer_has_said() -> None:
    penalising = sampler(repetition_penalty=2.0)
    fresh, said = drafts(penalising, RED, BLUE)
    said.ids = [1, 1, 2]
    logits = torch.tensor([[3.0, 4.0, 5.0], [3.0, 4.0, 5.0]])
    assert penalising.choose(logits.clone(), [fresh, said]) == [2, 0]
    assert sampler().choose(logits, [fresh, said]) == [2, 2]
