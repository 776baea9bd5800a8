from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from glm4v_ops.errors import RecipeError
from glm4v_ops.recipe import Family, Quantization, Recipe, load_recipe, parse_recipe

RECIPES = Path(__file__).parents[1] / "recipes"

TEXT = """\
name: test
model: {id: zai-org/GLM-4.6V-Flash, revision: 0123abc, quantization: nf4}
image: {max_side: 1024}
tasks:
  caption: {prompt: Describe the image., max_new_tokens: 192}
  text: {prompt: Read out all text.}
gate: {max_failure_rate: 0.05}
run: {shard_size: 128}
"""


def changed(path: str, value: Any) -> Recipe:
    """`TEXT` with one value set, by its path in the file."""
    content = yaml.safe_load(TEXT)
    *sections, key = path.split(".")
    place = content
    for section in sections:
        place = place.setdefault(section, {})
    place[key] = value
    return Recipe.model_validate(content)


def ids(recipe: Recipe) -> tuple[str, str, str]:
    return recipe.recipe_id, recipe.answer_id("caption"), recipe.answer_id("text")


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as refused:
        parse_recipe(text, name="night.yaml")
    assert refused.value.remedy
    return refused.value.message


@pytest.mark.parametrize(
    ("line", "by", "said"),
    [
        (
            "max_side: 1024",
            "max_sides: 1024",
            "image.max_sides: unknown key (allowed: max_bytes, max_pixels, max_side)",
        ),
        (
            "max_new_tokens: 192",
            "max_tokens: 192",
            "tasks.caption.max_tokens: unknown key"
            " (allowed: prompt, max_new_tokens, temperature, top_p, repetition_penalty, seed)",
        ),
        ("gate:", "gates:", "gates: unknown key (allowed: name, model, image, tasks, gate, run)"),
        ("shard_size: 128", "shards: 3", "run.shards: unknown key (allowed: shard_size, part_size, batch_size, "),
        ("  text:", "  ocr:", "tasks.ocr: unknown task (allowed: caption, text)"),
        ("192", "10000", "tasks.caption.max_new_tokens: should be less than or equal to 8192, not 10000"),
        ("192", "0", "tasks.caption.max_new_tokens: should be greater than or equal to 1, not 0"),
        ("192", "many", "tasks.caption.max_new_tokens: should be a valid integer"),
        ("0.05", ".nan", "gate.max_failure_rate: should be"),
        ("0.05", "5", "gate.max_failure_rate: should be less than or equal to 1, not 5"),
        ("quantization: nf4", "quantization: int8", "model.quantization: should be 'none', 'nf4' or 'nf4-full'"),
        ("0123abc", "123", "model.revision: should be a valid string, not 123"),
        ("Read out all text.", '""', "tasks.text.prompt: "),
        ("name: test", "", "name: is required"),
    ],
)
def test_a_mistake_is_named_by_its_path_and_the_allowed_values(line: str, by: str, said: str) -> None:
    assert line in TEXT
    message = refusal(TEXT.replace(line, by, 1))
    assert message.startswith("night.yaml: ")
    assert said in message


def test_every_mistake_is_named_at_once() -> None:
    message = refusal(TEXT.replace("1024", "8").replace("0.05", "2").replace("  text:", "  txt:"))
    assert all(path in message for path in ("image.max_side: ", "gate.max_failure_rate: ", "tasks.txt: "))


def test_a_recipe_without_tasks_is_refused() -> None:
    assert "tasks: " in refusal("name: a\nmodel: {id: b}\ntasks: {}\n")


def test_broken_yaml_names_the_file_and_the_line() -> None:
    message = refusal("name: a\nmodel: {id: b}\ntasks:\n  caption: {prompt: c\nrun: {}\n")
    assert message.startswith("night.yaml is not YAML")
    assert "line 5" in message


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "# nothing\n"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    assert "holds no mapping" in refusal(text)


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "a: \x00"])
def test_yaml_that_is_more_than_data_is_refused(text: str) -> None:
    assert "is not YAML" in refusal(text)


