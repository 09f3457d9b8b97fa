"""Images at the model's size: as the processor and the paper have them; what cannot be used is reported and nothing is run."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from own_data import png
from unidecouple.data import pictures
from unidecouple.data.formats.record import ImageBytes, ImageFile, ImageTokens
from unidecouple.data.pictures import ImagePreprocessor, decode
from unidecouple.data.sequences import pixels
from unidecouple.models.processing import UniJanusProcessor


def encoded(form: str) -> bytes:
    content = io.BytesIO()
    Image.open(io.BytesIO(png())).save(content, form)
    return content.getvalue()


def picture(array: np.ndarray, form: str = "PNG", **options: object) -> ImageBytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, form, **options)
    return ImageBytes(content.getvalue())


@pytest.mark.parametrize(("width", "height"), [(24, 16), (16, 24), (16, 16), (5, 5), (90, 7), (333, 1)])
def test_understood_is_what_the_processor_makes(processor: UniJanusProcessor, width: int, height: int) -> None:
    content = png(0, width, height)
    theirs = processor.image_processor([Image.open(io.BytesIO(content))], return_tensors="pt")["pixel_values"]
    mine = ImagePreprocessor(processor).for_understanding(ImageBytes(content))
    assert (mine.shape, mine.dtype) == ((16, 16, 3), np.uint8)
    assert float((pixels([mine]) - theirs).abs().max()) < 1e-6


def test_understood_pads_with_the_mean_colour(processor: UniJanusProcessor) -> None:
    wide = ImagePreprocessor(processor).for_understanding(picture(np.full((16, 32, 3), 200, np.uint8)))
    expected = np.full((16, 16, 3), 127, np.uint8)
    expected[4:12] = 200
    assert np.array_equal(wide, expected)


def test_drawn_crops_the_centre(processor: UniJanusProcessor) -> None:
    """Left and right quarters of an image twice as wide as high go; nothing is padded."""
    stripes = np.repeat(np.array([10, 90, 170, 250], np.uint8), 8)
    wide = np.broadcast_to(stripes[None, :, None], (16, 32, 3)).copy()
    for array in (wide, wide.transpose(1, 0, 2)):
        drawn = ImagePreprocessor(processor).for_generation(picture(np.ascontiguousarray(array)))
        assert drawn.shape == (16, 16, 3)
        assert set(np.unique(drawn)) == {90, 170}


def test_drawn_of_a_fitting_picture_is_that_picture(processor: UniJanusProcessor) -> None:
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(ImagePreprocessor(processor).for_generation(picture(array)), array)
    assert np.array_equal(ImagePreprocessor(processor).for_understanding(picture(array)), array)


def test_other_modes_become_rgb() -> None:
    gray = decode(picture(np.full((4, 4), 9, np.uint8)))
    assert (gray.mode, gray.getpixel((0, 0))) == ("RGB", (9, 9, 9))
    assert decode(ImageBytes(png(0, 4, 4, "RGBA"))).mode == "RGB"


def test_pictures_are_turned_upright() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6  # the camera was turned by 90 degrees
    assert decode(picture(np.zeros((16, 24, 3), np.uint8), "JPEG", exif=tags)).size == (16, 24)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


BOMB = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(run) print\n%%EOF\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png()[:-300], "truncated|broken|Truncated"),
        (png()[:20], "damaged|Truncated|broken"),
        (b"", "no image in a known format"),
        (b"GIF89a", "image in the record"),
        (b"<html>404</html>", "no image in a known format"),
        (EPS, "no image in a known format"),
        (BOMB, "more than 100,000,000 pixels: make it smaller"),
    ],
)
def test_what_is_no_picture(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode(ImageBytes(content))


def test_pictures_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 383)
    with pytest.raises(ValueError, match="24 x 16 pixels are more than 383"):
        decode(ImageBytes(png()))


def test_missing_files_and_tokens(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone.png: No such file or directory"):
        decode(ImageFile(tmp_path / "gone.png"))
    with pytest.raises(ValueError, match=r": Is a directory"):
        decode(ImageFile(tmp_path))
    (tmp_path / "short.tar").write_bytes(bytes(10))
    with pytest.raises(ValueError, match=r"short.tar ends 15 bytes before the image does"):
        decode(ImageFile(tmp_path / "short.tar", offset=5, size=20))
    with pytest.raises(ValueError, match="can only be generated"):
        decode(ImageTokens(tmp_path / "tokens-00000.safetensors", 0))


changes = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4)


@given(form=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF"]), damage=changes)
def test_damaged_pictures_are_read_or_refused(form: str, damage: list[tuple[float, int]]) -> None:
    """PIL's readers raise many things for damaged files; a user sees one."""
    damaged = bytearray(encoded(form))
    for place, byte in damage:
        damaged[int(place * (len(damaged) - 1))] = byte
    with contextlib.suppress(ValueError):
        assert decode(ImageBytes(bytes(damaged))).mode == "RGB"
