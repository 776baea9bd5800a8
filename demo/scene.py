"""The plan of one picture: what stands where, in which colour and size. Numbers only, nothing is drawn here.

Promises: a pure function of (seed, index); things and lines of text never overlap, stand wholly inside the picture,
away from the borders of the 3x3 grid, and in colours that stand out from the background; everything can be read when
the long side is 336 pixels. Does not know: pixels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import cos, hypot, radians, sin
from random import Random

from demo import words
from demo.captions import BACKDROPS, COLOURS, POSITIONS, SHAPES, Facts, ObjectFacts, canonical
from demo.fonts import FACES, font, ink

RGB = tuple[int, int, int]

PAINT: dict[str, RGB] = {
    "red": (216, 34, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 222, 40),
    "green": (36, 150, 60),
    "blue": (36, 84, 214),
    "purple": (128, 44, 172),
    "pink": (250, 140, 196),
    "brown": (122, 72, 34),
    "black": (20, 20, 22),
    "white": (250, 250, 250),
}
GROUND: dict[str, RGB] = {
    "white": (248, 248, 248),
    "gray": (165, 167, 170),
    "black": (24, 24, 26),
    "cream": (246, 232, 198),
    "light blue": (186, 214, 246),
    "light green": (196, 234, 196),
    "navy": (24, 34, 84),
    "maroon": (88, 18, 34),
}
INKS: tuple[RGB, ...] = (
    (15, 15, 20),
    (15, 15, 20),
    (20, 30, 110),
    (120, 15, 25),
    (10, 80, 40),
    (70, 40, 20),
    (250, 250, 250),
    (250, 250, 250),
    (255, 240, 150),
    (200, 230, 255),
)
LABELS: tuple[RGB, ...] = ((255, 255, 255), (255, 246, 200), (225, 240, 255), (20, 20, 24), (25, 40, 95), (110, 20, 30))

#: Share of the LONG side: what a model sees after scaling must not depend on the shape of the picture.
SIZE_SHARE = {"small": 0.09, "medium": 0.16, "large": 0.27}
#: Font sizes as a share of the long side: 22 pixels is what is read with ease where the long side is 336.
LEAST_TEXT, MOST_TEXT = 0.065, 0.115
ASPECTS = ((1, 1), (5, 4), (4, 3), (3, 2))
_LEAST_CONTRAST = 4.5  # W3C's ratio for body text
_LEAST_DISTANCE = 34.0  # CIE76 between an object's and any background colour


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: centre, longest extent and turn in the picture's own pixels and degrees."""

    facts: ObjectFacts
    x: float
    y: float
    extent: float
    angle: float
    paint: RGB


@dataclass(frozen=True, slots=True)
class Line:
    """One piece of text, its ink centred on (x, y); `label` is the colour of a box behind it."""

    text: str
    face: str
    size: float
    x: float
    y: float
    angle: float
    paint: RGB
    label: RGB | None


