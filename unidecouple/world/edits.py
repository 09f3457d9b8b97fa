"""Edits of scenes with exact answers: recolour, move, remove and add one object, in words of the synthetic benchmark.

An edit's ``key`` is its kind, the class of its object, and the new colour or the cell. Training never uses a key of the
validation or test edits.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from unidecouple.world.catalog import CLASSES, COLORS, MAX_OBJECTS, article
from unidecouple.world.scene import CELL_NAMES, CENTRED, SIZES, Scene, SceneObject, distinct_names, random_scene_of

EditKind = Literal["recolor", "move", "remove", "add"]
KINDS: tuple[EditKind, ...] = get_args(EditKind)
_SPLIT_SEED = 20261129
EDITS_VERSION = 1
"""Of what ``training_edit`` draws from a seed; names the files of cached image tokens."""
_SHARES = {"val": 1 / 12, "test": 1 / 6}
_STREAM = 5
EditKey = tuple[str, str, str]


@dataclass(frozen=True)
class Edit:
    """A scene, an instruction, and the only scene that follows from both. Classes of a scene differ."""

    kind: EditKind
    text: str
    source: Scene
    target: Scene
    key: EditKey


def edit(kind: EditKind, rng: np.random.Generator, colors: Sequence[str] = COLORS) -> Edit:
    """A random edit of ``kind`` in ``colors``. Objects are centred in their cells; one that is added has the larger size."""
    least, most = {
        "recolor": (1, MAX_OBJECTS),
        "move": (1, MAX_OBJECTS - 1),
        "remove": (2, MAX_OBJECTS),
        "add": (1, MAX_OBJECTS - 1),
    }[kind]
    names = distinct_names(rng, int(rng.integers(least, most + 1)) + (kind == "add"))
    scene = random_scene_of(rng, names[:-1] if kind == "add" else names, CENTRED, colors)
    obj = scene.objects[int(rng.integers(len(scene.objects)))]
    others = [one for one in scene.objects if one is not obj]
    free = [cell for cell in range(len(CELL_NAMES)) if all(one.cell != cell for one in scene.objects)]
    match kind:
        case "recolor":
            color = str(rng.choice([tone for tone in colors if tone != obj.color]))
            text, new, value = f"the {obj.name} is {color}", [*others, replace(obj, color=color)], color
        case "move":
            cell = int(rng.choice(free))
            value = CELL_NAMES[cell]
            text, new = f"the {obj.name} is in the {value}", [*others, replace(obj, cell=cell)]
        case "remove":
            text, new, value = f"there is no {obj.name}", others, CELL_NAMES[obj.cell]
        case "add":
            obj = SceneObject(names[-1], str(rng.choice(colors)), int(rng.choice(free)), SIZES[-1])
            value = CELL_NAMES[obj.cell]
            text, new = f"there is {article(obj.color)} {obj.color} {obj.name} in the {value}", [*scene.objects, obj]
    target = Scene(tuple(sorted(new, key=lambda one: one.cell)))
    return Edit(kind, text, scene, target, (kind, obj.name, value))


def training_edit(rng: np.random.Generator) -> Edit:
    """A random edit that is not held out, all kinds equally likely."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    return next(one for one in (edit(kind, rng) for _ in itertools.count()) if in_split(one, "train"))


def edit_set(split: str, per_kind: int, seed: int) -> tuple[Edit, ...]:
    """``per_kind`` edits of each kind with held-out keys of ``split``; a function of ``seed``."""
    found: list[Edit] = []
    for number, kind in enumerate(KINDS):
        rng = np.random.default_rng([_STREAM, seed, number])
        mine = (one for one in (edit(kind, rng) for _ in itertools.count()) if one.key in held_out(split))
        found += itertools.islice(mine, per_kind)
    return tuple(found)


def in_split(one: Edit, split: str) -> bool:
    """Whether ``one`` belongs to "val", "test" or "train", which has what the others leave."""
    return not any(one.key in held_out(name) for name in _SHARES) if split == "train" else one.key in held_out(split)


@functools.cache
def held_out(split: str) -> frozenset[EditKey]:
    """Keys of "val" or "test", a twelfth and a sixth of all, disjoint.

    Raises:
        ValueError: there is no such split.
    """
    if split not in _SHARES:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(_SHARES)}")
    keys: list[EditKey] = []
    for number, kind in enumerate(KINDS):
        every = list(itertools.product([kind], CLASSES, COLORS if kind == "recolor" else CELL_NAMES))
        order = np.random.default_rng([_SPLIT_SEED, number]).permutation(len(every)).tolist()
        val, test = (round(share * len(every)) for share in _SHARES.values())
        keys += [every[index] for index in (order[:val] if split == "val" else order[val : val + test])]
    return frozenset(keys)
