"""The nightly run under the real scheduler, with a store, tables and the demo model: what a person on call relies on.

A few runs, each looked at by many tests. `clean` is the run that the others are held against; loading the model costs
the most, so the other days hold copies of its pictures, which are answered from the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg
import pytest

from demo import drop, nights, report
from demo.hostile import hostile_files
from demo.postcards import draw
from demo.stack import ROOT, Stack
from glm4v_ops import parts
from glm4v_ops.cache import AnswerCache, CachedAnswer
from glm4v_ops.model.identity import resolve
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import load_recipe, parse_recipe
from glm4v_ops.result import COLUMNS, Result
from glm4v_ops.settings import S3Uri
from glm4v_ops.source import store as stores
from tests.airflow import night
from tests.airflow.night import DAG, Night

T = TypeVar("T")

pytestmark = pytest.mark.timeout(900)  # the first test of a fixture pays for the run, on a machine with other work

#: Long past, so that no run is ever scheduled for them.
DAY, OLDEST, MIDDLE, CHINESE = date(2025, 3, 3), date(2025, 3, 4), date(2025, 3, 5), date(2025, 3, 6)
WAITED = date(2025, 3, 7)
POSTCARDS, SHARD, PART = 29, 20, 4
#: What differs by nature between two runs over the same pictures.
OF_THE_RUN = {"dag_run_id", "try_number", "annotated_at", "latency_ms", "attempts", "cached"}

#: English enough for the demo model to pass its own check at loading.
PROMPTS = {"caption": "Describe the image. 请描述这张图片。", "text": "读出图中的全部文字。"}
CAPTION, TEXT = "一张茶馆菜单的照片，右上角有一枚红色印章。", "龙井茶 ￥38\n菊花茶 ￥28「热」"


@dataclass(frozen=True, slots=True)
class Started:
    """Runs on their way, by day."""

    runs: dict[date, str]
    yesterday: date


@dataclass(frozen=True, slots=True)
class Killed:
    """What stood there right after the kill, and the run's end."""

    night: Night
    parts: dict[str, tuple[str, Any]]  # key → etag and time of writing
    progress: dict[str, Any]
    label: str


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's recipe with small shards and parts, and a gate that lets the five broken files pass."""
    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    run = {"shard_size": SHARD, "part_size": PART, "batch_size": PART}
    night.demo_recipe(path, run=run, gate={"max_failure_rate": 0.2})
    return path


@pytest.fixture(scope="module")
def chinese_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's recipe with Chinese prompts; the demo model may answer anything to them."""
    path = tmp_path_factory.mktemp("recipes") / "夜间 菜单.yaml"
    tasks = {task: {"prompt": prompt, "max_new_tokens": 16} for task, prompt in PROMPTS.items()}
    night.demo_recipe(path, tasks=tasks, gate={"max_failure_rate": 1.0})
    return path


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("truth")


@pytest.fixture(scope="module")
def client(stack: Stack) -> Any:
    return stack.store.client()


@pytest.fixture(scope="module")
def started(stack: Stack, client: Any, recipe_file: Path, chinese_recipe: Path, truth: Path) -> Started:
    """A full day, an empty one (yesterday, scheduled) and a Chinese one on their way."""
    drop.fill(client, DAY, images=POSTCARDS, hostile=hostile_files(), truth=truth / f"{DAY}.jsonl")
    yesterday = nights.days_before()[0]
    close_drop(client, yesterday)
    fill_chinese(stack, client, chinese_recipe)
    nights.wait_for_dag(stack)
    runs = {DAY: night.trigger(stack, DAY, recipe_file)}  # stands first in the queue of the paused DAG
    runs[yesterday] = nights.start_nightly(stack, yesterday)
    runs[CHINESE] = night.trigger(stack, CHINESE, chinese_recipe)
    return Started(runs, yesterday)


@pytest.fixture(scope="module")
def empty(stack: Stack, started: Started) -> Night:
    return night.finished(stack, started.yesterday, started.runs[started.yesterday])


@pytest.fixture(scope="module")
def clean(stack: Stack, started: Started) -> Night:
    return night.finished(stack, DAY, started.runs[DAY])


