"""Safe pixels out of untrusted bytes: one small upright RGB image, or the outcome that says why there is none.

Promises: the type is read off the bytes, never off a name. The pixel limit is held against the header before a
single pixel is decoded. What comes out is 8-bit RGB, upright (EXIF), the first frame of an animation, alpha laid on
white, 16-bit brought to 8 by its high byte, inverted (Adobe) CMYK the right way round, and no side longer than
`max_side`; nothing is ever enlarged. Whatever Pillow raises on hostile bytes ends as `ImageRejected`, except
`MemoryError`: that is this machine's trouble. Safe to call from many threads, of which one at a time decodes a large
picture; changes no global of Pillow's.

Does not know: colour profiles (CMYK is converted by arithmetic, not by its ink profile), nor damage that a JPEG's
decoder cannot notice: flipped bits inside the compressed stream give wrong pixels, not an error.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.Image import DecompressionBombError, Resampling, Transpose

from glm4v_ops.errors import ImageRejected
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import ImageSection

#: Pixels. Pillow keeps a pointer for every line, so a picture one pixel wide costs nine times its pixels.
_LONGEST_SIDE = 200_000

#: Scans of a JPEG. A progressive one has about ten, and the decoder goes over every pixel again for each.
_MOST_SCANS = 500

#: Pixels. Decoding takes up to 16 bytes for each, whatever it is scaled to: above this, one picture at a time.
_LARGE = 25_000_000
_ONE_LARGE = threading.Lock()

#: Values that numpy holds at a time of a picture with more than 8 bits.
_STRIP = 1 << 18

#: How each format opens. Pillow's own `Image.open` would hold its global pixel limit against the recipe's, and warn.
_OPEN = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,  # MPO too: a JPEG with more behind it
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)

#: What else people put into an image bucket, to say so in the row.
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive or office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\1\0", "a Windows icon"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
)

_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
#: What stands in a JPEG for itself: no stuffed or filling byte, no restart inside a scan.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SCAN, _END = b"\xff\xda", b"\xff\xd9"

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258


@dataclass(frozen=True, slots=True)
class Decoded:
    """`image` as the model may see it; `width` and `height` of the upright original, in pixels."""

    image: Image.Image
    width: int
    height: int
    sha256: str  # hex digest of the bytes
    format: str


def decode(data: bytes, limits: ImageSection) -> Decoded:
    """Raises `ImageRejected` with outcome unreadable, unsupported or oversized."""
    if len(data) > limits.max_bytes:
        raise ImageRejected(Outcome.OVERSIZED, "bytes", f"{len(data):,} bytes, over the limit of {limits.max_bytes:,}")
    kind = sniff(data)
    try:
        with _OPEN[kind](io.BytesIO(data)) as source:
            width, height = source.size
            _check_size(width, height, limits)
            if kind == "PNG":
                _check_png(data)
            elif kind == "JPEG":
                _check_scans(data)
            turn: AbstractContextManager[Any] = _ONE_LARGE if width * height > _LARGE else nullcontext()
            with turn:
                small = _small(source, limits.max_side)
            orientation = _orientation(source)
    except (ImageRejected, MemoryError):
        raise
    except DecompressionBombError as error:
        raise ImageRejected(Outcome.OVERSIZED, "pixels", str(error)) from error
    except Exception as error:
        # Pillow's readers raise nearly anything on damaged files: OSError, SyntaxError, struct.error, KeyError, ...
        raise _unreadable(kind, error) from error
    if orientation in _UPRIGHT:
        small = small.transpose(_UPRIGHT[orientation])
        if orientation >= 5:
            width, height = height, width
    return Decoded(small, width, height, hashlib.sha256(data).hexdigest(), kind)


def sniff(data: bytes) -> str:
    """The format by content, one of PNG JPEG WEBP GIF BMP TIFF AVIF, or `ImageRejected`."""
    if not data:
        raise ImageRejected(Outcome.UNREADABLE, "zero_bytes", "the object is empty")
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
        if len(data) >= 2 and magic.startswith(data):
            raise ImageRejected(Outcome.UNREADABLE, "truncated", f"{len(data)} bytes: the first of a {kind} file")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and data[14:18] in _BMP_HEADERS:
        return "BMP"
    if data[4:8] == b"ftyp":
        return _sniff_box(data)
    raise _unsupported(data)


#: Lengths of the header that follows a BMP's first 14 bytes; "BM" alone also begins many a text.
_BMP_HEADERS = frozenset(struct.pack("<I", length) for length in (12, 40, 52, 56, 64, 108, 124))


def _sniff_box(data: bytes) -> str:
    """ISO media files share one layout: photos (AVIF, HEIC) and videos differ in the brands they name."""
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    name = "a HEIC image" if b"hei" in brands or b"mif1" in brands else "a video or audio file"
    raise ImageRejected(Outcome.UNSUPPORTED, "format", f"the bytes are {name}")


def _unsupported(data: bytes) -> ImageRejected:
    for magic, name in _OTHERS:
        if data.startswith(magic):
            return ImageRejected(Outcome.UNSUPPORTED, "format", f"the bytes are {name}")
    start = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in start:
        return ImageRejected(Outcome.UNSUPPORTED, "format", "the bytes are an SVG drawing")
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in start:
        return ImageRejected(Outcome.UNSUPPORTED, "not_an_image", "the bytes are an HTML page")
    if b"\0" not in data[:512]:
        try:
            data[:512].decode()
        except UnicodeDecodeError as error:
            if error.start < 508:  # otherwise a character cut in two by our own slice
                return _unknown(data)
        return ImageRejected(Outcome.UNSUPPORTED, "not_an_image", "the bytes are text")
    return _unknown(data)


def _unknown(data: bytes) -> ImageRejected:
    return ImageRejected(Outcome.UNSUPPORTED, "not_an_image", f"bytes of no known kind: {data[:8].hex(' ')} …")


def _unreadable(kind: str, error: Exception) -> ImageRejected:
    message = str(error) or type(error).__name__
    cut = "truncat" in message.lower() or "unexpected end" in message.lower()
    return ImageRejected(Outcome.UNREADABLE, "truncated" if cut else "corrupt", f"{kind}: {message}"[:300])


def _check_size(width: int, height: int, limits: ImageSection) -> None:
    said = f"the header says {width:,} x {height:,} pixels"
    if width * height > limits.max_pixels:
        raise ImageRejected(Outcome.OVERSIZED, "pixels", f"{said}, over the limit of {limits.max_pixels:,}")
    if max(width, height) > _LONGEST_SIDE:
        raise ImageRejected(Outcome.OVERSIZED, "side", f"{said}, one side over the limit of {_LONGEST_SIDE:,}")
    if min(width, height) < 1:
        raise ImageRejected(Outcome.UNREADABLE, "corrupt", said)


def _check_png(data: bytes) -> None:
    """Every chunk's checksum, to the last: Pillow itself is content once it has enough pixels."""
    PngImagePlugin.PngImageFile(io.BytesIO(data)).verify()


