from __future__ import annotations

import pickle
import re

import pytest

from glm4v_ops import errors
from glm4v_ops.errors import Glm4vError, ImageRejected, TerminalError, TransientError
from glm4v_ops.quality.outcome import Outcome


def family(kind: type[Glm4vError]) -> set[type[Glm4vError]]:
    """`kind` and every error of the module below it."""
    below = {child for child in kind.__subclasses__() if child.__module__ == errors.__name__}
    return {kind}.union(*(family(child) for child in below))


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│├└─ ]*)([A-Z]\w+)\b", line):
            path = [*path[: len(found[1]) // 4], found[2]]
            if len(path) > 1:
                drawn[path[-1]] = path[-2]
    assert drawn == {kind.__name__: kind.__mro__[1].__name__ for kind in family(Glm4vError) - {Glm4vError}}


def test_every_error_says_what_to_do_next() -> None:
    assert family(TransientError).isdisjoint(family(TerminalError))
    undecided = family(Glm4vError) - family(TransientError) - family(TerminalError)
    assert {kind.__name__ for kind in undecided} == {"Glm4vError", "Cancelled"}


@pytest.mark.parametrize("kind", sorted(family(Glm4vError), key=str))
def test_an_error_crosses_processes_whole(kind: type[Glm4vError]) -> None:
    arrived = pickle.loads(pickle.dumps(kind("图片 gone", remedy="put it back")))  # noqa: S301 - our own bytes
    assert type(arrived) is kind
    assert (arrived.message, arrived.remedy) == ("图片 gone", "put it back")
    assert str(arrived) == "图片 gone — put it back"


def test_an_error_without_a_remedy_is_its_message_alone() -> None:
    assert str(Glm4vError("it broke")) == "it broke"


def test_a_rejected_image_is_no_fault_of_ours_and_carries_its_outcome() -> None:
    rejected = ImageRejected(Outcome.UNREADABLE, "truncated", "the file ends early")
    assert not isinstance(rejected, Glm4vError)
    assert (rejected.outcome, rejected.reason, rejected.detail) == (
        Outcome.UNREADABLE,
        "truncated",
        "the file ends early",
    )
    assert str(rejected) == "unreadable: truncated: the file ends early"
