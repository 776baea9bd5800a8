from __future__ import annotations

import dataclasses
import gc
import logging
import threading
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config

from demo.hostile import hostile_files
from demo.parts import ObjectStore, Postgres
from demo.postcards import postcards
from glm4v_ops import parts, pictures
from glm4v_ops.annotate import annotate_local, window_of
from glm4v_ops.answers import load_engine
from glm4v_ops.cache import AnswerCache
from glm4v_ops.errors import Cancelled, ModelRefused, StoreUnavailable, TablesUnavailable
from glm4v_ops.model.identity import resolve
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import ImageSection, Recipe, load_recipe
from glm4v_ops.result import Result, from_table
from glm4v_ops.sink.postgres import migrate
from glm4v_ops.source import store as stores
from glm4v_ops.source.image import Decoded, decode
from tests.shards import PixelEngine, Shard, make_shard, number_of, plain, png, recipe

DEMO_RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"


class Killed(BaseException):
    """Ends the run wherever it is, as a kill does: nothing may catch it."""


@pytest.fixture
def cache(postgres: Postgres) -> AnswerCache:
    dsn = postgres.new_database()
    migrate(dsn)
    return AnswerCache(dsn)


def dies_at(number: int) -> Any:
    def before(batch: list[int]) -> None:
        if number in batch:
            raise Killed

    return before


def answers(rows: list[Result]) -> list[dict[str, Any]]:
    """What must not depend on how often a shard was started."""
    run = ("attempts", "cached", "latency_ms", "part", "try_number", "annotated_at")
    return [{name: value for name, value in dataclasses.asdict(row).items() if name not in run} for row in rows]


def test_every_row_ends_in_one_result_in_manifest_order(store: ObjectStore) -> None:
    shard = make_shard(store, plain(20), recipe())
    report = shard.run(PixelEngine(shard.recipe), try_number=3)
    rows = shard.rows()
    assert [row.key for row in rows] == [f"images/{number:05d}.png" for number in range(20)]
    assert [row.caption for row in rows] == [f"A plain picture, the {number}th of its kind." for number in range(20)]
    assert [(part.span.start, part.span.end) for part in shard.parts()] == [(0, 8), (8, 16), (16, 20)]
    assert (report.images, report.resumed, report.parts, report.by_outcome) == (20, 0, 3, {"ok": 20})
    first = rows[0]
    assert (first.outcome, first.text, first.has_text) == (Outcome.OK, "Line one.\nNo. 0", True)
    assert (first.recipe_id, first.model, first.revision) == (shard.recipe.recipe_id, "test/pixels", "r1")
    assert (first.attempts, first.cached, first.tokens_in, first.tokens_out) == (1, False, 200, 20)
    assert (first.try_number, first.dag_run_id, first.part) == (3, "run", shard.parts()[0].uri)
    assert (first.width, first.height, first.latency_ms) == (64, 48, 5.0)


def test_pictures_of_one_size_go_to_the_model_together_and_the_part_keeps_manifest_order(store: ObjectStore) -> None:
    objects = {f"{n:05d}.png": png(n, (64, 64) if n % 2 else (96, 96)) for n in range(8)}
    shard = make_shard(store, objects, recipe(batch_size=4))
    engine = PixelEngine(shard.recipe)
    shard.run(engine)
    assert [set(sizes) for sizes in engine.sizes] == [{(96, 96)}, {(64, 64)}]
    assert [row.key for row in shard.rows()] == [f"images/{key}" for key in objects]


