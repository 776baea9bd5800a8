from __future__ import annotations

import hashlib
import io
import random
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFile

from glm4v_ops.errors import ImageRejected
from glm4v_ops.quality.outcome import Outcome
from glm4v_ops.recipe import ImageSection
from glm4v_ops.source import image as images
from glm4v_ops.source.image import decode

LIMITS = ImageSection(max_side=448)

#: Every way of saving that the product accepts: format, mode of the picture, options.
WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png": ("PNG", "RGB", {}),
    "png palette": ("PNG", "P", {}),
    "png gray": ("PNG", "L", {}),
    "png 1 bit": ("PNG", "1", {}),
    "jpeg": ("JPEG", "RGB", {"quality": 90}),
    "jpeg progressive": ("JPEG", "RGB", {"quality": 90, "progressive": True}),
    "jpeg gray": ("JPEG", "L", {"quality": 90}),
    "jpeg cmyk": ("JPEG", "CMYK", {"quality": 90}),
    "webp": ("WEBP", "RGB", {"quality": 90}),
    "webp lossless": ("WEBP", "RGBA", {"lossless": True}),
    "gif": ("GIF", "P", {}),
    "bmp": ("BMP", "RGB", {}),
    "tiff": ("TIFF", "RGB", {}),
    "tiff lzw": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    "tiff cmyk": ("TIFF", "CMYK", {}),
    "avif": ("AVIF", "RGB", {"quality": 90}),
}


