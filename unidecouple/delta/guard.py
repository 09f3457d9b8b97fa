"""What fine-tuning changed, and whether it broke a task: ``guard.json`` and a page from a base and a tuned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from unidecouple import __version__
from unidecouple.batch import LANGUAGE, Task
from unidecouple.delta.blend import Blend
from unidecouple.delta.guard_page import render
from unidecouple.delta.held_out import HeldOut, mean, open_held_out
from unidecouple.delta.moved import measure_moved, to_json
from unidecouple.delta.pair import Pair, open_pair
from unidecouple.delta.revert import module_groups, revert_each, revert_greedily
from unidecouple.delta.verdict import MeasureChange, of_losses, of_scores, run_tests, worse_tasks
from unidecouple.eval.benchmark import AnyBenchmark, BenchmarkResult, evaluate
from unidecouple.eval.instructions import answer_instructions
from unidecouple.eval.model import EvalModel
from unidecouple.eval.suite import TEST_SEED, BenchmarkOptions, benchmarks, open_benchmarks
from unidecouple.figures.wording import TASK_NAMES
from unidecouple.files import write_json_atomic, write_text_atomic
from unidecouple.generate.sampling import image_sampling
from unidecouple.models.base import UnifiedModel
from unidecouple.ownership import check_file
from unidecouple.source import PrintLine

GUARD, PAGE = "guard.json", "guard.html"
_MAX_NEW_TOKENS: Final = 32
_CPU: Final = torch.device("cpu")
SYNTHETIC_BENCHMARKS: Final = BenchmarkOptions(seed=TEST_SEED)


@dataclass(frozen=True)
class GuardOptions:
    """What to measure beside the weights.

    Attributes:
        data: held-out files in any format, or "synthetic"; none: the weights alone. Text-only records are language.
        benchmarks: names of benchmarks to score.
        benchmark_options: which questions and prompts they have.
        samples: most samples per task.
        tolerance: how much worse a task may become: nats per token of a loss, share of a score.
        reverts: whether to revert module groups, one at a time and greedily (needs data).
        device: where to compute.
        cache: folder of encoded data.
    """

    data: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    benchmark_options: BenchmarkOptions = SYNTHETIC_BENCHMARKS
    samples: int = 64
    tolerance: float = 0.0
    reverts: bool = True
    device: torch.device = _CPU
    cache: Path = Path("runs/cache")


_WEIGHTS_ALONE: Final = GuardOptions()


def guard(
    base: str, tuned: str, options: GuardOptions = _WEIGHTS_ALONE, output: Path | None = None, say: PrintLine = lambda line: None
) -> dict[str, Any]:
    """Compare a tuned model with its base.

    Args:
        base, tuned: checkpoints in any layout, runs' folders, or shipped bases' names.
        options: what to measure beside the weights.
        output: folder of ``guard.json`` and ``guard.html``; None: nothing is written.
        say: prints a line of progress.

    Returns:
        What ``guard.json`` holds: ``weights`` (``moved.to_json``), ``tests``, ``answers`` (to fixed instructions, where language is
        measured), ``reverts``, ``greedy``, ``worse`` (keys of the tasks that are significantly worse, language among them) and
        what was not measured.

    Raises:
        ValueError: the two cannot be compared (``open_pair``, ``check_same_base``), or data or benchmarks do not fit.
    """
    if output is not None:
        for name in (GUARD, PAGE):
            check_file(output / name)
    opened = open_benchmarks(options.benchmarks, options.benchmark_options)
    pair = open_pair(base, tuned)
    blend = Blend(pair, options.device) if options.data or opened else None
    held_out = _opened(pair, blend, options, say) if blend is not None and options.data else None  # before what takes long
    moved = to_json(measure_moved(pair, say))
    content: dict[str, Any] = {
        "generator": "unidecouple",
        "base": base,
        "tuned": tuned,
        "versions": {"unidecouple": __version__, "torch": str(torch.__version__)},
        "weights": moved,
        "data": None,
        "benchmarks": list(options.benchmarks),
        "tolerance": options.tolerance,
        "tests": [],
        "answers": [],
        "reverts": [],
        "greedy": [],
        "worse": [],
    }
    if blend is not None:
        content |= _behaviour(pair, blend, held_out, opened, options, say)
    content["not_measured"] = _missing(options, moved)
    if output is not None:
        write_json_atomic(output / GUARD, content)
        write_text_atomic(output / PAGE, render(content))
    return content


def _behaviour(
    pair: Pair,
    blend: Blend,
    held_out: HeldOut | None,
    opened: Sequence[AnyBenchmark],
    options: GuardOptions,
    say: PrintLine,
) -> dict[str, Any]:
    """Losses and scores before and after, and reverts."""
    found: dict[str, list[Any]] = {"losses": [], "scores": []}
    for name, model in (("base", blend.base), ("tuned", blend.tuned)):
        ready = model()
        if held_out is not None:
            found["losses"].append(held_out.losses(ready))
            say(f"{name}: " + ", ".join(f"{task.key} loss {mean(one):.3f}" for task, one in found["losses"][-1].items()))
        scored = scored_model(ready, pair)
        found["scores"].append([evaluate(benchmark, scored) for benchmark in opened])
    measures = _losses(held_out, *found["losses"]) if held_out is not None else []
    measures += _scores(options.benchmarks, *found["scores"])
    tests = run_tests(measures, options.tolerance)
    out: dict[str, Any] = {"tests": [one.to_json() for one in tests], "worse": worse_tasks(tests)}
    if any(one.task == LANGUAGE for one in measures):
        said = [dict(answer_instructions(scored_model(model(), pair))) for model in (blend.base, blend.tuned)]
        out["answers"] = [{"instruction": asked, "before": old, "after": said[1][asked]} for asked, old in said[0].items()]
    if held_out is not None:
        out |= {"data": held_out.text, "samples": {task.key: len(some) for task, some in held_out.samples.items()}}
        if options.reverts and blend.names:
            assert pair.base.config is not None
            groups = module_groups(blend.names, pair.base.config.text_config.num_hidden_layers)
            out["reverts"] = revert_each(blend, held_out, groups, say)
            out["greedy"] = [one.to_json() for one in revert_greedily(blend, held_out, groups, say)]
    return out


def _opened(pair: Pair, blend: Blend, options: GuardOptions, say: PrintLine) -> HeldOut:
    def show(what: str, done: int, of: int) -> None:
        if done == of:
            say(f"{what}: {done} of {of}")

    return open_held_out(options.data, blend.base(), pair.base.processor, options.samples, options.cache, show)


def scored_model(model: UnifiedModel, pair: Pair) -> EvalModel:
    """The model as benchmarks take it."""
    assert pair.base.processor is not None
    return EvalModel(model, pair.base.processor, _MAX_NEW_TOKENS, image_sampling(model.generation_config), TEST_SEED)


def _losses(
    held_out: HeldOut, before: Mapping[Task, Sequence[float]], after: Mapping[Task, Sequence[float]]
) -> list[MeasureChange]:
    """Losses of understanding, of language (text-only samples) and of generation, as far as there are samples."""
    found = []
    for task, losses in before.items():
        old, new = held_out.by_key(task, losses), held_out.by_key(task, after[task])
        found += [of_losses(key, old[key], new[key]) for key in old]
    return found


def _scores(names: Sequence[str], before: Sequence[BenchmarkResult], after: Sequence[BenchmarkResult]) -> list[MeasureChange]:
    found = []
    for name, old, new in zip(names, before, after, strict=True):
        measured = of_scores(benchmarks()[name].metrics[0], old, new)
        if measured is None:
            raise ValueError(f"--benchmarks {name}: its headline score is no mean of answers or images, so it has no paired test")
        found.append(measured)
    return found


def _missing(options: GuardOptions, moved: dict[str, Any]) -> list[str]:
    """What was not measured, as sentences."""
    found = []
    if not options.data and not options.benchmarks:
        found.append(
            "This compares weights alone, which do not show whether a task became worse: give held-out data (--data) or "
            "benchmarks (--benchmarks)."
        )
    elif not options.data:
        found.append("Without held-out data (--data) no module group was reverted.")
    if any(None in row["ranks"] for row in moved["weights"]):
        found.append("Ranks above 256 of large matrices were not computed.")
    return found


def verdict_lines(content: dict[str, Any]) -> list[str]:
    """The result in lines for the terminal."""
    total = content["weights"]["total"]
    lines = [f"{total['changed']} of {total['of']} weights changed, by {total['relative'] or 0:.2%} of their norm"]
    top = sorted(content["weights"]["kinds"], key=lambda row: -row["share"])[:3]
    shares = ", ".join(f"{row['kind']} {row['share']:.0%}" for row in top if row["share"])
    lines += [f"largest changes: {shares}"] if shares else []
    for row in content["tests"]:
        lines.append(
            f"{TASK_NAMES[row['task']]}, {row['name']}: {row['before']:.3f} -> {row['after']:.3f} (gain {row['gain']:+.3f}, 95% CI "
            f"{row['low']:+.3f} to {row['high']:+.3f}, {row['samples']} paired): {row['verdict']}"
        )
    return [*lines, *content["not_measured"]]
