"""What each remedy keeps and costs: residuals of every rank, signs, both weight sets, interpolation and reverts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from unidecouple.batch import Task
from unidecouple.delta.blend import Blend
from unidecouple.delta.decoupled import Sources, delta_leaves, find_changes, plan_of, whole_bytes
from unidecouple.delta.forms import Fidelity
from unidecouple.delta.held_out import HeldOut, mean
from unidecouple.delta.pair import Pair, difference
from unidecouple.delta.revert import module_groups, revert_greedily
from unidecouple.delta.spectrum import truncated
from unidecouple.delta.verdict import WORSE, of_losses, run_tests
from unidecouple.models.base import UnifiedModel
from unidecouple.models.deltas import make_delta
from unidecouple.source import PrintLine

SIGN_SHARES: Final = (0.25, 0.5, 1.0)
"""Sizes of the forms of signs, relative to one bit per number."""
ALPHAS: Final = tuple(round(0.1 * step, 1) for step in range(11))
_DECODER = "model.language_model."
_MOST_RANK = 256


@dataclass(frozen=True)
class Remedy:
    """One remedy.

    Attributes:
        name, kind: in words ("rank 8"), and "residual", "bits", "full", "interpolate" or "revert".
        extra_bytes: of weights beside the base's.
        bytes_per_token: decoder weights read per generated token, of each task; deltas not merged.
        losses: held-out loss of every sample, by task.
        settings: options of ``unidecouple decouple`` that make it.
        scores: headline score of every benchmark that was asked for, by its title.
    """

    name: str
    kind: str
    extra_bytes: int
    bytes_per_token: Mapping[Task, int]
    losses: Mapping[Task, Sequence[float]]
    settings: str
    scores: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; losses are means."""
        return {
            "name": self.name,
            "kind": self.kind,
            "extra_bytes": self.extra_bytes,
            "settings": self.settings,
            "bytes_per_token": {task.key: count for task, count in self.bytes_per_token.items()},
            "losses": {task.key: mean(values) for task, values in self.losses.items()},
            "scores": dict(self.scores),
        }


def ranks_up_to(most: int) -> list[int]:
    """2, 4, 8 … below ``most``."""
    return [2**power for power in range(1, most.bit_length()) if 2**power < most]


ScoreTasks = Callable[[UnifiedModel, Collection[Task]], dict[str, float]]
"""Headline scores of a model on the benchmarks of some tasks, by title."""


def measure_front(pair: Pair, protect: Task, blend: Blend, held_out: HeldOut, score: ScoreTasks, say: PrintLine) -> list[Remedy]:
    """Every remedy that keeps ``protect`` as the base has it, and those that trade it, on held-out data and benchmarks."""
    base_losses, kept = held_out.losses(blend.base()), score(blend.base(), (protect,))
    sources = Sources.protecting(pair, protect)
    changes = find_changes(sources, spectra=False)
    decoder = sum(tensor.nbytes for name, tensor in pair.base.shapes.items() if name.startswith(f"{_DECODER}layers."))
    other = Task.T2I if protect is Task.MMU else Task.MMU
    matrices = [name for name in blend.names if name.startswith(f"{_DECODER}layers.") and len(blend.shape(name)) == 2]
    most = min((min(blend.shape(name)) for name in matrices), default=0)
    points: list[Remedy] = []

    def add(name: str, kind: str, fidelity: Fidelity, model: UnifiedModel, settings: str) -> None:
        extra, losses = plan_of(sources, changes, fidelity).extra_bytes, held_out.losses(model)[other]
        read = {protect: decoder, other: decoder + (0 if fidelity.full else extra)}
        both = {task: values for task, values in ((protect, base_losses.get(protect)), (other, losses)) if values}
        points.append(Remedy(name, kind, extra, read, both, settings, kept | score(model, (other,))))
        say(f"{name}: {extra:,} extra bytes, {other.key} loss {mean(losses):.3f}")

    factors = _factors(pair, matrices, min(most, _MOST_RANK))
    for rank in ranks_up_to(min(most, _MOST_RANK)):
        add(f"rank {rank}", "residual", Fidelity(rank=rank), blend.use(partial(_at_rank, factors, rank)), f"--rank {rank}")
    changed = changes[other].matrices.values()
    whole = whole_bytes(sources, changes)
    for share in SIGN_SHARES:
        size = int(share * sum(matrix.signs for matrix in changed))
        budget = whole + size
        fidelity = Fidelity(bits=True, budget=budget if share < 1 else None)
        if share == 1 or size >= sum(matrix.sparse(1) for matrix in changed):
            forms = plan_of(sources, changes, fidelity).forms.get(other.key, {})
            name, option = ("bits", "") if share == 1 else (f"bits {share:.0%}", f" --budget {budget}")
            add(name, "bits", fidelity, blend.use(partial(_signed, forms, factors)), f"--mode bits{option}")
    add("full", "full", Fidelity(full=True), blend.tuned(), "--full")

    def add_shared(name: str, kind: str, model: UnifiedModel, settings: str) -> None:
        one_set = dict.fromkeys(Task, decoder)
        points.append(Remedy(name, kind, 0, one_set, held_out.losses(model), settings, score(model, tuple(Task))))

    for alpha in ALPHAS:
        add_shared(f"alpha {alpha:g}", "interpolate", blend.between(alpha), f"--mode interpolate --alpha {alpha:g}")
    assert pair.base.config is not None
    groups = module_groups(blend.names, pair.base.config.text_config.num_hidden_layers)
    for step in revert_greedily(blend, held_out, groups, say)[1:-1]:
        weights = [weight for name in step.groups for weight in groups[name]]
        listed = ",".join(step.groups)
        add_shared(f"reverted {len(step.groups)}", "revert", blend.tuned(weights), f'--mode revert --groups "{listed}"')
    return points


