"""Merge two single-task models by any method: by a rule that is given, or one that is learned or chosen on a recipe's data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from unidecouple.batch import JointBatch, Task
from unidecouple.convert.load import checkpoint_folder, load
from unidecouple.convert.merging import check_alike, write_merged
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.files import write_json_atomic
from unidecouple.methods.merging import ESM, TSVM, AdaMerging, Concrete, Doge, Merging, TaskArithmetic, Ties
from unidecouple.methods.merging.rule import Rule, linear, merged
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.models.shipped import located
from unidecouple.ownership import check_directory
from unidecouple.run import RunConfig
from unidecouple.source import BatchSource, PrintLine, data_source
from unidecouple.train.build import with_words_of
from unidecouple.train.meter import SPENT, Meter

HELD_OUT: Final = 64
"""Held-out samples per task that a scale is chosen on."""
LARGEST_SCALE: Final = 5.0
_SEARCHES, _SAID_EVERY = 12, 50


def merge_checkpoints(
    base: str, tuned: Sequence[str], target: Path, method: Merging, run: RunConfig | None, cache: Path, say: PrintLine
) -> None:
    """Merge ``tuned``, models fine-tuned from ``base``, into the folder ``target``.

    Where training added words to the vocabulary (``RunConfig.add_tokens``), the base gets them, too.

    Args:
        base, tuned: folders of checkpoints or runs, or shipped bases' names.
        target: written whole or not at all; ``spent.json`` in it has the time and memory used.
        method: where the coefficients come from.
        run: its data are the inputs of a method that learns or chooses.
        cache: folder of generated and encoded data.
        say: prints a line.

    Raises:
        ValueError: the checkpoints are not of one start and structure, or a method that learns has no data of both tasks.
    """
    meter = Meter()
    check_directory(target, map(located, (base, *tuned)))
    start, models = checkpoint_folder(base), [checkpoint_folder(name) for name in tuned]
    with with_words_of(models[0], start, cache) as start:
        check_alike(start, models)
        if isinstance(method, TaskArithmetic | Ties | TSVM | Doge) and method.scale is not None:
            rule = method.rule(method.scale)
        elif run is None:
            raise ValueError(f"{method.kind} learns from inputs of both tasks: name a recipe with data (--recipe)")
        else:
            rule = _found(method, _Opened.at(str(start), [str(model) for model in models], run, cache, say), say)
        write_merged(
            start,
            models,
            target,
            rule,
            say,
            finish=lambda folder: write_json_atomic(folder / SPENT, vars(meter.read())),
        )


@dataclass(frozen=True)
class _Opened:
    """The base as a model, the tuned models' weights, and a run's data."""

    model: UnifiedModel
    names: Sequence[str]
    states: Sequence[Mapping[str, Tensor]]
    source: BatchSource
    held_out: Callable[[], dict[Task, list[JointBatch]]]

    @classmethod
    def at(cls, base: str, tuned: Sequence[str], run: RunConfig, cache: Path, say: PrintLine) -> _Opened:
        model, processor = load(base)
        source = _source(run, model, processor, cache, say)
        if len(source.measurable) < len(Task):
            raise ValueError("merging needs inputs of both tasks: give mmu_batch_size and t2i_batch_size of the recipe's data")

        def held_out() -> dict[Task, list[JointBatch]]:
            unseen = _source(data_source(run).probe_data(run, processor).run, model, processor, cache, say)
            counts = {task: unseen.distinct_samples(task, HELD_OUT) for task in unseen.measurable}
            return {task: [unseen.distinct_batch(task, 1, key) for key in range(count)] for task, count in counts.items()}

        return cls(model, tuned, [load(name)[0].state_dict() for name in tuned], source, held_out)

    def batches(self, count: int, size: int) -> Iterator[JointBatch]:
        """Inputs of both tasks, in an order that training does not use."""
        for step in range(count):
            yield tuple(batch for task in Task for batch in self.source.task_batch(task, size, step))


def _source(run: RunConfig, model: UnifiedModel, processor: UnifiedProcessor, cache: Path, say: PrintLine) -> BatchSource:
    return data_source(run).open(
        run, model, processor, SequenceBuilder(processor), cache, lambda what, done, of: say(f"{what}: {done} of {of}")
    )


def _found(method: Merging, opened: _Opened, say: PrintLine) -> Rule:
    """The rule that the data teach, or at the scale that they choose."""
    if isinstance(method, AdaMerging | Concrete):
        return _learned(method, opened, say)
    if not isinstance(method, ESM):
        return method.rule(choose_scale(method.rule, opened.model, opened.states, opened.held_out(), say))
    rule = method.learn(opened.model, opened.states, _inputs(method, opened, say))
    scale = method.scale
    return rule(choose_scale(rule, opened.model, opened.states, opened.held_out(), say) if scale is None else scale)


def _learned(method: AdaMerging | Concrete, opened: _Opened, say: PrintLine) -> Rule:
    def report(step: int, entropy: float) -> None:
        if step % _SAID_EVERY == 0:
            say(f"step {step + 1}  entropy {entropy:.3f}")

    batches = opened.batches(method.batches, method.batch_size)
    if isinstance(method, Concrete):
        return method.learn(opened.model, opened.states, batches, report)
    found = method.learn(opened.model, opened.states, batches, report)
    for number, name in enumerate(opened.names):
        learned = [found(weight)[number] for weight, _ in opened.model.named_parameters() if any(found(weight))]
        if learned:
            say(f"{name}: coefficients {min(learned):.2f} to {max(learned):.2f}, mean {sum(learned) / len(learned):.2f}")
    return linear(found)


def _inputs(method: ESM, opened: _Opened, say: PrintLine) -> list[list[JointBatch]]:
    """Samples of each model's task: of that whose loss it lowers most, compared with the other models."""
    samples = {
        task: [opened.source.distinct_batch(task, 1, key) for key in range(opened.source.distinct_samples(task, method.samples))]
        for task in Task
    }
    start = {name: weight.clone() for name, weight in opened.model.state_dict().items()}
    losses = []
    for state in opened.states:
        opened.model.load_state_dict(state)
        losses.append({task: _loss(opened.model, task, samples[task]) for task in Task})
    opened.model.load_state_dict(start)
    means = {task: sum(one[task] for one in losses) / len(losses) for task in Task}
    tasks = [min(Task, key=lambda task: one[task] - means[task]) for one in losses]
    say("inputs: " + ", ".join(f"{task.key} for {name}" for task, name in zip(tasks, opened.names, strict=True)))
    return [samples[task] for task in tasks]


