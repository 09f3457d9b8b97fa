"""One model in memory whose changed weights are those of the base, of the tuned model, or anything between."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from unidecouple.convert.load import assemble
from unidecouple.convert.parts import Part
from unidecouple.delta.checkpoint import Checkpoint
from unidecouple.delta.pair import ChooseWeight, Pair
from unidecouple.models.base import UnifiedModel


def load_whole(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> UnifiedModel:
    """The model of a checkpoint in any layout, in eval mode.

    Raises:
        ValueError: its family is unknown.
    """
    if checkpoint.config is None:
        raise ValueError(f"{checkpoint.name} is of a family that this package does not run: leave out --data and --benchmarks")
    state: Part = {}
    for names in checkpoint:
        state |= checkpoint.read(names)
    return assemble(checkpoint.config, state, checkpoint.folder, dtype)


class Blend:
    """A model that becomes any mixture of a base and a tuned model in place.

    Attributes:
        model: in eval mode; first it is the base.
        names: of the weights that differ, in the order of the checkpoint.
    """

    def __init__(self, pair: Pair, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.model = load_whole(pair.base, dtype).to(device)
        self._slots = dict(self.model.state_dict())
        self._before: Part = {}
        self._after: Part = {}
        for name, before, after in pair.tensors():
            if not torch.equal(before, after):
                self._before[name], self._after[name] = before.clone(), after.clone()
        self.names = tuple(self._before)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the weight ``name``."""
        return tuple(self._before[name].shape)

    @torch.no_grad()
    def use(self, choose: ChooseWeight) -> UnifiedModel:
        """The model with every changed weight as ``choose`` gives it."""
        for name in self.names:
            self._slots[name].copy_(choose(name, self._before[name], self._after[name]))
        return self.model

    def base(self) -> UnifiedModel:
        """The model as it was before fine-tuning."""
        return self.use(lambda name, before, after: before)

    def tuned(self, reverted: Collection[str] = ()) -> UnifiedModel:
        """The tuned model; the weights ``reverted`` are the base's."""
        kept = frozenset(reverted)
        return self.use(lambda name, before, after: before if name in kept else after)

    def between(self, alpha: float) -> UnifiedModel:
        """``base + alpha (tuned - base)``."""
        return self.use(lambda name, before, after: interpolated(before, after, alpha))


def interpolated(before: Tensor, after: Tensor, alpha: float) -> Tensor:
    """``before + alpha (after - before)``, in float64 and rounded once; what did not change stays bit for bit."""
    if not before.is_floating_point():
        return before
    whole = before.double()
    return torch.where(before == after, before, (whole + alpha * (after.double() - whole)).to(before.dtype))
