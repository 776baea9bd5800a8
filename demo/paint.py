"""Pixels of a scene: backgrounds, shapes with smooth edges, turned text.

Promises: the same pixels every time on the same Pillow; work in Pillow's own C routines, no loop over pixels. With
`long_side` the scene is drawn smaller directly, which is much faster than to draw and
scale. Does not know: why things stand where."""

from __future__ import annotations

from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from demo.fonts import font, ink
from demo.scene import RGB, Backdrop, Line, Scene, Sheet, Thing

_BIG = 720  # side of a shape's master mask; the largest object of a 1280 picture is half that
_FIELD = 448

Point = tuple[float, float]


def _ring_points(number: int, radius: float, start: float) -> list[Point]:
    return [
        (radius * sin(start + 2 * pi * i / number), -radius * cos(start + 2 * pi * i / number)) for i in range(number)
    ]


def _star() -> list[Point]:
    outer, inner = _ring_points(5, 1.0, 0.0), _ring_points(5, 0.42, pi / 5)
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


def _heart() -> list[Point]:
    turns = [2 * pi * i / 96 for i in range(96)]
    return [(16 * sin(t) ** 3, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t))) for t in turns]


_OUTLINES: dict[str, list[Point]] = {
    "circle": _ring_points(128, 1, 0),
    "ring": _ring_points(128, 1, 0),
    "crescent": _ring_points(128, 1, 0),
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 0.75), (-1, 0.75)],
    "star": _star(),
    "heart": _heart(),
    "diamond": [(0, -1), (0.66, 0), (0, 1), (-0.66, 0)],
    "cross": [
        (-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32),
        (0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32),
    ],
    "arrow": [(-1, -0.28), (0.1, -0.28), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.28), (-1, 0.28)],
}  # fmt: skip
#: What is cut out again: centre and radius, in the outline's own units.
_HOLES: dict[str, tuple[float, float, float]] = {"ring": (0, 0, 0.55), "crescent": (0.5, -0.1, 0.88)}


@lru_cache(maxsize=16)
def _master(shape: str) -> Image.Image:
    """The shape as a large mask that touches its frame on the longer side."""
    outline = _OUTLINES[shape]
    xs, ys = [x for x, _ in outline], [y for _, y in outline]
    middle_x, middle_y = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    scale = _BIG / max(max(xs) - min(xs), max(ys) - min(ys))

    def at(x: float, y: float) -> Point:
        return (_BIG / 2 + (x - middle_x) * scale, _BIG / 2 + (y - middle_y) * scale)

    mask = Image.new("L", (_BIG, _BIG))
    pen = ImageDraw.Draw(mask)
    pen.polygon([at(x, y) for x, y in outline], fill=255)
    if shape in _HOLES:
        x, y, radius = _HOLES[shape]
        (left, top), (right, bottom) = at(x - radius, y - radius), at(x + radius, y + radius)
        pen.ellipse((left, top, right, bottom), fill=0)
    return mask


@lru_cache(maxsize=1)
def _noise() -> Image.Image:
    """Grain to cut from: a fixed tile, four times over, so that any cut of one tile's size fits."""
    grain = np.random.Generator(np.random.PCG64(20)).normal(128, 52, (_FIELD, _FIELD)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.tile(grain, (2, 2)))


def _gradient(backdrop: Backdrop, size: tuple[int, int]) -> Image.Image:
    turn = backdrop.angle * pi / 180
    rows, columns = np.mgrid[-1:1:48j, -1:1:48j]
    slope = columns * cos(turn) + rows * sin(turn)
    slope = (slope - slope.min()) / (slope.max() - slope.min())
    return Image.fromarray((slope * 255).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def _grain(backdrop: Backdrop, size: tuple[int, int]) -> Image.Image:
    share = min(_FIELD, round(1 / backdrop.pitch)) / max(size)
    width, height = max(1, round(size[0] * share)), max(1, round(size[1] * share))
    left, top = int(backdrop.shift[0] * _FIELD), int(backdrop.shift[1] * _FIELD)
    return _noise().crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BILINEAR)


