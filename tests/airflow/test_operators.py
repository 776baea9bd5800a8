from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from airflow.sdk.exceptions import AirflowSkipException
from psycopg.conninfo import conninfo_to_dict

from demo.parts import ObjectStore, Postgres
from glm4v_ops.airflow.assets import ANNOTATIONS
from glm4v_ops.airflow.operators import AnnotateShard, FreezeManifest, GateDay, PublishDay
from glm4v_ops.errors import Cancelled, GateFailed, SettingsError
from glm4v_ops.recipe import parse_recipe
from glm4v_ops.settings import S3Uri
from glm4v_ops.sink.postgres import migrate
from glm4v_ops.source import manifest as manifests
from glm4v_ops.source import store as stores
from tests.shards import DAY, PixelEngine, Shard, make_shard, plain, png, recipe

PREFIX = "images/2026-11-01/"


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe beside a checkpoint folder, as the settings name it; shards of two images."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    content = recipe(model={"id": "../checkpoint"}).model_dump(mode="json")
    content["run"]["shard_size"] = 2
    path = tmp_path / "recipes" / "test.yaml"
    path.parent.mkdir()
    path.write_text(json.dumps(content))  # JSON is YAML
    monkeypatch.setenv("GLM4V_HOME", str(tmp_path))
    monkeypatch.setenv("GLM4V_RECIPE", "recipes/test.yaml")
    return path


