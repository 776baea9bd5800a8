"""Whether an answer is one: the checks between what the model said and the tables.

Every check knows which task it looks at. A caption is the model's own sentence; a text is a picture's, and a picture
may show a path, a chat, an apology or a line of source code. So the same words are garbled in one and right in the
other, and a false alarm counts as much as a miss. Nothing is cut or repaired: an answer passes whole or not at all.
Knows nothing of images: it cannot say whether an answer is true.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from glm4v_ops.quality.outcome import PASSED, Outcome, Verdict
from glm4v_ops.quality.refusal import is_refusal
from glm4v_ops.quality.repetition import find_loop
from glm4v_ops.recipe import TaskName

#: The order in which a row's answers are judged: the first that fails is the row's outcome.
TASK_ORDER: tuple[TaskName, ...] = ("caption", "text")

#: Characters a prompt's sentence must have to be recognised in an answer; a Chinese one says as much with fewer.
_PROMPT_CHARACTERS = 12
_PROMPT_WIDE_CHARACTERS = 6

#: Tokens of the model family that no picture shows; found anywhere, in any task.
_TOKEN = re.compile(r"<\|[a-z_]{2,40}\|>|\[[gs]MASK\]|<[se]op>|</?think>|<0x[0-9A-F]{2}>")
#: Tokens that are also words of markup: in a text only at its edge, and only where no other markup stands.
_MARKUP_TOKEN = re.compile(
    r"</?(?:credit|image|img|video|answer|box|unk|pad|s|bos|eos)>|\[(?:MASK|IMG|PAD|UNK)\]", re.I
)
_MARKUP = re.compile(r"</?[a-z][^<>]*>", re.I)

_ROLE = r"(?:user|human|assistant|system|observation|用户|助手)"
#: A turn of a chat at a line's start. In a caption even the bare word on a line of its own is one.
_CAPTION_ROLE = re.compile(rf"\A\s*{_ROLE}\s*[:：]|^\s*(?:assistant|助手)\s*[:：]|^\s*{_ROLE}\s*$", re.I | re.M)
#: In a text only the model's own turn, left open at the end: a badge says "Assistant", a chat says more after it.
_TEXT_ROLE = re.compile(r"^\s*(?:assistant|助手)\s*[:：]\s*\Z", re.I | re.M)
_ROLE_BEFORE_PROMPT = re.compile(rf"^\s*{_ROLE}\s*[:：]?\s*", re.I)

_IMAGE_NAME = r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|heic)"
_PATH = re.compile(
    rf"s3://\S+|file://\S+|(?<![\w/.:])(?:/[^\s/\"'<>]+){{2,}}{_IMAGE_NAME}\b|\b[A-Z]:\\[^\s\"<>]+{_IMAGE_NAME}\b", re.I
)
#: Where a picture handed to a model is kept for the moment; no sign shows one alone.
_TEMPORARY_PATH = re.compile(rf"\s*[\"'`]?(?:/private)?/(?:tmp|var/(?:tmp|folders))/\S+{_IMAGE_NAME}[\"'`]?\s*", re.I)
_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”|「[^」\n]*」|'[^'\n]*'|`[^`\n]*`")
_HAS_IMAGE_NAME = re.compile(rf"{_IMAGE_NAME}\Z", re.I)

#: Replacement characters, NUL and other controls: what neither a model means nor a table keeps.
_BROKEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff]")
#: UTF-8 bytes that open a sequence, read as Windows-1252, with what follows them.
_MOJIBAKE = re.compile(
    "â€|ðŸ|ï»¿|[ÃÂ][\u00a0-\u00ba\u00bc-\u00bf]|(?:[ÐÑ][\u00a0-¿ŒŠŽŸƒ‚„†‡ˆ‰‹‘’“”•–—˜™š›œž€…]){2,}|锟斤拷|(?:[à-ï][\u00a0-¿ŒœŠšŽžŸƒˆ˜–—‘’‚“”„†‡•…‰‹›€™]{2})"
)
#: Typographic marks a word with an accent may rightly be followed by: “café”…
_MARKS = frozenset("\u00a0«»–—‘’“”„…‹›•°™")


class Answered(Protocol):
    """An answer as the engine or the cache hands it over."""

    @property
    def text(self) -> str: ...

    @property
    def finish_reason(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _Subject:
    """What one check looks at."""

    task: TaskName
    prompt: str
    answer: str
    was_cut: bool
    key: str

    @property
    def is_caption(self) -> bool:
        return self.task == "caption"

    def found(self, outcome: Outcome, reason: str, detail: str) -> Verdict:
        return Verdict(outcome, reason, f"{self.task}: {detail}")


def judge(answers: Mapping[TaskName, Answered], *, prompts: Mapping[TaskName, str], key: str = "") -> Verdict:
    """The verdict on a row: that of its first answer that fails, the caption's before the text's, or `PASSED`."""
    for task in TASK_ORDER:
        if task in answers:
            answer = answers[task]
            verdict = judge_answer(task, prompts.get(task, ""), answer.text, answer.finish_reason, key=key)
            if not verdict.outcome.is_ok:
                return verdict
    return PASSED


def judge_answer(task: TaskName, prompt: str, answer: str, finish_reason: str, key: str = "") -> Verdict:
    """The first check that fails, or `PASSED`. `key` is the image's, to recognise it echoed."""
    subject = _Subject(task, prompt, answer, finish_reason == "length", key)
    for check in _CHECKS:
        verdict = check(subject)
        if verdict is not None:
            return verdict
    return PASSED


