"""A run on a user's model and files: a method's recipe, completed by what the data and this machine are.

Precedence, the later wins: recipe; options, and what follows from the data and the machine; ``key=value``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from unidecouple import config as configs
from unidecouple.batch import Task
from unidecouple.compare.methods import Family, family_of, family_recipe, find_method, run_values
from unidecouple.data.file_batches import indices_of
from unidecouple.data.formats import Reader, open_source
from unidecouple.data.settings import Files, Source
from unidecouple.data.split import warn_of_training_files
from unidecouple.methods.stage import Stage
from unidecouple.plan.stages import PlanRequest, plan
from unidecouple.run import RunConfig
from unidecouple.source import PrintLine
from unidecouple.train.launch import device_of

AUTO: Final = "auto"
EPOCHS: Final = 10.0
HELD_OUT: Final = 0.05
_USABLE: Final = 0.92
"""Share of a device's memory that tensors may take, as ``plan`` assumes."""

_MEMORY_OF: Final = {"cpu": "in this machine's memory", "cuda": "in the GPU's memory"}
"""Type of a device -> where its tensors lie."""

_CHOICES: Final[Mapping[tuple[bool, bool], tuple[str, str]]] = {
    (True, True): (
        "lora_task",
        "the data have both tasks; on the synthetic benchmark per-task LoRA matched UniDecouple at 70% of its FLOPs per image "
        "token (docs/experiments/per-task-lora.md)",
    ),
    (False, True): (
        "lora_task_held",
        "the data have no understanding samples, so understanding's weights stay the base's; on the synthetic benchmark no other "
        "method with frozen understanding generated significantly better (docs/experiments/frozen-understanding.md)",
    ),
    (True, False): (
        "lora_task",
        "the data have no generation samples, so only understanding's LoRA trains; no experiment covers this case",
    ),
}
"""(understanding data, generation data) -> method and why. The evidence is of tiny models, not of published weights."""


@dataclass(frozen=True)
class FineTune:
    """What a fine-tuning is asked for.

    Attributes:
        model: a checkpoint's folder in any layout, a Hub id, or a shipped base; "" for the recipe's.
        data: files to train on; none for the recipe's.
        recipe: recipes in place of a method's.
        method: a name of ``recipes/<family>/methods.yaml``, or "auto".
        validation: held-out files; without them ``validation_fraction`` of the data is held out.
        validation_fraction: part of each task's records, chosen by a fixed seed.
        columns: our name of a key or column -> its name in the data and the validation files (``data/columns.py``).
        epochs: passes over the task with more samples; None for ``EPOCHS``, but no more steps than the recipe's.
    """

    model: str = ""
    data: tuple[Path, ...] = ()
    recipe: tuple[Path, ...] = ()
    method: str = AUTO
    validation: tuple[Path, ...] = ()
    validation_fraction: float = HELD_OUT
    epochs: float | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.recipe and self.method != AUTO:
            raise ValueError(f"a recipe ({self.recipe[0]}) and --method {self.method} both say how to train: leave one out")
        if not self.recipe and not (self.model and self.data):
            raise ValueError("give a recipe, or --model and --data, such as --model ID_OR_FOLDER --data FILE")
        if not self.data and (self.validation or self.epochs is not None):
            raise ValueError("--validation and --epochs go with --data: give it, or set data.validation and max_steps")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"--validation-fraction={self.validation_fraction:g} must lie between 0 and 1: give one such as {HELD_OUT}, or "
                "held-out files by --validation"
            )
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"epochs={self.epochs} must be above 0")


def configure(asked: FineTune, overrides: Sequence[str], cache: Path, say: PrintLine, *, on_this_machine: bool = True) -> RunConfig:
    """Return the configuration of the run that ``asked`` describes; ``say`` gets what was decided and why.

    Args:
        asked: the fine-tuning.
        overrides: "dotted.key=value".
        cache: folder of generated and encoded data.
        say: prints a line.
        on_this_machine: fit number format and micro-batches to this machine. False for a plan of other hardware.

    Raises:
        ValueError: the model, the method or data are unknown; a task has a single record and no validation file.
        ConfigError: a recipe or an override does not fit.
    """
    values: list[tuple[str, Mapping[str, Any]]] = []
    counts = count_records(asked, cache) if asked.data else {}
    paths = list(asked.recipe)
    if not paths:
        family = family_of(asked.model)
        paths.append(family_recipe(family, "data"))
        values.append(_method(asked, family, counts, say))
    flags: dict[str, Any] = {"model_name_or_path": asked.model} if asked.model else {}
    flags |= {} if asked.epochs is None else {"num_train_epochs": asked.epochs}
    if asked.data:
        flags["data"] = data_values(asked, counts)
    values.append(("the options", flags))
    draft = configs.load(RunConfig, paths, overrides, values)
    if not asked.data:
        return with_steps(draft, cache, say)
    fitted, _ = fit_steps(asked, draft, counts)
    counted = fitted["max_steps"]
    steps = with_max_steps(configs.load(RunConfig, paths, overrides, [*values, ("the data", fitted)]), counted).max_steps
    fitted, lines = fit_steps(asked, draft, counts, steps)  # an override of max_steps wins, and the rest follows it
    stages = [configs.plain(stage) for stage in short_warmup(draft.stages, steps)]
    values.append(("the data", fitted | {"stages": stages}))
    run = with_max_steps(configs.load(RunConfig, paths, overrides, values), counted)
    if on_this_machine:
        fit = fit_memory([run], lines)
        run = with_max_steps(configs.load(RunConfig, paths, overrides, [*values, ("this machine", fit)]), counted)
        correct_memory_line([run], fit, lines)
    for line in lines:
        say(line)
    if run.num_train_epochs is not None and run.max_steps != counted:
        say(f"max_steps={run.max_steps} takes precedence over num_train_epochs={run.num_train_epochs:g}")
    return run


