from __future__ import annotations

from datetime import date

import pytest

from glm4v_ops.errors import SettingsError
from glm4v_ops.settings import S3Uri, Settings, dsn_from_environment

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
    }
    settings = Settings.from_environment(environ)
    assert settings == Settings(
        source="s3://mine/照片/{day}/x/{day}/", work="s3://scratch", recipe="mine.yaml", marker="DONE", quiet_seconds=0
    )
    assert str(settings.source_of(DAY)) == "s3://mine/照片/2026-11-20/x/2026-11-20/"
    assert str(settings.work_uri) == "s3://scratch/"


def test_settings_are_read_from_this_process_when_no_environment_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM4V_MARKER", "READY")
    monkeypatch.setenv("GLM4V_DSN", "postgresql://host/db")
    assert Settings.from_environment().marker == "READY"
    assert dsn_from_environment() == "postgresql://host/db"


@pytest.mark.parametrize("seconds", ["", "-1", "1.5", "30m", "²"])
def test_a_quiet_period_that_is_no_number_of_seconds_is_refused(seconds: str) -> None:
    with pytest.raises(SettingsError, match="GLM4V_QUIET_SECONDS is "):
        Settings.from_environment({"GLM4V_QUIET_SECONDS": seconds})


def test_a_source_without_a_day_would_annotate_the_same_images_every_night_and_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"without \{day\}"):
        Settings(source="s3://drop/images/").source_of(DAY)
    with pytest.raises(SettingsError, match="GLM4V_SOURCE is "):
        Settings(source="drop/{day}/").source_of(DAY)


@pytest.mark.parametrize("environ", [{}, {"GLM4V_DSN": ""}])
def test_no_database_named_is_an_error_with_its_remedy(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="GLM4V_DSN is not set") as refused:
        dsn_from_environment(environ)
    assert refused.value.remedy.startswith("export GLM4V_DSN=")
