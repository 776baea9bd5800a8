"""Rows and days as the annotate step writes them."""

from __future__ import annotations

import dataclasses
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import load_recipe
from glm4v_ops.result import Result
from glm4v_ops.sink.postgres import RunInfo

DAY = date(2026, 11, 20)
MANIFEST = "0123456789ab"
RECIPE = load_recipe(Path(__file__).parents[2] / "recipes" / "demo.yaml").with_revision("sha256:abc123")

_ROW = Result(
    day=DAY,
    key="images/2026-11-20/a.png",
    etag="e1",
    version_id=None,
    size=1234,
    sha256="ab" * 32,
    width=640,
    height=480,
    outcome=Outcome.OK,
    reason="",
    detail="",
    caption="A red circle.",
    text="HELLO",
    has_text=True,
    recipe_id=RECIPE.recipe_id,
    caption_answer_id=RECIPE.answer_id("caption"),
    text_answer_id=RECIPE.answer_id("text"),
    model="demo",
    revision="abc123",
    quantization="nf4",
    attempts=2,
    cached=False,
    tokens_in=180,
    tokens_out=22,
    latency_ms=12.5,
    manifest_id=MANIFEST,
    shard=0,
    part="s3://work/results/0.parquet",
    dag_run_id="run-1",
    try_number=1,
    annotated_at=datetime(2026, 11, 21, 3, 4, 5, 678901, tzinfo=UTC),
)


def row(key: str = _ROW.key, outcome: Outcome = Outcome.OK, **changes: Any) -> Result:
    """One row; quarantined ones have no answers unless given."""
    if not outcome.is_ok:
        changes = {"reason": "found", "detail": "a sentence", "caption": None, "text": None, "has_text": None} | changes
    return dataclasses.replace(_ROW, key=key, outcome=outcome, **changes)


def run_info(rows: int, **changes: Any) -> RunInfo:
    info = RunInfo(
        dag_run_id="run-1",
        recipe=RECIPE,
        manifest_id=MANIFEST,
        manifest_uri="s3://work/manifests/2026-11-20/0123456789ab.parquet",
        manifest_rows=rows,
    )
    return dataclasses.replace(info, **changes)
