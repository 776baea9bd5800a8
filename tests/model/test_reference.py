from __future__ import annotations

import pytest

from glm4v_ops.model.reference import shows_reference


@pytest.mark.parametrize(
    "answers",
    [
        ["A large red circle in the upper half.", ""],
        ["An abstract picture.", "OPEN"],
        ["The image shows a round shape that is red, above the word “Open”."],
        ["图中是一个红色的圆形。", ""],
        ["一個紅色圓點"],
        ['{"text": "OPEN"}'],
    ],
)
def test_answers_that_say_what_the_picture_shows_pass(answers: list[str]) -> None:
    assert shows_reference(answers)


@pytest.mark.parametrize(
    "answers",
    [
        [],
        ["", ""],
        ["A small green triangle.", "SALE"],
        ["A circle.", "red"],
        ["A hundred people around a table.", "0PFN"],
        ["图中是一个绿色的方块。"],
    ],
)
def test_answers_about_something_else_do_not(answers: list[str]) -> None:
    assert not shows_reference(answers)
