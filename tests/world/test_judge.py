"""The template judge on ground truth, blurred ground truth and what is no drawing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from unidecouple.eval.judges import Detection
from unidecouple.world.catalog import CLASSES, COLORS
from unidecouple.world.judge import TemplateJudge
from unidecouple.world.prompts import training_pair
from unidecouple.world.scene import CELL, OFFSETS, SIZES, Scene, SceneObject, render

JUDGE = TemplateJudge()
BLANK = np.full((64, 64, 3), 255, dtype=np.uint8)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0)).round().astype(np.uint8)


def in_reading_order(found: list[Detection]) -> list[Detection]:
    return sorted(found, key=lambda d: ((d.box[1] + d.box[3]) // 2 // CELL, (d.box[0] + d.box[2]) // 2 // CELL))


@pytest.mark.parametrize("size", SIZES)
def test_every_drawing_in_every_color_is_recognised(size: int) -> None:
    keys = list(itertools.product(CLASSES, COLORS))
    images = [render(Scene((SceneObject(name, color, 3, size, OFFSETS[-1], OFFSETS[0]),))) for name, color in keys]
    for (name, color), image, found in zip(keys, images, JUDGE.detect_batch(images), strict=True):
        assert [detection.name for detection in found] == [name]
        assert found[0].confidence > 0.99
        assert JUDGE.color(image, found[0].box) == color


@pytest.mark.parametrize("sigma", [0.0, 0.7, 1.0])
def test_scenes_survive_blur(sigma: float) -> None:
    rng = np.random.default_rng(7)
    scenes = [training_pair(rng)[1] for _ in range(80)]
    images = [blurred(render(scene), sigma) if sigma else render(scene) for scene in scenes]
    for scene, image, found in zip(scenes, images, JUDGE.detect_batch(images), strict=True):
        ordered = in_reading_order(found)
        assert [detection.name for detection in ordered] == [obj.name for obj in scene.objects]
        assert min(detection.confidence for detection in ordered) > 0.9
        assert [JUDGE.color(image, detection.box) for detection in ordered] == [obj.color for obj in scene.objects]


def test_nearest_neighbours_are_two_objects() -> None:
    near = (("ball", 0, OFFSETS[-1]), ("book", 1, OFFSETS[0]))
    scene = Scene(tuple(SceneObject(name, "blue", cell, SIZES[-1], dx, 0) for name, cell, dx in near))
    found = in_reading_order(JUDGE.detect_batch([blurred(render(scene), 1.0)])[0])
    assert [detection.name for detection in found] == ["ball", "book"]
    assert found[0].box[2] <= found[1].box[0]


def test_box_is_where_the_drawing_is() -> None:
    # a ball fills its square; in the middle of cell 1 it is centred on (48, 16), and then moves by (1, -1)
    box = JUDGE.detect_batch([render(Scene((SceneObject("ball", "red", 1, 24, 1, -1),)))])[0][0].box
    assert np.abs(np.array(box) - [37, 3, 61, 27]).max() <= 1


def test_shape_alone_decides_the_class_and_chroma_alone_the_color() -> None:
    image = render(Scene((SceneObject("cow", "red", 0),)))
    swapped = np.ascontiguousarray(image[..., ::-1])  # red becomes a blue that no ramp of the catalogue holds
    found = JUDGE.detect_batch([swapped])[0]
    assert [detection.name for detection in found] == ["cow"]
    assert JUDGE.color(swapped, found[0].box) in ("blue", "purple")


def test_faded_colors_keep_their_name() -> None:
    for color in COLORS:
        image = render(Scene((SceneObject("turtle", color, 0),))).astype(np.float32)
        faded = (0.5 * image + 0.5 * image.mean(-1, keepdims=True)).astype(np.uint8)
        (found,) = JUDGE.detect_batch([faded])[0]
        assert (found.name, JUDGE.color(faded, found.box)) == ("turtle", color)


def test_confidence_falls_with_damage() -> None:
    image = render(Scene((SceneObject("tractor", "green", 0),)))
    half = image.copy()
    half[:, :16] = 255
    confidences = [max(d.confidence for d in JUDGE.detect_batch([i])[0]) for i in (image, blurred(image, 2.0), half)]
    assert confidences[0] > 0.99 > confidences[1] > confidences[2]
    assert confidences[2] < 0.3


def test_what_is_no_drawing_is_not_found() -> None:
    rng = np.random.default_rng(0)
    renders = np.stack([render(training_pair(rng)[1]) for _ in range(50)])
    patches = renders.reshape(50, 8, 8, 8, 8, 3).swapaxes(2, 3).reshape(-1, 8, 8, 3)
    mosaics = rng.permutation(patches).reshape(50, 8, 8, 8, 8, 3).swapaxes(2, 3).reshape(50, 64, 64, 3)
    slab = BLANK.copy()
    slab[4:60, 4:60] = (200, 40, 40)
    assert JUDGE.detect_batch([BLANK]) == [[]]
    for found in JUDGE.detect_batch([slab, np.zeros_like(BLANK), *mosaics]):
        assert found
        assert max(detection.confidence for detection in found) < 0.3


def test_a_batch_gives_what_each_picture_gives_alone() -> None:
    rng = np.random.default_rng(3)
    images = [BLANK, *(render(training_pair(rng)[1]) for _ in range(5))]
    together = JUDGE.detect_batch(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = JUDGE.detect_batch([image])
        assert [(d.name, d.box) for d in alone] == [(d.name, d.box) for d in found]
        assert [d.confidence for d in alone] == pytest.approx([d.confidence for d in found], abs=1e-4)
    assert JUDGE.detect_batch([]) == []


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"float64 of shape \(64, 64, 3\)"):
        JUDGE.detect_batch([BLANK / 255])
    with pytest.raises(ValueError, match="covers no pixel of an image of 64 x 64"):
        JUDGE.color(BLANK, (70, 0, 90, 10))
