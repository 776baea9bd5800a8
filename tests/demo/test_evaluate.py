from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demo.evaluate import main, parse
from demo.postcards import plan
from glm4v_ops.model.reference import reference_picture
from glm4v_ops.model.runner import Runner

COUNT = 24


def test_the_demo_model_keeps_its_promises_in_4_bit_on_pictures_it_has_never_seen(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--count", str(COUNT), "--seed", "1001", "--quantization", "nf4", "--device", "cpu", "--model"]
    assert main([*asked, str(checkpoint)]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert {name: found[name] for name in ("images", "seed", "quantization", "dtype", "device")} == {
        "images": COUNT, "seed": 1001, "quantization": "nf4", "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    cards = [plan(1001, index) for index in range(COUNT)]
    assert found["text_characters"] == sum(len(card.text) for card in cards)
    assert found["facts_total"] == sum(4 * card.facts["count"] + 1 for card in cards)
    assert found["text_cer"] == found["text_edits"] / found["text_characters"] <= 0.03
    assert found["caption_facts"] == found["facts_right"] / found["facts_total"] >= 0.95
    assert {*found["by_fact"]} == {"shape", "color", "size", "position", "count"}
    assert found["revision"].startswith("sha256:")
    assert found["seconds"] > 0
    assert f"{COUNT} of {COUNT} pictures" in told.err


def test_a_checkpoint_that_is_not_there_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "1", "--device", "cpu", "--model", str(tmp_path / "没有")]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert "没有" in told.err


def test_a_picture_the_model_raises_on_ends_the_scoring(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_images, reference = Runner.read_images, reference_picture().tobytes()

    def knows_the_reference_picture_alone(self: Runner, prefix: Any, images: Any) -> Any:
        if [image.tobytes() for image in images] != [reference]:
            raise ValueError("no such kernel")
        return read_images(self, prefix, images)

    monkeypatch.setattr(Runner, "read_images", knows_the_reference_picture_alone)
    assert main(["--count", "2", "--device", "cpu", "--model", str(checkpoint)]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "error: the model raised on picture 0: ValueError: no such kernel" in told.err


@pytest.mark.parametrize("wrong", [["--count", "0"], ["--quantization", "int2"], ["--dtype", "float8"]])
def test_what_makes_no_sense_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(wrong)
    assert left.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_without_options_it_asks_the_recipes_model_in_4_bit_on_500_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse([])
    assert (options.count, options.quantization, options.model, options.dtype) == (500, "nf4", None, None)
    assert options.seed != 0  # trained on
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in ("--count", "--seed", "--quantization", "--model"))
