"""The recipe: everything that shapes an answer, in one YAML file, validated and hashed.

`recipe_id` names the whole recipe and stands on every row; `answer_id(task)` names just what shapes that
task's answer, and keys the result cache. Two files that say the same thing have the same ids: the hash is
taken over the validated content, not over the text. Not in either id: the recipe's `name`, and `run`, which
says how the work is cut up and cannot change an answer.

Knows nothing of where models are loaded from; `revision` of a local checkpoint is filled in by
`with_revision` once someone has read it.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glm4v_ops.errors import RecipeError

#: Part of every answer_id. Raise it when a change of our code changes answers: the prompt's order,
#: image scaling, or how an answer is cut out of the model's output.
ANSWER_VERSION = 1

#: What YAML reads out of plain text; PyYAML lets through whatever Python says to a text that does not fit.
_PARSED = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "int", "float", "bool"))

TaskName = Literal["caption", "text"]


class Family(StrEnum):
    """The model families. `CHATGLM` (GLM-4V-9B) has its place here and its class in a later release."""

    GLM4V = "glm4v"
    CHATGLM = "chatglm"


class Quantization(StrEnum):
    """Weights in memory: `NF4` the language model only, `NF4_FULL` the vision tower too (lm_head never)."""

    NONE = "none"
    NF4 = "nf4"
    NF4_FULL = "nf4-full"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSection(_Section):
    """Which checkpoint, and how it is held in memory."""

    id: Annotated[str, Field(min_length=1, description="hub id, or a folder, relative to the recipe file")]
    revision: Annotated[str, Field(min_length=1)] = "main"
    family: Family = Family.GLM4V
    quantization: Quantization = Quantization.NF4
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    thinking: bool = False


class ImageSection(_Section):
    """Limits before and after decoding."""

    max_bytes: Annotated[int, Field(ge=1_000, le=1_000_000_000)] = 30_000_000
    max_pixels: Annotated[int, Field(ge=10_000, le=1_000_000_000)] = 100_000_000
    max_side: Annotated[int, Field(ge=56, le=8192, description="pixels; the long side is scaled down to it")] = 1024


class TaskSection(_Section):
    """One question put to the model about every image."""

    prompt: Annotated[str, Field(min_length=1)]
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 256
    temperature: Annotated[float, Field(ge=0.0, le=2.0, description="0 is greedy")] = 0.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    repetition_penalty: Annotated[float, Field(ge=1.0, le=2.0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0


class GateSection(_Section):
    """What a day must satisfy before it is published."""

    max_failure_rate: Annotated[float, Field(ge=0.0, le=1.0, description="quarantined rows / manifest rows")] = 0.05


class RunSection(_Section):
    """How the work is cut up; shapes no answer, so it is in no id."""

    shard_size: Annotated[int, Field(ge=1, le=1_000_000, description="images a GPU task")] = 4096
    part_size: Annotated[int, Field(ge=1, le=100_000, description="images a result part: the most a kill can lose")] = (
        256
    )
    batch_size: Annotated[int, Field(ge=1, le=4096, description="images the model sees at once")] = 16
    fetchers: Annotated[int, Field(ge=1, le=256, description="concurrent downloads")] = 16
    decoders: Annotated[int, Field(ge=1, le=64, description="concurrent decodes")] = 2


class Recipe(_Section):
    """A validated recipe. Load one with `load_recipe`."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    model: ModelSection
    image: ImageSection = ImageSection()
    tasks: Annotated[dict[TaskName, TaskSection], Field(min_length=1)]
    gate: GateSection = GateSection()
    run: RunSection = RunSection()

    @property
    def recipe_id(self) -> str:
        """16 hex digits naming the content (see the module's docstring for what is left out)."""
        content = self.model_dump(mode="json", exclude={"name", "run", "model"})
        return _digest({"version": ANSWER_VERSION, "recipe": content, "model": self._model_content()})

    def answer_id(self, task: TaskName) -> str:
        """16 hex digits naming what shapes this task's answer: model, image limits, its prompt and settings."""
        image, own = self.image.model_dump(mode="json"), self.tasks[task].model_dump(mode="json")
        content = {"model": self._model_content(), "image": image, "settings": own}
        return _digest({"version": ANSWER_VERSION, "task": task, **content})

    @property
    def model_name(self) -> str:
        """The model as rows name it: the hub id, or the last two parts of a folder's path."""
        return "/".join([part for part in self.model.id.split("/") if part not in ("", ".", "..", "~")][-2:])

    def _model_content(self) -> dict[str, Any]:
        """A folder's content digest says all: the same checkpoint keeps its ids wherever it is copied to."""
        by_content = self.model.revision.startswith("sha256:")
        return self.model.model_dump(mode="json", exclude={"id"} if by_content else None)

    def with_revision(self, revision: str) -> Recipe:
        """The same recipe with the checkpoint's resolved revision, as it stands on rows and in ids."""
        return self.model_copy(update={"model": self.model.model_copy(update={"revision": revision})})

    def to_yaml(self) -> str:
        """Canonical YAML that `parse_recipe` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), allow_unicode=True, sort_keys=False)


def load_recipe(path: Path | str) -> Recipe:
    """Read and validate a recipe file. Raises `RecipeError` naming the path in the file and the allowed values."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"cannot read recipe {path}: {error.strerror}", remedy="name a file like recipes/default.yaml"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not UTF-8: {error}", remedy="save it as UTF-8") from error
    return parse_recipe(text, name=str(path))


