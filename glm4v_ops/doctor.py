"""Whether this machine can do the work: one line for each thing the work needs, with a remedy where it is amiss.

A thing that is set and does not work is a FAIL; a thing that is not set is a warning, since `annotate` on local files
needs neither store nor tables. Nothing is changed anywhere. Loads the model only for the model's own check.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from botocore.config import Config

from glm4v_ops import __version__
from glm4v_ops.errors import Glm4vError, GpuUnavailable, SettingsError
from glm4v_ops.footprint import GIB, needed_bytes, parameters_of
from glm4v_ops.model import identity
from glm4v_ops.recipe import Quantization, Recipe, load_recipe
from glm4v_ops.settings import S3Uri, Settings, dsn_from_environment
from glm4v_ops.sink import queries
from glm4v_ops.sink.connection import describe
from glm4v_ops.source import store

#: Packages whose version shapes answers or explains a fault; Airflow is needed only by the nightly run.
_PACKAGES = ("torch", "transformers", "bitsandbytes", "pillow", "pyarrow", "boto3", "psycopg", "sqlalchemy")
_OPTIONAL = ("apache-airflow",)


class Health(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the examination."""

    name: str
    health: Health
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        said = f"{self.detail} — {self.remedy}" if self.remedy else self.detail
        return f"{self.health.value:<4} {self.name}: {' '.join(said.split())}"


def examine(settings: Settings, *, device: str = "auto", with_model: bool = True) -> Iterator[Check]:
    """Every check, each as soon as it is made."""
    yield _packages()
    yield from _optional_packages()
    memory, machine = _machine(device)
    yield machine
    try:
        path = Path(settings.recipe)
        recipe = load_recipe(path)
        yield Check("recipe", Health.OK, f"{path} ({recipe.name}): {recipe.model_name}, {_held(recipe)}")
    except Glm4vError as error:
        yield Check("recipe", Health.FAIL, error.message, error.remedy)
    else:
        yield _memory(recipe, path.parent, memory)
        if with_model:
            yield _model(recipe, path.parent, device)
    yield _store(settings)
    yield _tables()


def _held(recipe: Recipe) -> str:
    return f"{recipe.model.quantization.value} on {recipe.model.dtype}"


def _packages() -> Check:
    found, missing = [f"glm4v_ops {__version__}", f"python {platform.python_version()}"], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("packages", Health.FAIL, f"not installed: {', '.join(missing)}", "make setup")
    return Check("packages", Health.OK, ", ".join(found))