def _check_scans(data: bytes) -> None:
    """A few bytes a scan, and minutes or hours to decode: a bomb that no limit on bytes or pixels holds back."""
    if data.count(_SCAN) <= _MOST_SCANS:
        return
    # The same two bytes may stand in a profile, or in a film that a phone puts behind the picture: read as a JPEG.
    scans, at = 0, 2
    while (marker := _JPEG_MARKER.search(data, at)) and marker[0] != _END:
        at = marker.end()
        scans += marker[0] == _SCAN
        if scans > _MOST_SCANS:
            raise ImageRejected(Outcome.OVERSIZED, "scans", f"a JPEG of more than {_MOST_SCANS} scans")
        at += int.from_bytes(data[at : at + 2], "big")


def _small(source: Image.Image, max_side: int) -> Image.Image:
    """8-bit RGB on white, scaled down. Scaled first where the mode allows it, so that later steps are cheap."""
    plain = _plain(source)
    # For JPEG this also lets the decoder itself leave out what scaling would throw away.
    plain.thumbnail((max_side, max_side), Resampling.BICUBIC, reducing_gap=3.0)
    plain.load()
    if plain.mode in ("LA", "RGBA"):
        canvas = Image.new("RGBA", plain.size, "white")
        canvas.alpha_composite(plain.convert("RGBA"))
        return canvas.convert("RGB")
    return _bare(plain.convert("RGB"))


