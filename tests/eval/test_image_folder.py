"""Images are painted once, in whole folders, and do not depend on restarts or processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from unidecouple.eval.geneval import read_folder
from unidecouple.eval.image_folder import generate_folder
from unidecouple.shares import WorkShare
from unidecouple.world.prompts import spread

LINES = [prompt.to_json() for prompt in spread("val", 1)]


class Generator:
    """Paints the number of prompt and image, and dies at prompt ``until``."""

    def __init__(self, until: int = 99) -> None:
        self.painted: list[int] = []
        self.until = until

    def __call__(self, prompts: Sequence[str], num_images: int, first: int) -> list[list[np.ndarray]]:
        numbers = range(first, first + len(prompts))
        assert list(prompts) == [LINES[number]["prompt"] for number in numbers]
        if self.until in numbers:
            raise KeyboardInterrupt
        self.painted += numbers
        return [[np.full((4, 4, 3), 10 * number + copy, np.uint8) for copy in range(num_images)] for number in numbers]


def test_a_stopped_one_goes_on_and_paints_nothing_twice(tmp_path: Path) -> None:
    first, second = Generator(until=4), Generator()
    with pytest.raises(KeyboardInterrupt):
        generate_folder(first, LINES, 2, tmp_path, prompts_at_once=2)
    assert first.painted == [0, 1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000", "00001", "00002", "00003"]
    generate_folder(second, LINES, 2, tmp_path, prompts_at_once=3)
    assert second.painted == [4, 5]
    metadata, pictures = read_folder(tmp_path)
    assert metadata == LINES
    assert [[int(image[0, 0, 0]) for image in images] for images in pictures] == [[10 * n, 10 * n + 1] for n in range(6)]


def test_gaps_are_filled_and_processes_share_them(tmp_path: Path) -> None:
    generate_folder(Generator(), LINES, 1, tmp_path)
    for number in (1, 2, 4):
        (tmp_path / f"{number:05d}" / "metadata.jsonl").unlink()
        (tmp_path / f"{number:05d}" / "samples" / "0000.png").unlink()
        (tmp_path / f"{number:05d}" / "samples").rmdir()
        (tmp_path / f"{number:05d}").rmdir()
    second = Generator()
    generate_folder(second, LINES, 1, tmp_path, share=WorkShare(1, 2))
    assert second.painted == [4]  # blocks [1, 2] and [4], of which the second process takes the second
    first = Generator()
    generate_folder(first, LINES, 1, tmp_path)
    assert first.painted == [1, 2]


def test_independent_shares_paint_their_part_whatever_is_done(tmp_path: Path) -> None:
    painted = []
    for rank in (1, 0, 0):
        generator = Generator()
        generate_folder(generator, LINES, 1, tmp_path, prompts_at_once=2, share=WorkShare(rank, 2, independent=True))
        painted.append(generator.painted)
    assert painted == [[2, 3], [0, 1, 4, 5], []]


def test_pictures_of_more_prompts_are_refused(tmp_path: Path) -> None:
    generate_folder(Generator(), LINES, 1, tmp_path)
    with pytest.raises(ValueError, match="images of prompt 5, but 3 are asked for"):
        generate_folder(Generator(), LINES[:3], 1, tmp_path)