def picture(width: int = 96, height: int = 64) -> Image.Image:
    """Red above left, green above right, blue below left, white below right: no two corners alike."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 2 - 1, height // 2 - 1), "red")
    draw.rectangle((width // 2, 0, width, height // 2 - 1), "lime")
    draw.rectangle((0, height // 2, width // 2 - 1, height), "blue")
    return image


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def saved_as(way: str, image: Image.Image | None = None) -> bytes:
    kind, mode, options = WAYS[way]
    return saved((image or picture()).convert(mode), kind, **options)


def rejected(data: bytes, limits: ImageSection = LIMITS) -> ImageRejected:
    with pytest.raises(ImageRejected) as caught:
        decode(data, limits)
    assert caught.value.reason
    assert caught.value.detail
    return caught.value


def difference(image: Image.Image, other: Image.Image) -> float:
    """Mean difference of a channel, 0-255."""
    assert image.size == other.size
    return float(np.asarray(ImageChops.difference(image, other)).mean())


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG of any depth, as Pillow would not write it. `rows` begin with their filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("way", WAYS)
def test_every_accepted_format_comes_out_as_the_same_rgb_picture(way: str) -> None:
    decoded = decode(saved_as(way), LIMITS)
    expected = picture().convert(WAYS[way][1] if WAYS[way][1] in ("L", "1") else "RGB").convert("RGB")
    assert decoded.image.mode == "RGB"
    assert (decoded.width, decoded.height) == decoded.image.size == (96, 64)
    assert decoded.format == WAYS[way][0]
    assert difference(decoded.image, expected) < 6


def test_sha256_is_that_of_the_bytes_given() -> None:
    data = saved(Image.new("L", (1, 1)))
    assert decode(data, LIMITS).sha256 == hashlib.sha256(data).hexdigest()


def test_the_name_of_a_format_plays_no_part_only_its_bytes_do() -> None:
    assert decode(saved_as("gif"), LIMITS).format == "GIF"
    assert rejected(b"<!DOCTYPE html><html><body>404</body></html>").outcome is Outcome.UNSUPPORTED


def test_zero_bytes_are_unreadable() -> None:
    error = rejected(b"")
    assert (error.outcome, error.reason) == (Outcome.UNREADABLE, "zero_bytes")


@pytest.mark.parametrize("way", ["png", "png palette", "jpeg", "jpeg progressive", "jpeg gray", "jpeg cmyk"])
def test_a_png_or_jpeg_truncated_anywhere_is_unreadable(way: str) -> None:
    data = saved_as(way)
    whole = len(data) - 4 if way.startswith("png") else len(data)  # a PNG ends in a checksum of nothing
    for length in range(2, whole):
        assert rejected(data[:length]).outcome is Outcome.UNREADABLE, length


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF data")
@pytest.mark.parametrize("way", ["webp", "webp lossless", "tiff", "tiff lzw", "bmp", "avif"])
def test_other_formats_truncated_anywhere_are_unreadable(way: str) -> None:
    data = saved_as(way)
    for length in {*range(48, len(data), max(1, len(data) // 97)), len(data) - 1}:
        assert rejected(data[:length]).outcome is Outcome.UNREADABLE, length


def test_a_large_jpeg_truncated_in_the_middle_is_unreadable_though_it_is_decoded_scaled_down() -> None:
    noise = Image.effect_noise((2400, 2400), 80)
    data = saved(noise, "JPEG")
    assert decode(data, LIMITS).image.size == (448, 448)
    assert rejected(data[: len(data) // 2]).reason == "truncated"


def test_a_gif_truncated_in_its_first_frame_is_unreadable() -> None:
    data = saved_as("gif")
    assert rejected(data[: len(data) // 2]).outcome is Outcome.UNREADABLE


def test_a_png_with_a_flipped_bit_in_its_pixels_is_unreadable() -> None:
    data = bytearray(saved_as("png"))
    data[data.index(b"IDAT") + 20] ^= 0x10
    assert rejected(bytes(data)).outcome is Outcome.UNREADABLE


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "not_an_image", "HTML"),
        (b"\xef\xbb\xbf  <HTML>", "not_an_image", "HTML"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "format", "SVG"),
        (b"%PDF-1.7\n", "format", "PDF"),
        (b"PK\x03\x04....", "format", "ZIP"),
        (b"BMW is a car maker, this is a text", "not_an_image", "text"),
        (("图片文字" * 100).encode(), "not_an_image", "text"),
        (b"just words", "not_an_image", "text"),
        (b"\0" * 4096, "not_an_image", "no known kind"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "format", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp42isom", "format", "video"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not_an_image", "no known kind"),
        (b"\0\0\1\0\1\0", "format", "icon"),
    ],
)
def test_what_is_no_image_by_its_bytes_is_unsupported_and_named(data: bytes, reason: str, words: str) -> None:
    error = rejected(data)
    assert (error.outcome, error.reason) == (Outcome.UNSUPPORTED, reason)
    assert words in error.detail


def test_an_image_format_outside_the_allow_list_is_unsupported() -> None:
    assert rejected(saved(picture(), "JPEG2000")).outcome is Outcome.UNSUPPORTED
    assert rejected(saved(picture(), "PPM")).outcome is Outcome.UNSUPPORTED
    assert rejected(saved(picture(), "EPS")).outcome is Outcome.UNSUPPORTED


def bomb_png(side: int = 30_000) -> bytes:
    """A picture of one colour, 1 bit a pixel: small in bytes, enormous in memory."""
    squeeze = zlib.compressobj(9)
    row = b"\0" * (1 + (side + 7) // 8)
    body = b"".join(squeeze.compress(row) for _ in range(side)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_a_30_000_by_30_000_png_is_oversized_by_its_header_before_any_pixel_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = bomb_png()
    assert len(data) < 150_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    error = rejected(data, ImageSection())
    assert (error.outcome, error.reason) == (Outcome.OVERSIZED, "pixels")
    assert "30,000 x 30,000" in error.detail


def big_gif() -> bytes:
    data = bytearray(saved_as("gif"))
    data[6:10] = struct.pack("<HH", 60_000, 60_000)
    return bytes(data)


def big_webp() -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = bytearray(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    data[24:30] = (16_382).to_bytes(3, "little") * 2
    return bytes(data)


def big_tiff() -> bytes:
    data = bytearray(saved_as("tiff"))
    for tag in (256, 257):  # width and height: tag, type LONG or SHORT, count 1, value
        at = data.index(struct.pack("<H", tag) + struct.pack("<H", 4) + struct.pack("<I", 1))
        data[at + 8 : at + 12] = struct.pack("<I", 50_000)
    return bytes(data)


def big_bmp() -> bytes:
    data = bytearray(saved_as("bmp"))
    data[18:26] = struct.pack("<ii", 40_000, 40_000)
    return bytes(data)


def big_jpeg() -> bytes:
    data = bytearray(saved_as("jpeg"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


@pytest.mark.parametrize("make", [big_gif, big_webp, big_tiff, big_bmp, big_jpeg])
def test_headers_of_every_format_are_held_against_the_pixel_limit(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    error = rejected(make(), ImageSection())
    assert (error.outcome, error.reason) == (Outcome.OVERSIZED, "pixels")


def test_the_pixel_limit_is_the_recipes_in_both_directions_not_pillows() -> None:
    assert rejected(saved(picture(200, 100)), ImageSection(max_pixels=19_999)).reason == "pixels"
    assert decode(saved(picture(200, 100)), ImageSection(max_pixels=20_000)).width == 200
    over_pillows = saved(Image.new("1", (19_000, 10_000)))  # 190 megapixels: Pillow itself would refuse
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(over_pillows, ImageSection(max_pixels=200_000_000, max_side=56)).width == 19_000


def test_a_picture_of_a_million_lines_one_pixel_wide_is_oversized() -> None:
    tall = png(1, 1_000_000, 8, 0, b"\0\0" * 1_000_000)
    error = rejected(tall, ImageSection())
    assert (error.outcome, error.reason) == (Outcome.OVERSIZED, "side")


def with_scans(many: int, between: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan, a few bytes, stands `many` times more."""
    data = saved_as("jpeg progressive")
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + (between + last) * many + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_oversized_before_any_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode(with_scans(400), LIMITS).width == 96
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    comment = b"\xff\xfe\0\x04\xff\xd9"  # that looks like the end
    for bomb in (with_scans(4_000), with_scans(600, comment)):
        error = rejected(bomb, ImageSection())
        assert (error.outcome, error.reason) == (Outcome.OVERSIZED, "scans")


