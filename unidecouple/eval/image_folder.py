"""Images are written prompt by prompt in GenEval's layout, atomically, so that a killed evaluation generates none twice."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unidecouple.eval.answering import Progress
from unidecouple.eval.benchmark import GenerateImages, Metadata
from unidecouple.files import atomic_directory
from unidecouple.shares import ALONE, WorkShare


def generate_folder(
    generate: GenerateImages,
    metadata: Sequence[Metadata],
    num_images: int,
    folder: Path,
    prompts_at_once: int = 16,
    share: WorkShare = ALONE,
    progress: Progress = lambda what, done, of: None,
) -> None:
    """Generate the images that ``folder`` lacks: ``00000/metadata.jsonl``, ``00000/samples/0000.png``...; processes share the work.

    Raises:
        ValueError: ``folder`` holds a prompt that is not asked for, which the official scripts would score too.
    """
    there = {int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()} if folder.is_dir() else set()
    if there and max(there) >= len(metadata):
        raise ValueError(f"{folder} holds images of prompt {max(there)}, but {len(metadata)} are asked for: give a new folder")
    share.wait()  # all have looked before any writes
    wanted = range(len(metadata))
    if share.independent:
        mine = [number for block in share.of(list(_blocks(wanted, prompts_at_once))) for number in block if number not in there]
        blocks: Sequence[list[int]] = list(_blocks(mine, prompts_at_once))
    else:
        blocks = share.of(list(_blocks([number for number in wanted if number not in there], prompts_at_once)))
    done, of = 0, sum(map(len, blocks))
    for block in blocks:
        images_of = generate([metadata[number]["prompt"] for number in block], num_images, block[0])
        for number, images in zip(block, images_of, strict=True):
            write_prompt(folder, number, metadata[number], images)
        done += len(block)
        progress(f"{folder.parent.name}: prompts done", done, of)
    share.wait()


def write_prompt(folder: Path, number: int, line: Metadata, images: Sequence[np.ndarray]) -> None:
    """One prompt's folder, whole or not there."""
    with atomic_directory(folder / f"{number:05d}", internal=True) as staging:
        (staging / "samples").mkdir()
        (staging / "metadata.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
        for copy, image in enumerate(images):
            Image.fromarray(image).save(staging / "samples" / f"{copy:04d}.png")


def _blocks(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    """Runs of consecutive numbers, of at most ``size``."""
    for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        whole = [number for _, number in run]
        yield from (whole[start : start + size] for start in range(0, len(whole), size))