def has_text(text: str) -> bool:
    """Whether an answer to the text task says that the image holds text."""
    return text.strip() != ""


def _control_token(subject: _Subject) -> Verdict | None:
    match = _TOKEN.search(subject.answer) or _markup_token(subject)
    if match is None:
        return None
    return subject.found(Outcome.GARBLED, "control_token", f"holds the control token {match.group()}")


def _markup_token(subject: _Subject) -> re.Match[str] | None:
    match = _MARKUP_TOKEN.search(subject.answer)
    if match is None or subject.is_caption:
        return match
    bare = subject.answer.strip()
    at_edge = bare.startswith(match.group()) or bare.endswith(match.group())
    alone = all(tag == match.group() for tag in _MARKUP.findall(bare))
    return match if at_edge and alone else None


def _role_marker(subject: _Subject) -> Verdict | None:
    match = (_CAPTION_ROLE if subject.is_caption else _TEXT_ROLE).search(subject.answer)
    if match is None:
        return None
    return subject.found(Outcome.GARBLED, "role_marker", f"holds the role marker {match.group().strip()!r}")


def _path_echo(subject: _Subject) -> Verdict | None:
    echoed = _echoed_key(subject) or (_path_in_caption(subject.answer) if subject.is_caption else None)
    if echoed is None and _TEMPORARY_PATH.fullmatch(subject.answer):
        echoed = subject.answer.strip()
    if echoed is None:
        return None
    return subject.found(Outcome.GARBLED, "path_echo", f"echoes the path {echoed!r}")


def _echoed_key(subject: _Subject) -> str | None:
    """The image's own key or file name, where it says so much that no picture shows it by chance."""
    answer, key = subject.answer.casefold(), subject.key.casefold()
    name = key.rsplit("/", 1)[-1]
    if "/" in key.strip("/") and key in answer:
        return subject.key
    if not _HAS_IMAGE_NAME.search(name):
        return None
    # In a text the name is an echo when it is all there is: a picture of a file list may hold its own name.
    is_echo = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", answer) if subject.is_caption else answer.strip() == name
    return name if is_echo else None


def _path_in_caption(answer: str) -> str | None:
    """A path the caption itself says. One it quotes is the picture's, unless there is little else."""
    quoted = _QUOTED.sub("", answer)
    match = _PATH.search(answer if len(quoted) * 2 < len(answer) else quoted)
    return match.group() if match else None


def _prompt_echo(subject: _Subject) -> Verdict | None:
    prompt = _plain(subject.prompt)
    sentences = [_plain(sentence) for sentence in re.split(r"(?<=[.!?])\s+|[。！？\n]", subject.prompt)]
    for piece in (prompt, *sentences):
        if not _says_enough(piece):
            continue
        for line in subject.answer.splitlines():
            said = _plain(_ROLE_BEFORE_PROMPT.sub("", line))
            if said.startswith(piece) or (subject.is_caption and piece == prompt and piece in said):
                return subject.found(Outcome.GARBLED, "prompt_echo", f"echoes the prompt: {piece[:60]!r}")
    return None


def _says_enough(piece: str) -> bool:
    is_wide = re.search(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]", piece) is not None
    return len(piece) >= (_PROMPT_WIDE_CHARACTERS if is_wide else _PROMPT_CHARACTERS)


def _plain(text: str) -> str:
    """Words alone, for comparing: case, white space and punctuation do not count."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _broken_characters(subject: _Subject) -> Verdict | None:
    # The token limit may cut a character in two; that is a truncated answer, not a garbled one.
    answer = subject.answer.rstrip("\ufffd") if subject.was_cut else subject.answer
    if _BROKEN.search(answer):
        # Not which one: NUL is stored as U+FFFD, and the verdict must be the same from the cache.
        return subject.found(Outcome.GARBLED, "broken_characters", "holds replacement or control characters")
    for match in _MOJIBAKE.finditer(answer):
        if len(match.group()) < 3 or match.group() == "锟斤拷" or not _MARKS.issuperset(match.group()[1:]):
            return subject.found(Outcome.GARBLED, "mojibake", f"holds wrongly decoded characters: {match.group()!r}")
    return None


def _repetition(subject: _Subject) -> Verdict | None:
    loop = find_loop(subject.answer, is_caption=subject.is_caption, was_cut=subject.was_cut)
    if loop is None:
        return None
    return subject.found(Outcome.REPETITIVE, loop.kind, f"repeats {loop.unit!r} {loop.times} times")


def _truncation(subject: _Subject) -> Verdict | None:
    if not subject.was_cut:
        return None
    return subject.found(Outcome.TRUNCATED, "token_limit", "was cut by the token limit")


def _emptiness(subject: _Subject) -> Verdict | None:
    if not subject.is_caption or re.search(r"[^\W_]", subject.answer):
        return None
    reason = "no_words" if subject.answer.strip() else "no_answer"
    return subject.found(Outcome.EMPTY, reason, "holds no word")


def _refused(subject: _Subject) -> Verdict | None:
    if not is_refusal(subject.answer, is_caption=subject.is_caption):
        return None
    return subject.found(Outcome.REFUSED, "refusal", "refuses instead of answering")


_CHECKS: tuple[Callable[[_Subject], Verdict | None], ...] = (
    _control_token,
    _role_marker,
    _path_echo,
    _prompt_echo,
    _broken_characters,
    _repetition,
    _truncation,
    _emptiness,
    _refused,
)
