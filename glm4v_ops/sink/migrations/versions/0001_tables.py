"""The first tables: annotations and quarantine by day, runs, recipes, answers.

Comments are not here: `migrate` writes those of `glm4v_ops.sink.schema` after the last step.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB

revision = "0001"
down_revision: str | None = None
branch_labels: None = None
depends_on: None = None


def _result_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("etag", sa.Text, nullable=False),
        sa.Column("version_id", sa.Text),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("caption", sa.Text),
        sa.Column("text", sa.Text),
        sa.Column("has_text", sa.Boolean),
        sa.Column("recipe_id", sa.Text, nullable=False),
        sa.Column("caption_answer_id", sa.Text),
        sa.Column("text_answer_id", sa.Text),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("quantization", sa.Text, nullable=False),
        sa.Column("attempts", sa.SmallInteger, nullable=False),
        sa.Column("cached", sa.Boolean, nullable=False),
        sa.Column("tokens_in", sa.Integer, nullable=False),
        sa.Column("tokens_out", sa.Integer, nullable=False),
        sa.Column("latency_ms", sa.REAL),
        sa.Column("manifest_id", sa.Text, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("part", sa.Text, nullable=False),
        sa.Column("dag_run_id", sa.Text, nullable=False),
        sa.Column("try_number", sa.SmallInteger, nullable=False),
        sa.Column("annotated_at", sa.TIMESTAMP(timezone=True), nullable=False),
    ]


def _stamp(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("now()"))


def upgrade() -> None:
    for table, rule in (("annotations", "outcome = 'ok'"), ("quarantine", "outcome <> 'ok'")):
        op.create_table(
            table,
            *_result_columns(),
            sa.PrimaryKeyConstraint("day", "key", name=f"{table}_pkey"),
            sa.CheckConstraint(rule, name=op.f(f"{table}_outcome_check")),
            postgresql_partition_by="LIST (day)",
        )
        for column in ("key", "sha256", "recipe_id"):
            op.create_index(f"{table}_{column}_idx", table, [column])
    op.create_index("quarantine_outcome_reason_idx", "quarantine", ["outcome", "reason"])
    op.create_table(
        "recipes",
        sa.Column("recipe_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("yaml", sa.Text, nullable=False),
        sa.Column("content", JSONB, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("quantization", sa.Text, nullable=False),
        _stamp("first_used_at"),
        sa.PrimaryKeyConstraint("recipe_id", name="recipes_pkey"),
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("dag_run_id", sa.Text, nullable=False),
        sa.Column("recipe_id", sa.Text, nullable=False),
        sa.Column("manifest_id", sa.Text, nullable=False),
        sa.Column("manifest_uri", sa.Text, nullable=False),
        sa.Column("manifest_rows", sa.BigInteger, nullable=False),
        sa.Column("ok", sa.BigInteger, nullable=False),
        sa.Column("quarantined", sa.BigInteger, nullable=False),
        sa.Column("by_outcome", JSONB, nullable=False),
        sa.Column("cached", sa.BigInteger, nullable=False),
        sa.Column("parts", ARRAY(sa.Text), nullable=False),
        sa.Column("content_digest", sa.Text, nullable=False),
        sa.Column("changed", sa.Boolean, nullable=False),
        sa.Column("images_per_s", sa.REAL),
        sa.Column("model_seconds", sa.REAL),
        sa.Column("gpu_seconds", sa.REAL),
        sa.Column("gate", JSONB),
        _stamp("published_at"),
        sa.PrimaryKeyConstraint("run_id", name="runs_pkey"),
        sa.ForeignKeyConstraint(["recipe_id"], ["recipes.recipe_id"], name="runs_recipe_id_fkey"),
        sa.CheckConstraint("manifest_rows = ok + quarantined", name=op.f("runs_counts_check")),
    )
    op.create_index("runs_day_run_id_idx", "runs", ["day", "run_id"])
    op.create_table(
        "answers",
        sa.Column("sha256", BYTEA, nullable=False),
        sa.Column("answer_id", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("finish_reason", sa.Text, nullable=False),
        sa.Column("tokens_in", sa.Integer, nullable=False),
        sa.Column("tokens_out", sa.Integer, nullable=False),
        _stamp("created_at"),
        sa.PrimaryKeyConstraint("sha256", "answer_id", name="answers_pkey"),
    )


def downgrade() -> None:
    for table in ("answers", "runs", "recipes", "quarantine", "annotations"):
        op.drop_table(table)
