"""The synthetic classes in another style: a folder of emoji named by code point, for scores on a style never trained on.

Any set of PNG files fits, such as npm's ``emoji-datasource-google`` (Noto, Apache-2.0; ``img/google/64``). They have other
colours, so each pixel takes the tone of the wanted colour's ramp that has its lightness rank, by the same thresholds as the
OpenMoji drawings; (near) black stays. That is ours, as is the choice to keep the layout of the scenes and change the art alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from unidecouple.world.catalog import CLASSES, CODE_POINTS, COLOR_RAMPS, COLORS, require
from unidecouple.world.scene import Sprites
from unidecouple.world.sprites import cropped, fitted, sprite, tone_at

_LEVELS = np.array([-1 if tone_at(level / 255) is None else tone_at(level / 255) for level in range(256)])
"""Lightness 0..255 -> tone; -1 stays."""


class Art:
    """Sprites from a folder of PNG files; called as ``sprites.sprite`` is.

    Args:
        folder: with one file per class, ``1f404.png`` or ``1f3cd-fe0f.png``.

    Raises:
        ValueError: a class has no file.
    """

    def __init__(self, folder: Path) -> None:
        self._files = {name: _file(folder, code) for name, code in CODE_POINTS.items()}
        missing = [f"{name} ({CODE_POINTS[name].lower()}.png)" for name, file in self._files.items() if file is None]
        if missing:
            raise ValueError(f"{folder} lacks drawings of {', '.join(missing)}: give a folder of PNG files named by code point")
        self._masters: dict[tuple[str, str], Image.Image] = {}

    def __call__(self, name: str, color: str, size: int) -> np.ndarray:
        """uint8 RGBA (h, w, 4) with max(h, w) == size."""
        key = (require("class", name, CLASSES), require("colour", color, COLORS))
        if key not in self._masters:
            file = self._files[name]
            assert file is not None
            self._masters[key] = cropped(Image.fromarray(tint(np.asarray(Image.open(file).convert("RGBA")), color)))
        return fitted(self._masters[key], size)


def drawings(folder: Path | None) -> Sprites:
    """The drawings in ``folder``; None: the synthetic benchmark's own."""
    return sprite if folder is None else Art(folder)


def tint(drawing: np.ndarray, color: str) -> np.ndarray:
    """RGBA (h, w, 4) with every pixel's colour replaced by the tone of ``color``'s ramp at its lightness; alpha stays."""
    ramp = np.array([[int(tone[at : at + 2], 16) for at in (1, 3, 5)] for tone in COLOR_RAMPS[color]], np.uint8)
    levels = _LEVELS[(drawing[..., :3] @ np.array([0.299, 0.587, 0.114])).round().astype(int)]
    colored = np.where(levels[..., None] < 0, drawing[..., :3], ramp[levels])
    return np.concatenate([colored, drawing[..., 3:]], axis=-1).astype(np.uint8)


def _file(folder: Path, code: str) -> Path | None:
    names = [f"{spelled}{selector}.png" for spelled in (code.lower(), code) for selector in ("", "-fe0f", "-FE0F")]
    return next((folder / name for name in names if (folder / name).is_file()), None)
