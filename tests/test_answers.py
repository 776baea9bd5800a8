"""What `tests/test_annotate.py` does not show: how a window is cut into batches, and what is reported of each."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from PIL import Image

from demo.parts import Postgres
from glm4v_ops.answers import Answered, Answerer
from glm4v_ops.cache import AnswerCache, Cache, CachedAnswer, NoCache
from glm4v_ops.errors import Cancelled
from glm4v_ops.model.engine import Answer, ModelFault
from glm4v_ops.recipe import Recipe, TaskName
from glm4v_ops.sink.postgres import migrate
from glm4v_ops.source.image import Decoded
from tests.shards import PixelEngine, recipe


@pytest.fixture
def cache(postgres: Postgres) -> AnswerCache:
    dsn = postgres.new_database()
    migrate(dsn)
    return AnswerCache(dsn)


def pictures(count: int, size: tuple[int, int] = (8, 8)) -> dict[str, Decoded]:
    """Pictures that say their number in their colour, by digest."""
    made = {}
    for number in range(count):
        image = Image.new("RGB", size, (number // 256, number % 256, 77))
        sha256 = hashlib.sha256(f"{number} {size}".encode()).hexdigest()
        made[sha256] = Decoded(image=image, width=size[0], height=size[1], format="PNG", sha256=sha256)
    return made


class Window:
    """An answerer with its engine, and what it reported."""

    def __init__(self, recipe: Recipe, cache: Cache | None = None, engine: PixelEngine | None = None) -> None:
        self.engine = engine or PixelEngine(recipe)
        self.loads = 0
        self.batches: list[list[Answered]] = []
        self.cancel = threading.Event()
        self.answerer = Answerer(
            recipe,
            base=None,
            cache=cache or NoCache(),
            engine_factory=self._load,
            cancel=self.cancel,
            on_batch=lambda batch: self.batches.append(list(batch)),
        )

    def _load(self, *_: Any) -> PixelEngine:
        self.loads += 1
        return self.engine


def test_batches_are_as_few_as_can_be_and_of_nearly_one_length() -> None:
    window = Window(recipe(batch_size=16))
    images = pictures(61)
    answered = window.answerer.answer(images)
    assert sorted(len(numbers) for numbers, _ in window.engine.batches) == [15, 15, 15, 16]
    assert sorted(window.engine.asked) == list(range(61))
    assert list(answered) == list(images)
    assert [len(batch) for batch in window.batches] == [len(numbers) for numbers, _ in window.engine.batches]


def test_the_largest_pictures_come_first_so_that_a_batch_too_big_fails_at_once() -> None:
    window = Window(recipe(batch_size=2))
    window.answerer.answer(pictures(2, (8, 8)) | pictures(2, (80, 10)) | pictures(2, (30, 20)))
    assert window.engine.sizes == [[(80, 10)] * 2, [(30, 20)] * 2, [(8, 8)] * 2]


def test_an_empty_window_asks_nobody() -> None:
    window = Window(recipe(), cache=AnswerCache("postgresql://nobody@127.0.0.1:1/none"))
    assert window.answerer.answer({}) == {}
    assert (window.loads, window.batches) == (0, [])


def test_the_model_is_loaded_once_for_many_windows() -> None:
    window = Window(recipe())
    for _ in range(3):
        window.answerer.answer(pictures(4))
    assert window.loads == 1
    assert window.answerer.model_seconds > 0


def test_the_captions_are_asked_for_before_the_texts_whatever_the_recipes_order() -> None:
    tasks: dict[TaskName, Any] = {"text": {"prompt": "Read."}, "caption": {"prompt": "Describe."}}
    window = Window(recipe(tasks=tasks))
    window.answerer.answer(pictures(1))
    assert window.engine.batches == [([0], ("caption", "text"))]


def test_pictures_that_lack_the_same_answers_go_to_the_model_together(cache: AnswerCache) -> None:
    images = pictures(6)
    both = recipe(batch_size=6)
    known = list(images)
    answer = CachedAnswer("known", "stop", 1, 2)
    cache.store({(known[0], both.answer_id(task)): answer for task in both.tasks})
    cache.store({(sha, both.answer_id("caption")): answer for sha in known[1:3]})
    window = Window(both, cache)
    answered = window.answerer.answer(images)
    asked = {tasks: sorted(numbers) for numbers, tasks in window.engine.batches}
    assert asked == {("text",): [1, 2], ("caption", "text"): [3, 4, 5]}
    assert [each.ran for each in answered.values()] == [False, True, True, True, True, True]
    assert answered[known[0]].latency_ms is None
    assert answered[known[1]].replies["caption"] == answer
    assert set(cache.lookup([(sha, both.answer_id(task)) for sha in images for task in both.tasks])) == {
        (sha, both.answer_id(task)) for sha in images for task in both.tasks
    }


def test_of_two_workers_that_answer_the_same_picture_the_first_ones_answer_stands_for_both(cache: AnswerCache) -> None:
    images = pictures(2, (11, 13))
    asked = recipe()
    raced = next(iter(images))
    first = {(raced, asked.answer_id(task)): CachedAnswer("The other's answer.", "stop", 1, 2) for task in asked.tasks}

    class Overtaken(PixelEngine):
        def answer(self, *arguments: Any) -> Any:
            cache.store(first)  # the other worker is done while this one's model is at it
            return super().answer(*arguments)

    answered = Window(asked, cache, Overtaken(asked)).answerer.answer(images)
    for sha, found in answered.items():
        texts = {reply.text for reply in found.replies.values() if isinstance(reply, CachedAnswer)}
        assert ("The other's answer." in texts) == (sha == raced)
    again = Window(asked, cache).answerer.answer(images)
    assert {sha: found.replies for sha, found in again.items()} == {sha: each.replies for sha, each in answered.items()}


class HalfFailing(PixelEngine):
    """Answers both tasks of the first picture, the caption alone of the second, nothing of the third."""

    def answer(
        self, images: Any, tasks: Sequence[TaskName], cancel: threading.Event | None = None
    ) -> list[dict[TaskName, Answer | ModelFault]]:
        fault = ModelFault("RuntimeError: no")
        caption, text = Answer("A picture.", "stop", 1, 1, 30.0), Answer("", "stop", 1, 1, 70.0)
        return [
            {"caption": caption, "text": text},
            {"caption": caption, "text": fault},
            {"caption": fault, "text": fault},
        ]


def test_the_latency_of_a_picture_is_that_of_its_last_answer(cache: AnswerCache) -> None:
    images = pictures(3)
    asked = recipe()
    answered = Window(asked, cache, HalfFailing(asked)).answerer.answer(images)
    assert [each.latency_ms for each in answered.values()] == [70.0, 30.0, None]
    first, second, _ = images
    stored = cache.lookup([(sha, asked.answer_id(task)) for sha in images for task in asked.tasks])
    assert set(stored) == {
        (first, asked.answer_id("caption")),
        (first, asked.answer_id("text")),
        (second, asked.answer_id("caption")),
    }


def test_a_stop_is_heard_between_two_batches() -> None:
    window = Window(recipe(batch_size=2))
    window.engine.before = lambda _: window.cancel.set()
    with pytest.raises(Cancelled):
        window.answerer.answer(pictures(6))
    assert len(window.engine.batches) == 1
    assert len(window.batches) == 1, "the batch in hand was finished and reported"
