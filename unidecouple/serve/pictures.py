"""Images of requests: from data URLs and uploads, within the limits, and nothing from the network."""

from __future__ import annotations

import base64
import binascii
import io
import secrets
import time
import warnings
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from unidecouple.data.formats.record import ImageBytes
from unidecouple.data.pictures import decode
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.serve.errors import ApiError
from unidecouple.serve.limits import Limits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""Those that OpenAI takes."""

UPLOAD = "file-"

_MAX_SCANS = 100
"""Of a JPEG. Ordinary progressive ones have about 10; each costs a pass over all pixels, however short it is."""


def open_image(content: bytes, limits: Limits, processor: UnifiedProcessor, param: str) -> np.ndarray:
    """uint8 (size, size, 3) of an encoded image, padded to a square.

    Raises:
        ApiError: it is too large, too narrow or animated, or no image of the ``FORMATS``.
    """
    if len(content) > limits.image_bytes:
        raise ApiError(
            400, f"{param}: an image of {len(content):,} bytes is more than {limits.image_bytes:,}", param, "image_too_large"
        )
    try:
        _check_head(content, limits)
        return processor.understood(decode(ImageBytes(content), FORMATS, limits.pixels))
    except Exception as error:  # PIL's readers raise anything from OSError to struct.error and SyntaxError
        known = isinstance(error, ValueError) and not isinstance(error, UnidentifiedImageError)
        reason = str(error).removeprefix("image in the record: ") if known else "no image in a known format, or damaged"
        raise ApiError(400, f"{param}: {reason}; formats: {', '.join(FORMATS)}", param, "invalid_image") from error


def _check_head(content: bytes, limits: Limits) -> None:
    """Check the file's header, before any pixel is decoded."""
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _MAX_SCANS:
        raise ValueError(f"a JPEG of more than {_MAX_SCANS} scans")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits are ours
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            long, short = max(opened.size), min(opened.size)
            size = f"{opened.size[0]} x {opened.size[1]} pixels"
            if long * short > limits.pixels:
                raise ValueError(f"{size} are more than {limits.pixels:,}")
            if long > limits.side:
                raise ValueError(f"{size}: a side has at most {limits.side:,}")
            if long > limits.aspect * short:
                raise ValueError(f"{size}: one side is more than {limits.aspect:g} times the other; crop it")
            if opened.format != "MPO" and getattr(opened, "is_animated", False):  # cameras' MPO: a photograph and its preview
                raise ValueError("an animated image; send one frame")


def from_address(url: str, limits: Limits, processor: UnifiedProcessor, param: str) -> np.ndarray:
    """``open_image`` of a data URL."""
    if len(url) > limits.image_bytes * 4 // 3 + 256:
        raise ApiError(400, f"{param}: an image has at most {limits.image_bytes:,} bytes", param, "image_too_large")
    return open_image(from_data_url(url, param), limits, processor, param)


def from_data_url(url: str, param: str) -> bytes:
    """What a base64 data URL holds.

    Raises:
        ApiError: it is an address on the network, no data URL, or broken.
    """
    head, comma, body = url.partition(",")
    if not head[:5].lower().startswith("data:"):
        wrong = "nothing is downloaded" if "://" in head[:32] else "base64 needs its prefix"
        raise ApiError(
            400,
            f"{param}: {wrong}; give the image as data:image/png;base64,… or upload it (POST /v1/files)",
            param,
            "no_urls",
        )
    if not comma or head[-7:].lower() != ";base64":
        raise ApiError(400, f"{param}: the data URL is not base64 (data:image/png;base64,…)", param, "invalid_image")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{param}: the data URL's base64: {error}", param, "invalid_image") from error


@dataclass(frozen=True)
class Upload:
    """An image kept for later requests, at the model's size."""

    name: str
    size: int
    created: int
    picture: np.ndarray


class Uploads:
    """The last ``most`` uploads, in memory; the oldest go first. For the event loop's thread only."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[str, Upload] = OrderedDict()

    def keep(self, name: str, size: int, picture: np.ndarray) -> str:
        """Keep ``picture``. Returns its id, which nobody can guess."""
        number = UPLOAD + secrets.token_hex(12)
        self._kept[number] = Upload(name, size, int(time.time()), picture)
        if len(self._kept) > self.most:
            self._kept.popitem(last=False)
        return number

    def get(self, number: str, param: str) -> Upload:
        """One upload.

        Raises:
            ApiError: there is none of that id, or no longer.
        """
        if number not in self._kept:
            raise ApiError(404, f"no upload {number[:64]!r}, or it was dropped for newer ones", param, "no_such_file")
        return self._kept[number]

    def drop(self, number: str) -> None:
        """Forget one upload; raises as ``get``."""
        self.get(number, "file_id")
        del self._kept[number]


def as_png(picture: Image.Image) -> str:
    """An image as base64 of a PNG."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