@pytest.fixture(scope="module")
def second(stack: Stack, client: Any, clean: Night, recipe_file: Path) -> dict[date, str]:
    """On their way: the full day again, by a plain trigger, and two older days, by `airflow backfill create`.

    Each of those holds two copies of pictures that `clean` was asked about.
    """
    originals = [key for key, row in clean.rows.items() if row.shard == 1 and row.outcome is Outcome.OK][:2]
    for day in (OLDEST, MIDDLE):
        for number, key in enumerate(originals):
            copy = f"{drop.prefix(day)}副本 {number}.png"
            client.copy_object(Bucket=drop.BUCKET, Key=copy, CopySource={"Bucket": drop.BUCKET, "Key": key})
        close_drop(client, day)
    again = night.trigger(stack, DAY, recipe_file, keyed=False)
    oldest, middle = nights.start_backfill(stack, OLDEST, MIDDLE)
    return {DAY: again, OLDEST: oldest, MIDDLE: middle}


@pytest.fixture(scope="module")
def again(stack: Stack, second: dict[date, str]) -> Night:
    return night.finished(stack, DAY, second[DAY])


@pytest.fixture(scope="module")
def backfilled(stack: Stack, second: dict[date, str]) -> list[Night]:
    return [night.finished(stack, day, second[day]) for day in (OLDEST, MIDDLE)]


@pytest.fixture(scope="module")
def refused(stack: Stack, client: Any, backfilled: list[Night]) -> Night:
    """A published day, run again after broken files came into its drop; by the recipe of the deployment."""
    for number in range(3):
        client.put_object(Bucket=drop.BUCKET, Key=f"{drop.prefix(OLDEST)}坏 {number}.jpg", Body=b"no picture")
    run_id = night.trigger(stack, OLDEST)
    with pytest.raises(nights.RunFailed, match="ended as failed"):
        night.finished(stack, OLDEST, run_id)
    return night.ended(stack, OLDEST, run_id)


@pytest.fixture(scope="module")
def chinese(stack: Stack, started: Started) -> Night:
    return night.finished(stack, CHINESE, started.runs[CHINESE])


@pytest.fixture(scope="module")
def killed(stack: Stack, client: Any, clean: Night, again: Night, recipe_file: Path) -> Killed:
    """The first shard of `clean` once more, as if never done, and killed when it has written two parts of five.

    Two, because the first one holds broken files only, which need no model.
    """
    forget_shard(stack, client, clean, 0)
    run_id = night.trigger(stack, DAY, recipe_file)
    folder = results_of(clean)

    def pid() -> int | None:
        annotate = night.instance(stack, run_id, "annotate", 0)
        return annotate["pid"] if annotate.get("state") == "running" else None

    process = night.until(stack, pid, "the annotate task to run")
    task = psutil.Process(process)
    night.until(stack, lambda: night.progress_of(stack, run_id, 0), "progress to be shown")  # while the model loads
    night.until(stack, lambda: len(parts.existing(client, folder, 0)) >= 2, "two parts")
    task.kill()
    task.wait(30)
    left = until_nothing_changes(lambda: written(client, folder))  # the store may still have a part in hand
    progress = night.progress_of(stack, run_id, 0)
    label = night.instance(stack, run_id, "annotate", 0)["rendered_map_index"]
    return Killed(night.finished(stack, DAY, run_id), left, progress, label)


def close_drop(client: Any, day: date) -> None:
    client.put_object(Bucket=drop.BUCKET, Key=drop.prefix(day) + drop.MARKER, Body=b"")


def fill_chinese(stack: Stack, client: Any, recipe_file: Path) -> None:
    """A picture whose Chinese answers are in the cache, one that the model is asked about, and a broken one."""
    recipe = resolve(load_recipe(recipe_file), recipe_file.parent)
    known, unknown = draw(4_000_000, 0), draw(4_000_000, 1)
    answers = {"caption": CAPTION, "text": TEXT}
    with AnswerCache(stack.dsn) as cache:
        for task in recipe.tasks:
            answer = CachedAnswer(answers[task], "stop", 10, 5)
            cache.store({(sha256(known.data), recipe.answer_id(task)): answer})
    for name, data in (("茶馆.png", known.data), ("没见过.png", unknown.data), ("坏图.png", b"")):
        client.put_object(Bucket=drop.BUCKET, Key=drop.prefix(CHINESE) + name, Body=data)
    close_drop(client, CHINESE)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def results_of(run: Night) -> S3Uri:
    """The folder of the run's parts."""
    frozen = run.xcom("freeze_manifest", "manifest")
    work = S3Uri.parse(run.stack.environ()["GLM4V_WORK"], setting="GLM4V_WORK")
    ids = {name: frozen[name] for name in ("recipe_id", "manifest_id")}
    return parts.results_folder(work, day=date.fromisoformat(frozen["day"]), **ids)


