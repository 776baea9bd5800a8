"""Files that a real drop holds and a tidy one does not: broken, mislabelled, enormous, or images of an unusual kind.

Promises: every file's outcome and reason are stated beside it; those that are images hold a postcard and its truth, so
that the answers to them can be scored: a reader that ignores the rotation, the ink, the depth, the transparency or the
first frame gets another picture. Bytes are made from seeds, the same on every run (on the same Pillow and zlib), well
below 1 MB together. Does not know: where the files are put, or who reads them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from demo.postcards import Postcard, encode, render
from glm4v_ops.quality.outcome import Outcome

#: A series of its own: neither one of training nor one of a day (`drop.seed`).
SEED = 9_000_000_000

#: Side of the decompression bomb. One bit a pixel and one colour: deflate can make it no smaller than 1/1032.
BOMB_SIDE = 30_000

_PAGE = """<!DOCTYPE html>
<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1><p>找不到图片</p></body></html>
"""
_ORIENTATION, _TURN_RIGHT_TO_VIEW = 0x0112, 6


@dataclass(frozen=True, slots=True)
class HostileFile:
    """One file, how it must end, and why in the reason's own word ("" when ok); `says` is for a person."""

    name: str
    data: bytes
    outcome: Outcome
    reason: str
    says: str
    truth: dict[str, object] | None = None


@cache
def hostile_files() -> tuple[HostileFile, ...]:
    """All of them, the broken ones first."""
    return tuple([*_broken(), *_unusual()])


def _broken() -> Iterator[HostileFile]:
    photo, _ = render(SEED, 273)
    png, jpeg = encode(photo, "PNG", 0), encode(photo, "JPEG", 90)
    yield HostileFile("empty.jpg", b"", Outcome.UNREADABLE, "zero_bytes", "zero bytes")
    yield HostileFile(
        "half-a-picture.png", png[: len(png) // 2], Outcome.UNREADABLE, "truncated", "a PNG cut off half way"
    )
    yield HostileFile(
        "half-a-picture.jpg", jpeg[: len(jpeg) // 2], Outcome.UNREADABLE, "truncated", "a JPEG cut off half way"
    )
    yield HostileFile(
        "not-found.jpg", _PAGE.encode(), Outcome.UNSUPPORTED, "not_an_image", "an HTML error page named .jpg"
    )
    bomb = f"{BOMB_SIDE:,} x {BOMB_SIDE:,} pixels in about 100 KB"
    yield HostileFile("poster.png", _bomb(), Outcome.OVERSIZED, "pixels", bomb)


def _unusual() -> Iterator[HostileFile]:
    picture, card = render(SEED, 114)
    yield _fine("waving.gif", _animation(picture), card, "an animation whose first frame is the postcard")
    picture, card = render(SEED, 560)
    inks = _saved(picture.convert("CMYK"), "JPEG", quality=92)
    yield _fine("print-shop-cmyk.jpg", inks, card, "a JPEG in printing inks (CMYK, inverted as Adobe writes it)")
    picture, card = render(SEED, 11)
    yield _fine("phone-held-sideways.jpg", _turned(picture), card, "a JPEG on its side; its EXIF says how to turn it")
    picture, card = render(SEED, 274)
    yield _fine("scan-16-bit.png", _deep_png(picture), card, "a PNG with 16 bits a channel")
    picture, card = render(SEED, 565)
    yield _fine("sticker.png", _cut_out(picture), card, "a palette PNG whose white background is transparent")
    picture, card = render(SEED, 428)
    name = "秋日 茶馆%2F菜单 no 7.png"
    yield _fine(name, encode(picture, "PNG", 0), card, "a key with spaces, Chinese and a literal %2F")


def _fine(name: str, data: bytes, card: Postcard, says: str) -> HostileFile:
    return HostileFile(name, data, Outcome.OK, "", says, replace(card, name=name).truth())


def _saved(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def _animation(picture: Image.Image) -> bytes:
    later = [ImageOps.invert(picture), ImageOps.flip(picture)]
    frames = [frame.quantize(255, dither=Image.Dither.NONE) for frame in (picture, *later)]
    return _saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=400, loop=0)


def _turned(picture: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[_ORIENTATION] = _TURN_RIGHT_TO_VIEW
    return _saved(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=exif)


def _cut_out(picture: Image.Image) -> bytes:
    """The most frequent colour made transparent, and black for whoever does not look at the transparency."""
    flat = picture.quantize(255, dither=Image.Dither.NONE)
    ground = int(np.bincount(np.asarray(flat).ravel()).argmax())
    palette = flat.getpalette() or []
    palette[3 * ground : 3 * ground + 3] = [0, 0, 0]
    flat.putpalette(palette)
    alpha = bytearray(b"\xff" * (len(palette) // 3))
    alpha[ground] = 0
    return _saved(flat, "PNG", transparency=bytes(alpha))


def _deep_png(picture: Image.Image) -> bytes:
    """16 bits a channel, which Pillow reads and does not write."""
    deep = (np.asarray(picture).astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    return _png(picture.size, depth=16, colour=2, body=zlib.compress(rows, 9))


def _bomb() -> bytes:
    squeeze = zlib.compressobj(9)
    row = bytes(1 + -(-BOMB_SIDE // 8))
    body = b"".join(squeeze.compress(row) for _ in range(BOMB_SIDE)) + squeeze.flush()
    return _png((BOMB_SIDE, BOMB_SIDE), depth=1, colour=0, body=body)


def _png(size: tuple[int, int], *, depth: int, colour: int, body: bytes) -> bytes:
    """`colour` is PNG's own number for the kind of pixel: 0 grey, 2 RGB."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