def test_what_looks_like_scans_beside_the_picture_counts_as_none() -> None:
    look_alike = b"\xff\xda" * 2_000
    behind = saved_as("jpeg") + look_alike
    assert difference(decode(behind, LIMITS).image, picture()) < 6
    inside = saved(picture(), "JPEG", comment=look_alike)
    assert look_alike in inside
    assert difference(decode(inside, LIMITS).image, picture()) < 8


def test_of_large_pictures_one_at_a_time_is_decoded_and_of_others_many(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0
    counting = threading.Lock()

    def watched(source: Image.Image, max_side: int) -> Image.Image:
        nonlocal inside, most
        with counting:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)  # time for the others to come, were they let in
        with counting:
            inside -= 1
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(images, "_small", watched)
    large = saved(Image.new("1", (6_000, 5_000)))
    threads = [threading.Thread(target=decode, args=(large, LIMITS)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    with images._ONE_LARGE:  # as if a large one were being decoded
        assert decode(saved(picture()), LIMITS).width == 96


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint16])
def test_more_than_8_bits_cost_little_more_memory_than_the_picture(dtype: Any) -> None:
    side = 2_500
    data = saved(Image.fromarray(np.tile(np.arange(side).astype(dtype), (side, 1))), "TIFF")
    tracemalloc.start()
    try:
        decode(data, LIMITS)
        _, peak = tracemalloc.get_traced_memory()  # numpy's and Python's; Pillow's own is not counted
    finally:
        tracemalloc.stop()
    assert peak < 4 * side * side


def test_more_bytes_than_the_limit_are_oversized() -> None:
    data = saved(Image.effect_noise((64, 64), 90))
    error = rejected(data, ImageSection(max_bytes=1000))
    assert (error.outcome, error.reason) == (Outcome.OVERSIZED, "bytes")


def test_an_animation_is_its_first_frame() -> None:
    red, blue = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    for kind in ("GIF", "WEBP", "PNG", "AVIF"):
        options: dict[str, Any] = {"quality": 100} if kind in ("WEBP", "AVIF") else {}
        decoded = decode(saved(red, kind, save_all=True, append_images=[blue], duration=100, **options), LIMITS)
        assert difference(decoded.image, red) < 4, kind


def test_an_mpo_is_its_first_picture() -> None:
    red, blue = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    data = saved(red, "MPO", save_all=True, append_images=[blue])
    assert difference(decode(data, LIMITS).image, red) < 4