def parse_recipe(text: str, *, name: str) -> Recipe:
    """Validate a recipe's YAML. `name` is what error messages call it. Raises `RecipeError`."""
    try:
        content = _data(text, name)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name} is not YAML: {error}", remedy="compare with recipes/default.yaml") from error
    except RecursionError as error:
        raise RecipeError(f"{name} is nested too deeply", remedy="compare with recipes/default.yaml") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{name} holds no mapping", remedy="compare with recipes/default.yaml")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise RecipeError(f"{name}: " + "; ".join(lines), remedy="compare with recipes/default.yaml") from error


def _data(text: str, name: str) -> Any:
    """What `yaml.safe_load` gives, from a file without a fault that it lets pass, or meets with a trace."""
    loader = yaml.SafeLoader(text)
    root = loader.get_single_node()
    if root is None:
        return None
    _check(loader, root, name, "", set())
    return loader.construct_document(root)


def _check(loader: yaml.SafeLoader, node: yaml.Node, name: str, path: str, seen: set[int]) -> None:
    """Raises `RecipeError` for a key that stands twice, and for a value that is none (the 45th of a month)."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            below, called = f"{path}.{key.value}".lstrip("."), str(key.value)
            if called in keys:
                raise _fault(key, name, below, "stands twice")
            keys.add(called)
            _check(loader, key, name, below, seen)
            _check(loader, value, name, below, seen)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _check(loader, each, name, path, seen)
    elif node.tag in _PARSED:
        try:
            loader.construct_object(node)
        except (ValueError, LookupError, AttributeError) as error:
            raise _fault(node, name, path, f"{node.value[:50]!r} is no value: {error}") from error


def _fault(node: yaml.Node, name: str, path: str, said: str) -> RecipeError:
    remedy = "write each key once, and text that looks like a date or a number in quotes"
    return RecipeError(f"{name}, line {node.start_mark.line + 1}: {path}: {said}", remedy=remedy)


def _explain(problem: Any) -> str:
    """One problem as `path: what is wrong (allowed: …)`."""
    location = tuple(part for part in problem["loc"] if part != "[key]")
    path = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(_keys_at(location[:-1]))
        return f"{path}: unknown key (allowed: {allowed})"
    if problem["type"] == "literal_error" and location[:1] == ("tasks",) and len(location) == 2:
        return f"{path}: unknown task (allowed: caption, text)"
    message = problem["msg"].replace("Input should be", "should be")
    return f"{path}: {message}, not {problem['input']!r}" if problem["type"] != "missing" else f"{path}: is required"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """The keys allowed in the section at `location`."""
    section: type[BaseModel] = Recipe
    for part in location:
        if part in ("caption", "text") and section is Recipe:
            section = TaskSection
        elif part != "tasks":
            annotation = section.model_fields[part].annotation
            section = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else section
    return list(section.model_fields)


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