def _optional_packages() -> Iterator[Check]:
    for name in _OPTIONAL:
        try:
            yield Check("airflow", Health.OK, f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            yield Check(
                "airflow", Health.WARN, f"{name} is not installed", "needed for the nightly run only: make setup"
            )


def _machine(device: str) -> tuple[float, Check]:
    """The memory the model may use, and the line that says of what."""
    try:
        return _chosen_machine(device)
    except ImportError as error:
        return 0.0, Check("device", Health.FAIL, f"torch cannot be imported: {error}", "make setup")
    except GpuUnavailable as error:
        return 0.0, Check("device", Health.FAIL, error.message, error.remedy)
    except Exception as error:  # noqa: BLE001 - a GPU that is broken answers with anything
        return 0.0, Check("device", Health.FAIL, f"{type(error).__name__}: {error}", "check nvidia-smi")


def _chosen_machine(device: str) -> tuple[float, Check]:
    import torch

    from glm4v_ops.model.loading import choose_device

    chosen = choose_device(device)
    if chosen.type == "cuda":
        name, (free, total) = torch.cuda.get_device_name(chosen), torch.cuda.mem_get_info(chosen)
        detail = f"{name}, {total / GIB:.1f} GiB, {free / GIB:.1f} free, CUDA {torch.version.cuda}"
        return float(free), Check("device", Health.OK, detail)
    total_ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    detail = f"the CPU, {torch.get_num_threads()} threads, {total_ram / GIB:.1f} GiB of memory"
    if device == "cpu":
        return float(total_ram), Check("device", Health.OK, detail)
    return float(total_ram), Check(
        "device", Health.WARN, f"no GPU: {detail}", "fine for the demo model, slow for a 9B one"
    )


def _memory(recipe: Recipe, base: Path, memory: float) -> Check:
    try:
        parameters = parameters_of(recipe, base)
    except Glm4vError as error:
        return Check("memory", Health.FAIL, error.message, error.remedy)
    needs = {quantization: needed_bytes(recipe, quantization, parameters) for quantization in Quantization}
    fitting = [quantization.value for quantization, need in needs.items() if need <= memory]
    detail = ", ".join(f"{quantization.value} needs {need / GIB:.1f}" for quantization, need in needs.items())
    detail = f"of {memory / GIB:.1f} GiB, {detail} (batches of {recipe.run.batch_size})"
    if recipe.model.quantization.value in fitting:
        return Check("memory", Health.OK, f"{detail}: {', '.join(fitting)} fit")
    remedy = "lower run.batch_size or image.max_side in the recipe"
    if fitting:
        remedy = f"set model.quantization to {fitting[-1]} in the recipe, or {remedy}"
    return Check("memory", Health.FAIL, f"{detail}: {recipe.model.quantization.value} does not fit", remedy)


def _guarded(name: str, check: Callable[[], str]) -> Check:
    """Run a check that raises when the thing is amiss."""
    try:
        return Check(name, Health.OK, check())
    except Glm4vError as error:
        return Check(name, Health.FAIL, error.message, error.remedy)
    except ImportError as error:
        return Check(name, Health.FAIL, f"a package cannot be imported: {error}", "make setup")
    except Exception as error:  # noqa: BLE001 - nobody has foreseen it, and the checks after it are still to be made
        return Check(name, Health.FAIL, f"{type(error).__name__}: {error}", "report this: it should have been foreseen")


def _model(recipe: Recipe, base: Path, device: str) -> Check:
    def ask() -> str:
        from glm4v_ops.model.engine import Answer, Engine
        from glm4v_ops.model.reference import reference_picture

        engine = Engine.load(identity.resolve(recipe, base), base=base, device=device)
        replies = engine.answer([reference_picture()], list(recipe.tasks))[0]
        said = "; ".join(f"{task}: {reply.text!r}" for task, reply in replies.items() if isinstance(reply, Answer))
        return f"{recipe.model_name} at {engine.recipe.model.revision} about a generated picture — {said}"

    return _guarded("model", ask)


def _store(settings: Settings) -> Check:
    import boto3

    try:
        with store.as_store_errors():
            credentials = boto3.session.Session().get_credentials()
    except Glm4vError as error:
        return Check("store", Health.FAIL, error.message, error.remedy)
    if credentials is None:
        remedy = "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, off AWS, AWS_ENDPOINT_URL_S3"
        return Check("store", Health.WARN, "no credentials", remedy)

    def reach() -> str:
        # A person is waiting: one try, not the patience of a nightly run.
        client = store.client(config=Config(retries={"total_max_attempts": 1}, connect_timeout=3, read_timeout=10))
        buckets = {settings.source_of(date.today()).bucket, settings.work_uri.bucket}
        for bucket in sorted(buckets):
            with store.as_store_errors(S3Uri(bucket, "")):
                client.list_objects_v2(Bucket=bucket, MaxKeys=1)
        return f"{client.meta.endpoint_url}, buckets {', '.join(sorted(buckets))}"

    return _guarded("store", reach)


def _tables() -> Check:
    try:
        dsn = dsn_from_environment()
    except SettingsError as error:
        return Check("tables", Health.WARN, error.message, error.remedy)

    def reach() -> str:
        newest = queries.days(dsn, limit=1)
        return f"{describe(dsn)}, newest day {newest[0].day if newest else 'none yet'}"

    return _guarded("tables", reach)
