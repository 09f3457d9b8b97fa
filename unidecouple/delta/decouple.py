"""A checkpoint in which one task is the base's and the other the tuned model's, made without training."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch

from unidecouple import config as configs
from unidecouple.batch import Task
from unidecouple.convert.parts import Part
from unidecouple.delta.blend import Blend, interpolated
from unidecouple.delta.decoupled import Plan, Sources, plan_decoupled
from unidecouple.delta.distill import Distillation, distill
from unidecouple.delta.forms import Fidelity
from unidecouple.delta.front import ALPHAS, ScoreTasks, measure_front
from unidecouple.delta.front_page import write_front
from unidecouple.delta.guard import SYNTHETIC_BENCHMARKS, scored_model
from unidecouple.delta.held_out import HeldOut, computed_by, mean, open_held_out
from unidecouple.delta.modules import kind_of
from unidecouple.delta.pair import Pair, check_changed, check_same_base, open_pair, relative_change
from unidecouple.delta.revert import best_within, module_groups, revert_greedily
from unidecouple.delta.write import SHARD_BYTES, Provenance, write_decoupled, write_plain
from unidecouple.eval.benchmark import evaluate
from unidecouple.eval.suite import BenchmarkOptions, benchmarks, open_benchmarks
from unidecouple.models.base import UnifiedModel
from unidecouple.ownership import check_directory
from unidecouple.source import PrintLine
from unidecouple.train.meter import Meter

Mode = Literal["residual", "bits", "interpolate", "revert", "front"]
MODES: Final[tuple[Mode, ...]] = ("residual", "bits", "interpolate", "revert", "front")
DEFAULT_RANK: Final = 32
_CPU: Final = torch.device("cpu")


@dataclass(frozen=True)
class DecoupleOptions:
    """How to decouple.

    Attributes:
        mode: "residual" (weights per task, see ``fidelity``), "bits" (the same by signs), "interpolate" or "revert" (one set of
            weights between the two), or "front": no checkpoint, but a page that compares all of them on ``data``.
        fidelity: how much of the change a residual keeps; None: rank 32, or with "bits" the signs of all entries.
        protect: the task that the base serves.
        understanding: a second tuned model of the same base, which serves understanding; the first serves generation.
        alpha: of "interpolate", 0 (base) to 1 (tuned); None chooses it on ``data``.
        groups: of "revert": module kinds ("attention") or groups as ``guard`` names them ("attention 0-5"); empty chooses on
            ``data``.
        tolerance: how much worse, in nats per token, the protected task may be than the base where data choose.
        data, samples: held-out data, as of ``GuardOptions``.
        benchmarks, benchmark_options: of "front", what every remedy is scored on, as of ``GuardOptions``.
        distillation: of residuals, on prompts alone.
        device: where to compute.
        cache: folder of encoded data.
        command: as it was typed, for the card.
        max_shard_bytes: of one file of weights.
    """

    mode: Mode = "residual"
    fidelity: Fidelity | None = None
    protect: Task = Task.MMU
    understanding: str | None = None
    alpha: float | None = None
    groups: tuple[str, ...] = ()
    tolerance: float = 0.0
    data: tuple[str, ...] = ()
    samples: int = 64
    benchmarks: tuple[str, ...] = ()
    benchmark_options: BenchmarkOptions = SYNTHETIC_BENCHMARKS
    distillation: Distillation | None = None
    device: torch.device = _CPU
    cache: Path = Path("runs/cache")
    command: str = "unidecouple.delta.decouple"
    max_shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        per_task = self.mode in ("residual", "bits")
        for name, used in (
            ("fidelity", per_task),
            ("understanding", per_task),
            ("distillation", per_task),
            ("alpha", self.mode == "interpolate"),
            ("groups", self.mode == "revert"),
            ("benchmarks", self.mode == "front"),
        ):
            if getattr(self, name) not in (None, ()) and not used:
                raise ValueError(f"{name} has no effect with mode {self.mode!r}: leave it out, or choose another mode")
        if self.understanding is not None and self.protect is not Task.MMU:
            raise ValueError("protect has no effect with understanding, since the base serves neither task: give one of them")
        if self.mode == "bits" and self.fidelity is not None and not self.fidelity.bits:
            raise ValueError("mode 'bits' takes a budget and no rank, energy or full: leave them out, or use mode 'residual'")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} must lie between 0 (base) and 1 (tuned)")


_DEFAULT: Final = DecoupleOptions()


def decouple(base: str, tuned: str, output: Path, options: DecoupleOptions = _DEFAULT, say: PrintLine = lambda line: None) -> Path:
    """Write a checkpoint (or with mode "front" a page) to ``output``, and return its path.

    Args:
        base, tuned: checkpoints in any layout, runs' folders, or shipped bases' names.
        output: folder to write; the checkpoint is in our layout.
        options: how.
        say: prints a line of progress.

    Raises:
        ValueError: the two cannot be compared (``open_pair``, ``check_changed``, ``check_same_base``), the mode does not fit them
            (see ``plan_decoupled``), or something has to be chosen and there are no data.
    """
    meter = Meter()
    pair = open_pair(base, tuned)
    check_directory(output, [pair.base.folder, pair.tuned.folder])
    check_changed(pair)
    if options.mode in ("residual", "bits"):
        _write_per_task(pair, output, options, meter, say)
        return output
    check_same_base(pair, relative_change(pair))
    if options.mode == "front":
        blend, held_out = _opened(pair, options, say)
        points = measure_front(pair, options.protect, blend, held_out, _score(pair, options), say)
        return write_front(pair, points, options.protect, options.tolerance, held_out.text, output)
    if options.mode == "interpolate":
        alpha, why = (options.alpha, "given") if options.alpha is not None else _best_alpha(pair, options, say)
        made = Provenance(options.command, {"mode": "interpolate", "alpha": alpha}, [f"alpha {alpha:g} ({why})"], meter)
        write_plain(pair, lambda name, old, new: interpolated(old, new, alpha), output, made, say, options.max_shard_bytes)
        return output
    names, listed = _reverted(pair, options, say)
    kept = [f"as in the base: {', '.join(listed) or 'nothing'}"]
    made = Provenance(options.command, {"mode": "revert", "groups": listed}, kept, meter)
    write_plain(pair, lambda name, old, new: old if name in names else new, output, made, say, options.max_shard_bytes)
    return output


def _write_per_task(pair: Pair, output: Path, options: DecoupleOptions, meter: Meter, say: PrintLine) -> None:
    sources = Sources.protecting(pair, options.protect)
    if options.understanding is not None:
        other = open_pair(pair.base.name, options.understanding)
        check_changed(other)
        sources = Sources(pair.base, {Task.MMU: other.tuned, Task.T2I: pair.tuned})
    fidelity = options.fidelity or (Fidelity(bits=True) if options.mode == "bits" else Fidelity(rank=DEFAULT_RANK))
    plan = plan_decoupled(sources, fidelity, say)
    settings: dict[str, Any] = {"mode": options.mode, "fidelity": vars(fidelity), "protect": options.protect.key}
    if options.understanding is not None:
        settings["protect"] = None
    trained: Part = {}
    if options.distillation is not None:
        trained = _distilled(plan, pair, options.distillation, options, say)
        how = {key: value for key, value in vars(options.distillation).items() if key not in ("prompts", "recipe")}
        source = len(options.distillation.prompts) or configs.plain(options.distillation.recipe)
        settings["distillation"] = how | {"prompts": source}
    made = Provenance(options.command, settings, meter=meter)
    write_decoupled(plan, output, made, say, options.max_shard_bytes, trained)


def _distilled(plan: Plan, pair: Pair, how: Distillation, options: DecoupleOptions, say: PrintLine) -> Part:
    if plan.sources.of[Task.T2I] is not pair.tuned:
        raise ValueError("distillation matches the tuned model's images, and here generation is the base's: leave it out")
    return distill(plan, pair.tuned, how, options.device, options.cache, say)


def _opened(pair: Pair, options: DecoupleOptions, say: PrintLine) -> tuple[Blend, HeldOut]:
    if not options.data:
        raise ValueError(f"mode {options.mode!r} chooses on held-out data: give it (--data)")
    blend = Blend(pair, options.device)

    def show(what: str, done: int, of: int) -> None:
        if done == of:
            say(f"{what}: {done} of {of}")

    held_out = open_held_out(options.data, blend.base(), pair.base.processor, options.samples, options.cache, show)
    if missing := [task.key for task in Task if not held_out.samples.get(task)]:
        raise ValueError(f"{held_out.text} has no samples of {missing[0]}: both tasks are compared, give data of both")
    return blend, held_out


def _score(pair: Pair, options: DecoupleOptions) -> ScoreTasks:
    metrics = [benchmarks()[name].metrics[0] for name in options.benchmarks]
    opened = open_benchmarks(options.benchmarks, options.benchmark_options)

    def score(model: UnifiedModel, tasks: Collection[Task]) -> dict[str, float]:
        wanted = [(metric, one) for metric, one in zip(metrics, opened, strict=True) if computed_by(metric.task) in tasks]
        ready = scored_model(model, pair) if wanted else None
        found = {metric.title: evaluate(one, ready).scores for metric, one in wanted if ready is not None}
        return {m.title: next(row.value for row in found[m.title] if row.metric == m.metric) for m, _ in wanted}

    return score


def _best_alpha(pair: Pair, options: DecoupleOptions, say: PrintLine) -> tuple[float, str]:
    """The alpha with the least loss of the other task among those at which the protected one keeps the base's loss."""
    blend, held_out = _opened(pair, options, say)
    protect, other = options.protect, Task.T2I if options.protect is Task.MMU else Task.MMU
    found = {}
    for alpha in ALPHAS:
        found[alpha] = {task: mean(values) for task, values in held_out.losses(blend.between(alpha)).items()}
        say(f"alpha {alpha:g}: " + ", ".join(f"{task.key} loss {loss:.3f}" for task, loss in found[alpha].items()))
    most = found[0.0][protect] + options.tolerance
    fitting = [alpha for alpha in ALPHAS if found[alpha][protect] <= most]
    return min(fitting, key=lambda alpha: found[alpha][other]), f"chosen on {held_out.text}"


def _reverted(pair: Pair, options: DecoupleOptions, say: PrintLine) -> tuple[frozenset[str], list[str]]:
    """Weights that are to be the base's, and the groups that they are of."""
    known = pair.base.config is not None
    if not options.groups:
        blend, held_out = _opened(pair, options, say)
        groups = module_groups(blend.names, _layers(pair))
        most = mean(held_out.losses(blend.base())[options.protect]) + options.tolerance
        chosen = best_within(revert_greedily(blend, held_out, groups, say), options.protect, lambda loss: loss <= most)
        return frozenset(name for group in chosen.groups for name in groups[group]), list(chosen.groups)
    every = list(pair.base.shapes)
    groups = module_groups(every, _layers(pair)) if known else {}
    for name in every:
        groups.setdefault(kind_of(name, known), [])
        if name not in groups[kind_of(name, known)]:
            groups[kind_of(name, known)].append(name)
    for group in options.groups:
        if group not in groups:
            raise ValueError(f"no module group {group!r}: there are {', '.join(groups)}")
    return frozenset(name for group in options.groups for name in groups[group]), list(options.groups)


def _layers(pair: Pair) -> int:
    return 1 if pair.base.config is None else int(pair.base.config.text_config.num_hidden_layers)
