"""Judge "template": compares what an image shows with the drawings that scenes are made of.

Exact on ground truth, and made for images that went through a lossy tokenizer. Three steps, none of which sees the prompt:

1. Objects are separated by recursive X-Y cuts (Nagy & Seth 1984): ink wider or taller than any drawing is cut at its lightest
   line. Unlike connected components this keeps detached parts together and separates neighbours that blur has joined.
2. Class: normalised correlation of the band-passed grey ink, aligned at its centre of mass, with every drawing. The band pass
   (a difference of Gaussians) drops the silhouette's mass, in which many drawings agree, and what blur takes away.
3. Colour: direction of the summed chroma (hue, however faded) against the six colours of the drawing found. Shape and colour
   do not mix, so a wrong colour does not lower the confidence and faded colours do not change the class.

Confidence is a logistic function of the correlation; its two constants were set on training scenes (see ``_confidence``).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import ndimage

from unidecouple.eval.judges import Box, Detection
from unidecouple.world.catalog import CLASSES, COLORS
from unidecouple.world.scene import SIZES, Scene, SceneObject, Sprites, render
from unidecouple.world.sprites import sprite

_INK = 0.25  # share of full ink from which a smoothed pixel counts as ink: above the haze of a tokenizer
_LINE = 1.5  # ink in a row or column from which it belongs to an object: thin tails do not stretch its box
_LONGEST = SIZES[-1] + 5  # drawings plus blur; two objects on one board span more
_SMOOTH = 0.7  # sigma below which detail is not compared
_COARSE = 2.5  # sigma above which mass is not compared
_SHIFT = 2
_WINDOW = 32
_PADDED = _WINDOW + 2 * _SHIFT
_BATCH = 256

Span = tuple[int, int, int, int]
"""(top, left, bottom, right), whole pixels, ends excluded."""


@dataclass(frozen=True)
class _Templates:
    """All drawings: unit-norm shape vectors (T, 256), unit-norm chroma (T, 2), class and colour indices (T,)."""

    shapes: np.ndarray
    chroma: np.ndarray
    classes: np.ndarray
    colors: np.ndarray


@dataclass(frozen=True)
class TemplateJudge:
    """Detector and colour classifier for images of ``unidecouple.world`` (see the module's docstring).

    Attributes:
        styles: whose drawings objects may have; a model may keep a source image's style, or return to that of its training.
    """

    styles: tuple[Sprites, ...] = (sprite,)

    name: ClassVar[str] = "template"

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """One detection per object found, with its best class.

        Raises:
            ValueError: an image that is not uint8 (H, W, 3).
        """
        out: list[list[Detection]] = []
        for start in range(0, len(images), _BATCH):
            out += _detect(images[start : start + _BATCH], _templates(self.styles))
        return out

    def color(self, image: np.ndarray, box: Box) -> str:
        """Colour of the object in ``box``.

        Raises:
            ValueError: an image that is not uint8 (H, W, 3), or a box that covers no pixel of it.
        """
        height, width = _checked(image).shape[:2]
        left, top, right, bottom = (round(edge) for edge in box)
        span = (max(top, 0), max(left, 0), min(bottom, height), min(right, width))
        if span[0] >= span[2] or span[1] >= span[3]:
            raise ValueError(f"box {box} covers no pixel of an image of {width} x {height}")
        ink = _ink(image)
        window = _window(ink, _drawn(ink), span)[None]
        templates = _templates(self.styles)
        best = int(_correlations(window, templates).argmax())
        agreement = templates.chroma @ _chroma(window)[0]
        same = templates.classes == templates.classes[best]
        return COLORS[int(templates.colors[np.where(same, agreement, -np.inf).argmax()])]


def _detect(images: Sequence[np.ndarray], templates: _Templates) -> list[list[Detection]]:
    windows: list[np.ndarray] = []
    owners: list[tuple[int, Span]] = []
    for index, image in enumerate(images):
        ink = _ink(_checked(image))
        drawn = _drawn(ink)
        for box, cut in _objects(drawn):
            windows.append(_window(ink, drawn, cut))
            owners.append((index, box))
    out: list[list[Detection]] = [[] for _ in images]
    if windows:
        correlations = _correlations(np.stack(windows), templates)
        for (index, (top, left, bottom, right)), row in zip(owners, correlations, strict=True):
            best = int(row.argmax())
            name = CLASSES[templates.classes[best]]
            out[index].append(Detection(name, _confidence(float(row[best])), (left, top, right, bottom)))
    return out


def _confidence(correlation: float) -> float:
    """Logistic calibration, set on some 600 objects of training scenes, sharp, blurred and cut to few principal components.

    With its true class withheld from the templates an object is something unknown: its best correlation passes .80, which gives
    .3, in one case in twenty, and .85, which gives .9, in one in a hundred. Ground truth gives above .999, and blur of sigma 1
    leaves 99% of objects above .999 too (correlation .94).
    """
    return float(1 / (1 + np.exp(-60.0 * (correlation - 0.815))))


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image is {image.dtype} of shape {image.shape}; the judge needs uint8 (H, W, 3)")
    return image


def _ink(image: np.ndarray) -> np.ndarray:
    """Distance from white per channel, in [0, 1]: float32 (H, W, 3)."""
    return 1 - image.astype(np.float32) / 255


def _drawn(ink: np.ndarray) -> np.ndarray:
    """Ink (H, W) of the strongest channel, smoothed, with everything below ``_INK`` removed."""
    smooth = ndimage.gaussian_filter(ink.max(-1), _SMOOTH)
    return np.where(smooth > _INK, smooth, 0.0)


def _objects(drawn: np.ndarray) -> list[tuple[Span, Span]]:
    """Objects as (box of the ink, piece of the image that belongs to it), by recursive cuts."""
    found: list[tuple[Span, Span]] = []
    pieces: list[Span] = [(0, 0, *drawn.shape)]
    while pieces:
        top, left, bottom, right = piece = pieces.pop()
        part = drawn[top:bottom, left:right]
        by_row, by_column = part.sum(1), part.sum(0)
        rows, columns = np.flatnonzero(by_row > _LINE), np.flatnonzero(by_column > _LINE)
        if not rows.size or not columns.size:
            continue
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        if max(height, width) <= _LONGEST:
            box = (top + int(rows[0]), left + int(columns[0]), top + int(rows[-1]) + 1, left + int(columns[-1]) + 1)
            found.append((box, piece))
        elif height >= width:
            cut = top + int(rows[0]) + _lightest(by_row[rows[0] : rows[-1] + 1])
            pieces += [(cut, left, bottom, right), (top, left, cut, right)]
        else:
            cut = left + int(columns[0]) + _lightest(by_column[columns[0] : columns[-1] + 1])
            pieces += [(top, cut, bottom, right), (top, left, bottom, cut)]
    return found


def _lightest(profile: np.ndarray) -> int:
    """Index of the lightest line in the middle 40% of ``profile``; the smoothing prefers wide gaps, the penalty the middle."""
    length = len(profile)
    lines = np.arange(int(0.3 * length), int(np.ceil(0.7 * length)))
    smooth = ndimage.gaussian_filter1d(profile, 1.0, mode="nearest")
    return int(lines[np.argmin(smooth[lines] + 0.01 * np.abs(lines - (length - 1) / 2))])


def _window(ink: np.ndarray, drawn: np.ndarray, span: Span) -> np.ndarray:
    """The ink of ``span`` alone, its centre of mass moved to the middle of a (_PADDED, _PADDED, 3) window.

    The centre of mass, unlike the middle of the box, does not move when blur thickens or swallows thin lines.
    """
    top, left, bottom, right = span
    mass = drawn[top:bottom, left:right]
    total = float(mass.sum()) + 1e-6
    row = top + round(float(mass.sum(1) @ np.arange(bottom - top)) / total)
    column = left + round(float(mass.sum(0) @ np.arange(right - left)) / total)
    half = _PADDED // 2
    canvas = np.zeros((ink.shape[0] + _PADDED, ink.shape[1] + _PADDED, 3), dtype=np.float32)
    canvas[half + top : half + bottom, half + left : half + right] = ink[top:bottom, left:right]
    return canvas[row : row + _PADDED, column : column + _PADDED]


def _correlations(windows: np.ndarray, templates: _Templates) -> np.ndarray:
    """Best correlation over small shifts of windows (n, _PADDED, _PADDED, 3) with each template: (n, T)."""
    band = _band(windows)
    best = np.full((len(windows), len(templates.shapes)), -1.0, dtype=np.float32)
    for row in range(2 * _SHIFT + 1):
        for column in range(2 * _SHIFT + 1):
            shape = _shape(band[:, row : row + _WINDOW, column : column + _WINDOW])
            np.maximum(best, shape @ templates.shapes.T, out=best)
    return best


def _band(windows: np.ndarray) -> np.ndarray:
    """Grey ink of windows (n, H, W, 3) between the two sigmas: (n, H, W)."""
    grey = windows.mean(-1)
    return ndimage.gaussian_filter(grey, (0, _SMOOTH, _SMOOTH)) - ndimage.gaussian_filter(grey, (0, _COARSE, _COARSE))


def _shape(band: np.ndarray) -> np.ndarray:
    """(n, 32, 32) -> (n, 256): halved, mean removed, unit norm, so that a product of two is their correlation."""
    half = _WINDOW // 2
    flat = band.reshape(-1, half, 2, half, 2).mean((2, 4)).reshape(-1, half * half)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6)


def _chroma(windows: np.ndarray) -> np.ndarray:
    """Direction of the summed red-green and yellow-blue differences of windows (n, H, W, 3): (n, 2) of unit norm.

    White, grey and black add nothing, so line art, blur and paleness do not turn it.
    """
    red, green, blue = windows.sum((1, 2)).T
    chroma = np.stack([green - red, blue - (red + green) / 2], axis=1)
    return chroma / (np.linalg.norm(chroma, axis=1, keepdims=True) + 1e-6)


@functools.lru_cache(maxsize=4)
def _templates(styles: tuple[Sprites, ...]) -> _Templates:
    keys = [(kind, tone, size) for kind in range(len(CLASSES)) for tone in range(len(COLORS)) for size in SIZES] * len(styles)
    windows = []
    for number, (kind, tone, size) in enumerate(keys):
        style = styles[number * len(styles) // len(keys)]
        ink = _ink(render(Scene((SceneObject(CLASSES[kind], COLORS[tone], 0, size),)), style))
        windows.append(_window(ink, _drawn(ink), (0, 0, *ink.shape[:2])))
    stacked = np.stack(windows)
    middle = slice(_SHIFT, _SHIFT + _WINDOW)
    classes, colors, _ = np.array(keys).T
    return _Templates(_shape(_band(stacked)[:, middle, middle]), _chroma(stacked), classes, colors)