def suggest(points: Sequence[Remedy], protect: Task, tolerance: float) -> tuple[Remedy, str]:
    """The smallest remedy whose tuned task is not significantly worse than with both weight sets, and why.

    Paired one-sided t tests per held-out sample, corrected by Holm over all remedies that keep ``protect`` exactly.
    """
    exact = [point for point in points if point.kind in ("residual", "bits")]
    full = next(point for point in points if point.kind == "full")
    other = Task.T2I if protect is Task.MMU else Task.MMU
    tests = run_tests([of_losses(other.key, full.losses[other], point.losses[other]) for point in exact], tolerance)
    fitting = [point for point, test in zip(exact, tests, strict=True) if test.verdict != WORSE]
    fitting = [point for point in fitting if point.extra_bytes < full.extra_bytes]
    if not fitting:
        return full, f"every smaller form makes {other.key} significantly worse, by more than {tolerance:g} nats per token"
    chosen = min(fitting, key=lambda point: point.extra_bytes)
    gap = mean(chosen.losses[other]) - mean(full.losses[other])
    return chosen, (
        f"it is the smallest form with {other.key} not significantly worse than the tuned model's ({gap:+.3f} nats per token, "
        f"tolerance {tolerance:g}), at {chosen.extra_bytes / max(full.extra_bytes, 1):.0%} of the bytes of both weight sets; "
        f"{protect.key} is the base's, bit for bit"
    )


def _factors(pair: Pair, matrices: Sequence[str], rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    wanted = set(matrices)
    return {name: truncated(name, difference(old, new), rank) for name, old, new in pair.tensors() if name in wanted and rank}


def _at_rank(factors: Mapping[str, tuple[Tensor, Tensor]], rank: int, name: str, before: Tensor, after: Tensor) -> Tensor:
    """A changed weight of the tuned task with a residual of ``rank``; what is no matrix of the decoder is the tuned model's."""
    if name not in factors or rank * sum(before.shape) >= before.numel():
        return after
    up, down = factors[name]
    return (before.double() + up[:, :rank].double() @ down[:rank].double()).to(before.dtype)


@torch.no_grad()
def _signed(forms: Mapping[str, str], matrices: Container[str], name: str, before: Tensor, after: Tensor) -> Tensor:
    """A changed weight of the tuned task in its form of signs; what is no matrix of the decoder is the tuned model's."""
    if name not in matrices:
        return after
    form = forms.get(name.removeprefix(_DECODER).removesuffix(".weight"))
    if form is None:
        return before
    delta = make_delta(form, tuple(before.shape))
    delta.load_state_dict(delta_leaves(name, form, before, after))
    return delta.merged(before)
