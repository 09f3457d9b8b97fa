"""Synthetic training data on disk: images, scenes and prompts from one seed, and image tokens per tokenizer.

A folder of arrays with a manifest, made once and reused. Which samples a step sees is not stored: it is a function of
(seed, step), so a resumed run needs no data position.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unidecouple.files import atomic_directory
from unidecouple.source import Progress
from unidecouple.world.catalog import CLASSES, COLORS, plural
from unidecouple.world.prompts import WORDINGS, training_pair
from unidecouple.world.questions import CAPTION_REQUEST
from unidecouple.world.scene import CELL_NAMES, CENTRED, IMAGE_SIZE, Scene, SceneObject, place, random_scene, render

FORMAT = 3


@dataclass(frozen=True)
class WorldData:
    """Size and seed of the training data.

    Attributes:
        pairs: prompt and image pairs for generation.
        scenes: images for understanding; conversations about them are generated with each batch.
        seed: of both; the test sets use other seeds and held-out prompts.
    """

    pairs: int = 12000
    scenes: int = 6000
    seed: int = 0


@dataclass(frozen=True)
class World:
    """Training data in memory.

    Attributes:
        prompts: one prompt per pair.
        pair_images: uint8 (pairs, 64, 64, 3).
        single_object_pairs: indices of the pairs with one object whose colour the prompt names.
        scenes: one scene per image to be understood.
        scene_images: uint8 (scenes, 64, 64, 3).
        folder: of its cache.
    """

    prompts: list[str]
    pair_images: np.ndarray
    single_object_pairs: np.ndarray
    scenes: list[Scene]
    scene_images: np.ndarray
    folder: Path


def load_world(config: WorldData, cache: Path, progress: Progress = lambda what, done, of: None) -> World:
    """The training data of ``config``, rendered now unless ``cache`` has it."""
    folder = cache / f"world-v{FORMAT}-seed{config.seed}-{config.pairs}x{config.scenes}"
    if not (folder / "manifest.json").is_file():
        _draw(config, folder, progress)
    return World(
        json.loads((folder / "prompts.json").read_text()),
        np.load(folder / "pair_images.npy", mmap_mode="r"),
        np.load(folder / "simple_pairs.npy"),
        [_unpack(row) for row in np.load(folder / "scenes.npy")],
        np.load(folder / "scene_images.npy", mmap_mode="r"),
        folder,
    )


def tokenizer_pictures(count: int, seed: int, progress: Progress = lambda what, done, of: None) -> np.ndarray:
    """Images to fit an image tokenizer to: uint8 (count, 64, 64, 3).

    They look like images to be generated. Three of four are full boards of any classes and colours: empty cells teach nothing.
    """
    rng = np.random.default_rng(seed)
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for index in range(count):
        items = [(str(rng.choice(CLASSES)), str(rng.choice(COLORS))) for _ in range(4)]
        images[index] = render(place(rng, items, offsets=CENTRED) if index % 4 else training_pair(rng)[1])
        if index % 500 == 0:
            progress("rendering images for the tokenizer", index, count)
    return images


def vocabulary() -> list[str]:
    """Every word of the synthetic benchmark, for a word-level tokenizer."""
    sentences = [
        *WORDINGS, *CLASSES, *COLORS, *CELL_NAMES, CAPTION_REQUEST,
        "Is there an in the image?", "How many are there?", "What color is the", "Where is the", "yes no zero one two three four",
        "a an and left right of above below understand .", *map(plural, CLASSES),
    ]  # fmt: skip
    return [word for sentence in sentences for word in sentence.replace("?", " ?").replace(".", " .").split()]


def _draw(config: WorldData, folder: Path, progress: Progress) -> None:
    rng = np.random.default_rng([config.seed, 1])
    prompts: list[str] = []
    simple: list[int] = []
    pair_images = np.empty((config.pairs, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for index in range(config.pairs):
        prompt, scene = training_pair(rng)
        prompts.append(prompt.text)
        if len(scene.objects) == 1 and prompt.include[0].color:
            simple.append(index)
        pair_images[index] = render(scene)
        if index % 500 == 0:
            progress("rendering images with prompts", index, config.pairs)
    rng = np.random.default_rng([config.seed, 2])
    scenes = [random_scene(rng) for _ in range(config.scenes)]
    scene_images = np.empty((config.scenes, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for index, scene in enumerate(scenes):
        scene_images[index] = render(scene)
        if index % 500 == 0:
            progress("rendering images to ask about", index, config.scenes)
    with atomic_directory(folder) as staging:
        np.save(staging / "pair_images.npy", pair_images)
        np.save(staging / "simple_pairs.npy", np.array(simple, np.int64))
        np.save(staging / "scene_images.npy", scene_images)
        np.save(staging / "scenes.npy", np.stack([_pack(scene) for scene in scenes]))
        (staging / "prompts.json").write_text(json.dumps(prompts))
        (staging / "manifest.json").write_text(json.dumps({"format": FORMAT, **asdict(config)}, indent=2))


def _pack(scene: Scene) -> np.ndarray:
    rows = np.full((4, 6), -1, np.int16)
    for index, obj in enumerate(scene.objects):
        rows[index] = (CLASSES.index(obj.name), COLORS.index(obj.color), obj.cell, obj.size, obj.dx, obj.dy)
    return rows


def _unpack(rows: np.ndarray) -> Scene:
    found = [row for row in rows.tolist() if row[0] >= 0]
    return Scene(tuple(SceneObject(CLASSES[name], COLORS[color], cell, size, dx, dy) for name, color, cell, size, dx, dy in found))