def _texture(backdrop: Backdrop, size: tuple[int, int]) -> Image.Image:
    """Stripes, checks or dots. Every pattern is a sum or product of two waves along its axes."""
    long, (width, height) = max(size), size
    period = backdrop.pitch * long
    turn = (backdrop.angle if backdrop.kind == "striped" else backdrop.angle % 45) * pi / 180
    xs, ys = np.arange(width, dtype=np.float32)[None, :], np.arange(height, dtype=np.float32)[:, None]
    phase, k = np.float32(backdrop.shift[0] * 2 * pi), 2 * pi / period
    if backdrop.kind == "striped":
        along_x, along_y = xs * np.float32(k * cos(turn)) + phase, ys * np.float32(k * sin(turn))
        # sin(a + b) from the two axes' own sines: one multiplication a pixel instead of one sine
        wave = np.sin(along_x) * np.cos(along_y) + np.cos(along_x) * np.sin(along_y)
        edge = 3.0
    elif backdrop.kind == "checked":
        wave = np.sin(xs * np.float32(pi / period) + phase) * np.sin(ys * np.float32(pi / period))
        edge = 6.0
    else:
        wave = np.cos(xs * np.float32(k) + phase) + np.cos(ys * np.float32(k)) - np.float32(0.9)
        edge = 3.0
    field = np.clip(wave * np.float32(127 * edge) + np.float32(127), 0, 255).astype(np.uint8)
    return Image.fromarray(field)


def _ground(backdrop: Backdrop, size: tuple[int, int]) -> Image.Image:
    if backdrop.kind == "plain":
        return Image.new("RGB", size, backdrop.light)
    draw = {"gradient": _gradient, "noisy": _grain}.get(backdrop.kind, _texture)
    field = draw(backdrop, size)
    steps = np.arange(256)[:, None] / 255
    palette = np.rint(np.array(backdrop.dark) * (1 - steps) + np.array(backdrop.light) * steps).astype(np.uint8)
    field.putpalette(palette.tobytes())
    return field.convert("RGB")


def _draw_thing(picture: Image.Image, thing: Thing, scale: float) -> None:
    extent = max(4, round(thing.extent * scale))
    mask = _master(thing.facts["shape"]).resize((extent, extent), Image.Resampling.BILINEAR, reducing_gap=2.0)
    _paste_turned(picture, mask, thing.paint, (thing.x * scale, thing.y * scale), thing.angle)


def _paste_turned(picture: Image.Image, mask: Image.Image, paint: RGB, centre: Point, angle: float) -> None:
    if angle:
        mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    picture.paste(paint, (round(centre[0] - mask.width / 2), round(centre[1] - mask.height / 2)), mask)


def _draw_line(picture: Image.Image, line: Line, scale: float) -> None:
    size = round(line.size * scale * 4) / 4  # quarter pixels, so that the faces of many pictures are shared
    left, top, right, bottom = ink(line.face, size, line.text)
    centre = (line.x * scale, line.y * scale)
    if line.label:
        pad = round(size * 0.45)
        box = Image.new("L", (right - left + 2 * pad, bottom - top + 2 * pad))
        ImageDraw.Draw(box).rounded_rectangle((0, 0, box.width - 1, box.height - 1), radius=pad // 2, fill=255)
        _paste_turned(picture, box, line.label, centre, line.angle)
    mask = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), line.text, fill=255, font=font(line.face, size), anchor="ls")
    _paste_turned(picture, mask, line.paint, centre, line.angle)


def _draw_sheet(picture: Image.Image, sheet: Sheet, scale: float) -> None:
    corners = [round(c * scale) for c in (sheet.left, sheet.top, sheet.right, sheet.bottom)]
    ImageDraw.Draw(picture).rectangle((corners[0], corners[1], corners[2], corners[3]), fill=sheet.paint)


def paint(scene: Scene, long_side: int | None = None) -> Image.Image:
    """The scene as an RGB picture; `long_side` draws it smaller, never larger."""
    longest = max(scene.width, scene.height)
    scale = min(1.0, long_side / longest) if long_side else 1.0
    size = (max(1, round(scene.width * scale)), max(1, round(scene.height * scale)))
    picture = _ground(scene.backdrop, size)
    if scene.sheet:
        _draw_sheet(picture, scene.sheet, scale)
    for thing in scene.things:
        _draw_thing(picture, thing, scale)
    for line in scene.lines:
        _draw_line(picture, line, scale)
    return picture
