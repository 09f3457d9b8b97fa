"""What a run's model makes of held-out prompts and questions, kept for the page that compares runs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from unidecouple.batch import Task
from unidecouple.data.file_batches import FileBatches
from unidecouple.data.formats.record import ImageBytes, ImageFile, Record
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.eval.benchmark import Query
from unidecouple.eval.model import EvalModel
from unidecouple.files import atomic_directory, write_json_atomic

_SPARE: Final = 4
"""Records that are looked at per sample: some have several turns or images, or are too long."""

Row = dict[str, Any]


def keep_samples(scored: EvalModel, source: FileBatches, count: int, folder: Path) -> None:
    """Write ``samples.json`` and PNG files to ``folder``: ``count`` held-out prompts with images, as many questions with answers.

    The records and the seeds of images are the same for all runs on the same held-out files. Records of one turn are used, with one
    image that is not in the cache of image tokens.
    """
    pictures = ImagePreprocessor(scored.processor)
    prompts: list[tuple[str, np.ndarray]] = []
    queries: list[tuple[Query, str, np.ndarray]] = []
    for record in source.records(Task.T2I, _SPARE * count) if Task.T2I in source.tasks else ():
        with contextlib.suppress(ValueError, OSError):  # it is too long, or its image cannot be read
            prompt = _text(record, "user")
            scored.check_prompts([{"prompt": prompt}])
            prompts.append((prompt, pictures.for_generation(_picture(record))))
    for record in source.records(Task.MMU, _SPARE * count) if Task.MMU in source.tasks else ():
        with contextlib.suppress(ValueError, OSError):
            query = Query(str(len(queries)), _text(record, "user"), _picture(record))
            scored.check_queries([query])
            queries.append((query, _text(record, "assistant"), pictures.for_understanding(_picture(record))))
    prompts, queries = prompts[:count], queries[:count]
    made = scored.generate([prompt for prompt, _ in prompts], 1, 0) if prompts else []
    answers = scored.ask([query for query, _, _ in queries]) if queries else []
    with atomic_directory(folder / "samples", internal=True) as staging:
        rows: list[Row] = []
        for number, ((prompt, picture), images) in enumerate(zip(prompts, made, strict=True)):
            row: Row = {"prompt": prompt, "tag": "generation", "correct": None, "reason": ""}
            row["file"] = _save(staging, f"image-{number:02d}.png", images[0])
            rows.append(row | {"shown": _save(staging, f"held-out-{number:02d}.png", picture)})
        for number, ((query, right, picture), answer) in enumerate(zip(queries, answers, strict=True)):
            row = {
                "prompt": query.text,
                "tag": "understanding",
                "correct": None,
                "reason": "",
                "answer": answer,
                "reference": right,
            }
            rows.append(row | {"file": _save(staging, f"question-{number:02d}.png", picture)})
    write_json_atomic(folder / "samples.json", rows)


def _save(staging: Path, name: str, picture: np.ndarray) -> str:
    Image.fromarray(picture).save(staging / name)
    return f"samples/{name}"


def _text(record: Record, role: str) -> str:
    """The words of the one turn of ``role``.

    Raises:
        ValueError: it has several turns, or a system prompt.
    """
    if [turn.role for turn in record.turns] != ["user", "assistant"]:
        raise ValueError(f"{record.where}: not one question and one answer")
    return "".join(part for turn in record.turns if turn.role == role for part in turn.parts if isinstance(part, str)).strip()


def _picture(record: Record) -> ImageFile | ImageBytes:
    """The one image of a record.

    Raises:
        ValueError: it has none, several, or one of tokens.
    """
    pictures = [picture for turn in record.turns for picture in turn.pictures]
    kept = [picture for picture in pictures if isinstance(picture, ImageFile | ImageBytes)]
    if len(kept) != 1 or len(pictures) != 1:
        raise ValueError(f"{record.where}: {len(pictures)} images, {len(kept)} of them not as tokens")
    return kept[0]
