"""Generated images as PNG files with their settings inside, and as a grid."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unidecouple.files import write_bytes_atomic
from unidecouple.ownership import check_file

KEY = "unidecouple"
"""Name of the PNG text chunk (tEXt) that holds the settings as JSON."""

_GAP = 2


def save_image(path: Path, picture: Image.Image, settings: Mapping[str, object]) -> None:
    """Write ``picture`` as a PNG with ``settings`` in its metadata, non-ASCII characters as JSON escapes.

    Raises:
        ValueError: ``path`` holds a file that this package did not write.
        StorageError: it could not be written.
    """
    check_file(path)
    text = PngInfo()
    text.add_text(KEY, json.dumps(settings))
    content = io.BytesIO()
    picture.save(content, "PNG", pnginfo=text)
    write_bytes_atomic(path, content.getvalue())


def settings_of(path: Path) -> dict[str, object]:
    """Return the settings that ``save_image`` wrote.

    Raises:
        ValueError: the image holds no settings.
    """
    with Image.open(path) as picture:
        text = picture.info.get(KEY)
    if text is None:
        raise ValueError(f"{path} does not say how it was drawn: it was not written by `unidecouple generate`, or was saved anew")
    return dict(json.loads(text))


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Images of one size, a row beneath another, on white."""
    width, height = rows[0][0].size
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, len(rows) * (height + _GAP) - _GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + _GAP), y * (height + _GAP)))
    return sheet
