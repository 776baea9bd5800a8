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
    for candidate in [Path(recipe.model.id).expanduser(), *([base / recipe.model.id] if base else [])]:
        if (candidate / "config.json").is_file():
            return candidate.resolve()
    if recipe.model.id.startswith((".", "/", "~")):
        raise ModelRefused(
            f"no checkpoint at {recipe.model.id} (relative to {base or Path.cwd()}): no config.json there",
            remedy="set model.id to a hub id or a folder, relative to the recipe file",
        )
    return None


def resolve(recipe: Recipe, base: Path | None) -> Recipe:
    """The recipe with `model.revision` fixed: `sha256:…` of a local folder, the commit of a hub checkpoint.

    Raises `ModelRefused` when there is no such checkpoint, `TransientError` when the hub does not answer.
    """
    folder = local_folder(recipe, base)
    revision = digest(folder) if folder else hub_commit(recipe.model.id, recipe.model.revision)
    return recipe.with_revision(revision)


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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        snapshot = snapshot_download(model_id, revision=revision, allow_patterns=["config.json"])
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
    return Path(snapshot).name