def test_a_killed_shard_resumes_after_its_last_part(store: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    shard = make_shard(store, plain(30), recipe())
    killed = PixelEngine(shard.recipe, before=dies_at(19))
    with pytest.raises(Killed):
        shard.run(killed)
    assert [part.span.end for part in shard.parts()] == [8, 16]
    again = PixelEngine(shard.recipe)
    with caplog.at_level(logging.INFO, "glm4v_ops"):
        report = shard.run(again, try_number=2)
    assert "resuming: 16 of 30 rows already in 2 parts" in caplog.text
    assert sorted(again.asked) == list(range(16, 30)), "parts before the kill are not done again"
    assert (report.resumed, report.by_outcome, report.parts) == (16, {"ok": 14}, 4)
    assert [row.try_number for row in shard.rows()] == [1] * 16 + [2] * 14
    whole = make_shard(store, plain(30), recipe())
    whole.run(PixelEngine(whole.recipe))
    etags = {"etag", "manifest_id"}
    strip = lambda rows: [{k: v for k, v in row.items() if k not in etags} for row in answers(rows)]  # noqa: E731
    assert strip(shard.rows()) == strip(whole.rows())


def test_a_killed_shard_asks_about_no_image_twice_but_those_of_the_batch_in_hand(
    store: ObjectStore, cache: AnswerCache
) -> None:
    shard = make_shard(store, plain(30), recipe())
    shard.cache = cache
    killed = PixelEngine(shard.recipe, before=dies_at(21))
    with pytest.raises(Killed):
        shard.run(killed)
    assert len(killed.asked) > 16, "some answers of the lost part were stored"
    again = PixelEngine(shard.recipe)
    shard.run(again, try_number=2)
    assert Counter(killed.asked + again.asked) == Counter(range(30))
    assert len(shard.rows()) == 30


def test_a_shard_with_every_part_is_done_at_once(store: ObjectStore) -> None:
    shard = make_shard(store, plain(10), recipe())
    shard.run(PixelEngine(shard.recipe))
    before = shard.rows()
    again = PixelEngine(shard.recipe)
    report = shard.run(again, try_number=2)
    assert (report.resumed, report.by_outcome, shard.loads, again.asked) == (10, {}, 1, [])
    assert shard.rows() == before


def test_another_part_size_resumes_after_what_is_there(store: ObjectStore) -> None:
    shard = make_shard(store, plain(30), recipe(part_size=8))
    with pytest.raises(Killed):
        shard.run(PixelEngine(shard.recipe, before=dies_at(19)))
    shard.recipe = recipe(part_size=5)
    again = PixelEngine(shard.recipe)
    shard.run(again)
    assert sorted(again.asked) == list(range(16, 30))
    assert [part.span.end for part in shard.parts()] == [8, 16, 21, 26, 30]
    assert [row.key for row in shard.rows()] == [f"images/{number:05d}.png" for number in range(30)]


def test_a_part_lost_in_the_middle_is_the_only_one_done_again(store: ObjectStore) -> None:
    shard = make_shard(store, plain(24), recipe())
    shard.run(PixelEngine(shard.recipe))
    lost = shard.parts()[1].uri.removeprefix(f"s3://{shard.work.bucket}/")
    shard.client.delete_object(Bucket=shard.work.bucket, Key=lost)
    again = PixelEngine(shard.recipe)
    shard.run(again)
    assert sorted(again.asked) == list(range(8, 16))
    assert len(shard.rows()) == 24


def test_a_cancelled_shard_stops_between_batches_and_keeps_whole_parts(store: ObjectStore) -> None:
    shard = make_shard(store, plain(30), recipe())

    def stop_at_20(batch: list[int]) -> None:
        if 20 in batch:
            shard.cancel.set()

    engine = PixelEngine(shard.recipe, before=stop_at_20)
    with pytest.raises(Cancelled, match="shard 0 was stopped after 16 of 30 images"):
        shard.run(engine)
    assert [part.span.end for part in shard.parts()] == [8, 16]
    assert 29 not in engine.asked
    assert not [
        thread.name for thread in threading.enumerate() if thread.name.startswith(("feeder", "decode", "fetch"))
    ]
    shard.cancel.clear()
    shard.run(PixelEngine(shard.recipe), try_number=2)
    assert len(shard.rows()) == 30


def test_cached_answers_need_no_model(store: ObjectStore, cache: AnswerCache) -> None:
    first = make_shard(store, plain(10), recipe())
    first.cache = cache
    first.run(PixelEngine(first.recipe))
    renamed = make_shard(store, {f"copy of {key}": data for key, data in plain(10).items()}, recipe())
    renamed.cache = cache
    report = renamed.run(PixelEngine(renamed.recipe))
    assert (renamed.loads, report.cached, report.model_seconds) == (0, 10, 0.0)
    rows = renamed.rows()
    assert {(row.cached, row.attempts, row.latency_ms) for row in rows} == {(True, 0, None)}
    assert [(row.caption, row.text) for row in rows] == [(row.caption, row.text) for row in first.rows()]


def test_a_changed_caption_prompt_asks_for_captions_only(store: ObjectStore, cache: AnswerCache) -> None:
    shard = make_shard(store, plain(6), recipe())
    shard.cache = cache
    shard.run(PixelEngine(shard.recipe))
    tasks = {name: task.model_dump() for name, task in shard.recipe.tasks.items()}
    changed = recipe(tasks={**tasks, "caption": {**tasks["caption"], "prompt": "What is this?"}})
    engine = PixelEngine(changed)
    report = shard.run(engine, recipe=changed)
    assert {tasks for _, tasks in engine.batches} == {("caption",)}
    assert (sorted(engine.asked), report.cached) == (list(range(6)), 0)
    assert {row.text for row in shard.rows(changed)} == {f"Line one.\nNo. {number}" for number in range(6)}


def test_the_same_picture_under_two_keys_is_asked_about_once(store: ObjectStore) -> None:
    objects = {"a.png": png(1), "b.png": png(2), "c.png": png(1), "d.png": png(1)}
    shard = make_shard(store, objects, recipe())
    engine = PixelEngine(shard.recipe)
    shard.run(engine)
    assert sorted(engine.asked) == [1, 2]
    rows = {row.key.removeprefix("images/"): row for row in shard.rows()}
    assert rows["a.png"].caption == rows["c.png"].caption == rows["d.png"].caption
    assert [rows[key].attempts for key in objects] == [1, 1, 0, 0]
    assert [rows[key].cached for key in objects] == [False, False, True, True]


def test_twins_far_apart_are_asked_about_once_through_the_cache(store: ObjectStore, cache: AnswerCache) -> None:
    shard = make_shard(store, {f"{n:05d}.png": png(n % 10) for n in range(30)}, recipe())
    shard.cache = cache
    engine = PixelEngine(shard.recipe)
    shard.run(engine)
    assert sorted(engine.asked) == list(range(10))


def test_a_replaced_and_a_deleted_object_are_missing(store: ObjectStore) -> None:
    shard = make_shard(store, plain(4), recipe())
    shard.client.put_object(Bucket=shard.bucket, Key="images/00001.png", Body=png(99))
    shard.client.delete_object(Bucket=shard.bucket, Key="images/00002.png")
    report = shard.run(PixelEngine(shard.recipe))
    assert [(row.outcome, row.reason) for row in shard.rows()] == [
        (Outcome.OK, ""),
        (Outcome.MISSING, "changed"),
        (Outcome.MISSING, "gone"),
        (Outcome.OK, ""),
    ]
    assert report.by_outcome == {"ok": 2, "missing": 2}
    missing = shard.rows()[1]
    assert (missing.sha256, missing.caption, missing.text, missing.has_text) == (None, None, None, None)


def test_every_hostile_file_ends_in_its_outcome(store: ObjectStore) -> None:
    hostile = hostile_files()
    shard = make_shard(store, {each.name: each.data for each in hostile}, recipe())
    shard.run(PixelEngine(shard.recipe))
    found = {row.key.removeprefix("images/"): (row.outcome, row.reason) for row in shard.rows()}
    assert found == {each.name: (each.outcome, each.reason) for each in hostile}


def test_bytes_that_are_no_image_have_their_digest_and_no_answer(store: ObjectStore) -> None:
    shard = make_shard(store, {"page.jpg": b"<!DOCTYPE html><html></html>", "z.png": png(1)}, recipe())
    shard.run(PixelEngine(shard.recipe))
    page = shard.rows()[0]
    assert (page.outcome, page.attempts, page.cached, page.caption) == (Outcome.UNSUPPORTED, 0, False, None)
    assert page.sha256 is not None
    assert len(page.sha256) == 64


def test_a_model_that_raises_on_one_image_fails_that_row_alone(store: ObjectStore, cache: AnswerCache) -> None:
    shard = make_shard(store, plain(8), recipe())
    shard.cache = cache
    engine = PixelEngine(shard.recipe)
    engine.raising = {5}
    shard.run(engine)
    rows = shard.rows()
    assert [row.outcome for row in rows] == [Outcome.OK] * 5 + [Outcome.MODEL_ERROR] + [Outcome.OK] * 2
    assert (rows[5].reason, rows[5].detail) == ("model_raised", "caption: RuntimeError: a bad picture")
    assert (rows[5].caption, rows[5].text, rows[5].has_text) == (None, None, None)
    again = make_shard(store, plain(8), recipe())
    again.cache = cache
    better = PixelEngine(again.recipe)
    again.run(better)
    assert better.asked == [5], "a fault is no answer: it is asked about again, and nothing else is"


def test_answers_are_judged_and_kept_raw(store: ObjectStore, cache: AnswerCache) -> None:
    shard = make_shard(store, plain(2), recipe())
    shard.cache = cache
    engine = PixelEngine(shard.recipe)
    engine.text = "abc <|endoftext|><|user|> def"
    for _ in range(2):  # from the model, then from the cache
        shard.run(engine)
        assert [row.outcome for row in shard.rows()] == [Outcome.GARBLED] * 2
        assert shard.rows()[0].text == engine.text
        shard = dataclasses.replace(shard, work=shard.work.child("again"), loads=0)


def test_an_empty_text_is_an_answer(store: ObjectStore) -> None:
    shard = make_shard(store, plain(1), recipe())
    engine = PixelEngine(shard.recipe)
    engine.text = " \n"
    shard.run(engine)
    row = shard.rows()[0]
    assert (row.outcome, row.text, row.has_text) == (Outcome.OK, " \n", False)


def test_a_recipe_without_text_has_rows_without_text(store: ObjectStore) -> None:
    shard = make_shard(store, plain(1), recipe(tasks={"caption": {"prompt": "Describe the image."}}))
    shard.run(PixelEngine(shard.recipe))
    row = shard.rows()[0]
    assert (row.outcome, row.text, row.has_text, row.text_answer_id) == (Outcome.OK, None, None, None)


def test_chinese_keys_prompts_and_answers_survive_to_the_part(store: ObjectStore, cache: AnswerCache) -> None:
    spoken = recipe(tasks={"caption": {"prompt": "描述这张图片。"}, "text": {"prompt": "读出图中所有文字。"}})
    objects = {"照片/第一 张.png": png(1), "a b%2Fc+d?#.png": png(2)}
    shard = make_shard(store, objects, spoken)
    shard.cache = cache
    engine = PixelEngine(spoken)
    engine.text = "营业时间：早上九点\n电话 {number}"
    shard.run(engine)
    rows = {row.key: row for row in shard.rows()}
    assert set(rows) == {f"images/{key}" for key in objects}
    assert rows["images/照片/第一 张.png"].text == "营业时间：早上九点\n电话 1"
    assert cache.lookup([(str(rows["images/照片/第一 张.png"].sha256), spoken.answer_id("text"))])


def test_decoded_pictures_in_memory_never_pass_the_bound(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, alive, most = threading.Lock(), 0, 0

    def count(change: int) -> None:
        nonlocal alive, most
        with lock:
            alive += change
            most = max(most, alive)

    def counted(data: bytes, limits: ImageSection) -> Decoded:
        decoded = decode(data, limits)
        count(1)
        weakref.finalize(decoded.image, count, -1)
        return decoded

    monkeypatch.setattr(pictures, "decode", counted)
    shard = make_shard(store, plain(60), recipe(part_size=6, batch_size=2))
    shard.run(PixelEngine(shard.recipe))
    gc.collect()
    assert window_of(shard.recipe) == 6
    assert 6 < most <= 2 * 6 + 2
    assert alive == 0


def test_pictures_are_fetched_and_decoded_while_the_model_works(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready: set[int] = set()
    changed = threading.Condition()

    def noted(data: bytes, limits: ImageSection) -> Decoded:
        decoded = decode(data, limits)
        with changed:
            ready.add(number_of(decoded.image))
            changed.notify_all()
        return decoded

    monkeypatch.setattr(pictures, "decode", noted)
    shard = make_shard(store, plain(24), recipe(batch_size=8))

    def next_window_comes(batch: list[int]) -> None:
        # Were nothing decoded until the model is done, this would wait for ever.
        with changed:
            assert changed.wait_for(lambda: min(max(batch) + 8, 23) in ready, timeout=60)

    shard.run(PixelEngine(shard.recipe, before=next_window_comes))
    assert len(shard.rows()) == 24


def test_a_store_that_fails_midway_fails_the_shard_and_keeps_its_parts(tmp_path: Path) -> None:
    with ObjectStore.start(tmp_path) as own:
        shard = make_shard(own, plain(120), recipe())
        once = own.client(config=Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=30))

        def store_goes(batch: list[int]) -> None:
            if 20 in batch:
                own.stop()

        with pytest.raises(StoreUnavailable):
            shard.run(PixelEngine(shard.recipe, before=store_goes), client=once)
    with ObjectStore.start(tmp_path) as own:
        shard.client = stores.client(
            endpoint_url=own.endpoint, aws_access_key_id=own.access_key, aws_secret_access_key=own.secret_key
        )
        assert [part.span.end for part in shard.parts()] == [8, 16]
        again = PixelEngine(shard.recipe)
        report = shard.run(again, try_number=2)
        assert (report.resumed, len(shard.rows()), min(again.asked)) == (16, 120, 16)


def test_tables_that_do_not_answer_fail_the_shard(store: ObjectStore) -> None:
    shard = make_shard(store, plain(2), recipe())
    shard.cache = AnswerCache("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(TablesUnavailable):
        shard.run(PixelEngine(shard.recipe))
    assert shard.parts() == []


def test_a_model_other_than_the_recipe_was_resolved_to_is_refused(store: ObjectStore) -> None:
    shard = make_shard(store, plain(2), recipe())
    other = PixelEngine(recipe(model={"id": "test/pixels", "revision": "r2"}))
    with pytest.raises(ModelRefused, match=r"at r2.*at r1"):
        shard.run(other)


def test_progress_counts_to_the_end_and_knows_what_was_resumed(store: ObjectStore) -> None:
    shard = make_shard(store, plain(20), recipe())
    with pytest.raises(Killed):
        shard.run(PixelEngine(shard.recipe, before=dies_at(10)))
    shard.progress.clear()
    shard.run(PixelEngine(shard.recipe))
    done = [progress.done for progress in shard.progress]
    assert (done[0], done[-1], done) == (8, 20, sorted(done))
    last = shard.progress[-1]
    assert (last.total, last.resumed, last.by_outcome, last.shards) == (20, 8, {"ok": 12}, 1)
    assert last.p95_s == pytest.approx(0.005)


def test_local_files_take_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.png").write_bytes(png(2))
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden").write_text("x")
    wanted = recipe()
    engine = PixelEngine(wanted)
    results = list(annotate_local([tmp_path], wanted, model_base=None, engine_factory=lambda _recipe, _base: engine))
    assert [(Path(row.key).name, row.outcome) for row in results] == [
        ("a.png", Outcome.OK),
        ("notes.txt", Outcome.UNSUPPORTED),
        ("b.png", Outcome.OK),
    ]
    assert {(row.dag_run_id, row.part, row.try_number) for row in results} == {("cli", "", 0)}


def test_the_demo_model_annotates_a_shard_of_postcards(store: ObjectStore, cache: AnswerCache) -> None:
    demo: Recipe = resolve(load_recipe(DEMO_RECIPE), DEMO_RECIPE.parent)
    cards = list(postcards(seed=987_654, count=6))
    shard: Shard = make_shard(store, {card.name: card.data for card in cards}, demo)
    shard.cache = cache
    report = shard.run(None, engine_factory=load_engine, model_base=DEMO_RECIPE.parent)
    rows = shard.rows()
    assert report.by_outcome == {"ok": 6}
    assert all(row.caption for row in rows)
    assert {row.revision for row in rows} == {demo.model.revision}
    table = next(parts.tables(shard.client, shard.folder()))
    assert from_table(table) == rows
