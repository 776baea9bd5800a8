from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from glm4v_ops.errors import SettingsError
from glm4v_ops.recipe import load_recipe
from glm4v_ops.settings import S3Uri, Settings, dsn_from_environment, recipe_path

DAY = date(2026, 11, 20)


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("s3://bucket/a/b.png", "bucket", "a/b.png"),
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket//a", "bucket", "a"),
        ("s3://bucket/a?b#c&d=%2F+e", "bucket", "a?b#c&d=%2F+e"),
        ("s3://bucket/图片/天 空.png", "bucket", "图片/天 空.png"),
        ("s3://bucket/line\nbreak\ttab", "bucket", "line\nbreak\ttab"),
        ("s3://bucket/s3://other/x", "bucket", "s3://other/x"),
    ],
)
def test_a_uri_is_cut_into_bucket_and_key_and_nothing_else_is_read_into_it(uri: str, bucket: str, key: str) -> None:
    assert S3Uri.parse(uri, setting="X") == S3Uri(bucket, key)
    assert S3Uri.parse(str(S3Uri(bucket, key)), setting="X") == S3Uri(bucket, key)


@pytest.mark.parametrize(
    "uri", ["", "bucket/a", "https://host/a", "s3:/bucket/a", "s3://", "s3:///a", " s3://bucket/a"]
)
def test_what_is_no_s3_uri_names_the_setting_it_came_from(uri: str) -> None:
    with pytest.raises(SettingsError, match="GLM4V_WORK is ") as refused:
        S3Uri.parse(uri, setting="GLM4V_WORK")
    assert refused.value.remedy == "set GLM4V_WORK"


def test_children_are_joined_by_one_slash() -> None:
    assert str(S3Uri("b", "a/").child("c", "d")) == "s3://b/a/c/d"
    assert str(S3Uri("b", "a").child("图")) == "s3://b/a/图"
    assert str(S3Uri("b", "").child("c")) == "s3://b/c"


def test_an_empty_environment_gives_the_demos_settings() -> None:
    settings = Settings.from_environment({})
    assert settings == Settings()
    assert str(settings.source_of(DAY)) == "s3://drop/images/2026-11-20/"
    assert str(settings.work_uri) == "s3://work/glm4v"


def test_every_setting_has_a_variable() -> None:
    environ = {
        "GLM4V_SOURCE": "s3://mine/照片/{day}/x/{day}/",
        "GLM4V_WORK": "s3://scratch",
        "GLM4V_RECIPE": "mine.yaml",
        "GLM4V_MARKER": "DONE",
        "GLM4V_QUIET_SECONDS": "0",
        "GLM4V_EMPTY_SECONDS": "1",
    }
    settings = Settings.from_environment(environ)
    assert settings == Settings(
        source="s3://mine/照片/{day}/x/{day}/",
        work="s3://scratch",
        recipe="mine.yaml",
        marker="DONE",
        quiet_seconds=0,
        empty_seconds=1,
    )
    assert str(settings.source_of(DAY)) == "s3://mine/照片/2026-11-20/x/2026-11-20/"
    assert str(settings.work_uri) == "s3://scratch/"


def test_settings_are_read_from_this_process_when_no_environment_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4V_MARKER", "READY")
    monkeypatch.setenv("GLM4V_DSN", "postgresql://host/db")
    assert Settings.from_environment().marker == "READY"
    assert dsn_from_environment() == "postgresql://host/db"


@pytest.mark.parametrize("name", ["GLM4V_QUIET_SECONDS", "GLM4V_EMPTY_SECONDS"])
@pytest.mark.parametrize("seconds", ["", "-1", "1.5", "30m", "²"])
def test_a_time_to_wait_that_is_no_number_of_seconds_is_refused(name: str, seconds: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is "):
        Settings.from_environment({name: seconds})


def test_a_recipe_named_in_the_settings_is_found_wherever_one_stands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(recipe_path("recipes/demo.yaml", {})).name == "demo"
    home = {"GLM4V_HOME": "/opt/glm4v"}
    assert recipe_path("recipes/demo.yaml", home) == Path("/opt/glm4v/recipes/demo.yaml")
    assert recipe_path("/etc/own.yaml", home) == Path("/etc/own.yaml")


def test_a_source_without_a_day_would_annotate_the_same_images_every_night_and_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"without \{day\}"):
        Settings(source="s3://drop/images/").source_of(DAY)
    with pytest.raises(SettingsError, match="GLM4V_SOURCE is "):
        Settings(source="drop/{day}/").source_of(DAY)


@pytest.mark.parametrize(
    ("source", "prefix"),
    [
        ("s3://drop/images/{day}", "s3://drop/images/2026-11-20/"),
        ("s3://drop/images/{day}/", "s3://drop/images/2026-11-20/"),
        ("s3://drop/{day}/camera 1", "s3://drop/2026-11-20/camera 1/"),
        ("s3://drop-{day}", "s3://drop-2026-11-20/"),  # a bucket a day: the prefix is empty
    ],
)
def test_a_day_is_a_folder_so_that_no_neighbour_whose_name_begins_like_it_is_listed(source: str, prefix: str) -> None:
    assert str(Settings(source=source).source_of(DAY)) == prefix
    assert not Settings(source=source).source_of(DAY).key.startswith("/")


def test_a_marker_without_a_name_is_refused() -> None:
    with pytest.raises(SettingsError, match="GLM4V_MARKER is empty") as refused:
        Settings.from_environment({"GLM4V_MARKER": ""})
    assert "_SUCCESS" in refused.value.remedy


@pytest.mark.parametrize("environ", [{}, {"GLM4V_DSN": ""}])
def test_no_database_named_is_an_error_with_its_remedy(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="GLM4V_DSN is not set") as refused:
        dsn_from_environment(environ)
    assert refused.value.remedy.startswith("export GLM4V_DSN=")