@pytest.mark.parametrize(
    ("line", "by", "said"),
    [
        ("revision: 0123abc", "revision: 2026-13-45", "line 2: model.revision: '2026-13-45' is no value: month must"),
        ("max_side: 1024", "max_side: 0x_", "line 3: image.max_side: '0x_' is no value: "),
        ("max_side: 1024", "max_side: [2026-13-45]", "line 3: image.max_side: '2026-13-45' is no value: "),
        ("max_side: 1024", "2026-13-45: 1", "line 3: image.2026-13-45: '2026-13-45' is no value: "),
        ("0.05", "!!bool maybe", "line 7: gate.max_failure_rate: 'maybe' is no value: "),
        ("0.05", "!!timestamp maybe", "line 7: gate.max_failure_rate: 'maybe' is no value: "),
        ("  text: ", "  caption: ", "line 6: tasks.caption: stands twice"),
        ("run: {", "gate: {", "line 8: gate: stands twice"),
        ("max_side: 1024", 'max_side: 1024, "max_side": 1024', "line 3: image.max_side: stands twice"),
    ],
)
def test_a_value_that_is_none_and_a_key_that_stands_twice_are_named_by_their_line(
    line: str, by: str, said: str
) -> None:
    assert line in TEXT
    assert refusal(TEXT.replace(line, by, 1)).startswith(f"night.yaml, {said}")


def test_a_date_that_is_one_is_no_revision_either() -> None:
    assert "model.revision: should be a valid string" in refusal(TEXT.replace("0123abc", "2026-11-20"))


@pytest.mark.parametrize("text", ["name: " + "[" * 5_000 + "]" * 5_000, "name: " + "{a: " * 5_000 + "}" * 5_000])
def test_a_file_nested_without_end_is_refused(text: str) -> None:
    assert refusal(text) == "night.yaml is nested too deeply"


def test_anchors_and_aliases_are_followed_once() -> None:
    text = TEXT.replace("{prompt: Describe", "&one {prompt: Describe").replace("{prompt: Read out all text.}", "*one")
    tasks = parse_recipe(text, name="night.yaml").tasks
    assert tasks["text"] == tasks["caption"]
    text = text.replace("*one", "{<<: *one, seed: 3}")
    assert parse_recipe(text, name="night.yaml").tasks["text"] == tasks["text"].model_copy(update={"seed": 3})
    aliases = "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    assert "a59: unknown key" in refusal(f"a0: &a0 [x]\n{aliases}")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read recipe .*none\.yaml: No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_a_file_in_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "gbk.yaml").write_bytes(TEXT.replace("Describe the image.", "描述图片").encode("gbk"))
    with pytest.raises(RecipeError, match=r"gbk\.yaml is not UTF-8"):
        load_recipe(tmp_path / "gbk.yaml")


def test_two_files_that_say_the_same_have_the_same_ids() -> None:
    reordered = """
    # a comment
    run: {part_size: 7, shard_size: 9, batch_size: 2}
    gate: {max_failure_rate: 5.0e-2}
    tasks:
      text: {temperature: 0, prompt: "Read out all text.", max_new_tokens: 256}
      caption:
        max_new_tokens: 192
        prompt: >-
          Describe
          the image.
    image: {max_side: 1024, max_bytes: 30000000}
    name: another name
    model:
      quantization: nf4
      thinking: false
      revision: 0123abc
      id: zai-org/GLM-4.6V-Flash
    """
    assert ids(parse_recipe(reordered, name="r")) == ids(parse_recipe(TEXT, name="t"))


@pytest.mark.parametrize("path", ["name", "run.shard_size", "run.part_size", "run.batch_size", "run.fetchers"])
def test_what_cannot_change_an_answer_changes_no_id(path: str) -> None:
    value = "other" if path == "name" else 33
    assert ids(changed(path, value)) == ids(parse_recipe(TEXT, name="t"))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.id", "zai-org/GLM-4.1V-9B-Thinking"),
        ("model.revision", "other"),
        ("model.family", "chatglm"),
        ("model.quantization", "nf4-full"),
        ("model.dtype", "float16"),
        ("model.thinking", True),
        ("image.max_side", 1000),
        ("image.max_pixels", 20_000),
        ("image.max_bytes", 2_000),
    ],
)
def test_the_model_and_the_image_limits_change_every_id(path: str, value: Any) -> None:
    before, after = ids(parse_recipe(TEXT, name="t")), ids(changed(path, value))
    assert all(old != new for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("prompt", "What is this?"),
        ("max_new_tokens", 99),
        ("temperature", 0.5),
        ("top_p", 0.5),
        ("repetition_penalty", 1.1),
        ("seed", 1),
    ],
)
def test_a_task_changes_the_recipe_and_its_own_answers_and_leaves_the_other_task_standing(
    setting: str, value: Any
) -> None:
    recipe, caption, text = ids(parse_recipe(TEXT, name="t"))
    new_recipe, new_caption, new_text = ids(changed(f"tasks.caption.{setting}", value))
    assert (new_recipe != recipe, new_caption != caption, new_text != text) == (True, True, False)
    new_recipe, new_caption, new_text = ids(changed(f"tasks.text.{setting}", value))
    assert (new_recipe != recipe, new_caption != caption, new_text != text) == (True, False, True)


