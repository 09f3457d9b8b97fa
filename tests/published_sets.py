"""Tiny benchmarks and emoji in the layouts they are published in, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from own_data import png, write_jsonl, write_pictures
from unidecouple.world.catalog import CODE_POINTS

ONE_WORD = "\nAnswer the question using a single word or phrase."


def write_pope(folder: Path) -> Path:
    """Two images and two questions a split; positives are shared."""
    write_pictures(folder / "val2014", "a.jpg", "b.jpg")
    for split, absent in (("random", "cow"), ("popular", "person"), ("adversarial", "fork")):
        rows = [
            {"question_id": 1, "image": "a.jpg", "text": "Is there a cup in the image?", "label": "yes"},
            {"question_id": 2, "image": "b.jpg", "text": f"Is there a {absent} in the image?", "label": "no"},
        ]
        write_jsonl(folder / "coco" / f"coco_pope_{split}.json", rows)
    return folder


def write_llava_pope(folder: Path) -> Path:
    """LLaVA's one file for the same, its splits in another order."""
    rows = []
    for split in ("adversarial", "popular", "random"):
        for line in (folder / "coco" / f"coco_pope_{split}.json").read_text().splitlines():
            row = json.loads(line)
            rows.append({"question_id": len(rows), "image": row["image"], "text": row["text"] + ONE_WORD, "category": split})
    write_jsonl(folder / "llava_pope_test.jsonl", rows)
    return folder


def mmmu_row(number: int, subject: str, question_type: str, options: str, answer: str, pictures: int = 1) -> dict[str, Any]:
    """A row as the hub's parquet files have it."""
    images = {f"image_{n}": {"bytes": png(n), "path": f"{n}.png"} if n <= pictures else None for n in range(1, 8)}
    row = {"id": f"validation_{subject}_{number}", "question": "What is <image 1>?", "options": options, "answer": answer}
    return row | images | {"question_type": question_type}


MMMU = {
    "Art": [
        mmmu_row(1, "Art", "multiple-choice", "['a cat', 'a dog']", "B"),
        mmmu_row(2, "Art", "multiple-choice", "['1', '2', '3', '4']", "A", pictures=2),
    ],
    "Public_Health": [mmmu_row(1, "Public_Health", "open", "[]", "['12.5', 'about twelve']")],
}


def write_mme(folder: Path) -> Path:
    """Two subtasks, one in each of the two layouts of the release."""
    for name, pictures in (("existence", folder / "existence"), ("artwork", folder / "artwork" / "images")):
        write_pictures(pictures, "1.jpg", "2.jpg")
        texts = pictures if name == "existence" else folder / "artwork" / "questions_answers_YN"
        texts.mkdir(exist_ok=True)
        for picture in "12":
            lines = f"Is this {name}? Please answer yes or no.\tYes\nIs this a pipe? Please answer yes or no.\tNo\n"
            (texts / f"{picture}.txt").write_text(lines)
    return folder


def write_vqav2(folder: Path) -> Path:
    """Two questions with ten people's answers."""
    write_pictures(folder / "val2014", "COCO_val2014_000000000007.jpg")
    asked = [{"image_id": 7, "question": text, "question_id": 70 + n} for n, text in enumerate(("How many?", "What is it?"))]
    said = [["2"] * 8 + ["two", "3"], ["a dog"] * 10]
    answers = [
        {"question_id": 70 + n, "answer_type": kind, "answers": [{"answer": one, "answer_id": k} for k, one in enumerate(people)]}
        for n, (kind, people) in enumerate(zip(("number", "other"), said, strict=True))
    ]
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": asked}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": answers}))
    return folder


def write_art(folder: Path) -> Path:
    """A disc of grey for every class, a few with the selector that emoji sets add to names."""
    rows, columns = np.mgrid[:32, :32]
    inside = (rows - 16) ** 2 + (columns - 16) ** 2 < 100
    drawing = np.zeros((32, 32, 4), np.uint8)
    drawing[inside] = (150, 150, 150, 255)
    for number, code in enumerate(CODE_POINTS.values()):
        Image.fromarray(drawing).save(folder / f"{code.lower()}{'-fe0f' if number % 5 == 0 else ''}.png")
    return folder


def write_unig2u(folder: Path) -> Path:
    """A question of ChartQA100 and two of RealUnify, with the columns that lmms-eval reads."""
    chart = {"image": {"bytes": png(1), "path": None}, "question": "How many?", "answer": "20", "type": "human_test"}
    task = {"question": "Where?", "evaluation_prompt": "Where?\nA. left\nB. right", "task_type": "mental_tracking"}
    _write_table(folder / "chartqa100/chartqa100.parquet", chart)
    rows = [{"image": png(number), **task, "answer": answer} for number, answer in ((2, "A"), (3, "B"))]
    _write_table(folder / "realunify/realunify_mental_tracking.parquet", *rows)
    return folder


def _write_table(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
