"""The nightly run: one day's images in, checked rows out. When it runs; what it does is in `glm4v_ops`."""

from __future__ import annotations

import os
from datetime import timedelta

import pendulum
from airflow.sdk import DAG, CronPartitionTimetable, Param

from glm4v_ops.airflow.assets import ANNOTATIONS
from glm4v_ops.airflow.operators import MANIFEST_KEY, AnnotateShard, FreezeManifest, GateDay, PublishDay
from glm4v_ops.airflow.progress import LABEL_TEMPLATE
from glm4v_ops.airflow.retries import TypedRetries
from glm4v_ops.airflow.sensors import WaitForDrop

DOC = """
### Captions and text for a day's images

A run is about one **partition**, a day in UTC: the run just after midnight takes the day before. Older days:
`airflow backfill create --dag-id nightly_annotation --from-date … --to-date …` (both included, up to yesterday).
A run without a partition key (a plain trigger, `airflow dags test`) needs the parameter `day`.

| task | does |
|---|---|
| `wait_for_drop` | waits until everything has arrived: a marker object, or a quiet period |
| `freeze_manifest` | lists the day once, fixes recipe and model revision, cuts shards |
| `annotate` | one task a shard, in the pool `gpu`: image in, caption and text out, checked |
| `gate` | holds the day's counts against the manifest and the recipe's limits |
| `publish` | swaps the day in the tables in one transaction, sends the asset event |

**What is red says why** in the last lines of its log, with a remedy, and has its own note under *Details*. A task that
failed at once needs a person; one that waits for its next try expects to work later (*Retry policy decision* in the
log). The first pause is Airflow's `[core] default_task_retry_delay`, doubled each time. Clearing a task is always safe:
finished result parts are kept, publishing the same rows changes nothing.

**Skipped** from `freeze_manifest` on: the day has no images, the tables stay as they are.
"""

DROP = """
Waits until the drop is complete: the marker object stands under the day's prefix, or nothing was written there for the
quiet period; where nothing stands at all, for hours (`GLM4V_EMPTY_SECONDS`). Waits in the triggerer, in no slot.

**When it is red**: the day has not ended yet (UTC), or somebody is still writing. Write the marker or wait, then clear
it. Still *deferred* and never done: is the triggerer running?
"""
FREEZE = """
Lists the day once into a Parquet manifest, fixes the recipe and the model's revision, cuts shards. Everything after it
works from these, so late uploads and edited recipes do not reach a run that has begun. Skipped when the day is empty.

**When it is red**: a wrong recipe, model, bucket or connection; the message names it. Correct it, clear the task.
"""
ANNOTATE = """
One shard on the GPU: fetch, decode, ask the model, check, write result parts. A kill loses at most the part in hand.

**When it is red**: a lost store, database or GPU was retried and stayed lost, or the model was refused; the message
says which. Clear the red shard alone: it resumes after its finished parts. *Scheduled* and never running: does the
pool `gpu` exist, and does a worker listen on the queue?
"""
GATE = """
Reads every result part back. Each manifest row must have exactly one result, and failures must stay within the
recipe's limit.

**When it is red**: the log says which rule and which images; the tables are as they were. Repair the drop, or change
the recipe's gate, then run the day again: answers already paid for come from the cache.
"""
PUBLISH = """
Swaps the day in `annotations` and `quarantine` in one transaction, notes the run in `runs`, sends the asset event with
the counts. The same rows again change nothing, and the log says so.

**When it is red**: the tables are as before; the message says why. Clear the task.
"""

with DAG(
    dag_id="nightly_annotation",
    description="A day's images to checked captions and text",
    doc_md=DOC,
    # Midnight only: with any other hour the last day of a backfill is left out, and a manual run doubles a day.
    schedule=CronPartitionTimetable("0 0 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d"),
    start_date=pendulum.datetime(2020, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=2,
    tags=["glm4v", "images", "nightly"],
    default_args={
        "owner": "image-annotation",
        "retries": 2,
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(hours=1),
        "retry_policy": TypedRetries(),
    },
    params={
        "day": Param(
            None,
            type=["null", "string"],
            format="date",
            title="Day",
            description="Only for a run without a partition key: the day in UTC, e.g. 2026-11-20",
        ),
        "recipe": Param(
            None,
            type=["null", "string"],
            title="Recipe",
            description="A recipe file, relative to the project; empty for the deployment's own (GLM4V_RECIPE)",
        ),
    },
) as dag:
    wait_for_drop = WaitForDrop(task_id="wait_for_drop", doc_md=DROP)
    freeze_manifest = FreezeManifest(task_id="freeze_manifest", doc_md=FREEZE)
    manifest = freeze_manifest.output[MANIFEST_KEY]
    annotate = AnnotateShard.partial(
        task_id="annotate",
        manifest=manifest,
        pool="gpu",
        # Read where DAG files are parsed; without it, the default queue: one machine that does everything.
        **({"queue": queue} if (queue := os.environ.get("GLM4V_GPU_QUEUE")) else {}),
        retries=3,
        map_index_template=LABEL_TEMPLATE,
        doc_md=ANNOTATE,
    ).expand(shard=freeze_manifest.output)
    gate = GateDay(task_id="gate", manifest=manifest, doc_md=GATE)
    publish = PublishDay(
        task_id="publish",
        manifest=manifest,
        shards=annotate.output,
        gate=gate.output,
        outlets=[ANNOTATIONS],
        doc_md=PUBLISH,
    )
    wait_for_drop >> freeze_manifest >> annotate >> gate >> publish
