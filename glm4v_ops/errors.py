"""What can go wrong, typed by what the caller should do next.

    Glm4vError
    ├── TransientError          the same call may work later: Airflow retries it
    │   ├── StoreUnavailable    the object store did not answer, or answered with a server fault
    │   ├── TablesUnavailable   the database did not answer
    │   └── GpuUnavailable      the accelerator was lost, or had no memory for even one image
    ├── TerminalError           the same call will fail again: a person must change something first
    │   ├── SettingsError       a setting, connection or credential is missing or wrong
    │   ├── RecipeError         the recipe does not validate
    │   ├── ManifestError       the manifest or a result part contradicts what it should hold
    │   ├── ModelRefused        the checkpoint is broken, or not what the recipe says it is
    │   ├── GateFailed          the day's results break a rule of the gate
    │   └── PublishError        the tables are not as this version of the schema needs them
    └── Cancelled               the task was asked to stop, and stopped with its finished parts safe

    ImageRejected               not a fault of ours: this image ends in an outcome of its own

An infrastructure fault is never an outcome of an image, and an outcome is never an exception that
leaves `annotate`: `ImageRejected` is caught there, once, and becomes the row's outcome.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glm4v_ops.quality.outcome import Outcome


class Glm4vError(Exception):
    """Base of every error this package raises on purpose.

    `message` says what happened and names the thing it happened to; `remedy` says what a person can do.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} — {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive Exception's own pickling, and Airflow pickles errors between processes.
        return (_rebuild, (type(self), self.message, self.remedy))


def _rebuild(kind: type[Glm4vError], message: str, remedy: str) -> Glm4vError:
    return kind(message, remedy=remedy)


class TransientError(Glm4vError):
    """The same call may work later."""


class StoreUnavailable(TransientError):
    """The object store did not answer, or answered with a server fault."""


class TablesUnavailable(TransientError):
    """The database did not answer."""


class GpuUnavailable(TransientError):
    """The accelerator was lost, or had no memory for even one image."""


class TerminalError(Glm4vError):
    """The same call will fail again until a person changes something."""


class SettingsError(TerminalError):
    """A setting, connection or credential is missing or wrong."""


class RecipeError(TerminalError):
    """The recipe does not validate; the message names the path in the file and the allowed values."""


class ManifestError(TerminalError):
    """The manifest or a result part contradicts what it should hold."""


class ModelRefused(TerminalError):
    """The checkpoint is broken, or is not what the recipe says it is."""


class GateFailed(TerminalError):
    """The day's results break a rule of the gate; the published day stays as it was."""


class PublishError(TerminalError):
    """The tables are not as this version of the schema needs them."""


class Cancelled(Glm4vError):
    """The task was asked to stop, and stopped with its finished parts safe."""


class ImageRejected(Exception):
    """This image cannot be annotated; it ends in `outcome` with `reason` (a short code) and `detail` (a sentence)."""

    def __init__(self, outcome: Outcome, reason: str, detail: str = "") -> None:
        super().__init__(f"{outcome.value}: {reason}: {detail}")
        self.outcome = outcome
        self.reason = reason
        self.detail = detail

    def bare(self) -> ImageRejected:
        """The same, never raised: what is kept must hold no trace, whose frames hold the image's bytes and pixels."""
        return ImageRejected(self.outcome, self.reason, self.detail)