def test_an_adobe_cmyk_jpeg_has_its_colours_the_right_way_round() -> None:
    data = saved_as("jpeg cmyk")
    assert b"Adobe" in data
    decoded = decode(data, LIMITS).image
    assert difference(decoded, picture()) < 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_turned_by_exif_comes_out_upright(kind: str, orientation: int) -> None:
    turned = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation](picture())
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(saved(turned, kind, exif=exif), LIMITS)
    assert (decoded.width, decoded.height) == (96, 64)
    assert difference(decoded.image, picture()) < 8


def test_an_image_turned_by_exif_is_upright_when_it_is_scaled_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = picture(3000, 2000).transpose(Image.Transpose.ROTATE_90)
    for kind in ("JPEG", "TIFF"):
        decoded = decode(saved(turned, kind, exif=exif), LIMITS)
        assert (decoded.width, decoded.height) == (3000, 2000)
        assert decoded.image.size == (448, 299)
        assert decoded.image.getpixel((10, 10)) == pytest.approx((255, 0, 0), abs=6)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_a_tiff_of_more_than_8_bits_turned_by_exif_comes_out_upright(dtype: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.zeros((2_000, 3_000), dtype)
    upright[:1_000] = 65_535
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    decoded = decode(saved(turned, "TIFF", exif=exif), LIMITS)
    assert (decoded.width, decoded.height) == (3_000, 2_000)
    assert [decoded.image.getpixel((200, at)) for at in (10, 280)] == [(255, 255, 255), (0, 0, 0)]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_damaged_exif_block_does_not_cost_the_image() -> None:
    data = saved(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03")
    assert difference(decode(data, LIMITS).image, picture()) < 8


def test_16_bit_gray_keeps_its_brightness() -> None:
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    expected = (ramp >> 8).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        decoded = decode(saved(Image.fromarray(ramp), kind), LIMITS)
        assert np.array_equal(np.asarray(decoded.image)[:, :, 0], expected), kind
    big_endian = Image.frombytes("I;16B", (16, 16), ramp.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(decode(saved(big_endian, "TIFF"), LIMITS).image)[:, :, 1], expected)


def test_16_bit_colour_and_16_bit_gray_with_alpha_keep_their_brightness() -> None:
    colour = png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0x8000, 0x4000, 0xFFFF, 0, 0x0100, 0x00FF))
    assert pixels(decode(colour, LIMITS).image) == [(128, 64, 255), (0, 1, 0)]
    gray_alpha = png(2, 1, 16, 4, b"\0" + struct.pack(">4H", 0x8000, 0xFFFF, 0, 0))
    assert pixels(decode(gray_alpha, LIMITS).image) == [(128, 128, 128), (255, 255, 255)]


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    return [tuple(int(channel) for channel in pixel) for pixel in np.asarray(image).reshape(-1, 3)]


def test_32_bit_values_go_from_darkest_to_lightest() -> None:
    for dtype in (np.float32, np.int32):
        values = (np.arange(256).reshape(16, 16) * 1000).astype(dtype)
        decoded = decode(saved(Image.fromarray(values), "TIFF"), LIMITS)
        assert np.abs(np.asarray(decoded.image)[:, :, 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


def test_one_transparent_colour_lies_on_white_at_every_depth() -> None:
    def key(*values: int) -> bytes:
        return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))

    white = (255, 255, 255)
    two_bit = png(4, 1, 2, 0, b"\0" + bytes([0b00011011]), key(1))
    assert pixels(decode(two_bit, LIMITS).image) == [(0, 0, 0), white, (170, 170, 170), white]
    eight_bit = png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", key(1, 2, 3))
    assert pixels(decode(eight_bit, LIMITS).image) == [white, (4, 5, 6)]
    sixteen_bit = png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 0, 0, 256, 256, 256), key(256, 256, 256))
    assert pixels(decode(sixteen_bit, LIMITS).image) == [(0, 0, 0), white]
    sixteen_gray = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 300, 0), key(300))
    assert pixels(decode(sixteen_gray, LIMITS).image) == [white, (0, 0, 0)]