def _bare(image: Image.Image) -> Image.Image:
    """Pixels alone: a reader keeps its file's bytes, a copy its profiles and EXIF."""
    bare = Image.new("RGB", image.size)
    bare.paste(image)
    return bare


def _plain(source: Image.Image) -> Image.Image:
    """The image in a mode whose pixels can be averaged: L, LA, RGB, RGBA, CMYK, ..."""
    mode = source.mode
    if mode.startswith("I;16"):
        return _from_16_bit(source)
    if mode in ("I", "F"):
        return _from_32_bit(source)
    if mode in ("L", "RGB") and "transparency" in source.info:
        return _colour_key(source)
    if mode in ("1", "P", "PA", "La", "RGBa"):
        return source.convert("RGBA" if source.has_transparency_data else "RGB")
    return source


def _from_16_bit(source: Image.Image) -> Image.Image:
    """By the high byte: Pillow's own conversion to 8 bit would turn everything above 255 white."""
    bits = getattr(source, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]  # a TIFF may hold 12
    eight = _canvas(source)
    for lines, values in _strips(source):
        eight[lines] = values >> (bits - 8)
        if "transparency" in source.info:
            eight[lines][values == source.info["transparency"]] = 255
    return Image.fromarray(eight)


def _from_32_bit(source: Image.Image) -> Image.Image:
    """Such values have no agreed white: the darkest becomes black, the lightest white."""
    eight = _canvas(source)
    ends = [(float(values.min()), float(values.max())) for _, values in _finite_strips(source)]
    darkest, lightest = min(low for low, _ in ends), max(high for _, high in ends)
    for lines, values in _finite_strips(source):
        values -= darkest
        values *= 255.0 / max(lightest - darkest, 1e-30)
        eight[lines] = values.astype(np.uint8)
    return Image.fromarray(eight)


def _canvas(source: Image.Image) -> npt.NDArray[np.uint8]:
    source.load()  # a TIFF turned by its EXIF changes its size as it loads
    return np.empty((source.height, source.width), np.uint8)


def _strips(source: Image.Image) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """The values, some lines at a time: numpy's copies of all of them are several times the picture."""
    step = max(1, _STRIP // source.width)
    for top in range(0, source.height, step):
        lines = slice(top, min(top + step, source.height))
        yield lines, np.asarray(source.crop((0, lines.start, source.width, lines.stop)))


def _finite_strips(source: Image.Image) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    for lines, values in _strips(source):
        yield lines, np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)


def _colour_key(source: Image.Image) -> Image.Image:
    """One transparent colour made alpha. A PNG states it at its own depth, Pillow compares it at 8 bits."""
    key = source.info["transparency"]
    tiles = getattr(source, "tile", [])
    depth = tiles[0].args if tiles else None
    if depth in ("L;2", "L;4"):
        source.info["transparency"] = key * {"L;2": 85, "L;4": 17}[str(depth)]
    elif depth == "RGB;16B":
        source.info["transparency"] = tuple(value >> 8 for value in key)
    return source.convert("LA" if source.mode == "L" else "RGBA")


def _orientation(source: Image.Image) -> int:
    """1-8. Asked after loading, since a TIFF is turned upright while it loads and says so by dropping the tag."""
    try:
        value = source.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a damaged EXIF block, in any of many ways, says nothing about the pixels
        return 1
    return value if isinstance(value, int) else 1