@dataclass(frozen=True, slots=True)
class Backdrop:
    """A pattern between two near colours; `pitch` is the grain or period as a share of the long side."""

    kind: str
    colour: str
    dark: RGB
    light: RGB
    pitch: float
    angle: float
    shift: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A receipt's paper."""

    left: float
    top: float
    right: float
    bottom: float
    paint: RGB


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything about one picture but its pixels; `text` is the truth, read line by line."""

    kind: str
    width: int
    height: int
    backdrop: Backdrop
    things: tuple[Thing, ...]
    lines: tuple[Line, ...]
    text: str
    sheet: Sheet | None
    format: str
    quality: int
    template: int

    @property
    def letters(self) -> list[tuple[str, float, float]]:
        """Every character but spaces with its middle, as shares of width and height."""
        found = []
        for line in self.lines:
            left, top, right, bottom = ink(line.face, line.size, line.text)
            turn, face = radians(line.angle), font(line.face, line.size)
            ends = [face.getlength(line.text[:number]) for number in range(len(line.text) + 1)]
            # Half the height of small letters above the base line is inside of nearly every character.
            y = -0.25 * line.size - (top + bottom) / 2
            for character, start, end in zip(line.text, ends, ends[1:], strict=False):
                x = (start + end) / 2 - (left + right) / 2
                across, down = x * cos(turn) + y * sin(turn), y * cos(turn) - x * sin(turn)
                if character != " ":
                    found.append((character, (line.x + across) / self.width, (line.y + down) / self.height))
        return found

    @property
    def facts(self) -> Facts:
        objects = canonical([thing.facts for thing in self.things])
        return Facts(
            kind=self.kind,
            objects=objects,
            count=len(objects),
            background={"kind": self.backdrop.kind, "color": self.backdrop.colour},
            text_lines=self.text.count("\n") + 1 if self.text else 0,
        )


Box = tuple[float, float, float, float]


def _linear(channel: float) -> float:
    share = channel / 255
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4


_LINEAR = [_linear(value) for value in range(256)]


def contrast(one: RGB, two: RGB) -> float:
    """W3C contrast ratio of two colours, 1 to 21."""
    bright, dim = sorted((_luminance(one), _luminance(two)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: RGB) -> float:
    red, green, blue = (_LINEAR[c] for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _lab(colour: RGB) -> tuple[float, float, float]:
    red, green, blue = (_LINEAR[c] for c in colour)
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    fx, fy, fz = (c ** (1 / 3) if c > 0.008856 else 7.787 * c + 16 / 116 for c in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def distance(one: RGB, two: RGB) -> float:
    """CIE76 colour difference: about 2 is just seen, 34 is plain to anyone."""
    a, b = _lab(one), _lab(two)
    return hypot(a[0] - b[0], a[1] - b[1], a[2] - b[2])


def _shade(colour: RGB, by: int) -> RGB:
    red, green, blue = (min(255, max(0, c + by)) for c in colour)
    return red, green, blue


def _jitter(rng: Random, colour: RGB, by: int = 10) -> RGB:
    red, green, blue = (min(255, max(0, c + rng.randint(-by, by))) for c in colour)
    return red, green, blue


def _overlap(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def _size(rng: Random) -> tuple[int, int]:
    long = rng.randint(256, 335) if rng.random() < 0.12 else round(336 * (1280 / 336) ** rng.random())
    over, under = rng.choice(ASPECTS)
    short = round(long * under / over)
    return (long, short) if rng.random() < 0.5 else (short, long)


def _encoding(rng: Random) -> tuple[str, int]:
    form = rng.random()
    if form < 0.60:
        return "JPEG", rng.randint(60, 95)
    return ("PNG", 0) if form < 0.80 else ("WEBP", rng.randint(70, 95))


def _backdrop(rng: Random, colours: tuple[str, ...] = tuple(GROUND)) -> Backdrop:
    kind, colour = rng.choices(BACKDROPS, (30, 20, 20, 10, 10, 10))[0], rng.choice(colours)
    base = _jitter(rng, GROUND[colour], 5)
    spread = {"plain": 0, "gradient": rng.randint(16, 26), "noisy": rng.randint(14, 24)}.get(kind, rng.randint(9, 15))
    if max(base) > 255 - spread:  # near white or black the pattern goes one way only, else half of it would be clipped
        dark, light = _shade(base, -2 * spread), base
    elif min(base) < spread:
        dark, light = base, _shade(base, 2 * spread)
    else:
        dark, light = _shade(base, -spread), _shade(base, spread)
    pitch = rng.uniform(0.0022, 0.0035) if kind == "noisy" else rng.uniform(0.045, 0.085)
    return Backdrop(kind, colour, dark, light, pitch, rng.uniform(0, 360), (rng.random(), rng.random()))


def _extent(line: Line) -> tuple[float, float]:
    """Width and height of the upright box around the turned line and its label."""
    left, top, right, bottom = ink(line.face, line.size, line.text)
    pad = line.size * (0.9 if line.label else 0.0)
    width, height, turn = right - left + pad, bottom - top + pad, radians(abs(line.angle))
    return width * cos(turn) + height * sin(turn), width * sin(turn) + height * cos(turn)


def _font_size(rng: Random, long: int) -> float:
    return round(long * (LEAST_TEXT + (MOST_TEXT - LEAST_TEXT) * rng.random() ** 1.6), 1)


def _fitted(line: Line, width: float, least: float) -> Line | None:
    """The line, made smaller when too wide; None when it would have to be smaller than `least`."""
    taken = _extent(line)[0]
    if taken <= width:
        return line
    size = line.size * width / taken * 0.98
    return _with(line, size=round(size, 1)) if size >= least else None


def _with(line: Line, *, size: float | None = None, x: float | None = None, y: float | None = None) -> Line:
    return Line(
        line.text,
        line.face,
        line.size if size is None else size,
        line.x if x is None else x,
        line.y if y is None else y,
        line.angle,
        line.paint,
        line.label,
    )


def _inks(rng: Random, backdrop: Backdrop) -> tuple[RGB, RGB | None]:
    label = rng.choice(LABELS) if rng.random() < 0.2 else None
    grounds = (label,) if label else (backdrop.dark, backdrop.light)
    able = [one for one in INKS if all(contrast(one, ground) >= _LEAST_CONTRAST for ground in grounds)]
    return rng.choice(able), label


def _text_lines(rng: Random, number: int, width: int, height: int, backdrop: Backdrop, room: float) -> list[Line]:
    """Up to `number` lines, one below the other, taking at most the share `room` of the height."""
    long = max(width, height)
    angle = 0.0 if rng.random() < 0.5 else rng.uniform(-4, 4)
    block = rng.random() < 0.6  # one style, evenly spaced; else each line has its own
    style = (rng.choice(FACES), _font_size(rng, long), *_inks(rng, backdrop))
    lines: list[Line] = []
    for _ in range(number):
        if not block:
            style = (rng.choice(FACES), _font_size(rng, long), *_inks(rng, backdrop))
        face, size, paint, label = style
        for longest in (words.LONGEST, 14, 8):
            draft = Line(words.line(rng, longest), face, size, 0, 0, angle, paint, label)
            line = _fitted(draft, width * 0.93, LEAST_TEXT * long)
            if line:
                lines.append(line)
                break
    gap = 0.3 * max((line.size for line in lines), default=0)
    while lines and sum(_extent(line)[1] + gap for line in lines) > room * height:
        lines.pop()
    return _spread(rng, lines, width, height, gap, block)


def _spread(rng: Random, lines: list[Line], width: int, height: int, gap: float, block: bool) -> list[Line]:
    """Give the lines their places: each in a band of its own, so that the reading order is plain."""
    margin = 0.03 * height
    extents = [_extent(line) for line in lines]
    slack = height - 2 * margin - sum(h for _, h in extents) - gap * (len(lines) - 1)
    cuts = [rng.random() * slack] * len(lines) if block else sorted(rng.random() * slack for _ in lines)
    align = rng.choice((0.0, 0.5, 0.5, 1.0)) if block else None
    widest = max((w for w, _ in extents), default=0.0)
    left = rng.uniform(0.03 * width, max(0.03 * width, 0.97 * width - widest))
    placed: list[Line] = []
    used = 0.0
    for line, (w, h), cut in zip(lines, extents, cuts, strict=True):
        if align is None:
            x = rng.uniform(0.03 * width, max(0.03 * width, 0.97 * width - w)) + w / 2
        else:
            x = left + w / 2 + (widest - w) * align
        placed.append(_with(line, x=x, y=margin + cut + used + h / 2))
        used += h + gap
    return placed


def _line_box(line: Line, gap: float) -> Box:
    width, height = _extent(line)
    return (
        line.x - width / 2 - gap,
        line.y - height / 2 - gap,
        line.x + width / 2 + gap,
        line.y + height / 2 + gap,
    )


def _spot(
    rng: Random, cell: int, extent: float, width: int, height: int, taken: list[Box]
) -> tuple[float, float] | None:
    """A free place whose centre lies well inside the grid cell; None when the cell offers none."""
    half, away = extent / 2 + 0.012 * max(width, height), 0.03
    row, column = divmod(cell, 3)
    left, right = max((column / 3 + away) * width, half), min(((column + 1) / 3 - away) * width, width - half)
    top, bottom = max((row / 3 + away) * height, half), min(((row + 1) / 3 - away) * height, height - half)
    if left > right or top > bottom:
        return None
    x, y = rng.uniform(left, right), rng.uniform(top, bottom)
    box = (x - half, y - half, x + half, y + half)
    return None if any(_overlap(box, other) for other in taken) else (x, y)


def _things(rng: Random, wanted: int, width: int, height: int, backdrop: Backdrop, taken: list[Box]) -> list[Thing]:
    """Up to `wanted` objects on free places; now and then two or three alike side by side in one cell."""
    colours = _SEEN_ON[backdrop.colour]
    placed: list[Thing] = []
    taken = list(taken)
    for _ in range(8):
        if len(placed) >= wanted:
            break
        shape, colour = rng.choice(SHAPES), rng.choice(colours)
        size = rng.choices(("small", "medium", "large"), (38, 36, 26))[0]
        paint, angle = _jitter(rng, PAINT[colour]), rng.uniform(-8, 8)
        alike = rng.choice((2, 2, 3)) if size != "large" and rng.random() < 0.22 else 1
        cell: int | None = None
        for _ in range(min(alike, wanted - len(placed))):
            extent = SIZE_SHARE[size] * rng.uniform(0.93, 1.07) * max(width, height)
            for _ in range(24):
                tried = rng.randrange(9) if cell is None else cell
                spot = _spot(rng, tried, extent, width, height, taken)
                if spot:
                    cell = tried
                    facts = ObjectFacts(shape=shape, color=colour, size=size, position=POSITIONS[cell])
                    placed.append(Thing(facts, *spot, extent, angle, paint))
                    half = extent / 2 + 0.012 * max(width, height)
                    taken.append((spot[0] - half, spot[1] - half, spot[0] + half, spot[1] + half))
                    break
    return placed


def _seen_on(ground: RGB) -> tuple[str, ...]:
    """The object colours that stand out from a background colour, whatever its pattern and jitter make of it."""
    grounds = [_shade(ground, by) for by in (-52, -26, 0, 26, 52)]
    if max(ground) > 229:
        grounds = grounds[:3]
    elif min(ground) < 26:
        grounds = grounds[2:]
    else:
        grounds = grounds[1:4]
    paints = {name: [_shade(paint, by) for by in (-8, 0, 8)] for name, paint in PAINT.items()}
    return tuple(
        name for name in COLOURS if all(distance(p, g) >= _LEAST_DISTANCE for p, g in product(paints[name], grounds))
    )


_SEEN_ON = {name: _seen_on(colour) for name, colour in GROUND.items()}


def _receipt(rng: Random, width: int, height: int) -> tuple[Sheet, list[Line], str]:
    """Paper on the background, shop, items and total; left and right part of a row are two pieces of one line."""
    long = max(width, height)
    paper = _jitter(rng, (250, 249, 244), 4)
    rows = words.receipt(rng)
    face, paint = rng.choice(FACES), rng.choice((*INKS[:2], (20, 30, 110)))
    pitch = min(rng.uniform(0.08, 0.1) * long, 0.9 * height / (len(rows) + 0.6))
    size = round(pitch * 0.72, 1)
    inner = min(width * 0.9, max(_row_width(face, size, row) for row in rows) * rng.uniform(1.0, 1.25))
    size = min(size, round(size * inner / max(_row_width(face, size, row) for row in rows), 1))
    tall = pitch * (len(rows) + 0.6)
    left = rng.uniform(0.04 * width, max(0.04 * width, 0.96 * width - inner))
    top = rng.uniform(0.04 * height, max(0.04 * height, 0.96 * height - tall))
    pad = 0.035 * width
    sheet = Sheet(left - pad, top - 0.02 * height, left + inner + pad, top + tall + 0.02 * height, paper)
    lines: list[Line] = []
    for number, (name, amount) in enumerate(rows):
        base = top + pitch * (number + 0.8)
        if amount:
            lines.append(_seated(name, face, size, base, paint, left=left))
            lines.append(_seated(amount, face, size, base, paint, right=left + inner))
        else:
            lines.append(_seated(name, face, size, base, paint, middle=left + inner / 2))
    return sheet, lines, "\n".join(f"{name} {amount}".strip() for name, amount in rows)


def _row_width(face: str, size: float, row: tuple[str, str]) -> float:
    return sum(ink(face, size, part)[2] for part in row if part) + (1.2 * size if row[1] else 0)


def _seated(
    text: str,
    face: str,
    size: float,
    base: float,
    paint: RGB,
    *,
    left: float | None = None,
    right: float | None = None,
    middle: float = 0.0,
) -> Line:
    """A level line whose base line is at `base`."""
    start, top, end, bottom = ink(face, size, text)
    half = (end - start) / 2
    x = left + half if left is not None else right - half if right is not None else middle
    return Line(text, face, size, x, base + (top + bottom) / 2, 0.0, paint, None)


def compose(seed: int, index: int) -> Scene:
    """The plan of picture `index` of the series `seed`."""
    rng = Random(f"postcards/{seed}/{index}")
    kind = rng.choices(("postcard", "blank", "text", "receipt"), (80, 4, 10, 6))[0]
    width, height = _size(rng)
    file_format, quality = _encoding(rng)
    template = rng.randrange(60)
    sheet: Sheet | None = None
    things: list[Thing] = []
    lines: list[Line] = []
    text = ""
    if kind == "receipt":
        backdrop = _backdrop(rng, ("gray", "black", "navy", "maroon", "light blue", "light green"))
        sheet, lines, text = _receipt(rng, width, height)
    else:
        backdrop = _backdrop(rng)
        if kind == "text":
            lines = _text_lines(rng, rng.choice((1, 2, 3, 4)), width, height, backdrop, 0.92)
        elif kind == "postcard":
            number = rng.choices((0, 1, 2, 3, 4), (18, 30, 25, 17, 10))[0]
            lines = _text_lines(rng, number, width, height, backdrop, 0.62)
            taken = [_line_box(line, 0.008 * max(width, height)) for line in lines]
            things = _things(rng, rng.choice((1, 2, 3, 4)), width, height, backdrop, taken)
        text = "\n".join(line.text for line in lines)
        if not things:
            kind = "text" if lines else "blank"
    return Scene(
        kind, width, height, backdrop, tuple(things), tuple(lines), text, sheet, file_format, quality, template
    )