def choose_scale(
    rule: Callable[[float], Rule],
    model: UnifiedModel,
    tuned: Sequence[Mapping[str, Tensor]],
    held_out: Mapping[Task, Sequence[JointBatch]],
    say: PrintLine,
) -> float:
    """The scale in [0, 5] with the least loss of both tasks together on held-out samples, by ternary search (see ESM).

    Args:
        rule: by scale; its changes are linear in the scale.
        model: the base, to which it is restored.
        tuned: weights of the models to merge.
        held_out: of each task, samples.
        say: prints a line per loss.
    """
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    ends = [merged({name: weight.double() for name, weight in start.items()}, tuned, rule(scale)) for scale in (0.0, 1.0)]

    def loss(scale: float) -> float:
        with torch.no_grad():
            for name, weight in model.state_dict().items():
                if start[name].is_floating_point():
                    weight.copy_(ends[0][name] + scale * (ends[1][name] - ends[0][name]))
        found = sum(_loss(model, task, samples) for task, samples in held_out.items())
        say(f"scale {scale:.3f}: loss {found:.3f} nats per token, both tasks together")
        return found

    low, high = 0.0, LARGEST_SCALE
    for _ in range(_SEARCHES):
        third = (high - low) / 3
        if loss(low + third) <= loss(high - third):
            high -= third
        else:
            low += third
    model.load_state_dict(start)
    return (low + high) / 2


@torch.no_grad()
def _loss(model: UnifiedModel, task: Task, samples: Sequence[JointBatch]) -> float:
    """Mean over samples of the loss in nats per token."""
    return sum(float(model(batch=joint).loss(task)) for joint in samples) / len(samples)
