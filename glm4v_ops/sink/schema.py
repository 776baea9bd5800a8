"""The tables: the one truth of their columns, indexes and comments.

`annotations` and `quarantine` have the columns of `glm4v_ops.result`, in that order, and are partitioned by day.
The comments here are the table reference: `migrate` writes them into the database, so that `\\d+` shows them.
Knows nothing of how rows get in; the steps that lead an existing database here are in `migrations/`.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB

from glm4v_ops.quality.outcome import MEANING, Outcome
from glm4v_ops.result import RESULT_SCHEMA

#: The tables that hold one row an image, and are swapped a day at a time.
ROW_TABLES = ("annotations", "quarantine")
VERSION_TABLE = "glm4v_alembic_version"

metadata = sa.MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
    }
)

_OUTCOMES = "; ".join(f"{outcome.value}: {MEANING[outcome]}" for outcome in Outcome)

RESULT_COMMENTS: dict[str, str] = {
    "day": "the day of the image drop, the partition key",
    "key": "object key in the bucket, exactly as listed; unique within the day",
    "etag": "the object's etag in the manifest, without quotes: the content that was read",
    "version_id": "the object's version in the manifest; null where the bucket keeps no versions",
    "size": "bytes, from the manifest",
    "sha256": "hex digest of the object's bytes; null when they were never read whole",
    "width": "pixels, upright (EXIF orientation applied), before scaling; null when not decoded",
    "height": "pixels, upright (EXIF orientation applied), before scaling; null when not decoded",
    "outcome": f"how this image ended ({_OUTCOMES})",
    "reason": "stable code of what was found, empty when ok",
    "detail": "a sentence for a person, empty when ok",
    "caption": "the caption as the model answered it; kept in quarantine too; null when never answered. "
    "NUL characters, which PostgreSQL cannot store, stand as U+FFFD here as in every text column",
    "text": "the text read from the image, as the model answered it; empty: the image holds no text; "
    "null: never answered",
    "has_text": "whether text holds more than white space; null when never answered",
    "recipe_id": "names the whole recipe, see recipes",
    "caption_answer_id": "names what shaped the caption: model, quantisation, image limits, prompt, settings",
    "text_answer_id": "names what shaped the text: model, quantisation, image limits, prompt, settings",
    "model": "the checkpoint: hub id or name",
    "revision": "the checkpoint's commit or content digest",
    "quantization": "how the weights were held in memory: none, nf4, nf4-full",
    "attempts": "generations run for this row; 0 when every answer came from the cache",
    "cached": "every answer came from the cache, the model did not run for this row",
    "tokens_in": "prompt tokens, all tasks together, those of the image included",
    "tokens_out": "generated tokens, all tasks together",
    "latency_ms": "milliseconds from the start of the batch to this row's last token; null when cached",
    "manifest_id": "names the frozen listing this row was worked from",
    "shard": "the manifest's shard that holds this row, from 0",
    "part": "URI of the result part (Parquet) this row came from",
    "dag_run_id": "the Airflow run that wrote the part",
    "try_number": "the Airflow try that wrote the part, from 1; 0 outside Airflow",
    "annotated_at": "when this row was written to its part, UTC",
}

_SQL_TYPES: dict[pa.DataType, sa.types.TypeEngine[Any]] = {
    pa.date32(): sa.Date(),
    pa.string(): sa.Text(),
    pa.int64(): sa.BigInteger(),
    pa.int32(): sa.Integer(),
    pa.int16(): sa.SmallInteger(),
    pa.bool_(): sa.Boolean(),
    pa.float32(): sa.REAL(),
    pa.timestamp("us", tz="UTC"): sa.TIMESTAMP(timezone=True),
}


def _result_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column(
            field.name,
            _SQL_TYPES[field.type],
            primary_key=field.name in ("day", "key"),
            nullable=field.nullable,
            comment=RESULT_COMMENTS[field.name],
        )
        for field in RESULT_SCHEMA
    ]


annotations_table = sa.Table(
    "annotations",
    metadata,
    *_result_columns(),
    sa.CheckConstraint("outcome = 'ok'", name="outcome"),
    sa.Index(None, "key"),
    sa.Index(None, "sha256"),
    sa.Index(None, "recipe_id"),
    postgresql_partition_by="LIST (day)",
    comment="One row an image whose caption and text passed the checks, by day. "
    "With quarantine it holds each key of the day's manifest exactly once.",
)

quarantine_table = sa.Table(
    "quarantine",
    metadata,
    *_result_columns(),
    sa.CheckConstraint("outcome <> 'ok'", name="outcome"),
    sa.Index(None, "key"),
    sa.Index(None, "sha256"),
    sa.Index(None, "recipe_id"),
    sa.Index(None, "outcome", "reason"),
    postgresql_partition_by="LIST (day)",
    comment="One row an image that could not be annotated, by day, with the outcome and the reason.",
)

recipes_table = sa.Table(
    "recipes",
    metadata,
    sa.Column("recipe_id", sa.Text, primary_key=True, comment="16 hex digits naming the content"),
    sa.Column("name", sa.Text, nullable=False, comment="the recipe's name when it was first used; in no id"),
    sa.Column("yaml", sa.Text, nullable=False, comment="the recipe as a file, its model resolved"),
    sa.Column("content", JSONB, nullable=False, comment="the validated recipe as JSON, for queries"),
    sa.Column("model", sa.Text, nullable=False, comment="the checkpoint: hub id or name"),
    sa.Column("revision", sa.Text, nullable=False, comment="the checkpoint's commit or content digest"),
    sa.Column("quantization", sa.Text, nullable=False, comment="how the weights are held: none, nf4, nf4-full"),
    sa.Column(
        "first_used_at",
        sa.TIMESTAMP(timezone=True),
        nullable=False,
        server_default=sa.text("now()"),
        comment="when a day was first published with it",
    ),
    comment="One row a recipe that ever wrote a published row: which prompt, model and limits a row came from.",
)

runs_table = sa.Table(
    "runs",
    metadata,
    sa.Column(
        "run_id", sa.BigInteger, sa.Identity(always=True), primary_key=True, comment="counts up; latest is highest"
    ),
    sa.Column("day", sa.Date, nullable=False, comment="the day published"),
    sa.Column("dag_run_id", sa.Text, nullable=False, comment="the Airflow run that published"),
    sa.Column(
        "recipe_id", sa.Text, sa.ForeignKey("recipes.recipe_id"), nullable=False, comment="the recipe of the day's rows"
    ),
    sa.Column("manifest_id", sa.Text, nullable=False, comment="the frozen listing of the day"),
    sa.Column("manifest_uri", sa.Text, nullable=False, comment="where the frozen listing is kept"),
    sa.Column("manifest_rows", sa.BigInteger, nullable=False, comment="images listed: ok + quarantined, always"),
    sa.Column("ok", sa.BigInteger, nullable=False, comment="rows in annotations"),
    sa.Column("quarantined", sa.BigInteger, nullable=False, comment="rows in quarantine"),
    sa.Column("by_outcome", JSONB, nullable=False, comment="rows by outcome"),
    sa.Column("cached", sa.BigInteger, nullable=False, comment="rows whose every answer came from the cache"),
    sa.Column("parts", ARRAY(sa.Text), nullable=False, comment="URIs of the result parts published, in manifest order"),
    sa.Column(
        "content_digest", sa.Text, nullable=False, comment="SHA-256 over the day's rows in key order, all columns"
    ),
    sa.Column("changed", sa.Boolean, nullable=False, comment="false: the day already held exactly these rows"),
    sa.Column(
        "images_per_s",
        sa.REAL,
        comment="images a second of an accelerator, loading the model included; null when nothing was annotated",
    ),
    sa.Column("model_seconds", sa.REAL, comment="seconds the model ran; null when not known"),
    sa.Column("gpu_seconds", sa.REAL, comment="seconds accelerators were held; null when not known"),
    sa.Column("gate", JSONB, comment="the gate's report; null when published without a gate"),
    sa.Column(
        "published_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("now()"), comment="when"
    ),
    sa.CheckConstraint("manifest_rows = ok + quarantined", name="counts"),
    sa.Index(None, "day", "run_id"),
    comment="One row each time a run published a day; the highest run_id of a day says what stands there now.",
)

answers_table = sa.Table(
    "answers",
    metadata,
    sa.Column("sha256", BYTEA, primary_key=True, comment="digest of the image's bytes"),
    sa.Column("answer_id", sa.Text, primary_key=True, comment="names what shaped the answer"),
    sa.Column("answer", sa.Text, nullable=False, comment="the raw answer, before any check"),
    sa.Column("finish_reason", sa.Text, nullable=False, comment="stop: the model ended; length: the token limit did"),
    sa.Column("tokens_in", sa.Integer, nullable=False, comment="prompt tokens, those of the image included"),
    sa.Column("tokens_out", sa.Integer, nullable=False, comment="generated tokens"),
    sa.Column(
        "created_at",
        sa.TIMESTAMP(timezone=True),
        nullable=False,
        server_default=sa.text("now()"),
        comment="when the model answered",
    ),
    comment="The result cache: raw answers by image content and answer_id; checks run again on every use.",
)