def written(client: Any, folder: S3Uri) -> dict[str, tuple[str, Any]]:
    """Every part there is: etag and time of writing."""
    found = client.list_objects_v2(Bucket=folder.bucket, Prefix=folder.key).get("Contents", [])
    return {each["Key"]: (each["ETag"], each["LastModified"]) for each in found}


def until_nothing_changes(look: Callable[[], T], seconds: float = 1.0) -> T:
    """What `look` says, once it has said the same for a while."""
    seen = look()
    while True:
        time.sleep(seconds)
        if (now := look()) == seen:
            return seen
        seen = now


def forget_shard(stack: Stack, client: Any, run: Night, shard: int) -> None:
    """Delete a shard's parts and the answers to its pictures."""
    for part in parts.existing(client, results_of(run), shard):
        uri = S3Uri.parse(part.uri, setting="part")
        client.delete_object(Bucket=uri.bucket, Key=uri.key)
    digests = [bytes.fromhex(row.sha256) for row in run.rows.values() if row.shard == shard and row.sha256]
    with psycopg.connect(stack.dsn) as connection:
        connection.execute("DELETE FROM answers WHERE sha256 = ANY(%s)", (digests,))


def rows_without(rows: dict[str, Result], left_out: set[str]) -> dict[str, dict[str, Any]]:
    """Rows as dictionaries of the columns that must not differ."""
    names = [name for name in COLUMNS if name not in left_out]
    return {key: {name: getattr(row, name) for name in names} for key, row in rows.items()}


def test_every_image_of_a_day_ends_in_one_row_of_one_table(clean: Night, client: Any) -> None:
    listed = drop.listing(client, DAY)
    with psycopg.connect(clean.stack.dsn) as connection:
        found = connection.execute(
            "SELECT key, etag FROM annotations WHERE day = %(day)s"
            " UNION ALL SELECT key, etag FROM quarantine WHERE day = %(day)s",
            {"day": DAY},
        ).fetchall()
    assert len(found) == len(listed) == POSTCARDS + len(hostile_files()) == 40
    assert dict(found) == listed
    assert clean.xcom("freeze_manifest", "manifest")["images"] == 40


def test_every_hostile_file_ends_in_its_outcome(clean: Night) -> None:
    ended = {each.name: clean.rows[drop.prefix(DAY) + each.name] for each in hostile_files()}
    assert {name: (row.outcome, row.reason) for name, row in ended.items()} == {
        each.name: (each.outcome, each.reason) for each in hostile_files()
    }


def test_the_tables_hold_what_the_pictures_show(clean: Night, client: Any, truth: Path) -> None:
    nothing = {DAY: report.Before(digest="", rows=0, manifest_id=None, recipe_id=None)}
    expected = [drop.Expected(drop.prefix(DAY) + each.name, str(each.outcome)) for each in hostile_files()]
    findings = report.examine(clean.stack.dsn, client, {DAY: clean.view.run_id}, nothing, expected, truth)
    assert findings.problems == []
    assert findings.scores is not None
    assert findings.scores["images"] == 35  # the unusual files are scored too
    assert findings.scores["text_cer"] <= 0.03
    assert findings.scores["caption_facts"] >= 0.95


def test_the_tasks_of_a_good_day_all_succeed_at_the_first_try(clean: Night) -> None:
    assert clean.view.state == "success"
    assert clean.view.tasks == {
        "wait_for_drop": "success",
        "freeze_manifest": "success",
        "annotate": "2 success",
        "gate": "success",
        "publish": "success",
    }
    assert {row.try_number for row in clean.rows.values()} == {1}


