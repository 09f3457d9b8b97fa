"""Runs lmms-eval for real, offline, on questions of the synthetic benchmark, and holds its accuracy against our own exact match.

    python tests/big/lmms.py FOLDER [--model unified] [--questions 40]

Needs lmms-eval and the package's entry point in the environment: ``make lmms`` sets both up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from unidecouple.convert.load import load
from unidecouple.eval.benchmark import Query, evaluate
from unidecouple.eval.model import EvalModel
from unidecouple.world.vqa import vqa_benchmark, vqa_set

NAME, SEED, TOKENS = "drawn_vqa", 71, 6
TASK = """\
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
task: {name}
test_split: test
output_type: generate_until
doc_to_visual: !function drawn.visual
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {tokens}, do_sample: false, until: ["\\n"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}]
"""


def main() -> int:
    """Write data and tasks, run both harnesses, compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="unified")
    parser.add_argument("--questions", type=int, default=40)
    arguments = parser.parse_args()
    benchmark = vqa_benchmark(arguments.questions, SEED)
    ours = evaluate(benchmark, EvalModel(*load(arguments.model), TOKENS))
    gold = [item.question.answer for item in vqa_set(arguments.questions, SEED).items]
    write(arguments.folder, benchmark.queries, gold)
    theirs = run(arguments.folder, arguments.model)
    mine = {row.metric: row.value for row in ours.scores}["accuracy"]
    print(f"exact match: ours {mine:.4f}, lmms-eval's {theirs:.4f}")
    return int(abs(mine - theirs) > 1e-9)


def write(folder: Path, queries: Sequence[Query], gold: Sequence[str]) -> None:
    """The data as ``save_to_disk`` leaves it, and a task."""
    rows = [
        {"image": Image.fromarray(query.picture), "question": query.text, "answer": answer}
        for query, answer in zip(queries, gold, strict=True)
        if isinstance(query.picture, np.ndarray)
    ]
    tasks = folder / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    (tasks / "drawn.py").write_text('def visual(doc):\n    return [doc["image"].convert("RGB")]\n')
    data = folder / NAME
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(data)
    (tasks / f"{NAME}.yaml").write_text(TASK.format(data=data.absolute(), name=NAME, tokens=TOKENS))


def run(folder: Path, model: str) -> float:
    """Exact match by lmms-eval's own command."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "unidecouple", "--model_args", f"pretrained={model}"]
    command += ["--tasks", NAME, "--include_path", str(folder / "tasks"), "--batch_size", "16"]
    subprocess.run([*command, "--output_path", str(folder / "results")], check=True)
    newest = max((folder / "results").rglob("*results.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(newest.read_text())["results"][NAME]["exact_match,none"]


if __name__ == "__main__":
    sys.exit(main())
