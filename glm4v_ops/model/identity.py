"""Which checkpoint a recipe means, exactly, known before any weight is loaded.

A branch name moves and a folder's content changes, so rows and cache keys carry what they point to: the
commit of a hub checkpoint, the content digest of a local one. Knows nothing of torch.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from glm4v_ops.errors import ModelRefused, TransientError
from glm4v_ops.recipe import Recipe

#: Files that shape answers; anything else in the folder (cards, pictures) may change freely.
_SHAPING = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
#: Bytes read from either end of a large weight file: hashing 20 GB would cost a minute a task.
_SAMPLE = 1 << 20


def local_folder(recipe: Recipe, base: Path | None) -> Path | None:
    """The checkpoint's folder when the recipe names one (relative to `base`, the recipe file's folder), else None."""
    try:
        folder = (base or Path()) / Path(recipe.model.id).expanduser()
    except RuntimeError as error:
        raise ModelRefused(
            f"no checkpoint at {recipe.model.id}: there is no such user's home", remedy="write the folder out in full"
        ) from error
    if (folder / "config.json").is_file():
        return folder.resolve()
    if recipe.model.id.startswith((".", "/", "~")):
        raise ModelRefused(
            f"no checkpoint at {recipe.model.id} (relative to {base or Path.cwd()}): no config.json there",
            remedy="set model.id to a hub id or a folder, relative to the recipe file",
        )
    return None


def resolve(recipe: Recipe, base: Path | None) -> Recipe:
    """The recipe with `model.revision` fixed: `sha256:…` of a local folder, the commit of a hub checkpoint.

    Raises `ModelRefused` when there is no such checkpoint, or when the folder is no longer what the recipe was fixed
    to; `TransientError` when the hub does not answer.
    """
    folder, wanted = local_folder(recipe, base), recipe.model.revision
    if folder is None:
        return recipe.with_revision(hub_commit(recipe.model.id, wanted))
    found = digest(folder)
    if wanted.startswith("sha256:") and wanted != found:
        raise ModelRefused(
            f"the checkpoint in {recipe.model.id} is {found}, the recipe was fixed to {wanted}",
            remedy="put the old checkpoint back, or start a new run with the new one",
        )
    return recipe.with_revision(found)


def checkpoint_folder(recipe: Recipe, base: Path | None) -> Path:
    """The checkpoint's files on this machine: its own folder, or the hub's files of that revision, fetched if need be.

    Raises like `resolve`.
    """
    return local_folder(recipe, base) or _snapshot(recipe.model.id, recipe.model.revision, list(_SHAPING))


def digest(folder: Path) -> str:
    """`sha256:` and 16 hex digits over names, sizes and content (the two ends of files over 64 MiB) of a checkpoint."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in _SHAPING for path in folder.glob(pattern)}):
        size = path.stat().st_size
        total.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            if size <= 64 * _SAMPLE:
                total.update(hashlib.file_digest(file, "sha256").digest())
            else:
                total.update(file.read(_SAMPLE))
                file.seek(-_SAMPLE, 2)
                total.update(file.read(_SAMPLE))
    return f"sha256:{total.hexdigest()[:16]}"


def hub_commit(model_id: str, revision: str) -> str:
    """The commit hash that `revision` of a hub checkpoint names: from the local cache when offline."""
    if re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    return _snapshot(model_id, revision, ["config.json"]).name


def _snapshot(model_id: str, revision: str, patterns: list[str]) -> Path:
    """The folder of the local hub cache that holds a revision's files of these patterns, fetched if need be."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(model_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    except HFValidationError as error:
        raise ModelRefused(
            f"{model_id} is neither a folder with a config.json nor a hub id: {error}", remedy="correct model.id"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelRefused(
            f"the model hub has no {model_id} at revision {revision}", remedy="correct model.id or model.revision"
        ) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise TransientError(
            f"cannot find {model_id}: not in the local cache, and the model hub does not answer ({error})",
            remedy="connect to the hub, set HF_HOME to a filled cache, or set model.id to a local folder",
        ) from error
    return Path(folder)
