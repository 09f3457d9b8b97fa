"""Pictures are written prompt by prompt in GenEval's layout, whole or not there, so that a killed evaluation draws none twice."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unidecouple.eval.answering import ALONE, Part, Progress
from unidecouple.eval.geneval import Metadata
from unidecouple.files import atomic_directory

PaintFrom = Callable[[Sequence[str], int, int], list[list[np.ndarray]]]
"""``paint(prompts, num_images, first)``: pictures of consecutive prompts, of which the first has number ``first``.

Picture j of prompt number i depends on the seed, i and j alone, so that neither processes nor restarts change any.
"""


def paint_folder(
    paint: PaintFrom,
    metadata: Sequence[Metadata],
    num_images: int,
    folder: Path,
    prompts_at_once: int = 16,
    part: Part = ALONE,
    progress: Progress = lambda what, done, of: None,
) -> None:
    """Paint what ``folder`` lacks: ``00000/metadata.jsonl`` and ``00000/samples/0000.png``...; with several processes together.

    Raises:
        ValueError: ``folder`` holds a prompt that is not asked for, which the official scripts would score too.
    """
    there = {int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()} if folder.is_dir() else set()
    if there and max(there) >= len(metadata):
        raise ValueError(f"{folder} holds pictures of prompt {max(there)}, but {len(metadata)} are asked for: give a new folder")
    part.wait()  # all have looked before any writes
    missing = [number for number in range(len(metadata)) if number not in there]
    blocks = list(_blocks(missing, prompts_at_once))[part.rank :: part.size]
    done, of = 0, sum(map(len, blocks))
    for block in blocks:
        pictures = paint([metadata[number]["prompt"] for number in block], num_images, block[0])
        for number, images in zip(block, pictures, strict=True):
            write_prompt(folder, number, metadata[number], images)
        done += len(block)
        progress(f"{folder.parent.name}: prompts painted", done, of)
    part.wait()


def write_prompt(folder: Path, number: int, line: Metadata, images: Sequence[np.ndarray]) -> None:
    """One prompt's folder, whole or not there."""
    with atomic_directory(folder / f"{number:05d}", internal=True) as staging:
        (staging / "samples").mkdir()
        (staging / "metadata.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
        for copy, image in enumerate(images):
            Image.fromarray(image).save(staging / "samples" / f"{copy:04d}.png")


def _blocks(numbers: Sequence[int], most: int) -> Iterator[list[int]]:
    """Runs of consecutive numbers, of at most ``most``."""
    for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        whole = [number for _, number in run]
        yield from (whole[start : start + most] for start in range(0, len(whole), most))
