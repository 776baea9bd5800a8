"""The committed demo model's own tokenizer, for the tests of what it is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from demo.stack import ROOT

MODEL = ROOT / "demo" / "model"


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return MODEL


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(checkpoint)
