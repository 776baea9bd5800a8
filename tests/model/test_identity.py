from __future__ import annotations

from pathlib import Path

import pytest

from glm4v_ops.errors import ModelRefused, TransientError
from glm4v_ops.model.identity import checkpoint_folder, digest, hub_commit, local_folder, resolve
from tests.model.checkpoint import recipe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_ID = "someone/small-glm4v"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's local cache, with one checkpoint in it, and no way to the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    stored = tmp_path / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = stored / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}", encoding="utf-8")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    return snapshot


def test_a_folder_is_named_by_its_content_wherever_it_is(checkpoint: Path) -> None:
    first = digest(checkpoint)
    assert first.startswith("sha256:")
    assert len(first) == len("sha256:") + 16
    assert digest(checkpoint.rename(checkpoint.with_name("copy"))) == first


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "chat_template.jinja", "merges.txt"])
def test_every_file_that_shapes_answers_changes_the_name(checkpoint: Path, name: str) -> None:
    first = digest(checkpoint)
    (checkpoint / name).write_bytes(b"changed")
    changed = digest(checkpoint)
    (checkpoint / name).rename(checkpoint / f"x-{name}")
    assert len({first, changed, digest(checkpoint)}) == 3


@pytest.mark.parametrize("name", ["README.md", "picture.png"])
def test_other_files_do_not(checkpoint: Path, name: str) -> None:
    first = digest(checkpoint)
    (checkpoint / name).write_bytes(b"changed")
    assert digest(checkpoint) == first


@pytest.mark.parametrize("place", [0, 65 << 20])
def test_a_large_file_is_known_by_its_size_and_both_ends(checkpoint: Path, place: int) -> None:
    names = set()
    for end, byte in [((65 << 20) + 1, b"\0"), ((65 << 20) + 1, b"x"), ((65 << 20) + 2, b"\0")]:
        with (checkpoint / "model.safetensors").open("wb") as file:
            file.truncate(end)  # sparse: no bytes are written
            file.seek(place)
            file.write(byte)
        names.add(digest(checkpoint))
    assert len(names) == 3


def test_a_relative_folder_is_found_from_the_recipes_folder_and_nowhere_else(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert local_folder(recipe(Path("models/small")), tmp_path) == checkpoint
    (tmp_path / "recipes").mkdir()
    assert local_folder(recipe(Path("../models/small")), tmp_path / "recipes") == checkpoint
    assert local_folder(recipe(checkpoint), tmp_path / "recipes") == checkpoint
    monkeypatch.chdir(tmp_path)
    assert local_folder(recipe(Path("models/small")), tmp_path / "recipes") is None
    assert local_folder(recipe(Path("models/small")), None) == checkpoint


def test_a_folder_in_the_home_is_found(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert local_folder(recipe(Path("~/small")), Path("/nowhere")) == checkpoint


@pytest.mark.parametrize("name", ["../absent", "/absent", "~/absent"])
def test_a_path_with_no_checkpoint_is_refused_and_not_asked_of_the_hub(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelRefused, match=f"no checkpoint at {name}"):
        resolve(recipe(Path(name)), tmp_path)


def test_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(ModelRefused, match="no checkpoint at ~no-such-user/x: there is no such user's home"):
        resolve(recipe(Path("~no-such-user/x")), None)


def test_resolving_fixes_a_folder_to_its_content(checkpoint: Path) -> None:
    fixed = resolve(recipe(checkpoint), None)
    assert fixed.model.revision == digest(checkpoint)
    assert resolve(fixed, None) == fixed


def test_a_folder_that_has_changed_since_it_was_fixed_is_refused(checkpoint: Path) -> None:
    fixed = resolve(recipe(checkpoint), None)
    (checkpoint / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(ModelRefused, match=f"is {digest(checkpoint)}, the recipe was fixed to {fixed.model.revision}"):
        resolve(fixed, None)


def test_resolving_fixes_a_hub_checkpoint_to_its_commit(hub_cache: Path) -> None:
    fixed = resolve(recipe(Path(HUB_ID)), None)
    assert fixed.model.revision == COMMIT == hub_commit(HUB_ID, COMMIT)
    assert checkpoint_folder(fixed, None) == hub_cache


def test_a_folder_is_its_own_place(checkpoint: Path) -> None:
    assert checkpoint_folder(recipe(checkpoint), None) == checkpoint


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_that_does_not_answer_may_answer_later() -> None:
    with pytest.raises(TransientError, match="cannot find someone/else: not in the local cache"):
        resolve(recipe(Path("someone/else")), None)


def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=r"is neither a folder with a .* nor a hub id"):
        resolve(recipe(Path("a/b/c")), tmp_path)
