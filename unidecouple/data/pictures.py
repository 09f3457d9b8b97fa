"""Decode images to upright RGB by one rule, bring them to the model's size, and refuse those that cannot be used.

The rule holds in training, ``data`` commands, ``infer``, ``chat``, ``eval``, the server and the lmms-eval plug-in:

- Frame: the first. Orientation: the EXIF tag is applied, as in transformers' ``load_image`` (deepseek-ai/Janus ignores it).
- Transparency (an alpha channel, or a transparent colour of PNG, GIF or WebP): composited on white. The peers drop it
  (``convert("RGB")``), so that black ink on a transparent ground becomes a black image.
- Grey of 16 bits (12 in TIFF): white is the largest value, 65,535 (4,095). Float grey: white is 1.0, and values lie from 0 to 1.
  Integer grey of 32 bits and signed grey are refused, since nothing says which value is white.
- RGB of 16 bits: the high byte. CMYK, YCbCr, HSV, Lab: Pillow's conversion, which inverts CMYK in JPEG as Adobe does.
- Colour profiles (ICC) and gamma are ignored, as by the peers.

Image understanding: see ``UnifiedProcessor.understood``: the long side is resized and the short side padded to a square.
Text-to-image generation (Janus, arXiv 2410.13848, section 4.1; neither repository ships it): the short side is resized to the
model's size, the long side cropped to it. That it is bicubic and at the centre is unpublished; ours.
An image generated from source images is padded as they are (FreedomIntelligence/ShareGPT-4o-Image, train/train_janus.py), so that
what an edit keeps stays in its place.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from unidecouple.data.formats.record import EncodedSource, ImageFile, ImageTokens, StoredImage
from unidecouple.inputs import LFS_POINTER, LFS_START, printable

if TYPE_CHECKING:
    from unidecouple.models.processing import UnifiedProcessor

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Those read. Above all not EPS, which PIL hands to Ghostscript, a program that runs what the file contains."""

MAX_PIXELS: Final = 100_000_000
"""Larger images are taken for decompression bombs; 300 MB decoded."""

MAX_SIDE: Final = 65_535
"""Pixels of the longer side, as in JPEG."""

MAX_ASPECT: Final = 1000
"""Longer side over shorter side; beyond that, nothing is left to see at a model's size."""

_NAME: Final = 240
"""Characters of a path that messages show."""
_WHITE: Final = np.iinfo(np.uint16).max
_GREY_16: Final = ("PNG", "PPM")
"""Formats whose grey in Pillow's 32-bit mode has 16 bits; TIFF's may have 32."""
_BITS, _PHOTOMETRIC = 258, 262
"""TIFF's tags (TIFF 6.0, section 8): bits of a sample, and 0 where the smallest value is white."""
_TRANSPARENT_STEP: Final = {"L;2": 85, "L;4": 17}
"""PNG grey of few bits: Pillow spreads the pixels over 0 to 255, but not the transparent value."""


