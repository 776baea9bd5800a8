"""The faces that postcards are printed in: five free families from installed packages, eleven faces.

Promises: the same outlines everywhere, as the packages are pinned. Does not know: what is printed."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from PIL import ImageFont

FACES = (
    "font_roboto/Roboto-Regular.ttf",
    "font_roboto/Roboto-Bold.ttf",
    "font_roboto/Roboto-Italic.ttf",
    "font_source_sans_pro/SourceSansPro-Semibold.ttf",
    "font_source_sans_pro/SourceSansPro-BoldIt.ttf",
    "font_source_serif_pro/SourceSerifPro-Regular.ttf",
    "font_source_serif_pro/SourceSerifPro-Bold.ttf",
    "font_source_serif_pro/SourceSerifPro-It.ttf",
    "font_caladea/Caladea-Regular.ttf",
    "font_caladea/Caladea-Bold.ttf",
    "font_fredoka_one/FredokaOne-Regular.ttf",
)


@lru_cache(maxsize=len(FACES))
def _path(face: str) -> str:
    package, name = face.split("/")
    return str(files(package) / "files" / name)


@lru_cache(maxsize=1024)
def font(face: str, size: float) -> ImageFont.FreeTypeFont:
    """The face at `size` pixels; basic layout, so that no shaping library changes a picture."""
    return ImageFont.truetype(_path(face), size, layout_engine=ImageFont.Layout.BASIC)


def ink(face: str, size: float, text: str) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the ink, from a start on the base line."""
    left, top, right, bottom = font(face, size).getbbox(text, anchor="ls")
    return int(left), int(top), int(right), int(bottom)
