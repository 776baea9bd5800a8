from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from demo.parts import ObjectStore, Postgres
from glm4v_ops import doctor
from glm4v_ops.doctor import Check, Health, examine
from glm4v_ops.footprint import GIB
from glm4v_ops.recipe import Recipe, load_recipe
from glm4v_ops.settings import Settings
from glm4v_ops.sink.postgres import migrate, publish
from tests.shards import recipe
from tests.sink.rows import DAY, run_info

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials, whatever the machine has."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe with a checkpoint that is small, whole, and no model."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    save_file({"a.weight": np.zeros((64, 64), np.float16)}, tmp_path / "model" / "model.safetensors")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(model={"id": "./model"}).to_yaml(), encoding="utf-8")
    return path


def found(settings: Settings, *, device: str = "cpu", with_model: bool = False) -> dict[str, Check]:
    """Every check by its name; each is one line."""
    checks = list(examine(settings, device=device, with_model=with_model))
    assert all("\n" not in str(check) for check in checks)
    assert all(check.remedy for check in checks if check.health is not Health.OK)
    return {check.name: check for check in checks}


def reach(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def test_a_machine_that_has_everything_has_nothing_to_say_but_ok(
    recipe_file: Path, store: ObjectStore, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = postgres.new_database()
    migrate(dsn)
    publish(dsn, day=DAY, tables=[], run=run_info(0))
    reach(monkeypatch, {**store.environ(), "GLM4V_DSN": dsn})
    source, work = store.new_bucket(), store.new_bucket()
    checks = found(Settings(source=f"s3://{source}/{{day}}/", work=f"s3://{work}/x", recipe=str(recipe_file)))
    assert list(checks) == ["packages", "airflow", "device", "recipe", "memory", "store", "tables"]
    assert {name: check.health for name, check in checks.items()} == dict.fromkeys(checks, Health.OK)
    assert str(checks["recipe"]).startswith(f"ok   recipe: {recipe_file} (test): ")
    assert checks["store"].detail == f"{store.endpoint}, buckets {', '.join(sorted([source, work]))}"
    assert checks["tables"].detail.endswith(f"newest day {DAY}")
    assert postgres.password not in checks["tables"].detail
    assert "nf4" in checks["memory"].detail
    assert all(f"{name} " in checks["packages"].detail for name in ("torch", "transformers", "bitsandbytes", "pyarrow"))


def test_a_bare_machine_is_warned_and_told_what_to_do(recipe_file: Path) -> None:
    """The real command, without GPU, credentials or database: nothing that is set fails, so it exits 0."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "glm4v_ops", "doctor", "--no-model", "--recipe", str(recipe_file)]
    ran = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    lines = ran.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "ok   packages",
        "ok   airflow",
        "warn device",
        "ok   recipe",
        "ok   memory",
        "warn store",
        "warn tables",
    ]
    assert "no GPU" in lines[2]
    assert "no credentials — set AWS_ACCESS_KEY_ID" in lines[5]
    assert "GLM4V_DSN is not set — export GLM4V_DSN=" in lines[6]
    assert (ran.returncode, ran.stderr) == (0, "")


def test_what_is_set_and_does_not_work_fails_and_exits_1(recipe_file: Path) -> None:
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "GLM4V_DSN": "postgresql://somebody:hush-hush@127.0.0.1:1/none",
    }
    options = ["--device", "cuda:99", "--recipe", str(recipe_file)]
    command = [sys.executable, "-m", "glm4v_ops", "doctor", *options]
    ran = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    lines = {line.partition(":")[0]: line for line in ran.stdout.splitlines()}
    assert ran.returncode == 1
    failed = ["FAIL device", "FAIL memory", "FAIL model", "FAIL store", "FAIL tables"]
    assert [name for name in lines if name.startswith("FAIL")] == failed
    assert all(" — " in lines[name] for name in failed)
    assert "--device cpu" in lines["FAIL device"]
    assert "did not answer" in lines["FAIL store"]
    assert "somebody@127.0.0.1:1/none did not answer" in lines["FAIL tables"]
    assert "hush-hush" not in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr


@pytest.mark.parametrize("text", ["name: [", "name: x\nmodels: {}\n", None])
def test_a_wrong_recipe_is_one_line_and_the_rest_is_still_examined(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    checks = found(Settings(recipe=str(path)), with_model=True)
    assert list(checks) == ["packages", "airflow", "device", "recipe", "store", "tables"]
    assert checks["recipe"].health is Health.FAIL
    assert str(path) in checks["recipe"].detail


def test_a_checkpoint_that_is_no_model_fails_at_the_model_alone(recipe_file: Path) -> None:
    checks = found(Settings(recipe=str(recipe_file)), with_model=True)
    assert [name for name, check in checks.items() if check.health is Health.FAIL] == ["model"]
    assert list(checks)[-2:] == ["store", "tables"]


def test_a_checkpoint_cut_short_is_named(recipe_file: Path) -> None:
    (recipe_file.parent / "model" / "model.safetensors").write_bytes(b"\x00\x01")
    memory = found(Settings(recipe=str(recipe_file)))["memory"]
    assert memory.health is Health.FAIL
    assert "model.safetensors is no whole safetensors file" in memory.detail


def test_a_package_that_is_not_there_is_a_line_and_no_trace(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # what makes `import torch` fail
    monkeypatch.delitem(sys.modules, "glm4v_ops.model.engine", raising=False)
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch", "no-such-package"))
    checks = found(Settings(recipe=str(recipe_file)), with_model=True)
    assert str(checks["packages"]) == "FAIL packages: not installed: no-such-package — make setup"
    assert (checks["device"].health, checks["model"].health) == (Health.FAIL, Health.FAIL)
    assert "torch" in checks["device"].detail
    assert list(checks)[-2:] == ["store", "tables"]


@pytest.mark.parametrize("broken", ["mem_get_info", "get_device_name", "is_available"])
def test_a_gpu_that_answers_with_an_error_fails_alone(
    broken: str, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nfor debugging consider")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(torch.cuda, broken, answer)
    checks = found(Settings(recipe=str(recipe_file)), device="auto")
    assert checks["device"].health is Health.FAIL
    assert "AcceleratorError: CUDA error: uncorrectable ECC error" in checks["device"].detail
    assert list(checks) == ["packages", "airflow", "device", "recipe", "memory", "store", "tables"]


def test_a_model_that_fails_in_a_way_nobody_foresaw_is_a_line(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("glm4v_ops.model.engine.Engine.load", load)
    checks = found(Settings(recipe=str(recipe_file)), with_model=True)
    assert (checks["model"].health, checks["model"].detail) == (Health.FAIL, "ZeroDivisionError: by nothing")
    assert list(checks)[-2:] == ["store", "tables"]


def test_airflow_is_needed_only_by_the_nightly_run(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_OPTIONAL", ("no-such-airflow",))
    assert found(Settings(recipe=str(recipe_file)))["airflow"].health is Health.WARN


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses these credentials"),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, "did not answer"),
        ({"AWS_ENDPOINT_URL_S3": "no url"}, "cannot be asked"),
        ({"AWS_PROFILE": "nobody"}, "nobody"),
        ({}, "no bucket 'drop'"),
    ],
)
def test_a_store_that_is_set_and_does_not_work_fails_with_its_reason(
    changes: dict[str, str], said: str, recipe_file: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(monkeypatch, {**store.environ(), **changes})
    check = found(Settings(recipe=str(recipe_file)))["store"]
    assert check.health is Health.FAIL
    assert said in check.detail
    assert store.secret_key not in str(check)


@pytest.mark.parametrize(
    ("name", "value"),
    [("GLM4V_SOURCE", "s3://drop/images/"), ("GLM4V_SOURCE", "drop/{day}"), ("GLM4V_WORK", "work")],
)
def test_a_bucket_that_is_set_wrong_names_its_setting(
    name: str, value: str, recipe_file: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(monkeypatch, {**store.environ(), "GLM4V_RECIPE": str(recipe_file), name: value})
    check = found(Settings.from_environment())["store"]
    assert check.health is Health.FAIL
    assert f"{name} is " in check.detail


def test_tables_that_are_not_made_yet_fail_with_the_command_that_makes_them(
    recipe_file: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = postgres.new_database()
    monkeypatch.setenv("GLM4V_DSN", dsn)
    missing = found(Settings(recipe=str(recipe_file)))["tables"]
    assert (missing.health, missing.remedy) == (Health.FAIL, "run python -m glm4v_ops migrate")
    migrate(dsn)
    made = found(Settings(recipe=str(recipe_file)))["tables"]
    assert (made.health, made.detail.rpartition(", ")[2]) == (Health.OK, "newest day none yet")


@pytest.mark.parametrize(
    ("gib", "health", "remedy"),
    [
        (80, Health.OK, ""),
        (12, Health.FAIL, "set model.quantization to nf4-full in the recipe, or lower run.batch_size"),
        (4, Health.FAIL, "lower run.batch_size or image.max_side in the recipe"),
    ],
)
def test_memory_says_which_quantisation_fits(gib: int, health: Health, remedy: str, tmp_path: Path) -> None:
    file = ROOT / "recipes" / "default.yaml"
    content = load_recipe(file).model_dump()
    unquantized = Recipe.model_validate(content | {"model": {"id": "./none", "quantization": "none"}})
    check = doctor._memory(unquantized, tmp_path, gib * GIB)
    assert check.health is health
    assert check.remedy.startswith(remedy)
    assert f"of {gib}.0 GiB" in check.detail


def test_the_demo_model_answers_the_doctor() -> None:
    model = found(Settings(recipe=str(ROOT / "recipes" / "demo.yaml")), with_model=True)["model"]
    assert model.health is Health.OK, model
    assert "caption: '" in model.detail
    assert "text: '" in model.detail
