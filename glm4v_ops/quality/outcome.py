"""The outcomes an image can end in: exactly one each, failed is never blank, blank is never failed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How one manifest row ended. `OK` lands in `annotations`, every other in `quarantine`."""

    OK = "ok"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    UNSUPPORTED = "unsupported"
    OVERSIZED = "oversized"
    GARBLED = "garbled"
    REPETITIVE = "repetitive"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    EMPTY = "empty"
    MODEL_ERROR = "model_error"

    @property
    def is_ok(self) -> bool:
        return self is Outcome.OK


#: What each outcome means, in the words the table's column comments and the documentation use.
MEANING: dict[Outcome, str] = {
    Outcome.OK: "caption and text passed the checks (text may be empty: has_text false)",
    Outcome.MISSING: "the object is gone or its etag changed since the manifest",
    Outcome.UNREADABLE: "truncated, corrupt, zero bytes, decode error",
    Outcome.UNSUPPORTED: "not an image by its bytes, whatever its name says",
    Outcome.OVERSIZED: "over the byte or pixel limit (decompression bombs)",
    Outcome.GARBLED: "control tokens, echoed paths, mojibake, role markers in the answer",
    Outcome.REPETITIVE: "a loop in the answer",
    Outcome.TRUNCATED: "stopped by the token limit, not by the model",
    Outcome.REFUSED: "a refusal instead of an answer",
    Outcome.EMPTY: "no answer where one is due (a caption; text may be empty)",
    Outcome.MODEL_ERROR: "the model raised on this image alone",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judgement: the outcome, a stable `reason` code ("" when ok) and a `detail` sentence for a person."""

    outcome: Outcome
    reason: str = ""
    detail: str = ""


PASSED = Verdict(Outcome.OK)
