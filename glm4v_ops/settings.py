"""Where things are: bucket, work area, tables, recipe. Read from the environment, never from the recipe.

Credentials are not here: the object store's come from boto3's own chain (`AWS_ACCESS_KEY_ID`, …,
`AWS_ENDPOINT_URL_S3`) or an Airflow connection, the database's from `GLM4V_DSN` or an Airflow connection.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from glm4v_ops.errors import SettingsError


@dataclass(frozen=True, slots=True)
class S3Uri:
    """`s3://bucket/key`; the key may be a prefix."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, uri: str, *, setting: str) -> S3Uri:
        """Raises `SettingsError` naming `setting` when `uri` is not `s3://bucket/…`."""
        # Not urllib: a key is no URL path, and may hold "?", "#" and line breaks.
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if not uri.startswith("s3://") or not bucket:
            raise SettingsError(f"{setting} is {uri!r}, not s3://bucket/prefix", remedy=f"set {setting}")
        return cls(bucket, key.lstrip("/"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def child(self, *names: str) -> S3Uri:
        return S3Uri(self.bucket, "/".join([self.key.rstrip("/"), *names]).lstrip("/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Defaults are those of the demo's buckets, so that a bucket of one's own is two variables away."""

    source: str = "s3://drop/images/{day}/"
    work: str = "s3://work/glm4v"
    recipe: str = "recipes/default.yaml"
    marker: str = "_SUCCESS"
    quiet_seconds: int = 1800
    empty_seconds: int = 21_600

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """GLM4V_SOURCE, _WORK, _RECIPE, _MARKER, _QUIET_SECONDS, _EMPTY_SECONDS; anything unset is the default.

        Raises `SettingsError` for a number of seconds that is none, and for a marker without a name.
        """
        environ = os.environ if environ is None else environ
        defaults = cls()

        def seconds(name: str, default: int) -> int:
            given = environ.get(name, str(default))
            if not given.isdecimal():
                raise SettingsError(f"{name} is {given!r}, not a number of seconds", remedy=f"set e.g. {default}")
            return int(given)

        marker = environ.get("GLM4V_MARKER", defaults.marker)
        if not marker:  # its key would be that of the folder, which many a tool makes before anything is in it
            remedy = f"unset it ({defaults.marker}), or name an object; where none is written, quiet is waited for"
            raise SettingsError("GLM4V_MARKER is empty", remedy=remedy)
        return cls(
            source=environ.get("GLM4V_SOURCE", defaults.source),
            work=environ.get("GLM4V_WORK", defaults.work),
            recipe=environ.get("GLM4V_RECIPE", defaults.recipe),
            marker=marker,
            quiet_seconds=seconds("GLM4V_QUIET_SECONDS", defaults.quiet_seconds),
            empty_seconds=seconds("GLM4V_EMPTY_SECONDS", defaults.empty_seconds),
        )

    def source_of(self, day: date) -> S3Uri:
        """The folder that holds one day's images: a prefix that ends in `/`, so that no neighbour begins like it.

        Raises `SettingsError` without a `{day}` placeholder.
        """
        if "{day}" not in self.source:
            raise SettingsError(
                f"GLM4V_SOURCE is {self.source!r}, without {{day}}", remedy="set e.g. s3://bucket/images/{day}/"
            )
        found = S3Uri.parse(self.source.replace("{day}", day.isoformat()), setting="GLM4V_SOURCE")
        return S3Uri(found.bucket, f"{found.key}/") if found.key and not found.key.endswith("/") else found

    @property
    def work_uri(self) -> S3Uri:
        """The prefix under which manifests, frozen recipes and result parts are kept."""
        return S3Uri.parse(self.work, setting="GLM4V_WORK")


def recipe_path(name: str, environ: Mapping[str, str] | None = None) -> Path:
    """Where a recipe named in the settings lies: relative to `GLM4V_HOME`, or to the folder above this package.

    Never relative to the working directory: Airflow's processes have different ones.
    """
    home = (os.environ if environ is None else environ).get("GLM4V_HOME")
    return (Path(home) if home else Path(__file__).resolve().parents[1]) / name


def dsn_from_environment(environ: Mapping[str, str] | None = None) -> str:
    """The tables' libpq URL, from `GLM4V_DSN`. Raises `SettingsError` when unset."""
    environ = os.environ if environ is None else environ
    dsn = environ.get("GLM4V_DSN", "")
    if not dsn:
        raise SettingsError("no database named: GLM4V_DSN is not set", remedy="export GLM4V_DSN=postgresql://…")
    return dsn