def test_nothing_in_the_logs_of_a_good_day_looks_like_an_error(clean: Night) -> None:
    logs = [clean.log(task) for task in ("wait_for_drop", "freeze_manifest", "gate", "publish")]
    for log in [*logs, clean.log("annotate", 0), clean.log("annotate", 1)]:
        assert [line for line in log.splitlines() if re.search(r"Z (error|critical) ", line)] == []


def test_the_asset_event_carries_the_day_and_its_counts(clean: Night) -> None:
    [event] = clean.events()
    assert (event["name"], event["partition_key"]) == ("annotations", DAY.isoformat())
    assert event["extra"] == {
        "day": DAY.isoformat(),
        "run": clean.view.run_id,
        "recipe_id": clean.xcom("freeze_manifest", "manifest")["recipe_id"],
        "rows": 40,
        "ok": 35,
        "quarantined": 5,
        "by_outcome": {"ok": 35, "unreadable": 3, "unsupported": 1, "oversized": 1},
        "cached": 0,
        "changed": True,
    }


def test_label_state_store_and_log_say_how_each_shard_went(clean: Night) -> None:
    for index, quarantined in ((0, 4), (1, 1)):
        label = clean.instance("annotate", index)["rendered_map_index"]
        rate = rf"\d+\.\d img/s · p95 \d+\.\d s · {quarantined} quarantined"
        assert re.fullmatch(rf"shard {index + 1}/2 · 20/20 · {rate}", label)
        progress = night.progress_of(clean.stack, clean.view.run_id, index)
        assert (progress["label"], progress["done"], progress["total"]) == (label, 20, 20)
        assert f"info {label}\n" in clean.log("annotate", index)


def test_label_state_store_and_log_show_progress_while_the_task_works(killed: Killed) -> None:
    assert killed.progress["done"] < killed.progress["total"] == 20
    assert re.match(r"shard 1/2 · \d+/20 · ", killed.label)
    assert re.search(r"info shard 1/2 · \d+/20 · ", killed.night.log("annotate", 0))


def test_the_same_day_again_changes_no_row_and_asks_the_model_nothing(clean: Night, again: Night) -> None:
    assert again.digest == clean.digest
    assert again.rows == clean.rows
    for index in range(2):
        shard = again.xcom("annotate", map_index=index)
        assert (shard["images"], shard["resumed"], shard["model_seconds"]) == (20, 20, 0)
        log = again.log("annotate", index)
        assert "resuming: 20 of 20 rows already in 5 parts" in log
        assert "loading" not in log
    assert f"changed nothing: the tables already hold exactly these rows of {DAY}" in again.log("publish")
    assert again.xcom("publish")["changed"] is False


def test_a_plain_trigger_with_a_day_wakes_whoever_waits_for_that_days_partition(again: Night) -> None:
    assert again.stack.api.get(again.path)["partition_key"] is None
    [event] = again.events()
    assert event["partition_key"] == DAY.isoformat()


def test_a_killed_task_ends_in_the_same_rows_as_one_that_was_not(clean: Night, killed: Killed) -> None:
    assert killed.night.digest != clean.digest  # it was really done anew
    assert rows_without(killed.night.rows, OF_THE_RUN) == rows_without(clean.rows, OF_THE_RUN)


def test_after_a_kill_airflows_own_retry_goes_on_behind_the_last_part(
    killed: Killed, clean: Night, client: Any
) -> None:
    assert killed.night.instance("annotate", 0)["try_number"] == 2
    assert killed.night.instance("annotate", 1)["try_number"] == 1
    before = len([key for key in killed.parts if "/00000/" in key])
    assert 2 <= before < 5
    assert f"resuming: {PART * before} of 20 rows already in {before} parts" in killed.night.log("annotate", 0, 2)
    assert killed.night.xcom("annotate", map_index=0)["resumed"] == PART * before
    now = written(client, results_of(clean))
    assert {key: now[key] for key in killed.parts} == killed.parts
    assert len(now) == 10


def test_a_kill_loses_at_most_the_part_in_hand(killed: Killed) -> None:
    rows = [row for row in killed.night.rows.values() if row.shard == 0]
    tries = {number: {row.part for row in rows if row.try_number == number} for number in (1, 2)}
    assert {f"s3://work/{key}" for key in killed.parts if "/00000/" in key} == tries[1]
    assert len(tries[1] | tries[2]) == 5
    answered = [row for row in rows if row.outcome is Outcome.OK]
    assert {row.attempts for row in answered if row.try_number == 1} == {1}
    spared = {row.part for row in answered if row.attempts == 0}
    assert len(spared) <= 1  # what the model had answered of the part in hand came from the cache
    assert spared <= tries[2]