def decode(picture: StoredImage, formats: tuple[str, ...] = FORMATS, pixels: int | None = None) -> Image.Image:
    """Decode ``picture`` to upright RGB at its own size; see the module for the rule.

    Args:
        picture: a file or bytes.
        formats: as PIL names them; others are not even tried.
        pixels: most of them, checked before any is decoded; None is ``MAX_PIXELS``.

    Raises:
        ValueError: it is missing, truncated, no image, too large, of an unknown grey range, or tokens; the message names it.
    """
    name = image_name(picture)
    try:
        content = _encoded(picture)
    except OSError as error:
        raise ValueError(f"image {name}: {error.strerror or error}") from error
    except ValueError as error:  # of the name: a NUL character, half a surrogate pair
        raise ValueError(f"image {name}: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata; our own limit follows
            with Image.open(io.BytesIO(content), formats=formats) as opened:
                _refuse_size(*opened.size, pixels or MAX_PIXELS)
                return to_rgb(opened)
    except Image.DecompressionBombError as error:  # PIL's own limit, which it checks before ours
        raise ValueError(f"image {name}: more than {pixels or MAX_PIXELS:,} pixels: make it smaller") from error
    except Exception as error:  # PIL's readers raise anything from OSError to struct.error and SyntaxError
        known = LFS_POINTER if content.startswith(LFS_START) else f"no image in a known format ({', '.join(formats)}), or damaged"
        reason = known if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"image {name}: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB of an opened image, by the rule of this module.

    Raises:
        ValueError: a grey range that the rule refuses.
        OSError: the file is truncated; PIL's readers raise other errors, too, for damaged ones.
    """
    step = _transparent_step(image)
    white, inverted = _grey_range(image)
    image.load()
    upright = ImageOps.exif_transpose(image)
    transparent = upright.info.get("transparency")
    if step is not None and transparent is not None:
        upright.info["transparency"] = step(transparent)
    if white is not None:
        upright = _eight_bits(upright, white, inverted)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    if upright.mode == "La":  # premultiplied grey has no way to RGBA of its own
        upright = upright.convert("LA")
    return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA")).convert("RGB")


def _transparent_step(image: Image.Image) -> Callable[[Any], Any] | None:
    """How the transparent colour of a PNG becomes a colour of Pillow's 8-bit pixels; None where it is one. Before ``load``."""
    tiles: list[Any] = getattr(image, "tile", [])
    if image.format != "PNG" or not tiles:
        return None
    raw = tiles[0][3]
    if raw == "RGB;16B":
        return lambda colour: tuple(value >> 8 for value in colour)
    factor = _TRANSPARENT_STEP.get(raw) if isinstance(raw, str) else None
    return None if factor is None else lambda value: value * factor


def _grey_range(image: Image.Image) -> tuple[float | None, bool]:
    """The value that is white in grey of more than 8 bits (None for other images), and whether 0 is white instead."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    inverted = tags.get(_PHOTOMETRIC) == 0
    if image.mode.startswith("I;16"):
        bits = tags.get(_BITS, (16,))[0]
        return float((1 << bits) - 1 if bits < 16 else _WHITE), inverted
    if image.mode == "I":
        if image.format not in _GREY_16:
            raise ValueError("its grey has 32 bits or is signed, and nothing says which value is white: save it with 8 or 16 bits")
        return float(_WHITE), inverted
    return (1.0 if image.mode == "F" else None), inverted


def _eight_bits(image: Image.Image, white: float, inverted: bool) -> Image.Image:
    """Grey values from 0 to ``white`` as 0 to 255, rounded; with alpha where one value is transparent."""
    values = np.asarray(image)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > white:
        raise ValueError(
            f"its grey values ({values.min():g} to {values.max():g}) are outside 0 to {white:g}: scale them, or save it with 8 bits"
        )
    share = values / white
    grey = Image.fromarray(np.rint((1 - share if inverted else share) * 255).astype(np.uint8))
    transparent = image.info.get("transparency")
    if not isinstance(transparent, int):
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _encoded(picture: StoredImage) -> bytes:
    if isinstance(picture, ImageTokens):
        raise ValueError(f"{image_name(picture)} is image tokens, which can only be generated")  # noqa: TRY004 -- a user's mistake
    return picture.read()


def _refuse_size(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise ValueError(f"{width} x {height} pixels are more than {most:,}: make it smaller")
    long, short = max(width, height), min(width, height)
    if long > MAX_SIDE:
        raise ValueError(f"{width} x {height} pixels: a side is longer than {MAX_SIDE:,}")
    if long > MAX_ASPECT * short:
        raise ValueError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT:,} times the other")


def image_name(picture: StoredImage) -> str:
    """Name of an image for messages."""
    if isinstance(picture, ImageTokens):
        return f"{picture.shard} row {picture.row}"
    if isinstance(picture, EncodedSource):
        return image_name(picture.picture)
    return printable(str(picture.path), _NAME) if isinstance(picture, ImageFile) else "in the record"


def check_scale(processor: UnifiedProcessor) -> None:
    """Refuse pixel values that are not scaled to [-1, 1].

    Raises:
        ValueError: mean or standard deviation are not 0.5.
    """
    mean, std = (tuple(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
    if (mean, std) != ((0.5,) * 3, (0.5,) * 3):
        raise ValueError(f"image_mean={mean}, image_std={std}: images are scaled to [-1, 1], that is 0.5 in each, as in Janus")


@dataclass(frozen=True)
class ImagePreprocessor:
    """Brings images to a model's size.

    Attributes:
        processor: the model's; pixel values must be scaled to [-1, 1], as Janus does.
    """

    processor: UnifiedProcessor

    def __post_init__(self) -> None:
        check_scale(self.processor)

    @property
    def size(self) -> int:
        """Pixels a side."""
        return self.processor.picture_size

    def for_understanding(self, picture: StoredImage) -> np.ndarray:
        """uint8 (size, size, 3), padded to a square; raises as ``decode``."""
        return self.processor.understood(decode(picture))

    def for_generation(self, picture: StoredImage, from_sources: bool = False) -> np.ndarray:
        """uint8 (size, size, 3), its centre, or padded as its source images are; raises as ``decode``."""
        if from_sources:
            return self.for_understanding(picture)
        method = Image.Resampling(self._images.resample)
        return np.array(ImageOps.fit(decode(picture), (self.size, self.size), method))

    @property
    def _images(self) -> Any:
        return self.processor.image_processor