def test_palette_with_alpha_lies_on_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 0, 255, 0, 255, 0])
    image.putdata([0, 1, 2])
    decoded = decode(saved(image, "PNG", transparency=bytes([0, 128, 255])), LIMITS)
    assert pixels(decoded.image)[0] == (255, 255, 255)
    assert pixels(decoded.image)[1] == pytest.approx((127, 127, 255), abs=1)
    assert pixels(decoded.image)[2] == (0, 255, 0)


def test_rgba_and_gray_with_alpha_lie_on_white() -> None:
    rgba = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    assert pixels(decode(saved(rgba), LIMITS).image) == [(255, 255, 255)]
    gray = Image.new("LA", (1, 1), (0, 128))
    assert pixels(decode(saved(gray), LIMITS).image)[0] == pytest.approx((127, 127, 127), abs=1)


def test_hidden_colours_of_transparent_pixels_do_not_bleed_when_scaled() -> None:
    image = Image.new("RGBA", (1000, 1000), (255, 0, 0, 0))
    decoded = decode(saved(image), LIMITS)
    assert decoded.image.getextrema() == ((255, 255), (255, 255), (255, 255))


def test_a_1_bit_image_scaled_down_becomes_gray_not_noise() -> None:
    board = np.indices((1000, 1000)).sum(axis=0) % 2 == 0
    decoded = decode(saved(Image.fromarray(board)), ImageSection(max_side=100))
    assert decoded.image.getpixel((50, 50)) == pytest.approx((127, 127, 127), abs=3)


def test_the_long_side_is_scaled_to_the_limit_and_nothing_is_enlarged() -> None:
    for size, expected in {
        (2000, 500): (448, 112),
        (500, 2000): (112, 448),
        (448, 448): (448, 448),
        (30, 20): (30, 20),
    }.items():
        for way in ("png", "jpeg"):
            decoded = decode(saved_as(way, picture(*size)), LIMITS)
            assert decoded.image.size == expected
            assert (decoded.width, decoded.height) == size
    assert decode(saved(Image.new("L", (20_000, 1))), LIMITS).image.size == (448, 1)


def test_the_image_handed_out_keeps_nothing_of_the_file() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    decoded = decode(saved(picture(), "JPEG", exif=exif, icc_profile=b"p" * 5000), LIMITS)
    assert decoded.image.info == {}
    assert type(decoded.image) is Image.Image


def test_out_of_memory_is_not_an_outcome_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "thumbnail", exhausted)
    with pytest.raises(MemoryError):
        decode(saved(picture()), LIMITS)


def test_decoding_leaves_pillows_settings_as_they_were() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    decode(saved(picture()), LIMITS)
    rejected(saved(picture())[:200])
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before == (before[0], False)


def test_many_threads_decode_the_same_as_one() -> None:
    files = [saved_as(way) for way in WAYS]
    expected = [decode(data, LIMITS).image.tobytes() for data in files]
    found: list[list[bytes]] = []

    def work() -> None:
        found.append([decode(data, LIMITS).image.tobytes() for data in files])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", WAYS)
def test_whatever_is_done_to_a_file_it_is_decoded_or_rejected(way: str) -> None:
    chance = random.Random(f"mutations of {way}")
    original = saved_as(way)
    limits = ImageSection(max_pixels=1_000_000, max_side=448)
    outcomes, reasons = set(), set()
    for _ in range(150):
        try:
            decoded = decode(mutated(original, chance), limits)
            assert decoded.image.mode == "RGB"
            assert max(decoded.image.size) <= 448
            outcomes.add(Outcome.OK)
        except ImageRejected as rejection:
            reasons.add(rejection.reason)
            outcomes.add(rejection.outcome)
    assert Outcome.UNREADABLE in outcomes
    assert "" not in reasons


def mutated(original: bytes, chance: random.Random) -> bytes:
    data = bytearray(original)
    kind = chance.randrange(5)
    at = chance.randrange(len(data)) if chance.random() < 0.5 else chance.randrange(min(64, len(data)))
    if kind == 0:
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", chance.randbytes(4)])
    elif kind == 3:
        del data[at : at + chance.randint(1, 40)]
    else:
        data[at:at] = chance.randbytes(chance.randint(1, 40))
    return bytes(data)
