"""Dense training and UniDecouple on the synthetic benchmark, with steps eight times as wide as the demo's, both at once.

Each measurement of a run becomes a finding as soon as the run writes it.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu_check.check import Check
from benchmarks.tiny import SIZE, model_of, processor_of
from unidecouple import config as configs
from unidecouple.compare.plan import Comparison, jobs
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.run import RunConfig
from unidecouple.source import data_source
from unidecouple.train.run_folder import RESULT
from unidecouple.train.run_logs import METRICS, SCORES, read_log

RECIPE = Path(__file__).with_name("compare.yaml")
VARIANTS = ("dense_joint", "unidecouple")
FEW = (
    "run.max_steps=2", "run.logging_steps=1", "run.evaluation.eval_steps=0", "run.data.pairs=8", "run.data.scenes=8",
    "run.data.evaluation.pope_images=2", "run.data.evaluation.vqa_questions=2", "run.data.evaluation.prompts_per_tag=2",
    "run.data.evaluation.num_images=1", "scenarios.S1-r16.t2i_batch_size=2", "scenarios.S1-r16.mmu_batch_size=2",
)  # fmt: skip


def run(check: Check) -> None:
    """Generate the data once, encode them on the device, then train and score both variants."""
    device = (f"run.device={check.kind}", f"run.bf16={str(check.cuda).lower()}")
    with tempfile.TemporaryDirectory() as folder:
        few = (*FEW, f"scenarios.S1-r16.model_name_or_path={_tiny_base(Path(folder) / 'base')}") if check.tiny else ()
        grid = configs.load(Comparison, [RECIPE], [*device, *few])
        runs = {job.variant: job.config for job in jobs(grid) if job.variant in VARIANTS[-1 if check.tiny else 0 :]}
        first, cache, start = next(iter(runs.values())), Path(folder) / "cache", check.now()
        model, processor = load(first.model_name_or_path)
        builder = SequenceBuilder(processor)
        data_source(first).open(first, model.to(check.device), processor, builder, cache, lambda what, done, of: None)
        check.add("data", check.now() - start, "s")
        _follow(check, runs, Path(folder), cache)


def _tiny_base(folder: Path) -> Path:
    """A base of random weights that fits the benchmark's images."""
    size = replace(SIZE, image_size=64)
    processor = processor_of(size)
    model_of(processor, size).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _follow(check: Check, runs: dict[str, RunConfig], folder: Path, cache: Path) -> None:
    """Run all at once, each in a process.

    Raises:
        RuntimeError: a run failed.
    """
    context = multiprocessing.get_context("spawn" if check.cuda else "fork")
    processes = {}
    for name, config in runs.items():
        recipe = folder / f"{name}.yaml"
        recipe.write_text(configs.dump(config), encoding="utf-8")
        command = ["train", str(recipe), "--output", str(folder / name), "--cache", str(cache)]
        processes[name] = context.Process(target=_command, args=(command,))  # type: ignore[attr-defined]
        processes[name].start()
    seen = dict.fromkeys(runs, 0)
    going = True
    while going:
        going = any(process.is_alive() for process in processes.values())  # asked first: what a run wrote at its end counts, too
        for name in runs:
            seen[name] = _report(check, name, folder / name, seen[name])
        time.sleep((0.2 if check.tiny else 2) * going)
    for name in runs:
        result = folder / name / RESULT
        for score in json.loads(result.read_text(encoding="utf-8"))["scores"] if result.is_file() else ():
            if score["metric"] in ("accuracy", "overall"):
                check.add(f"{name}: {score['benchmark']} {score['metric']}", score["value"])
    failed = [name for name, process in processes.items() if process.exitcode]
    if failed:
        raise RuntimeError(f"{', '.join(failed)} failed: see the log")


def _command(words: list[str]) -> None:
    """Process of one run."""
    from unidecouple.cli import main

    raise SystemExit(main(words))


def _report(check: Check, name: str, folder: Path, seen: int) -> int:
    """Add the measurements of the run in ``folder`` beyond the first ``seen``; returns how many there are."""
    rows = [row for log in (METRICS, SCORES) for row in read_log(folder / log)]
    rows.sort(key=lambda row: row["step"])  # steps only grow, so rows seen before stay first
    for row in rows[seen:]:
        check.add(f"{name}, step {row['step']}", measured=row)
    return len(rows)
