"""Attention Interaction Alignment (AIA, arXiv 2511.22663): a target per layer for attention to the other modality.

    ``L_AIA = mean_l Huber_{delta_l}(I_l - T_l)`` (eq. 2), ``Huber_delta(d) = d^2/2 if |d| <= delta else delta (|d| - delta/2)``,

with the interaction intensity ``I_l`` of ``models/interaction.py``, for each sample and layer; the loss is the mean over samples.
The targets are what models of one task do (Qwen3-VL, HunyuanImage-3.0), in steps over the depth (supplement F, tables S4 and S5).

Where we deviate: bands end at shares of the depth, so that they fit any model (the tables and the public code count layers of one
model each), and the mean over samples is over those that count (the public code divides by all, dropped prompts too). Published
and not consistent: the public code gives Janus-Pro's layer 20 the target .15 where table S5 says .3 (as here), and the table's
last row, "l > 29", is empty in a model of 30 layers. For lambda see ``AttentionAlignment``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unidecouple import bounds
from unidecouple.batch import Task
from unidecouple.methods.objective.terms import Microbatch, Term
from unidecouple.models.interaction import Interaction


@dataclass(frozen=True)
class AiaBand:
    """Neighbouring layers with one target.

    Attributes:
        until: end of the band as a fraction of the depth: its layers are those below ``round(until * layers)`` in no earlier band.
        delta: intensity difference at which the Huber loss changes from quadratic to linear.
        target: T, the target intensity.
    """

    until: float
    delta: float
    target: float

    def __post_init__(self) -> None:
        bounds.finite(self, "delta")
        if not (0 < self.until <= 1 and self.delta > 0 and 0 <= self.target <= 1):
            raise ValueError(f"{self}: until must lie in (0, 1], delta above 0, and target, a share of attention, in [0, 1]")


@dataclass(frozen=True)
class AiaTargets:
    """Bands of each task, from the first layer to the last.

    Attributes:
        mmu, t2i: the task's bands.
    """

    mmu: tuple[AiaBand, ...]
    t2i: tuple[AiaBand, ...]

    def __post_init__(self) -> None:
        for task in Task:
            ends = [band.until for band in self.of(task)]
            if not ends or ends[-1] != 1 or ends != sorted(set(ends)):
                raise ValueError(f"the bands of {task.key} end at {ends}: let them rise, and the last one be 1")

    def of(self, task: Task) -> tuple[AiaBand, ...]:
        """Return the bands of ``task``."""
        return self.mmu if task == Task.MMU else self.t2i

    def by_layer(self, task: Task, layers: int) -> list[AiaBand]:
        """Return the band of each of ``layers``; a band narrower than a layer may have none."""
        bands, out = self.of(task), list[AiaBand]()
        for band in bands:
            out += [band] * (round(band.until * layers) - len(out))
        return out


def _published(layers: int, mmu: Sequence[tuple[int, float, float]], t2i: Sequence[tuple[int, float, float]]) -> AiaTargets:
    """Targets from a table of (first layer after the band, delta, T) for a model of ``layers``."""
    made = [tuple(AiaBand(end / layers, delta, target) for end, delta, target in task) for task in (mmu, t2i)]
    return AiaTargets(*made)


_T2I = ((10, 0.2, 0.4), (25, 0.1, 0.4))
PRESETS = {
    "janus_pro": _published(30, ((10, 0.05, 0.1), (20, 0.05, 0.15), (30, 0.05, 0.3)), (*_T2I, (30, 0.05, 0.2))),
    "emu3": _published(32, ((10, 0.05, 0.1), (20, 0.05, 0.15), (31, 0.05, 0.3), (32, 0.05, 0.2)), (*_T2I, (32, 0.05, 0.2))),
}
"""Tables S5 (Janus-Pro-7B) and S4 (Emu3-8B), to the layer. They are the same up to Emu3's last layer."""


def aia_loss(interactions: Sequence[Interaction], targets: AiaTargets, task: Task, samples: Tensor | None = None) -> Tensor:
    """L_AIA of ``task``.

    Args:
        interactions: what was measured, one entry a micro-batch.
        targets: bands over the depth.
        task: whose samples.
        samples: how many samples the mean is over, where ``interactions`` are a part of a step; the parts' losses then sum to the
            step's. By default those there are.

    Returns:
        Scalar; zero, still in the graph, without a sample.
    """
    intensity = torch.cat([one.intensity[:, one.task == task] for one in interactions], dim=1)
    bands = targets.by_layer(task, len(intensity))
    target, delta = (intensity.new_tensor(values).unsqueeze(-1) for values in ([b.target for b in bands], [b.delta for b in bands]))
    off = (intensity - target).abs()
    huber = torch.where(off <= delta, 0.5 * off.square(), delta * (off - 0.5 * delta))
    total = huber.mean(0).sum()
    return total / max(intensity.shape[1], 1) if samples is None else total / samples.clamp_min(1)


@dataclass(frozen=True)
class AttentionAlignment:
    """AIA's loss as an auxiliary loss of each task.

    Attributes:
        mmu_coeff, t2i_coeff: lambda per task; 0 turns a task's loss off. Published are 40 (the paper's text), "NTP:AIA = 50:1" (its
            ablation's best; 1/50 if weights are meant), and 10 and 5 (the public code): settings to tune.
        targets: bands over the depth, or the name of a published table.
    """

    kind: Literal["attention_alignment"] = "attention_alignment"
    mmu_coeff: float = 10.0
    t2i_coeff: float = 5.0
    targets: Literal["janus_pro", "emu3"] | AiaTargets = "janus_pro"

    per_microbatch: ClassVar[bool] = False

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "mmu_coeff", "t2i_coeff")

    @property
    def needs_attention_stats(self) -> bool:
        """Whether attention between the modalities must be measured in the forward pass."""
        return self.mmu_coeff != 0 or self.t2i_coeff != 0

    @property
    def bands(self) -> AiaTargets:
        """``targets``, its name resolved."""
        return PRESETS[self.targets] if isinstance(self.targets, str) else self.targets

    def terms(self, part: Microbatch) -> dict[str, Term]:
        """``aia_mmu`` and ``aia_t2i``, each part of its task's loss; those with a coefficient of 0 are left out."""
        if part.output.interaction is None:
            return {}
        coefficients = {Task.MMU: self.mmu_coeff, Task.T2I: self.t2i_coeff}
        return {
            f"aia_{task.key}": Term(
                aia_loss(part.output.interaction, self.bands, task, part.totals.samples[task]), coefficients[task], task
            )
            for task in part.tasks
            if coefficients[task]
        }
