"""The tasks of a day's run: freeze the manifest, annotate a shard, judge the day, publish it.

Each is a thin hand between Airflow and `glm4v_ops`: it takes the day, the connections and the frozen recipe, calls
one function, and returns a small dictionary. XCom carries URIs and counts, never rows, never secrets. Heavy modules
are imported inside `execute`, because Airflow parses this file every half minute.

Every task may run twice: manifests and parts are immutable, publishing the same rows changes nothing. Errors leave as
`glm4v_ops.errors` types them; `retries.TypedRetries` decides by that.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowSkipException

from glm4v_ops.airflow.assets import ANNOTATIONS
from glm4v_ops.airflow.connections import STORE_CONN_ID, TABLES_CONN_ID, store_client, tables_dsn
from glm4v_ops.airflow.partition import resolve_day
from glm4v_ops.airflow.progress import LiveProgress
from glm4v_ops.errors import Cancelled, GateFailed, SettingsError
from glm4v_ops.recipe import Recipe, load_recipe, parse_recipe
from glm4v_ops.settings import S3Uri, Settings, recipe_path

if TYPE_CHECKING:
    S3Client = Any

#: The XCom key under which `FreezeManifest` leaves what the later tasks need; its return value is the list of shards.
MANIFEST_KEY = "manifest"


def frozen_recipe(client: S3Client, manifest: Mapping[str, Any]) -> Recipe:
    """The recipe as `FreezeManifest` froze it: the file may have changed since the run began, this has not."""
    from glm4v_ops.source import store

    uri = manifest["recipe_uri"]
    return parse_recipe(store.get_bytes(client, S3Uri.parse(uri, setting="recipe_uri")).decode(), name=uri)


def results_of(manifest: Mapping[str, Any]) -> S3Uri:
    """The folder that holds the result parts of this day, recipe and manifest."""
    from glm4v_ops import parts

    return parts.results_folder(
        Settings.from_environment().work_uri,
        day=date.fromisoformat(manifest["day"]),
        recipe_id=manifest["recipe_id"],
        manifest_id=manifest["manifest_id"],
    )


class FreezeManifest(BaseOperator):
    """Freezes the day's listing and the recipe. Skips, and with it the rest of the run, when there are no images.

    Returns the shards to map over, `[{"shard": 0, "shards": 12, "images": 2048}, …]`; the XCom `manifest` holds
    day, URIs, ids and counts.
    """

    ui_color = "#dbeafe"

    def __init__(self, *, conn_id: str = STORE_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conn_id = conn_id

    def execute(self, context: Context) -> list[dict[str, int]]:
        from glm4v_ops.model import identity
        from glm4v_ops.source import manifest as manifests
        from glm4v_ops.source import store

        day = resolve_day(context)
        settings = Settings.from_environment()
        path = recipe_path(context["params"].get("recipe") or settings.recipe)
        recipe = identity.resolve(load_recipe(path), path.parent)
        client = store_client(self.conn_id)
        source, work = settings.source_of(day), settings.work_uri
        frozen = manifests.freeze(
            client, source=source, work=work, day=day, shard_size=recipe.run.shard_size, exclude=settings.marker
        )
        if not frozen.images:
            raise AirflowSkipException(f"no images under {source}: nothing to annotate, the tables stay as they are")
        _require_mappable(frozen.shards, recipe)
        text = recipe.to_yaml().encode()
        # Named for all of it: what leaves the id alone (batch size, where the model lies) must not change under a run.
        recipe_uri = work.child("recipes", f"{recipe.recipe_id}-{hashlib.sha256(text).hexdigest()[:12]}.yaml")
        store.put_bytes(client, recipe_uri, text, "application/yaml")
        self.log.info(
            "froze %s: %d images, %d bytes, %d shards; recipe %s (%s at %s)",
            frozen.uri,
            frozen.images,
            frozen.bytes,
            frozen.shards,
            recipe.recipe_id,
            recipe.model.id,
            recipe.model.revision,
        )
        summary = {
            "day": day.isoformat(),
            "manifest_uri": str(frozen.uri),
            "manifest_id": frozen.manifest_id,
            "recipe_uri": str(recipe_uri),
            "recipe_id": recipe.recipe_id,
            # A model id that is a folder is relative to the recipe's own folder; the frozen copy lies elsewhere.
            "model_base": str(path.parent),
            "source_bucket": source.bucket,
            "images": frozen.images,
            "bytes": frozen.bytes,
            "shards": frozen.shards,
        }
        context["ti"].xcom_push(key=MANIFEST_KEY, value=summary)
        size, last = frozen.shard_size, frozen.shards - 1
        return [
            {"shard": shard, "shards": frozen.shards, "images": size if shard < last else frozen.images - size * last}
            for shard in range(frozen.shards)
        ]


def _require_mappable(shards: int, recipe: Recipe) -> None:
    """Airflow refuses a longer list too, but its message names neither the setting nor the number."""
    from airflow.configuration import conf

    limit = conf.getint("core", "max_map_length")
    if shards > limit:
        raise SettingsError(
            f"the day has {shards} shards of {recipe.run.shard_size} images; Airflow maps at most {limit} tasks",
            remedy="raise run.shard_size in the recipe, or AIRFLOW__CORE__MAX_MAP_LENGTH",
        )


class AnnotateShard(BaseOperator):
    """Annotates one shard on the GPU, part by part, showing its progress; resumes after the parts that are there.

    A stop from outside (SIGTERM) only calls `on_kill`, and five seconds later the process is killed: `on_kill` sets
    an event that the work looks at between batches and tokens, and `execute` must then raise, or Airflow would call
    the task a success. Finished parts are safe either way.
    """

    template_fields = ("manifest", "shard")
    ui_color = "#dcfce7"

    def __init__(
        self,
        *,
        manifest: dict[str, Any],
        shard: dict[str, int],
        store_conn_id: str = STORE_CONN_ID,
        tables_conn_id: str = TABLES_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.manifest = manifest
        self.shard = shard
        self.store_conn_id = store_conn_id
        self.tables_conn_id = tables_conn_id
        # An Event cannot be copied, and Airflow copies operators: it is made when first needed.
        self._cancel: threading.Event | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        from glm4v_ops.annotate import annotate_shard
        from glm4v_ops.cache import AnswerCache

        cancel = self._cancel = self._cancel or threading.Event()
        client = store_client(self.store_conn_id)
        with AnswerCache(tables_dsn(self.tables_conn_id)) as cache, LiveProgress(context) as live:
            report = annotate_shard(
                client=client,
                source_bucket=self.manifest["source_bucket"],
                work=Settings.from_environment().work_uri,
                manifest_uri=self.manifest["manifest_uri"],
                shard=self.shard["shard"],
                recipe=frozen_recipe(client, self.manifest),
                model_base=Path(self.manifest["model_base"]),
                cache=cache,
                dag_run_id=context["run_id"],
                try_number=context["ti"].try_number,
                cancel=cancel,
                progress=live.update,
            )
        if cancel.is_set():
            # The last part was written while the stop came in: the work is done, but Airflow asked for a stop.
            raise Cancelled(f"shard {report.shard} was stopped from outside", remedy="run it again, it resumes")
        self.log.info(
            "shard %d: %d images, %d resumed from earlier parts, %d from cache, %.1f s in the model, %.1f s in all",
            report.shard,
            report.images,
            report.resumed,
            report.cached,
            report.model_seconds,
            report.wall_seconds,
        )
        return {**asdict(report), "by_outcome": dict(report.by_outcome)}

    def on_kill(self) -> None:
        # Called by the signal handler, possibly before `execute`.
        self._cancel = self._cancel or threading.Event()
        self._cancel.set()


class GateDay(BaseOperator):
    """Reads back every part of the day and holds it against the recipe's gate; a broken rule stops the run.

    Returns the report; it stands in the XCom `report` too when the task fails.
    """

    template_fields = ("manifest",)
    ui_color = "#fee2e2"

    def __init__(self, *, manifest: dict[str, Any], conn_id: str = STORE_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.manifest = manifest
        self.conn_id = conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from glm4v_ops import parts
        from glm4v_ops.quality import gate
        from glm4v_ops.source import manifest as manifests

        client = store_client(self.conn_id)
        limits = frozen_recipe(client, self.manifest).gate
        counted = gate.tally(
            manifests.iter_rows(client, self.manifest["manifest_uri"]),
            parts.tables(client, results_of(self.manifest)),
        )
        report = gate.check(counted, limits)
        for line in report.text().splitlines():
            self.log.info("%s", line)
        summary = report.to_json()
        if not report.passed:
            context["ti"].xcom_push(key="report", value=summary)
            broken = [f"{rule.name}: {rule.value}, limit {rule.limit}" for rule in report.rules if not rule.passed]
            raise GateFailed(
                f"{self.manifest['day']} is not published, {'; '.join(broken)}",
                remedy="the log names images; repair the drop or change the recipe's gate, then run the day again",
            )
        return summary


class PublishDay(BaseOperator):
    """Swaps the day's rows into the tables in one transaction, then sends the asset event with its counts.

    The event goes out with the task's success; its partition key is the day.
    """

    template_fields = ("manifest", "shards", "gate")
    ui_color = "#e9d5ff"

    def __init__(
        self,
        *,
        manifest: dict[str, Any],
        shards: Iterable[dict[str, Any]],
        gate: dict[str, Any],
        store_conn_id: str = STORE_CONN_ID,
        tables_conn_id: str = TABLES_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.manifest = manifest
        self.shards = shards
        self.gate = gate
        self.store_conn_id = store_conn_id
        self.tables_conn_id = tables_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        from glm4v_ops import parts
        from glm4v_ops.sink.postgres import RunInfo, publish

        client = store_client(self.store_conn_id)
        folder = results_of(self.manifest)
        shards = list(self.shards)
        worked = sum(sum(shard["by_outcome"].values()) for shard in shards)
        seconds = sum(shard["wall_seconds"] for shard in shards)
        run = RunInfo(
            dag_run_id=context["run_id"],
            recipe=frozen_recipe(client, self.manifest),
            manifest_id=self.manifest["manifest_id"],
            manifest_uri=self.manifest["manifest_uri"],
            manifest_rows=self.manifest["images"],
            parts=tuple(part.uri for part in parts.existing(client, folder)),
            images_per_s=worked / seconds if worked and seconds else None,
            model_seconds=sum(shard["model_seconds"] for shard in shards),
            gpu_seconds=seconds,
            gate=self.gate,
        )
        day = date.fromisoformat(self.manifest["day"])
        report = publish(tables_dsn(self.tables_conn_id), day=day, tables=parts.tables(client, folder), run=run)
        counts = {
            "day": day.isoformat(),
            "recipe_id": run.recipe.recipe_id,
            "run": run.dag_run_id,
            "rows": report.rows,
            "ok": report.ok,
            "quarantined": report.quarantined,
            "by_outcome": {outcome.value: rows for outcome, rows in report.by_outcome.items()},
            "cached": report.cached,
            "changed": report.changed,
        }
        what = "published" if report.changed else "changed nothing: the tables already hold exactly these rows of"
        self.log.info("%s %s: %d ok, %d quarantined", what, day, report.ok, report.quarantined)
        event = context["outlet_events"][ANNOTATIONS]
        event.extra = counts
        if not context.get("partition_key"):  # a plain trigger: Airflow gives the event the run's key, and it has none
            event.add_partitions(day.isoformat())
        return counts