def test_a_day_without_images_is_skipped_and_says_so(empty: Night, started: Started) -> None:
    assert empty.view.run_id.startswith("scheduled__")
    assert empty.view.state == "success"
    skipped = ("freeze_manifest", "annotate", "gate", "publish")
    assert empty.view.tasks == {"wait_for_drop": "success"} | dict.fromkeys(skipped, "skipped")
    place = f"s3://{drop.BUCKET}/{drop.prefix(started.yesterday)}"
    assert f"no images under {place}: nothing to annotate, the tables stay as they are" in empty.log("freeze_manifest")
    assert empty.events() == []
    assert empty.rows == {}
    with psycopg.connect(empty.stack.dsn) as connection:
        noted = connection.execute("SELECT count(*) FROM runs WHERE day = %s", (started.yesterday,)).fetchone()
    assert noted == (0,)


def test_a_drop_without_its_marker_is_waited_for_in_the_triggerer_and_taken_when_it_comes(
    stack: Stack, client: Any
) -> None:
    client.put_object(Bucket=drop.BUCKET, Key=f"{drop.prefix(WAITED)}图.png", Body=b"still coming")
    nights.wait_for_dag(stack, "waiting")
    run_id = night.trigger(stack, WAITED, dag="waiting")

    def state() -> str | None:
        return str(nights.view_of(stack.api, "waiting", WAITED, run_id).tasks.get("wait_for_drop"))

    night.until(stack, lambda: state() == "deferred", "the wait to be deferred")
    close_drop(client, WAITED)
    [view] = nights.follow(stack, [(WAITED, run_id)], lambda views: None, dag_id="waiting", seconds=300)
    assert view.tasks == {"wait_for_drop": "success"}
    log = "\n".join(stack.api.task_log("waiting", run_id, "wait_for_drop", -1, 1))
    assert "1 images under" in log
    assert f"{drop.prefix(WAITED)}{drop.MARKER} is there" in log


def test_a_backfill_runs_its_days_and_pays_for_no_answer_twice(backfilled: list[Night], clean: Night) -> None:
    known = {row.sha256: (row.caption, row.text) for row in clean.rows.values()}
    for each, day in zip(backfilled, (OLDEST, MIDDLE), strict=True):
        assert each.view.run_id.startswith("backfill__")
        assert sorted(each.rows) == [f"{drop.prefix(day)}副本 {number}.png" for number in range(2)]
        for row in each.rows.values():
            assert (row.day, row.outcome, row.attempts, row.cached) == (day, Outcome.OK, 0, True)
            assert (row.caption, row.text) == known[row.sha256]
        assert "loading" not in each.log("annotate", 0)
        [event] = each.events()
        assert (event["partition_key"], event["extra"]["cached"]) == (day.isoformat(), 2)


def test_a_failed_gate_fails_the_run_at_once_and_names_rule_and_images(refused: Night) -> None:
    assert (refused.view.state, refused.view.tasks["gate"]) == ("failed", "failed")
    assert refused.view.tasks["publish"] == "upstream_failed"
    assert refused.instance("gate")["try_number"] == 1
    log = refused.log("gate")
    assert "FAIL failure rate: 60.00% (3 of 5) (limit 10.00%)" in log
    assert "unsupported: " + ", ".join(f"{drop.prefix(OLDEST)}坏 {number}.jpg" for number in range(3)) in log
    assert f"GateFailed: {OLDEST} is not published, failure rate: 60.00% (3 of 5), limit 10.00%" in log
    assert "Retry policy decision a person must change something first" in log
    assert refused.xcom("gate", "report")["passed"] is False


def test_a_failed_gate_leaves_the_published_day_as_it_was(refused: Night, backfilled: list[Night]) -> None:
    assert refused.digest == backfilled[0].digest
    assert refused.rows == backfilled[0].rows
    assert refused.events() == []


