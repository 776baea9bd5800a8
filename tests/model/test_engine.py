from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from glm4v_ops.errors import Cancelled, GpuUnavailable
from glm4v_ops.model.engine import Answer, Answers, Engine, ModelFault
from glm4v_ops.model.loading import Checkpoint
from glm4v_ops.model.prompt import build_prompt
from glm4v_ops.model.runner import Runner
from glm4v_ops.recipe import TaskName
from tests.model.checkpoint import PICTURES, PROMPTS, SAID, recipe
from tests.model.conftest import Loaded, MakeEngine

BOTH: list[TaskName] = ["caption", "text"]
#: A picture the model was never taught, of yet another size.
STRANGE = Image.effect_noise((260, 390), 90).convert("RGB")


def said(found: list[Answers]) -> list[dict[TaskName, str]]:
    return [{task: answered(answer).text for task, answer in answers.items()} for answers in found]


def answered(answer: Answer | ModelFault) -> Answer:
    assert isinstance(answer, Answer), answer
    return answer


def whole_prompt(checkpoint: Checkpoint, image: Image.Image, text: str) -> dict[str, torch.Tensor]:
    """What the family's processor makes of one image and one question, written out by hand."""
    pixels = checkpoint.image_processor(images=[image], return_tensors="pt")
    patches = "<|image|>" * (int(pixels["image_grid_thw"].prod()) // 4)
    prompt = f"[gMASK]<sop><|user|>\n<|begin_of_image|>{patches}<|end_of_image|>{text}<|assistant|>\n"
    ids = torch.tensor([checkpoint.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    is_image = ids == checkpoint.model.config.image_token_id
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": is_image.int(),
        **pixels,
    }


@contextmanager
def hooked(
    module: Any, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Real hooks of the real module, gone afterwards."""
    hooks = []
    if before:
        hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
    if after:
        hooks.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def grids(kwargs: dict[str, Any]) -> list[tuple[int, int]]:
    """The patch grid of every image that the vision tower was given."""
    return [(height, width) for _, height, width in kwargs["grid_thw"].tolist()]


def grid_of(checkpoint: Checkpoint, image: Image.Image) -> tuple[int, int]:
    _, height, width = checkpoint.image_processor(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
    return height, width


@pytest.mark.parametrize("image", [*PICTURES, STRANGE])
def test_greedy_answers_are_those_of_transformers_generate(
    engine: MakeEngine, loaded: Loaded, image: Image.Image
) -> None:
    checkpoint, [found] = loaded(), engine().answer([image], BOTH)
    for task, prompt in PROMPTS.items():
        inputs = whole_prompt(checkpoint, image, prompt)
        length = inputs["input_ids"].shape[1]
        generated = checkpoint.model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, length:].tolist()
        answer = answered(found[task])
        assert (answer.tokens_in, answer.tokens_out) == (length, len(generated))
        written = checkpoint.tokenizer(answer.text)["input_ids"]
        assert written == [token for token in generated if token not in checkpoint.stop_ids]


@torch.inference_mode()
def test_logits_in_a_left_padded_batch_are_those_of_one_whole_prompt(loaded: Loaded) -> None:
    checkpoint = loaded()
    runner, images = Runner(checkpoint), [*PICTURES, STRANGE]
    prompt = build_prompt(checkpoint.tokenizer, PROMPTS["text"])
    context = runner.read_images(prompt.prefix, images)
    assert len(set(context.lengths)) > 1, "some rows are padded"
    first = runner.read_tokens(context, torch.tensor([prompt.suffix] * len(images)))
    second = runner.read_tokens(context, first.argmax(dim=-1, keepdim=True))
    for row, image in enumerate(images):
        inputs = whole_prompt(checkpoint, image, PROMPTS["text"])
        torch.testing.assert_close(first[row], checkpoint.model(**inputs).logits[0, -1], atol=1e-3, rtol=1e-3)
        for name, more in [("input_ids", int(first[row].argmax())), ("attention_mask", 1), ("mm_token_type_ids", 0)]:
            inputs[name] = torch.cat([inputs[name], torch.full((1, 1), more)], dim=1)
        torch.testing.assert_close(second[row], checkpoint.model(**inputs).logits[0, -1], atol=1e-3, rtol=1e-3)


def test_pictures_of_different_sizes_are_answered_together_as_they_are_alone(engine: MakeEngine) -> None:
    asked = engine()
    together = said(asked.answer(PICTURES, BOTH))
    assert together == SAID, "Chinese prompts and answers among them"
    assert together == [said(asked.answer([image], BOTH))[0] for image in PICTURES]
    assert said(asked.answer(PICTURES[::-1], BOTH)) == together[::-1]


def test_two_tasks_from_one_encoding_answer_as_each_by_itself(engine: MakeEngine, loaded: Loaded) -> None:
    asked, encoded = engine(), []
    images = [*PICTURES[:3], STRANGE]
    with hooked(loaded().model.model.visual, before=lambda _, __, kwargs: encoded.append(grids(kwargs))):
        both = said(asked.answer(images, BOTH))
    assert [len(batch) for batch in encoded] == [4], "every image is encoded once"
    assert both == said(asked.answer(images, ["text", "caption"]))
    apart = zip(said(asked.answer(images, ["caption"])), said(asked.answer(images, ["text"])), strict=True)
    assert both == [{**caption, **text} for caption, text in apart]


def test_no_more_images_than_the_recipes_batch_size_are_with_the_model_at_once(
    engine: MakeEngine, loaded: Loaded
) -> None:
    sizes: list[int] = []
    with hooked(loaded().model.model.visual, before=lambda _, __, kwargs: sizes.append(len(grids(kwargs)))):
        found = engine().answer(PICTURES + PICTURES[:4], ["text"])
    assert sizes == [4, 4, 1]
    assert said(found) == [{"text": answers["text"]} for answers in SAID + SAID[:4]]


def test_rows_that_have_stopped_are_not_fed_any_more(engine: MakeEngine, loaded: Loaded) -> None:
    rows: list[int] = []
    with hooked(loaded().model.lm_head, before=lambda _, args, __: rows.append(len(args[0]))):
        found = engine().answer(PICTURES[:4], ["text"])
    lengths = [answered(answers["text"]).tokens_out for answers in found]
    assert rows == [sum(length > step for length in lengths) for step in range(max(lengths))]


def test_a_stop_token_ends_an_answer_with_stop_and_the_limit_with_length(engine: MakeEngine) -> None:
    for limit, reason, text, tokens in [(40, "stop", "OPEN", 5), (5, "stop", "OPEN", 5), (4, "length", "OPEN", 4)]:
        [found] = engine({"text": {"max_new_tokens": limit}}).answer(PICTURES[:1], ["text"])
        answer = answered(found["text"])
        assert (answer.finish_reason, answer.text, answer.tokens_out) == (reason, text, tokens)


def test_a_picture_without_text_has_an_empty_answer_and_no_fault(engine: MakeEngine) -> None:
    [found] = engine().answer(PICTURES[4:], ["text"])
    answer = answered(found["text"])
    assert (answer.text, answer.finish_reason, answer.tokens_out) == ("", "stop", 1)


def test_a_character_that_the_limit_cuts_in_two_is_marked_and_nothing_breaks(engine: MakeEngine) -> None:
    [found] = engine({"caption": {"max_new_tokens": 7}}).answer(PICTURES[2:3], ["caption"])
    answer = answered(found["caption"])
    assert (answer.text, answer.finish_reason) == ("一个\ufffd", "length")


def test_latency_counts_from_the_start_of_the_batch(engine: MakeEngine) -> None:
    [found] = engine().answer(PICTURES[:1], BOTH)
    assert 0 < answered(found["caption"]).latency_ms < answered(found["text"]).latency_ms


@pytest.mark.parametrize("settings", [{"temperature": 2.0}, {"temperature": 1.8, "top_p": 0.95}])
def test_a_sampled_answer_is_the_same_whatever_else_is_in_the_batch(
    engine: MakeEngine, settings: dict[str, Any]
) -> None:
    settings = {"max_new_tokens": 24, "repetition_penalty": 1.5, **settings}
    images = [STRANGE, *PICTURES[:3]]
    asked = engine({"caption": settings})
    together = said(asked.answer(images, ["caption"]))
    assert together[::-1] == said(asked.answer(images[::-1], ["caption"]))
    assert together == [said(asked.answer([image], ["caption"]))[0] for image in images]
    other = engine({"caption": {**settings, "seed": 2**40}})
    assert together != said(other.answer(images, ["caption"])), "another seed, other answers"


def test_two_pictures_draw_differently(engine: MakeEngine) -> None:
    asked = engine({"text": {"temperature": 2.0, "max_new_tokens": 24}})
    images = [Image.new("RGB", (300, 200), (0, 0, shade)) for shade in (100, 101, 102, 103)]
    assert len({answers["text"] for answers in said(asked.answer(images, ["text"]))}) > 1


def test_an_image_on_which_the_model_raises_is_a_fault_and_the_others_answer(
    engine: MakeEngine, loaded: Loaded
) -> None:
    checkpoint = loaded()
    bad = grid_of(checkpoint, PICTURES[1])

    def before(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if bad in grids(kwargs):
            raise ValueError("a picture the tower cannot take")

    with hooked(checkpoint.model.model.visual, before=before):
        found = engine().answer(PICTURES, BOTH)
    fault = ModelFault("ValueError: a picture the tower cannot take")
    assert found[1] == {"caption": fault, "text": fault}
    assert said(found[:1] + found[2:]) == SAID[:1] + SAID[2:]


def test_an_image_whose_features_are_not_numbers_is_a_fault_and_no_answer(engine: MakeEngine, loaded: Loaded) -> None:
    checkpoint = loaded()
    bad = grid_of(checkpoint, PICTURES[2])

    def after(_: Any, __: Any, kwargs: dict[str, Any], output: Any) -> Any:
        counts = [height * width // 4 for height, width in grids(kwargs)]
        for grid, feature in zip(grids(kwargs), output.pooler_output.split(counts), strict=True):
            if grid == bad:
                feature.fill_(torch.nan)
        return output

    with hooked(checkpoint.model.model.visual, after=after):
        found = engine().answer(PICTURES, BOTH)
    assert found[2]["text"] == ModelFault("FloatingPointError: the model's logits are not finite")
    assert said(found[:2] + found[3:]) == SAID[:2] + SAID[3:]


def test_a_batch_too_large_for_the_memory_is_answered_in_smaller_ones(engine: MakeEngine, loaded: Loaded) -> None:
    sizes: list[int] = []

    def before(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(len(grids(kwargs)))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with hooked(loaded().model.model.visual, before=before):
        assert said(engine().answer(PICTURES[:4], BOTH)) == SAID[:4]
    assert sizes == [4, 2, 2]


def cuda_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


def machine_full() -> None:
    torch.empty(10**15)


def gpu_lost() -> None:
    raise torch.AcceleratorError("CUDA error: unspecified launch failure")


def cublas_failed() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx")


@pytest.mark.parametrize(
    ("fault", "tries", "message"),
    [
        (cuda_full, 3, "no memory for one image: OutOfMemoryError: CUDA out of memory"),
        (machine_full, 3, "no memory for one image: RuntimeError: .*can't allocate memory"),
        (gpu_lost, 1, "cpu failed: AcceleratorError: CUDA error: unspecified launch failure"),
        (cublas_failed, 1, "cpu failed: RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
    ],
)
def test_a_device_that_is_full_or_lost_is_never_an_images_fault(
    engine: MakeEngine, loaded: Loaded, fault: Callable[[], None], tries: int, message: str
) -> None:
    count = 0

    def before(*_: Any) -> None:
        nonlocal count
        count += 1
        fault()

    with hooked(loaded().model.model.visual, before=before), pytest.raises(GpuUnavailable, match=message):
        engine().answer(PICTURES[:4], BOTH)
    assert count == tries, "a full device is tried with fewer images, a lost one never again"


def test_a_model_that_answers_about_nothing_any_more_is_the_machines_fault(folder: Path) -> None:
    engine = Engine.load(recipe(folder), device="cpu", progress=lambda _: None)

    def before(*_: Any) -> None:
        raise RuntimeError("a library broke in a way nobody has listed")

    message = "cpu fails on every picture .*first with: RuntimeError: a library broke"
    with hooked(engine._runner._model.visual, before=before), pytest.raises(GpuUnavailable, match=message):
        engine.answer(PICTURES[:2], BOTH)


def test_an_image_is_blamed_when_the_reference_picture_is_still_answered(folder: Path, loaded: Loaded) -> None:
    engine = Engine.load(recipe(folder), device="cpu", progress=lambda _: None)
    bad = grid_of(loaded(), PICTURES[1])

    def before(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if bad in grids(kwargs):
            raise ValueError("a picture the tower cannot take")

    with hooked(engine._runner._model.visual, before=before):
        found = engine.answer(PICTURES[:3], BOTH)
    assert [isinstance(answers["text"], ModelFault) for answers in found] == [False, True, False]


def test_cancelling_stops_at_the_next_token(engine: MakeEngine, loaded: Loaded) -> None:
    cancel, passes = threading.Event(), 0

    def after(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == 3:
            cancel.set()

    with hooked(loaded().model.lm_head, after=after), pytest.raises(Cancelled):
        engine().answer(PICTURES, BOTH, cancel)
    assert passes == 3


def test_nothing_runs_when_it_is_cancelled_already(engine: MakeEngine, loaded: Loaded) -> None:
    cancel = threading.Event()
    cancel.set()

    def before(*_: Any) -> None:
        raise AssertionError("the vision tower ran")

    with hooked(loaded().model.model.visual, before=before), pytest.raises(Cancelled):
        engine().answer(PICTURES, BOTH, cancel)


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [("nf4", "float32"), ("nf4", "bfloat16"), ("nf4-full", "bfloat16"), ("none", "bfloat16"), ("none", "float16")],
)
def test_every_quantisation_and_dtype_answers_and_each_module_gets_its_own_dtype(
    engine: MakeEngine, loaded: Loaded, quantization: str, dtype: str
) -> None:
    visual = loaded(quantization, dtype).model.model.visual
    given: list[torch.dtype] = []
    with hooked(visual.patch_embed.proj, before=lambda _, args, __: given.append(args[0].dtype)):
        found = engine(quantization=quantization, dtype=dtype).answer(PICTURES, BOTH)
    assert said(found) == SAID
    assert set(given) == {visual.patch_embed.proj.weight.dtype} == {getattr(torch, dtype)}