@pytest.fixture
def tables(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    """A migrated database that the connection `glm4v_tables` leads to."""
    dsn = postgres.new_database()
    migrate(dsn)
    options = conninfo_to_dict(dsn)
    connection = {
        "conn_type": "postgres",
        "host": options["host"],
        "port": int(str(options["port"])),
        "login": options["user"],
        "password": options["password"],
        "schema": options["dbname"],
    }
    monkeypatch.setenv("AIRFLOW_CONN_GLM4V_TABLES", json.dumps(connection))
    return dsn


@pytest.fixture
def shard(store_connection: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Shard:
    """Five pictures annotated by an engine that looks at pixels: manifest and parts as a finished shard leaves them."""
    made = make_shard(store_connection, plain(5), recipe())
    made.run(PixelEngine(made.recipe))
    monkeypatch.setenv("GLM4V_WORK", str(made.work))
    return made


def summary_of(shard: Shard) -> dict[str, Any]:
    """What `FreezeManifest` leaves in the XCom `manifest`."""
    frozen = manifests.open(shard.client, shard.uri)
    recipe_uri = shard.work.child("recipes", "test.yaml")
    stores.put_bytes(shard.client, recipe_uri, shard.recipe.to_yaml().encode())
    return {
        "day": DAY.isoformat(),
        "manifest_uri": shard.uri,
        "manifest_id": frozen.manifest_id,
        "recipe_uri": str(recipe_uri),
        "recipe_id": shard.recipe.recipe_id,
        "model_base": "/nowhere",
        "source_bucket": shard.bucket,
        "images": frozen.images,
        "bytes": frozen.bytes,
        "shards": frozen.shards,
    }


def test_freezing_leaves_the_shards_and_a_small_summary(
    context: dict[str, Any], drop: str, store: ObjectStore, recipe_file: Path
) -> None:
    client = store.client()
    for number in range(5):
        client.put_object(Bucket=drop, Key=f"{PREFIX}图 {number}.png", Body=png(number))
    client.put_object(Bucket=drop, Key=f"{PREFIX}_SUCCESS", Body=b"")
    shards = FreezeManifest(task_id="freeze").execute(context)
    assert shards == [
        {"shard": 0, "shards": 3, "images": 2},
        {"shard": 1, "shards": 3, "images": 2},
        {"shard": 2, "shards": 3, "images": 1},
    ]
    summary = context["ti"].xcoms["manifest"]
    assert (summary["images"], summary["shards"], summary["day"]) == (5, 3, "2026-11-01")
    assert [row.key for row in manifests.iter_rows(client, summary["manifest_uri"])] == [
        f"{PREFIX}图 {number}.png" for number in range(5)
    ]
    assert len(json.dumps(summary)) < 1_000
    assert summary["model_base"] == str(recipe_file.parent)


def freeze(context: dict[str, Any]) -> tuple[dict[str, Any], S3Uri]:
    """What a freeze leaves for later tasks, and where it put the recipe."""
    FreezeManifest(task_id="freeze").execute(context)
    summary = dict(context["ti"].xcoms["manifest"])
    return summary, S3Uri.parse(summary["recipe_uri"], setting="recipe_uri")


def test_the_frozen_recipe_names_the_models_revision_and_gives_the_same_ids(
    context: dict[str, Any], drop: str, store: ObjectStore, recipe_file: Path
) -> None:
    client = store.client()
    client.put_object(Bucket=drop, Key=f"{PREFIX}a.png", Body=png(1))
    summary, uri = freeze(context)
    frozen = parse_recipe(stores.get_bytes(client, uri).decode(), name="frozen")
    assert re.fullmatch(rf"work/recipes/{summary['recipe_id']}-[0-9a-f]{{12}}\.yaml", uri.key)
    assert frozen.recipe_id == summary["recipe_id"]
    assert frozen.model.revision.startswith("sha256:")


def test_a_second_run_with_other_batches_leaves_the_recipe_of_the_first_alone(
    context: dict[str, Any], drop: str, store: ObjectStore, recipe_file: Path
) -> None:
    client = store.client()
    client.put_object(Bucket=drop, Key=f"{PREFIX}a.png", Body=png(1))
    first, uri = freeze(context)
    frozen = stores.get_bytes(client, uri)
    content = json.loads(recipe_file.read_text())
    recipe_file.write_text(json.dumps({**content, "run": {**content["run"], "batch_size": 7}}))
    second, other = freeze(context)
    assert (second["recipe_id"], other != uri) == (first["recipe_id"], True)
    assert stores.get_bytes(client, uri) == frozen


def test_a_parameter_names_another_recipe(
    context: dict[str, Any], drop: str, store: ObjectStore, recipe_file: Path
) -> None:
    store.client().put_object(Bucket=drop, Key=f"{PREFIX}a.png", Body=png(1))
    content = {**json.loads(recipe_file.read_text()), "gate": {"max_failure_rate": 0.5}}
    recipe_file.with_name("other.yaml").write_text(json.dumps(content))
    FreezeManifest(task_id="freeze").execute(context)
    usual = context["ti"].xcoms["manifest"]["recipe_id"]
    context["params"]["recipe"] = "recipes/other.yaml"
    FreezeManifest(task_id="freeze").execute(context)
    assert context["ti"].xcoms["manifest"]["recipe_id"] != usual


def test_a_day_without_images_is_skipped_and_says_so(
    context: dict[str, Any], drop: str, store: ObjectStore, recipe_file: Path
) -> None:
    store.client().put_object(Bucket=drop, Key=f"{PREFIX}_SUCCESS", Body=b"")
    with pytest.raises(AirflowSkipException, match=f"no images under s3://{drop}/{PREFIX}"):
        FreezeManifest(task_id="freeze").execute(context)
    assert context["ti"].xcoms == {}


def test_more_shards_than_airflow_maps_is_an_error_with_its_remedy(
    context: dict[str, Any], drop: str, store: ObjectStore, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__MAX_MAP_LENGTH", "2")
    for number in range(5):
        store.client().put_object(Bucket=drop, Key=f"{PREFIX}{number}.png", Body=png(number))
    with pytest.raises(SettingsError, match="3 shards of 2 images; Airflow maps at most 2") as refused:
        FreezeManifest(task_id="freeze").execute(context)
    assert "run.shard_size" in refused.value.remedy


def test_a_stop_from_outside_raises_and_never_ends_in_success(
    context: dict[str, Any], store_connection: ObjectStore, tables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = make_shard(store_connection, plain(3), recipe())
    monkeypatch.setenv("GLM4V_WORK", str(shard.work))
    task = AnnotateShard(task_id="annotate", manifest=summary_of(shard), shard={"shard": 0, "shards": 1, "images": 3})
    task.on_kill()  # the signal may come before `execute`
    with pytest.raises(Cancelled):
        task.execute(context)


def test_a_stop_that_comes_when_the_last_part_is_written_raises_too(
    context: dict[str, Any], shard: Shard, tables: str
) -> None:
    task = AnnotateShard(task_id="annotate", manifest=summary_of(shard), shard={"shard": 0, "shards": 1, "images": 5})
    task.on_kill()
    with pytest.raises(Cancelled):
        task.execute(context)


def test_a_finished_shard_is_resumed_without_loading_the_model(
    context: dict[str, Any], shard: Shard, tables: str
) -> None:
    task = AnnotateShard(task_id="annotate", manifest=summary_of(shard), shard={"shard": 0, "shards": 1, "images": 5})
    report = task.execute(context)  # there is no model: loading it would raise
    assert (report["images"], report["resumed"], report["model_seconds"]) == (5, 5, 0)
    assert json.loads(json.dumps(report)) == report
    assert context["task_state_store"]["progress"]["done"] == 5


def test_the_gate_reads_every_part_back_and_returns_its_report(context: dict[str, Any], shard: Shard) -> None:
    report = GateDay(task_id="gate", manifest=summary_of(shard)).execute(context)
    assert report["passed"]
    assert (report["manifest_rows"], report["rows"], report["by_outcome"]) == (5, 5, {"ok": 5})


def test_a_missing_part_fails_the_gate_with_its_report_kept(context: dict[str, Any], shard: Shard) -> None:
    lost = S3Uri.parse(shard.parts()[0].uri, setting="part")
    shard.client.delete_object(Bucket=lost.bucket, Key=lost.key)
    with pytest.raises(GateFailed, match=f"{DAY} is not published, counts reconcile: 0 results for 5"):
        GateDay(task_id="gate", manifest=summary_of(shard)).execute(context)
    assert context["ti"].xcoms["report"]["passed"] is False


def publish_twice(context: dict[str, Any], shard: Shard) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Both results, and the second's asset event."""
    from airflow.sdk.execution_time.context import OutletEventAccessors

    manifest = summary_of(shard)
    gate = GateDay(task_id="gate", manifest=manifest).execute(context)
    shards = [{"by_outcome": {"ok": 5}, "wall_seconds": 2.0, "model_seconds": 1.5}]
    task = PublishDay(task_id="publish", manifest=manifest, shards=shards, gate=gate, outlets=[ANNOTATIONS])
    context["outlet_events"] = OutletEventAccessors()
    first, second = task.execute(context), task.execute({**context, "run_id": "manual__again"})
    return first, second, context["outlet_events"][ANNOTATIONS]


def test_publishing_fills_the_tables_and_a_second_time_changes_nothing(
    context: dict[str, Any], shard: Shard, tables: str
) -> None:
    first, second, _ = publish_twice(context, shard)
    assert (first["changed"], first["ok"], first["rows"]) == (True, 5, 5)
    assert second["changed"] is False
    with psycopg.connect(tables) as connection:
        runs = connection.execute(
            "SELECT dag_run_id, changed, images_per_s, gate->>'passed' FROM runs ORDER BY run_id"
        ).fetchall()
        assert runs == [("scheduled__test", True, 2.5, "true"), ("manual__again", False, 2.5, "true")]
        assert connection.execute("SELECT count(*) FROM annotations").fetchone() == (5,)


def test_the_asset_event_says_day_recipe_run_and_counts(context: dict[str, Any], shard: Shard, tables: str) -> None:
    first, second, event = publish_twice(context, shard)
    assert event.extra == second
    assert event.partition_keys == set()  # Airflow gives it the run's own
    assert first["recipe_id"] == shard.recipe.recipe_id
    assert (first["day"], first["run"], first["by_outcome"]) == (DAY.isoformat(), "scheduled__test", {"ok": 5})


def test_the_asset_event_of_a_run_without_a_partition_key_has_the_day_for_one(
    context: dict[str, Any], shard: Shard, tables: str
) -> None:
    plain_trigger = {**context, "partition_key": None, "params": {"day": DAY.isoformat(), "recipe": None}}
    *_, event = publish_twice(plain_trigger, shard)
    assert event.partition_keys == {DAY.isoformat()}


def test_no_operator_keeps_a_secret_in_what_it_returns(
    context: dict[str, Any], shard: Shard, tables: str, store: ObjectStore, postgres: Postgres
) -> None:
    first, _, _ = publish_twice(context, shard)
    said = json.dumps([first, summary_of(shard), context["ti"].xcoms, dict(context["task_state_store"])])
    for secret in (store.secret_key, store.access_key, postgres.password):
        assert secret not in said
    assert postgres.password in os.environ["AIRFLOW_CONN_GLM4V_TABLES"]