def test_chinese_prompts_survive_from_the_recipe_file_to_the_tables(
    chinese: Night, client: Any, chinese_recipe: Path
) -> None:
    frozen = chinese.xcom("freeze_manifest", "manifest")
    text = stores.get_bytes(client, S3Uri.parse(frozen["recipe_uri"], setting="recipe_uri")).decode()
    with psycopg.connect(chinese.stack.dsn) as connection:
        told = connection.execute(
            "SELECT yaml, content->'tasks'->'caption'->>'prompt', content->'tasks'->'text'->>'prompt'"
            " FROM recipes WHERE recipe_id = %s",
            (frozen["recipe_id"],),
        ).fetchone()
    assert told == (text, PROMPTS["caption"], PROMPTS["text"])
    assert all(prompt in text for prompt in PROMPTS.values())
    assert parse_recipe(text, name="frozen") == resolve(load_recipe(chinese_recipe), chinese_recipe.parent)
    asked = chinese.rows[f"{drop.prefix(CHINESE)}没见过.png"]
    assert (asked.attempts, asked.recipe_id) == (1, frozen["recipe_id"])


def test_chinese_answers_survive_from_the_cache_to_parts_and_tables(chinese: Night, client: Any) -> None:
    key = f"{drop.prefix(CHINESE)}茶馆.png"
    row = chinese.rows[key]
    assert (row.outcome, row.caption, row.text, row.cached) == (Outcome.OK, CAPTION, TEXT, True)
    tables = [table.to_pylist() for table in parts.tables(client, results_of(chinese))]
    [part] = [each for table in tables for each in table if each["key"] == key]
    assert (part["caption"], part["text"]) == (CAPTION, TEXT)


def test_chinese_keys_survive_in_log_and_xcom(chinese: Night) -> None:
    broken = f"{drop.prefix(CHINESE)}坏图.png"
    assert chinese.rows[broken].reason == "zero_bytes"
    assert f"unreadable: {broken}" in chinese.log("gate")
    rate = chinese.xcom("gate")["rules"][1]
    assert rate["examples"]["unreadable"] == [broken]


def test_the_command_line_shows_chinese_key_and_answers(chinese: Night) -> None:
    key = f"{drop.prefix(CHINESE)}茶馆.png"
    environ = {**os.environ, "GLM4V_DSN": chinese.stack.dsn, "PYTHONPATH": str(ROOT), "LC_ALL": "C"}
    command = [sys.executable, "-m", "glm4v_ops", "show", key, "--json"]
    said = subprocess.run(command, env=environ, capture_output=True, check=True).stdout.decode()
    row = json.loads(said)
    assert (row["key"], row["caption"], row["text"]) == (key, CAPTION, TEXT)
    assert CAPTION in said  # not escaped


def told_by(stack: Stack, run_id: str) -> Iterator[str]:
    """Everything a run's tasks left for others to read: XComs, state, rendered fields and labels."""
    api, path = stack.api, night.run_path(run_id)
    for each in api.every(f"{path}/taskInstances", "task_instances"):
        yield json.dumps(each)
        where, index = f"{path}/taskInstances/{each['task_id']}", {"map_index": each["map_index"]}
        yield json.dumps(api.get(f"{where}/state-store", **index))
        for entry in api.every(f"{where}/xcomEntries", "xcom_entries", **index):
            yield json.dumps(api.get(f"{where}/xcomEntries/{entry['key']}", **index))


@pytest.mark.usefixtures("empty", "again", "killed", "refused", "chinese")
def test_no_secret_stands_in_any_log_or_xcom(stack: Stack) -> None:
    secrets = (stack.store.secret_key, stack.store.access_key, stack.postgres.password, stack.password)
    logs = list((stack.airflow_home / "logs" / f"dag_id={DAG}").rglob("attempt=*.log"))
    runs = list(stack.api.every(f"dags/{DAG}/dagRuns", "dag_runs"))
    assert len(runs) >= 8
    said = {str(log): log.read_text(encoding="utf-8") for log in logs}
    assert sum("credentials retrieved" in log for log in said.values()) >= 20  # these are the logs we mean
    for run in runs:
        said[run["dag_run_id"]] = "\n".join([json.dumps(run), *told_by(stack, run["dag_run_id"])])
    assert [name for name, text in said.items() if any(secret in text for secret in secrets)] == []
