"""Every mode that files bring becomes the RGB that a viewer shows, by hand-computed values, or is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unidecouple.data.formats.record import ImageBytes, ImageFile
from unidecouple.data.pictures import decode

RAMP = np.array([[0, 257, 32768, 65535]], np.uint16).repeat(4, 0)
EIGHT = [0, 1, 128, 255]  # 32768 / 257 = 127.50…


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def raw_png(depth: int, kind: int, size: tuple[int, int], rows: list[bytes], transparent: bytes = b"") -> bytes:
    """A PNG of any depth, which Pillow cannot write."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + key + data + chunk(b"IEND", b"")


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def row(content: bytes) -> list[list[int]]:
    """The first row of an image, decoded."""
    pixels = np.asarray(decode(ImageBytes(content)))
    assert pixels.ndim == 3
    assert (pixels == pixels[:1]).all() or len(pixels) == 1
    return pixels[0].tolist()


def grey(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


def test_grey_of_16_bits_is_its_8_bit_copy() -> None:
    big = RAMP.astype(">u2")
    assert row(saved(Image.fromarray(RAMP))) == grey(*EIGHT)
    assert row(saved(Image.fromarray(RAMP), "TIFF")) == grey(*EIGHT)
    assert row(saved(Image.frombytes("I;16B", (4, 4), big.tobytes()), "TIFF")) == grey(*EIGHT)
    assert row(b"P5\n4 4\n65535\n" + big.tobytes()) == grey(*EIGHT)
    assert row(b"P5\n4 1\n1023\n" + struct.pack(">4H", 0, 4, 512, 1023)) == grey(0, 1, 128, 255)  # 10 bits
    assert row(b"P2\n3 1\n65535\n0 32768 65535\n") == grey(0, 128, 255)


def tiff(bits: int, photometric: int, data: bytes, width: int, sample_format: int = 1) -> bytes:
    """A little-endian TIFF of one row, with the tags of TIFF 6.0."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 122, 277: 1, 279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


def test_grey_of_tiff_by_its_tags() -> None:
    """White is 0 where the photometric tag is 0; 12 bits are two pixels in three bytes."""
    values = struct.pack("<3H", 0, 65535, 257)
    assert row(tiff(16, 1, values, 3)) == grey(0, 255, 1)
    assert row(tiff(16, 0, values, 3)) == grey(255, 0, 254)
    assert row(tiff(12, 1, b"\x00\x0f\xff", 2)) == grey(0, 255)
    assert row(tiff(8, 0, b"\x00\xff", 2)) == grey(255, 0)
    assert row(tiff(32, 1, struct.pack("<2f", 0.0, 1.0), 2, 3)) == grey(0, 255)
    assert row(tiff(32, 0, struct.pack("<2f", 0.0, 1.0), 2, 3)) == grey(255, 0)


def test_float_grey_from_0_to_1() -> None:
    half = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert row(saved(Image.fromarray(half), "TIFF")) == grey(0, 128, 255)


@pytest.mark.parametrize(
    "values",
    [[0.0, 255.0], [-0.1, 1.0], [0.0, float("nan")], [0.0, float("inf")]],
)
def test_float_grey_of_another_range_is_refused(values: list[float]) -> None:
    content = saved(Image.fromarray(np.array([values], np.float32)), "TIFF")
    with pytest.raises(ValueError, match="are outside 0 to 1: scale them, or save it with 8 bits"):
        decode(ImageBytes(content))


def test_grey_of_32_bits_and_signed_grey_is_refused() -> None:
    for content in (
        saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
        tiff(16, 1, struct.pack("<2h", -5, 5), 2, 2),
        tiff(32, 1, struct.pack("<2I", 0, 1 << 31), 2, 1),
    ):
        with pytest.raises(ValueError, match="32 bits or is signed"):
            decode(ImageBytes(content))


def test_transparency_is_composited_on_white() -> None:
    """Opaque black, black at half cover (255 * (1 - 128 / 255) = 127), and black that is not there."""
    pixels = np.array([[[0, 0, 0, 255], [0, 0, 0, 128], [0, 0, 0, 0]]], np.uint8)
    for form, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert row(saved(Image.fromarray(pixels), form, **options)) == grey(0, 127, 255)
    assert row(saved(Image.fromarray(pixels[..., [0, 3]], "LA"))) == grey(0, 127, 255)
    opaque = pixels.copy()
    opaque[..., 3] = 255
    assert row(saved(Image.fromarray(opaque))) == grey(0, 0, 0)


def test_a_transparent_colour_is_white() -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([10, 20, 30, 0, 0, 0, 200, 0, 0])
    palette.putdata([0, 1, 2])
    assert row(saved(palette, transparency=1)) == [[10, 20, 30], [255, 255, 255], [200, 0, 0]]
    assert row(saved(palette, transparency=bytes([255, 128, 0]))) == [[10, 20, 30], [127, 127, 127], [255, 255, 255]]
    assert row(saved(palette, "GIF", transparency=1)) == [[10, 20, 30], [255, 255, 255], [200, 0, 0]]
    assert row(saved(Image.fromarray(np.array([[5, 0]], np.uint8)), transparency=0)) == grey(5, 255)
    assert row(saved(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3))) == grey(255)
    assert row(saved(Image.new("1", (1, 1), 0), transparency=0)) == grey(255)


def test_a_transparent_colour_of_other_depths() -> None:
    """The tRNS chunk counts in the file's own depth (PNG 1.2, 4.2.1.1)."""
    assert row(raw_png(16, 0, (2, 1), [b"\x00\x00\x80\x00"], b"\x00\x00")) == grey(255, 128)
    assert row(raw_png(4, 0, (2, 1), [b"\x0f"], b"\x00\x0f")) == grey(0, 255)
    assert row(raw_png(2, 0, (4, 1), [b"\x1b"], b"\x00\x01")) == grey(0, 255, 170, 255)
    black_and_red = struct.pack(">6H", 0, 0, 0, 65535, 0, 0)
    assert row(raw_png(16, 2, (2, 1), [black_and_red], struct.pack(">3H", 65535, 0, 0))) == [[0, 0, 0], [255, 255, 255]]


def test_colour_of_16_bits_is_the_high_byte() -> None:
    assert row(raw_png(16, 2, (1, 1), [struct.pack(">3H", 0x1234, 0xFF00, 0x00FF)])) == [[0x12, 0xFF, 0x00]]
    assert row(b"P6\n1 1\n65535\n" + struct.pack(">3H", 65535, 32768, 0)) == [[255, 128, 0]]


def test_colour_spaces() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    assert row(saved(cyan, "TIFF"))[0] == [0, 255, 255]
    assert np.allclose(row(saved(cyan, "JPEG", quality=100))[0], [0, 255, 255], atol=3)  # inverted, as Adobe writes it
    assert np.allclose(row(saved(Image.new("YCbCr", (8, 8), (76, 85, 255)), "TIFF"))[0], [254, 0, 0], atol=2)
    assert row(saved(Image.new("1", (2, 1), 1))) == grey(255, 255)
    white = Image.new("LAB", (2, 2), (255, 128, 128))
    assert np.allclose(row(saved(white, "TIFF"))[0], [255, 255, 255], atol=2)


def test_the_first_frame_counts() -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    for form in ("GIF", "WEBP", "PNG"):
        content = saved(first, form, save_all=True, append_images=[second], lossless=True, duration=100)
        assert row(content)[0] == [255, 0, 0]


@pytest.mark.parametrize("size", [(1001, 1), (1, 2002), (65_536, 100)])
def test_sides_out_of_proportion(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"one side is more than 1,000 times the other|a side is longer than 65,535"):
        decode(ImageBytes(saved(Image.new("L", size))))


def test_names_that_no_file_has() -> None:
    for name, reason in (("a\0.png", "null"), ("a\ud83d.png", "surrogates not allowed"), ("a" * 5000, "too long")):
        with pytest.raises(ValueError, match=reason) as caught:
            decode(ImageFile(Path(name)))
        assert len(str(caught.value).encode()) < 400
    with pytest.raises(ValueError, match="/dev/zero: it is a device, not a file"):
        decode(ImageFile(Path("/dev/zero")))
