"""The world in another art: same layout, colours that fit, files by code point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from published_sets import write_art
from unidecouple.world.art import Art, tint
from unidecouple.world.catalog import COLOR_RAMPS
from unidecouple.world.scene import Scene, SceneObject, render


def rgb(tone: str) -> tuple[int, ...]:
    return tuple(int(tone[at : at + 2], 16) for at in (1, 3, 5))


def test_pixels_take_the_tone_of_their_lightness() -> None:
    greys = np.array([[[level] * 3 + [255] for level in (250, 200, 120, 60, 10)]], np.uint8)
    ramp = [rgb(tone) for tone in COLOR_RAMPS["blue"]]
    assert [tuple(pixel) for pixel in tint(greys, "blue")[0, :, :3].tolist()] == [*ramp, (10, 10, 10)]
    assert (tint(greys, "blue")[..., 3] == 255).all()


def test_a_scene_keeps_its_layout_and_colours(tmp_path: Path) -> None:
    picture = render(Scene((SceneObject("cow", "red", 1), SceneObject("bus", "blue", 2))), Art(write_art(tmp_path)))
    assert tuple(picture[16, 48]) == rgb(COLOR_RAMPS["red"][2])
    assert tuple(picture[48, 16]) == rgb(COLOR_RAMPS["blue"][2])
    assert (picture[:32, :32] == 255).all()
    ink = np.argwhere((picture[:32, 32:] < 255).any(-1))
    assert np.ptp(ink, axis=0).max() + 1 in (27, 26)


def test_missing_drawings_are_named(tmp_path: Path) -> None:
    (write_art(tmp_path) / "1f416.png").unlink()
    with pytest.raises(ValueError, match=r"lacks drawings of pig \(1f416\.png\)"):
        Art(tmp_path)
