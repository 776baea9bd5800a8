"""One small checkpoint a session, as a folder and loaded; and copies of it to break."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from glm4v_ops.model.engine import Engine
from glm4v_ops.model.loading import Checkpoint, load
from glm4v_ops.recipe import TaskName
from tests.model import checkpoint as small

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """torch's threads wait for each other in a busy loop: on cores shared with other work, one thread is faster."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint's folder. Not to be changed: see `altered`."""
    return small.export(tmp_path_factory.mktemp("small") / "glm4v")


class Altered:
    """A copy of the checkpoint that a test may break."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tensors(self, change: Callable[[Tensors], object]) -> Path:
        path = self.folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        return self.folder

    def json(self, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        path = self.folder / name
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")
        return self.folder


@pytest.fixture
def altered(folder: Path, tmp_path: Path) -> Altered:
    return Altered(Path(shutil.copytree(folder, tmp_path / "glm4v")))


Loaded = Callable[..., Checkpoint]


@pytest.fixture(scope="session")
def loaded(folder: Path) -> Loaded:
    """The checkpoint on the CPU, loaded once for each (quantization, dtype). Hooks are the test's own to remove."""

    @cache
    def load_once(quantization: str, dtype: str) -> Checkpoint:
        recipe = small.recipe(folder, quantization=quantization, dtype=dtype)
        return load(recipe, base=None, device="cpu", progress=lambda _: None)

    return lambda quantization="none", dtype="float32": load_once(quantization, dtype)


MakeEngine = Callable[..., Engine]


@pytest.fixture
def engine(folder: Path, loaded: Loaded) -> MakeEngine:
    """An engine on the loaded checkpoint, for these settings of the tasks."""

    def make(
        tasks: dict[TaskName, dict[str, Any]] | None = None, *, quantization: str = "none", dtype: str = "float32"
    ) -> Engine:
        recipe = small.recipe(folder, tasks, quantization=quantization, dtype=dtype)
        return Engine(loaded(quantization, dtype), recipe)

    return make
