from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everyone in the field writes it
from PIL import Image
from transformers import Glm4vConfig, Glm4vForConditionalGeneration, PreTrainedTokenizerFast

from demo import train
from demo.blueprint import build_config, build_image_processor, build_model, build_tokenizer
from demo.evaluate import RECIPE
from demo.postcards import plan
from demo.train import Lesson, Log, Question, Trainer
from glm4v_ops.recipe import load_recipe

CPU = torch.device("cpu")


def small(tokenizer: PreTrainedTokenizerFast) -> Glm4vConfig:
    """The demo model with a quarter of its width and fewer layers: a step of the real one takes 10 s on a CPU."""
    content = build_config(tokenizer).to_dict()
    content["text_config"] |= {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    content["text_config"] |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    content["vision_config"] |= {"hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 64}
    content["vision_config"] |= {"depth": 2, "num_heads": 2}
    return Glm4vConfig.from_dict(content)


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Glm4vForConditionalGeneration:
    """Untrained, and with no weight at nought or one, so that each of them counts."""
    torch.manual_seed(seed)
    model = build_model(small(tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> Glm4vForConditionalGeneration:
    return new_model(tokenizer)


@pytest.fixture(scope="module")
def questions(tokenizer: PreTrainedTokenizerFast, model: Glm4vForConditionalGeneration) -> list[Question]:
    prompts = (train.CAPTION_PROMPT, train.TEXT_PROMPT)
    return [Question(tokenizer, prompt, model.config.image_token_id) for prompt in prompts]


def pixels(count: int, height: int, width: int) -> torch.Tensor:
    generator = np.random.default_rng(5)
    return torch.from_numpy(generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def inputs(images: torch.Tensor) -> Any:
    """What the family's processor makes of the pictures; it finds nothing to scale."""
    made = build_image_processor()(images=[Image.fromarray(each.numpy()) for each in images], return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, images.shape[1] // 14, images.shape[2] // 14]] * len(images)
    return made


def test_the_prompts_are_those_of_the_recipe() -> None:
    tasks = load_recipe(RECIPE).tasks
    assert (tasks["caption"].prompt, tasks["text"].prompt) == (train.CAPTION_PROMPT, train.TEXT_PROMPT)


@pytest.mark.parametrize(("height", "width"), [(252, 336), (336, 252)])
def test_the_dense_vision_path_is_that_of_the_real_class(
    model: Glm4vForConditionalGeneration, height: int, width: int
) -> None:
    images = pixels(2, height, width)
    made = inputs(images)
    with torch.no_grad():
        features, _ = train.encode(model, images)
        real = model.model.visual(made["pixel_values"], grid_thw=made["image_grid_thw"]).pooler_output
    torch.testing.assert_close(features.flatten(0, 1), real, rtol=1e-3, atol=1e-4)


def test_the_losses_are_those_of_the_real_class_on_what_the_processor_makes(
    model: Glm4vForConditionalGeneration, questions: list[Question]
) -> None:
    images, generator = pixels(2, 252, 336), torch.Generator().manual_seed(1)
    answers = [torch.randint(0, 256, (2, length), generator=generator) for length in (9, 14)]
    answers[0][1, 5:] = -1
    made, placeholders = inputs(images), 252 * 336 // 28**2
    with torch.no_grad():
        losses = train.answer_losses(model, train.encode(model, images)[0], questions, answers, 252 // 28)
        for question, answer, loss in zip(questions, answers, losses, strict=True):
            prompt = [*question.before, *[model.config.image_token_id] * placeholders, *question.after]
            ids = torch.cat([torch.tensor(prompt).expand(2, -1), answer.clamp(min=0)], dim=1)
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == model.config.image_token_id).int(),
                **made,
            ).logits[:, len(prompt) - 1 : -1]
            real = F.cross_entropy(logits.flatten(0, 1), answer.flatten(), ignore_index=-1)
            torch.testing.assert_close(loss, real, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(9, 12), (12, 8), (12, 12), (1, 5)])
def test_positions_are_those_of_the_real_class(model: Glm4vForConditionalGeneration, rows: int, columns: int) -> None:
    before, after = 4, 7
    image = model.config.image_token_id
    ids = torch.tensor([[*[1] * before, *[image] * rows * columns, *[1] * after]])
    grid = torch.tensor([[1, 2 * rows, 2 * columns]])
    real, _ = model.model.get_rope_index(ids, mm_token_type_ids=(ids == image).int(), image_grid_thw=grid)
    assert torch.equal(train.mrope_positions(before, rows, columns, ids.shape[1], CPU), real[-3:, 0])


def test_rounding_to_nf4_is_what_bitsandbytes_does() -> None:
    weight = 0.1 * torch.randn(256, 640, generator=torch.Generator().manual_seed(2))
    weight[3] = 0.0
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    real = bnb.dequantize_4bit(packed, state)
    torch.testing.assert_close(train.nf4_roundtrip(weight), real, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(real, weight, atol=1e-3)


def test_the_letter_loss_asks_every_patch_for_every_letter() -> None:
    generator = torch.Generator().manual_seed(3)
    head, patches = torch.nn.Linear(8, 128), torch.randn(2, 6, 8, generator=generator)
    letters = torch.full((2, 4, 2), -1)
    letters[0, 0], letters[0, 1], letters[1, 0] = torch.tensor([[5, 65], [5, 66], [0, 97]])
    true = torch.zeros(2, 6, 128)
    true[0, 5, 65] = true[0, 5, 66] = true[1, 0, 97] = 1
    expected = F.binary_cross_entropy(head(patches).sigmoid(), true, reduction="sum") / 3
    torch.testing.assert_close(train.letter_loss(head, patches, letters), expected)


def batch(tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, ...]:
    """Two tiny pictures, with answers as `Stream` gives them."""
    rows = [tokenizer(text).input_ids for text in ("A red circle.", "A blue star.", "Tea 早", "No. 7")]
    answers = torch.full((4, 16), -1, dtype=torch.int16)
    for row, ids in zip(answers, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    letters = torch.tensor([[[0, 65], [-1, -1]], [[7, 66], [3, 67]]], dtype=torch.int16)
    return pixels(2, 56, 84), answers[:2], answers[2:], letters


def lesson(tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question], seed: int = 0, **options: Any) -> Lesson:
    trainer = Trainer(new_model(tokenizer, seed), **{"lr": 2e-3, "seconds": 1e6, **options})
    return Lesson(trainer, questions, CPU)


def test_training_on_a_batch_lowers_its_three_losses(
    tokenizer: PreTrainedTokenizerFast, questions: list[Question]
) -> None:
    learning, given = lesson(tokenizer, questions, lr=2e-2), batch(tokenizer)
    losses = [torch.stack(learning.trainer.advance(lambda: learning.losses(*given))) for _ in range(25)]
    assert learning.trainer.step == 25
    assert (losses[-1] < 0.5 * losses[0]).all(), (losses[0], losses[-1])


def test_the_rate_warms_up_stays_and_falls_to_nothing_and_the_letter_head_goes_silent(
    tokenizer: PreTrainedTokenizerFast, questions: list[Question]
) -> None:
    trainer = lesson(tokenizer, questions, lr=1.0, seconds=100).trainer

    def at(step: int, trained: float) -> tuple[object, object]:
        trainer.step, trainer.trained = step, trained
        return pytest.approx(trainer.learning_rate()), pytest.approx(trainer.letter_weight)

    assert at(0, 0) == (1 / 200, 1.0)
    assert at(99, 10) == (0.5, 0.8)
    assert at(199, 20) == (1.0, 0.6)
    assert at(5000, 50) == (1.0, 0.0)
    assert at(5000, 75) == (0.5, 0.0)
    assert at(5000, 101) == (0.0, 0.0)


@pytest.mark.parametrize(("trained", "step", "rounded"), [(80, 1, True), (80, 2, False), (60, 1, False)])
def test_late_in_training_every_other_step_sees_rounded_weights_and_changes_the_exact_ones(
    tokenizer: PreTrainedTokenizerFast, questions: list[Question], trained: float, step: int, rounded: bool
) -> None:
    learning, given = lesson(tokenizer, questions, lr=1e-5, seconds=100), batch(tokenizer)
    trainer = learning.trainer
    trainer.trained, trainer.step = trained, step
    weights = train.quantised_linears(trainer.model)
    assert len(weights) == 6
    exact = [weight.detach().clone() for weight in weights]
    seen: list[torch.Tensor] = []

    def losses() -> tuple[torch.Tensor, ...]:
        seen.extend(weight.detach().clone() for weight in weights)
        return learning.losses(*given)

    trainer.advance(losses)
    for before, during, after in zip(exact, seen, weights, strict=True):
        assert torch.equal(during, train.nf4_roundtrip(before) if rounded else before)
        assert 0 < (after - before).abs().max() < 1e-4


def states(trainer: Trainer) -> list[Any]:
    return [trainer.modules.state_dict(), *(each.state_dict()["state"] for each in trainer.optimisers)]


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(
    tokenizer: PreTrainedTokenizerFast, questions: list[Question], tmp_path: Path
) -> None:
    first, given = lesson(tokenizer, questions), batch(tokenizer)
    for _ in range(2):
        first.trainer.advance(lambda: first.losses(*given))
    first.trainer.trained = 12.5
    first.trainer.save(tmp_path, drawn=4096)
    (tmp_path / "state.safetensors.new").write_bytes(b"half a state: the process was killed while it wrote the next")
    second = lesson(tokenizer, questions, seed=9)
    assert second.trainer.resume(tmp_path) == 4096
    assert (second.trainer.step, second.trainer.trained) == (2, 12.5)
    torch.testing.assert_close(states(second.trainer), states(first.trainer), rtol=0, atol=0)
    first.trainer.advance(lambda: first.losses(*given))
    second.trainer.advance(lambda: second.losses(*given))
    torch.testing.assert_close(states(second.trainer), states(first.trainer), rtol=0, atol=0)
    assert second.trainer.step == 3


def test_without_a_state_training_begins_at_the_beginning(
    tokenizer: PreTrainedTokenizerFast, questions: list[Question], tmp_path: Path
) -> None:
    trainer = lesson(tokenizer, questions).trainer
    assert (trainer.resume(tmp_path), trainer.step, trainer.trained) == (0, 0, 0.0)


def test_a_rehearsal_changes_nothing(tokenizer: PreTrainedTokenizerFast, questions: list[Question]) -> None:
    learning = lesson(tokenizer, questions)
    before = {name: value.clone() for name, value in learning.trainer.modules.state_dict().items()}
    learning.rehearse(1)
    torch.testing.assert_close(dict(learning.trainer.modules.state_dict()), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in learning.trainer.modules.parameters())


def test_a_loss_that_is_no_number_stops_the_training(
    tokenizer: PreTrainedTokenizerFast, questions: list[Question], capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log(lesson(tokenizer, questions).trainer, batch=2)
    for number in range(199):
        log.add((torch.tensor(2.0), torch.tensor(float(number)), torch.tensor(0.0)), drawn=7)
    assert capsys.readouterr().out == ""
    log.add((torch.tensor(2.0), torch.tensor(199.0), torch.tensor(0.0)), drawn=7)
    assert "caption 2.0000 · text 99.5000 · letters 0.000" in capsys.readouterr().out
    log.add((torch.tensor(2.0), torch.tensor(float("nan")), torch.tensor(0.0)), drawn=7)
    with pytest.raises(RuntimeError, match="--lr"):
        log.write(drawn=7)


def run(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """The command, with the smallest of everything; what it printed last."""
    small_run = "--workers 0 --batch 2 --fill 16 --capacity 64 --vocabulary-sample 60 --evaluate 0 --device cpu"
    where = ["--out", str(folder / "model"), "--state", str(folder / "state")]
    train.main([*where, *small_run.split(), *options])
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_the_command_stops_goes_on_survives_an_interruption_and_ends_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "build_config", small)
    one_step = ("--stop-after", "0", "--minutes", "1000")
    first = run(tmp_path, capsys, *one_step)
    assert (first["steps"], first["finished"], first["batch"]) == (1, False, 2)
    assert first["pictures_drawn"] % 16 == 0 < first["pictures_drawn"]

    # Ctrl-C in the third step of the next start: what was not saved is gone, and nothing else.
    calls, losses = iter(range(3)), Lesson.losses

    def interrupted(*arguments: Any) -> tuple[torch.Tensor, ...]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Lesson, "losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, capsys, "--minutes", "1000")
    assert not [each for each in threading.enumerate() if "_collect" in each.name]  # drawing has ended too

    second = run(tmp_path, capsys, *one_step)
    assert (second["steps"], second["finished"]) == (2, False)
    assert second["seconds"] >= first["seconds"]
    assert second["pictures_drawn"] >= first["pictures_drawn"] + 16

    # The time is over: nothing is learnt any more, the checkpoint is there again.
    for path in (tmp_path / "model").iterdir():
        path.unlink()
    last = run(tmp_path, capsys, "--minutes", "0.001")
    assert (last["steps"], last["finished"]) == (2, True)
    loaded = Glm4vForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert last["parameters"] == sum(parameter.numel() for parameter in loaded.parameters())
    trainer = Trainer(
        build_model(small(build_tokenizer(plan(1, index).caption for index in range(60)))), lr=1, seconds=1
    )
    trainer.resume(tmp_path / "state")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16()), name
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "preprocessor_config.json"} <= names


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        train.parse(["--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert all(option in said for option in ("--out", "--state", "--minutes", "--stop-after", "--evaluate"))
