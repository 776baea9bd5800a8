"""The container files with their variables filled in, once a session: nobody changes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.containers.files import COMPOSE, fill, interpolated, variables


@pytest.fixture(scope="session")
def dotenv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("filled"))


@pytest.fixture(scope="session")
def compose(dotenv: Path) -> dict[str, Any]:
    resolved: dict[str, Any] = interpolated(yaml.safe_load(COMPOSE), variables(dotenv.read_text(encoding="utf-8")))
    return resolved


@pytest.fixture(scope="session")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found
