"""Runs lmms-eval for real, offline, on questions of the synthetic benchmark, and holds its accuracies against our own exact match.

Two tasks: plain questions, and questions after an edit as a ``generate_visual_cot`` task, whose images must be ours, too.

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
from unidecouple.generate.sampling import image_sampling
from unidecouple.world.edit_questions import question_set
from unidecouple.world.visual_cot import visual_cot_benchmark
from unidecouple.world.vqa import vqa_benchmark, vqa_set

PLAIN, VISUAL_COT, SEED, TOKENS = "drawn_vqa", "drawn_visual_cot", 71, 6
OUTPUT_TYPES = {PLAIN: "generate_until", VISUAL_COT: "generate_visual_cot"}
TASK = """\
dataset_path: {data}
dataset_kwargs: {{load_from_disk: true}}
task: {name}
test_split: test
output_type: {output_type}
doc_to_visual: !function drawn.visual
doc_to_text: question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {tokens}, do_sample: false, until: ["\\n"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}]
{more}"""
FUNCTIONS = """\
def visual(doc):
    return [doc["image"].convert("RGB")]


def exact(doc, results):
    return {"exact_match": float(results[0].strip().lower() == doc["answer"])}
"""


def main() -> int:
    """Write data and tasks, run both harnesses, compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="unified")
    parser.add_argument("--questions", type=int, default=40)
    arguments = parser.parse_args()
    model, processor = load(arguments.model)
    scored = EvalModel(model, processor, TOKENS, image_sampling(model.generation_config), SEED)
    plain, edits = vqa_benchmark(arguments.questions, SEED), visual_cot_benchmark("test", arguments.questions // 4, SEED)
    gold = [item.question.answer for item in vqa_set(arguments.questions, SEED).items]
    write(arguments.folder, PLAIN, plain.queries, [query.text for query in plain.queries], gold)
    asked = question_set("test", arguments.questions // 4, SEED)
    contexts = [f"[GEN_PROMPT]{one.edit.text}[/GEN_PROMPT][QUESTION]{one.question.text}[/QUESTION]" for one in asked]
    write(arguments.folder, VISUAL_COT, edits.queries, contexts, [one.question.answer for one in asked])
    theirs = run(arguments.folder, arguments.model)
    mine = {
        name: {row.metric: row.value for row in evaluate(benchmark, scored).scores}[metric]
        for name, benchmark, metric in ((PLAIN, plain, "accuracy"), (VISUAL_COT, edits, "accuracy/own"))
    }
    for name, value in mine.items():
        print(f"{name}, exact match: ours {value:.4f}, lmms-eval's {theirs[name]:.4f}")
    return int(any(abs(value - theirs[name]) > 1e-9 for name, value in mine.items()))


def write(folder: Path, name: str, queries: Sequence[Query], contexts: Sequence[str], gold: Sequence[str]) -> None:
    """The data as ``save_to_disk`` leaves it, and a task."""
    rows = [
        {"image": Image.fromarray(query.picture), "question": context, "answer": answer}
        for query, context, answer in zip(queries, contexts, gold, strict=True)
        if isinstance(query.picture, np.ndarray)
    ]
    tasks = folder / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    (tasks / "drawn.py").write_text(FUNCTIONS)
    data = folder / name
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(data)
    more = "process_results: !function drawn.exact\n" if name == VISUAL_COT else ""  # lmms-eval has no metric of its own for it
    task = TASK.format(data=data.absolute(), name=name, tokens=TOKENS, output_type=OUTPUT_TYPES[name], more=more)
    (tasks / f"{name}.yaml").write_text(task)


def run(folder: Path, model: str) -> dict[str, float]:
    """Exact match of each task by lmms-eval's own command."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "unidecouple", "--model_args", f"pretrained={model},seed={SEED}"]
    command += ["--tasks", ",".join(OUTPUT_TYPES), "--include_path", str(folder / "tasks"), "--batch_size", "16"]
    subprocess.run([*command, "--output_path", str(folder / "results")], check=True)
    newest = max((folder / "results").rglob("*results.json"), key=lambda path: path.stat().st_mtime)
    results = json.loads(newest.read_text())["results"]
    return {name: results[name]["exact_match,none"] for name in OUTPUT_TYPES}


if __name__ == "__main__":
    sys.exit(main())
