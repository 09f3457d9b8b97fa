"""Merge two single-task models by any method: given coefficients, or coefficients learned on a recipe's data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from unidecouple.batch import JointBatch, Task
from unidecouple.convert.load import checkpoint_folder, load
from unidecouple.convert.merging import check_alike, write_merged
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.files import write_json_atomic
from unidecouple.methods.merging import AdaMerging, Merging, TaskArithmetic
from unidecouple.methods.merging.task_arithmetic import Coefficients
from unidecouple.models.shipped import located
from unidecouple.ownership import check_directory
from unidecouple.run import RunConfig
from unidecouple.source import BatchSource, PrintLine, data_source
from unidecouple.train.meter import SPENT, Meter

_SAID_EVERY = 50


def merge_checkpoints(
    base: str, tuned: Sequence[str], target: Path, method: Merging, run: RunConfig | None, cache: Path, say: PrintLine
) -> None:
    """Merge ``tuned``, models fine-tuned from ``base``, into the folder ``target``.

    Args:
        base, tuned: folders of checkpoints or runs, or shipped bases' names.
        target: written whole or not at all; ``spent.json`` in it has the time and memory used.
        method: where the coefficients come from.
        run: its data are the inputs of a method that learns.
        cache: folder of generated and encoded data.
        say: prints a line.

    Raises:
        ValueError: the checkpoints are not of one start and structure, or a method that learns has no data of both tasks.
    """
    meter = Meter()
    check_directory(target, map(located, (base, *tuned)))
    start, models = checkpoint_folder(base), [checkpoint_folder(name) for name in tuned]
    check_alike(start, models)
    if isinstance(method, TaskArithmetic):
        coefficients = method.coefficients(len(models))
    else:
        if run is None:
            raise ValueError(f"{method.kind} learns from inputs of both tasks: name a recipe with data (--recipe)")
        coefficients = _learned(method, str(start), [str(model) for model in models], run, cache, say)
    write_merged(
        start,
        models,
        target,
        coefficients,
        say,
        finish=lambda folder: write_json_atomic(folder / SPENT, vars(meter.read())),
    )


def _learned(method: AdaMerging, base: str, tuned: Sequence[str], run: RunConfig, cache: Path, say: PrintLine) -> Coefficients:
    model, processor = load(base)
    source = data_source(run).open(
        run, model, processor, SequenceBuilder(processor), cache, lambda what, done, of: say(f"{what}: {done} of {of}")
    )
    if len(source.measurable) < len(Task):
        raise ValueError(f"{method.kind} needs inputs of both tasks: give mmu_batch_size and t2i_batch_size of the recipe's data")
    states = [load(name)[0].state_dict() for name in tuned]

    def report(step: int, entropy: float) -> None:
        if step % _SAID_EVERY == 0 or step == method.steps - 1:
            say(f"step {step + 1}/{method.steps}  entropy {entropy:.3f}")

    found = method.learn(model, states, _batches(source, method), report)
    for number, name in enumerate(tuned):
        learned = [found(weight)[number] for weight, _ in model.named_parameters() if any(found(weight))]
        if learned:
            say(f"{name}: coefficients {min(learned):.2f} to {max(learned):.2f}, mean {sum(learned) / len(learned):.2f}")
    return found


def _batches(source: BatchSource, method: AdaMerging) -> Iterator[JointBatch]:
    """Inputs of both tasks, in an order that training does not use."""
    for step in range(method.steps):
        yield tuple(batch for task in Task for batch in source.task_batch(task, method.batch_size, step))
