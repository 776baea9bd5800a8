"""Postcards: pictures made from a seed, with the truth about them beside them.

    python -m demo.postcards --out DIR --count N --seed S

Promises: `draw(seed, index)` gives the same bytes on every run (on the same Pillow); the truth is complete. Does not
know: models, or scores."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw

from demo.captions import Facts, make_caption
from demo.fonts import FACES, font
from demo.paint import paint
from demo.scene import Scene, compose

_SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True, slots=True)
class Postcard:
    """One picture file and what is true of it; `data` is empty when only the picture was asked for."""

    name: str
    data: bytes
    kind: str
    width: int
    height: int
    caption: str
    text: str
    facts: Facts
    format: str
    quality: int

    def truth(self) -> dict[str, object]:
        """The line of truth.jsonl."""
        return {
            "name": self.name,
            "kind": self.kind,
            "width": self.width,
            "height": self.height,
            "caption": self.caption,
            "text": self.text,
            "facts": self.facts,
        }


def _card(scene: Scene, index: int) -> Postcard:
    facts = scene.facts
    return Postcard(
        name=f"postcard-{index:06d}.{_SUFFIX[scene.format]}",
        data=b"",
        kind=scene.kind,
        width=scene.width,
        height=scene.height,
        caption=make_caption(facts, scene.template),
        text=scene.text,
        facts=facts,
        format=scene.format,
        quality=scene.quality,
    )


def plan(seed: int, index: int) -> Postcard:
    """The truth alone, nothing drawn: a millisecond or two."""
    return _card(compose(seed, index), index)


def render(seed: int, index: int, long_side: int | None = None) -> tuple[Image.Image, Postcard]:
    """The picture (RGB) and its truth without a file; `long_side` draws it directly at a smaller size, for training."""
    scene = compose(seed, index)
    return paint(scene, long_side), _card(scene, index)


def encode(picture: Image.Image, file_format: str, quality: int) -> bytes:
    """File bytes in the format and quality that a Postcard names (PNG has no quality)."""
    buffer = io.BytesIO()
    if file_format == "PNG":
        picture.save(buffer, "PNG", compress_level=1)
    elif file_format == "WEBP":
        picture.save(buffer, "WEBP", quality=quality, method=0)
    else:
        picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def draw(seed: int, index: int) -> Postcard:
    """Picture `index` of the series `seed`, as a file with its truth."""
    picture, card = render(seed, index)
    return replace(card, data=encode(picture, card.format, card.quality))


def postcards(seed: int, count: int, start: int = 0) -> Iterator[Postcard]:
    return (draw(seed, index) for index in range(start, start + count))


def contact_sheet(
    images: Sequence[tuple[str, Image.Image]], path: Path | str, columns: int = 5, side: int = 240
) -> None:
    """All pictures in one PNG grid, each shrunk to `side` pixels, with its label below it."""
    label, face = 20, font(FACES[0], 13)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 8) + 8, max(1, rows) * (side + label + 8) + 8), (225, 225, 225))
    pen = ImageDraw.Draw(sheet)
    for number, (title, image) in enumerate(images):
        left, top = 8 + number % columns * (side + 8), 8 + number // columns * (side + label + 8)
        small = image.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
        pen.text((left, top + side + 3), title, fill=(40, 40, 40), font=face)
    sheet.save(path, "PNG")


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo.postcards", description="Draw pictures with the truth beside them."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files and truth.jsonl")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="how many pictures (default 100)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="the series; same seed, same bytes (default 0)"
    )
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", help="also write the first 50 as one PNG grid")
    options = parser.parse_args(argv)
    if options.count < 0:
        parser.error("--count must not be negative")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = _arguments(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    kinds: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    size = 0
    shown: list[tuple[str, Image.Image]] = []
    with (options.out / "truth.jsonl").open("w", encoding="utf-8") as truth:
        for card in postcards(options.seed, options.count):
            (options.out / card.name).write_bytes(card.data)
            truth.write(json.dumps(card.truth(), ensure_ascii=False) + "\n")
            kinds[card.kind] += 1
            formats[card.format] += 1
            size += len(card.data)
            if options.contact_sheet and len(shown) < 50:
                shown.append((card.name, Image.open(io.BytesIO(card.data))))
    if options.contact_sheet:
        contact_sheet(shown, options.contact_sheet)

    def told(counts: Counter[str]) -> str:
        return ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))

    print(f"{options.count} pictures in {options.out} ({size / 1e6:.1f} MB): {told(kinds)}; {told(formats)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