def with_steps(run: RunConfig, cache: Path, say: PrintLine) -> RunConfig:
    """``run`` with ``max_steps`` counted from ``num_train_epochs``, if that is given and ``max_steps`` is -1.

    Raises:
        ValueError: the data are not files.
    """
    if run.num_train_epochs is None:
        return run
    if run.max_steps >= 0:
        say(f"max_steps={run.max_steps} takes precedence over num_train_epochs={run.num_train_epochs:g} (max_steps=-1: by epochs)")
        return run
    if not isinstance(run.data, Files):
        raise ValueError(  # noqa: TRY004 - a misfit of the recipe, not of types
            "num_train_epochs counts passes over files; the synthetic benchmark is generated: set max_steps"
        )
    opened = [tuple(open_source(source, cache / "files")) for source in run.data.sources]
    passes = []
    for task in (task for task in Task if run.data.batch_size(task)):
        counts = [(source, len(index)) for source, index in indices_of(run.data, opened, task, cache / "files")]
        samples = sum(min(count, source.max_samples or count) * source.repeats for source, count in counts)
        passes.append(samples / run.data.batch_size(task))
    steps = max(1, math.ceil(run.num_train_epochs * max(passes)))
    say(f"max_steps={steps}: {_epochs(run.num_train_epochs)}")
    return with_max_steps(run, steps)


def _epochs(count: float) -> str:
    shown = f"{count:.3g}"
    return f"{shown} epoch" if shown == "1" else f"{shown} epochs"


def with_max_steps(run: RunConfig, steps: int) -> RunConfig:
    """``run`` with ``steps`` in place of -1."""
    return replace(run, max_steps=steps) if run.max_steps == -1 else run


def count_records(asked: FineTune, cache: Path) -> dict[Task, int]:
    """Records of each task to train on, without those that are held out."""
    whole = Files(tuple(Source(path) for path in asked.data), columns=dict(asked.columns))
    opened = [tuple(open_source(source, cache / "files")) for source in whole.sources]
    counts = _counts(whole, opened, cache)
    if not any(counts.values()):
        raise ValueError(f"{', '.join(map(str, asked.data))} hold no record: run `unidecouple data check` on them")
    if asked.validation:
        warn_of_training_files(replace(whole, validation=tuple(Source(path) for path in asked.validation)), cache / "files")
        return counts
    kept = _counts(replace(whole, split=(0.0, 1 - asked.validation_fraction)), opened, cache)
    for task, count in counts.items():
        if count == 1:
            raise ValueError(f"the data have one {task.key} record, so none can be held out: name --validation, or add records")
        if count and kept[task] in (0, count):
            raise ValueError(
                f"the {count:,} {task.key} records share their images, so that none can be held out whose image is not trained on: "
                "name --validation, or add records of other images"
            )
    return kept


def _counts(files: Files, opened: Sequence[Sequence[Reader]], cache: Path) -> dict[Task, int]:
    return {task: sum(len(index) for _, index in indices_of(files, opened, task, cache / "files")) for task in Task}


def _method(asked: FineTune, family: Family, counts: Mapping[Task, int], say: PrintLine) -> tuple[str, Mapping[str, Any]]:
    name = asked.method
    if name == AUTO:
        name, why = _CHOICES[counts[Task.MMU] > 0, counts[Task.T2I] > 0]
        say(f"--method {name}: {why}. The evidence is of tiny models; published weights were not tried")
    name, variant = find_method(family, name)
    if variant.tasks != "both" and not counts[Task[variant.tasks.upper()]]:
        raise ValueError(f"method {name!r} trains {variant.tasks} alone, and the data have none of it: choose another")
    return f"method {name}", run_values(name, variant)


def data_values(asked: FineTune, counts: Mapping[Task, int]) -> dict[str, Any]:
    """Keys of ``data``: the files, what is held out, and no batch of a task without records."""
    given = {"sources": asked.data, "validation": asked.validation}
    chosen: dict[str, Any] = {"kind": "files"} | {use: [{"path": str(path)} for path in paths] for use, paths in given.items()}
    chosen |= {} if asked.validation else {"split": [0.0, 1 - asked.validation_fraction]}
    chosen |= {"columns": dict(asked.columns)} if asked.columns else {}
    return chosen | {f"{task.key}_batch_size": 0 for task, count in counts.items() if not count}


