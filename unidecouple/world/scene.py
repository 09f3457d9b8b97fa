"""Scenes: one to four objects on a 2 x 2 board, and their image.

A scene is plain data; captions, prompts and questions about it (prompts.py, questions.py) are derived from it, so every answer is
exact by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unidecouple.world.catalog import CLASSES, COLORS, MAX_OBJECTS, THEMES
from unidecouple.world.sprites import sprite

Sprites = Callable[[str, str, int], np.ndarray]
"""Class, colour and size -> RGBA drawing; see ``sprites.sprite``."""

IMAGE_SIZE = 64
CELL = IMAGE_SIZE // 2
CELL_NAMES: tuple[str, ...] = ("top left", "top right", "bottom left", "bottom right")
SIZES: tuple[int, ...] = (24, 27)
OFFSETS: tuple[int, ...] = (-1, 1)
CENTRED: tuple[int, ...] = (0,)
"""Offsets in images to be generated: each variant of an object needs image tokens of its own, which a generator must learn."""


@dataclass(frozen=True)
class SceneObject:
    """One object: class, colour, board cell (0..3 in reading order), size and offset from the cell's centre in pixels."""

    name: str
    color: str
    cell: int
    size: int = SIZES[-1]
    dx: int = 0
    dy: int = 0


@dataclass(frozen=True)
class Scene:
    """Objects in reading order; at most one in a cell."""

    objects: tuple[SceneObject, ...]

    def count(self, name: str) -> int:
        """How many objects of class ``name`` the scene has."""
        return sum(obj.name == name for obj in self.objects)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes present, each once, in reading order."""
        return tuple(dict.fromkeys(obj.name for obj in self.objects))


def render(scene: Scene, drawing: Sprites = sprite) -> np.ndarray:
    """Image of ``scene`` on white, in OpenMoji's art or another: uint8 (64, 64, 3)."""
    image = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 255, dtype=np.float32)
    for obj in scene.objects:
        art = drawing(obj.name, obj.color, obj.size).astype(np.float32)
        height, width = art.shape[:2]
        row, column = divmod(obj.cell, 2)
        top = row * CELL + (CELL - height) // 2 + obj.dy
        left = column * CELL + (CELL - width) // 2 + obj.dx
        alpha = art[..., 3:] / 255
        patch = image[top : top + height, left : left + width]
        patch[:] = patch * (1 - alpha) + art[..., :3] * alpha
    return image.round().astype(np.uint8)


def place(
    rng: np.random.Generator,
    items: list[tuple[str, str]],
    cells: list[int] | None = None,
    offsets: tuple[int, ...] = OFFSETS,
) -> Scene:
    """A scene of the (class, colour) ``items``: random cells unless given, random sizes, offsets from ``offsets``."""
    chosen = rng.permutation(4)[: len(items)].tolist() if cells is None else cells
    objects = [
        SceneObject(name, color, cell, int(rng.choice(SIZES)), int(rng.choice(offsets)), int(rng.choice(offsets)))
        for (name, color), cell in zip(items, chosen, strict=True)
    ]
    return Scene(tuple(sorted(objects, key=lambda obj: obj.cell)))


def random_scene(rng: np.random.Generator, min_objects: int = 1, repeat: float = 0.3, off_theme: float = 0.2) -> Scene:
    """A themed scene of understanding data.

    Args:
        rng: source of randomness; equal states give equal scenes.
        min_objects: fewest objects (at most 4).
        repeat: chance that an object repeats a class already there, so that counting has something to count.
        off_theme: chance that an object comes from any theme.
    """
    theme = tuple(THEMES[str(rng.choice(list(THEMES)))])
    names: list[str] = []
    for _ in range(int(rng.integers(min_objects, MAX_OBJECTS + 1))):
        pool: tuple[str, ...] = CLASSES if rng.random() < off_theme else theme
        names.append(names[-1] if names and rng.random() < repeat else str(rng.choice(pool)))
    return place(rng, [(name, str(rng.choice(COLORS))) for name in names])


def random_distinct_scene(rng: np.random.Generator, objects: int) -> Scene:
    """A themed scene of ``objects`` different classes: as POPE needs them."""
    return random_scene_of(rng, distinct_names(rng, objects))


def random_scene_of(
    rng: np.random.Generator, names: list[str], offsets: tuple[int, ...] = OFFSETS, colors: Sequence[str] = COLORS
) -> Scene:
    """A scene of the given classes in random ones of ``colors``."""
    return place(rng, [(name, str(rng.choice(colors))) for name in names], offsets=offsets)


def distinct_names(rng: np.random.Generator, count: int, off_theme: float = 0.2) -> list[str]:
    """``count`` different classes, mostly of one theme."""
    theme = tuple(THEMES[str(rng.choice(list(THEMES)))])
    names: list[str] = []
    while len(names) < count:
        pool: tuple[str, ...] = CLASSES if rng.random() < off_theme else theme
        name = str(rng.choice(pool))
        if name not in names:
            names.append(name)
    return names