def test_the_gate_changes_the_recipe_and_no_answer() -> None:
    recipe, *answers = ids(parse_recipe(TEXT, name="t"))
    new_recipe, *new_answers = ids(changed("gate.max_failure_rate", 0.06))
    assert new_recipe != recipe
    assert new_answers == answers


def test_the_same_question_under_two_tasks_has_two_answer_ids() -> None:
    same = {"prompt": "What is this?", "max_new_tokens": 10}
    recipe = changed("tasks", {"caption": same, "text": same})
    assert recipe.answer_id("caption") != recipe.answer_id("text")


def test_answers_that_were_paid_for_are_still_found() -> None:
    """These ids key the result cache: another value here makes every deployment ask for every answer again.

    When that is meant, because answers do change, raise `ANSWER_VERSION` and write the new ids down.
    """
    assert ids(parse_recipe(TEXT, name="t"))[1:] == ("108ed67355d5adfd", "1fe90985f7758fa6")


def test_a_checkpoint_known_by_its_content_keeps_its_ids_wherever_it_is() -> None:
    here = changed("model.id", "../demo/model").with_revision("sha256:0123")
    there = changed("model.id", "/srv/models/copy").with_revision("sha256:0123")
    assert ids(here) == ids(there)
    assert ids(here) != ids(here.with_revision("sha256:4567"))
    assert ids(here.with_revision("main")) != ids(there.with_revision("main"))


def test_a_resolved_revision_is_all_that_is_changed() -> None:
    recipe = parse_recipe(TEXT, name="t")
    resolved = recipe.with_revision("f" * 40)
    assert (resolved.model.revision, recipe.model.revision) == ("f" * 40, "0123abc")
    assert resolved.with_revision("0123abc") == recipe


@pytest.mark.parametrize(
    ("model_id", "name"),
    [
        ("zai-org/GLM-4.6V-Flash", "zai-org/GLM-4.6V-Flash"),
        ("../demo/model", "demo/model"),
        ("/srv/models/glm/", "models/glm"),
        ("./model", "model"),
        ("~/模型/甲", "模型/甲"),
    ],
)
def test_rows_name_the_model_without_its_place(model_id: str, name: str) -> None:
    assert changed("model.id", model_id).model_name == name


@pytest.mark.parametrize(
    "prompt",
    [
        "读出图中所有文字，逐行照抄。",
        "a: b # c\n\n- d\n",
        "  led by spaces ",
        "'single' \"double\" 😀\tTab",
        "yes",
        "1e3",
    ],
)
def test_a_recipe_comes_back_from_its_own_yaml(prompt: str) -> None:
    recipe = changed("tasks.text.prompt", prompt)
    assert parse_recipe(recipe.to_yaml(), name="frozen") == recipe
    assert parse_recipe(recipe.to_yaml(), name="frozen").recipe_id == recipe.recipe_id


def test_chinese_stands_readable_in_the_file_and_in_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "夜班.yaml").write_text(TEXT.replace("Read out all text.", "读出文字。"), encoding="utf-8")
    recipe = load_recipe(tmp_path / "夜班.yaml")
    assert recipe.tasks["text"].prompt == "读出文字。"
    assert "读出文字。" in recipe.to_yaml()
    assert recipe.answer_id("text") != parse_recipe(TEXT, name="t").answer_id("text")


def test_a_recipe_cannot_be_changed_in_place() -> None:
    recipe = parse_recipe(TEXT, name="t")
    attempts: list[Callable[[], None]] = [
        lambda: setattr(recipe, "name", "x"),
        lambda: setattr(recipe.model, "revision", "x"),
        lambda: setattr(recipe.tasks["text"], "prompt", "x"),
    ]
    for attempt in attempts:
        with pytest.raises(ValidationError, match="frozen"):
            attempt()


@pytest.mark.parametrize(
    ("file", "family", "quantization"),
    [
        ("default.yaml", Family.GLM4V, Quantization.NF4),
        ("glm-4v-9b.yaml", Family.CHATGLM, Quantization.NF4),
        ("demo.yaml", Family.GLM4V, Quantization.NF4),
    ],
)
def test_the_recipes_that_come_with_the_project_load(file: str, family: Family, quantization: Quantization) -> None:
    recipe = load_recipe(RECIPES / file)
    assert (recipe.model.family, recipe.model.quantization) == (family, quantization)
    assert set(recipe.tasks) == {"caption", "text"}
    assert recipe.name == file.removesuffix(".yaml")
    assert parse_recipe(recipe.to_yaml(), name=file) == recipe


def test_every_recipe_that_comes_with_the_project_is_tested() -> None:
    assert {path.name for path in RECIPES.iterdir()} == {"default.yaml", "glm-4v-9b.yaml", "demo.yaml"}