def fit_steps(
    asked: FineTune, draft: RunConfig, counts: Mapping[Task, int], given: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return batch sizes, steps and validation for as many samples as there are, and lines about what was decided.

    Args:
        asked: the fine-tuning.
        draft: its configuration so far.
        counts: records to train on.
        given: number of steps that takes precedence over epochs; None counts them.
    """
    sizes = {task: min(draft.data.batch_size(task), counts[task]) for task in Task}
    trained = [task for task in Task if sizes[task]]
    if not trained:
        raise ValueError("nothing is left to train on: the method and the data have no task in common")
    epochs = draft.num_train_epochs
    steps = math.ceil((epochs or EPOCHS) * max(counts[task] / sizes[task] for task in trained))
    if epochs is None:
        steps = min(steps, draft.max_steps)
    steps = steps if given is None else given
    longest = max(trained, key=lambda task: counts[task] / sizes[task])
    held = (
        "the files given"
        if asked.validation
        else f"a fraction of {asked.validation_fraction:g} of each task, chosen by a fixed seed, no image on both sides"
    )
    every = min(draft.evaluation.eval_steps, max(1, steps // 4))
    return {
        "data": {f"{task.key}_batch_size": size for task, size in sizes.items()},
        "max_steps": steps,
        "logging_steps": min(draft.logging_steps, max(1, steps // 10)),
        "evaluation": {"eval_steps": every},
    }, [
        f"data: {' and '.join(f'{counts[task]:,} {task.key}' for task in trained)} samples to train on; held out: {held}",
        f"max_steps={steps}: {_epochs(steps * sizes[longest] / counts[longest])} in batches of {sizes[longest]}",
    ]


def short_warmup(stages: Sequence[Stage], steps: int) -> tuple[Stage, ...]:
    """``stages`` of a run of ``steps`` steps, their warm-up at most a tenth of their own."""
    whole = sum(stage.share for stage in stages)
    return tuple(replace(stage, warmup_steps=min(stage.warmup_steps, int(steps * stage.share / whole) // 10)) for stage in stages)


def fit_memory(drafts: Sequence[RunConfig], lines: list[str], workers: int = 1) -> dict[str, Any]:
    """float32 on a CPU, where bfloat16 is slower, and as many micro-batches per step as memory asks for.

    Args:
        drafts: one run, or those of a comparison, which get the same.
        lines: get what was decided.
        workers: runs at a time on this machine.
    """
    found: dict[str, Any] = {}
    if device_of(drafts[0].device).type == "cpu" and any(draft.bf16 for draft in drafts):
        drafts, found["bf16"] = [replace(draft, bf16=False) for draft in drafts], False
    room, processes = _room(drafts[0].device, workers), _processes()
    parts, most = 1, min(draft.data.max_parts for draft in drafts)
    while True:
        peak = max(_peak(replace(draft, gradient_accumulation_steps=parts), processes) for draft in drafts)
        if peak <= room or 2 * parts * processes > most:
            break
        parts *= 2
    lines.append(_memory_line(parts, peak, drafts[0].device, workers))
    return found | {"gradient_accumulation_steps": parts}


def correct_memory_line(runs: Sequence[RunConfig], fit: Mapping[str, Any], lines: list[str], workers: int = 1) -> None:
    """Make the last of ``lines``, from ``fit_memory``, state the memory of ``runs`` where an override replaced ``fit``."""
    if all(getattr(run, key) == value for run in runs for key, value in fit.items()):
        return
    peak = max(_peak(run, _processes()) for run in runs)
    lines[-1] = _memory_line(runs[0].gradient_accumulation_steps, peak, runs[0].device, workers)


def _memory_line(parts: int, peak: int, device: str, workers: int) -> str:
    room = _room(device, workers)
    each = f" for each of {workers} runs at a time" if workers > 1 else ""
    fits = "" if peak <= room else ": it may not fit. See `unidecouple plan` and docs/small-gpus.md"
    return (
        f"gradient_accumulation_steps={parts}: {peak / 1e9:.3g} GB at the peak of a step by `unidecouple plan`, of "
        f"{room / 1e9:.3g} GB {_MEMORY_OF[device_of(device).type]}{each}{fits}"
    )


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _room(device: str, workers: int) -> float:
    """Bytes that tensors of one of ``workers`` runs may take on ``device``."""
    found = device_of(device)
    return _USABLE * (torch.cuda.mem_get_info(found)[1] if found.type == "cuda" else _host_memory()) / workers


def _peak(run: RunConfig, processes: int) -> int:
    """Bytes of one process at the peak of its largest stage."""
    run.check_sharding(processes)
    way = "fsdp2" if run.parallel == "fsdp" and processes > 1 else "ddp"
    stages = plan(run, PlanRequest((processes,), dtype="bf16" if run.bf16 else "fp32"))
    found = [one for stage in stages for one in stage.estimates if one.way == way]
    return max((one.checkpointed if run.gradient_checkpointing else one.memory).total for one in found)


def _host_memory() -> int:
    """Bytes of this machine's memory; where the system does not say, no limit that matters."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 62
