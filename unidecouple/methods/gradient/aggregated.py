"""Any other aggregator of TorchJD, by its name there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from unidecouple.methods.gradient.aggregation import Gradients, Momenta, Tensors, aggregate, make


@dataclass(frozen=True)
class Aggregated:
    """TorchJD's aggregator ``name``: UPGrad (arXiv 2406.16232), AlignedMTL, IMTLG, FairGrad, GradDrop, ConFIG, DualProj and more.

    Not those that keep a memory from step to step (NashMTL, GradVac, ExcessMTL, PCD): checkpoints do not hold it. GradDrop,
    ConFIG and others that work on the gradients themselves, not on their inner products, take two more copies of them.

    Attributes:
        name: as TorchJD spells it.
        settings: its arguments, as ``{alpha: 1.0}`` for FairGrad.
        scale: on the direction. Most aggregators average, so that 2 keeps two tasks' direction on the scale of their sum.
        parameters: names of ``PARTS`` or patterns of the weights it works on.
    """

    by_task: ClassVar[bool] = True  # whether each task's own gradient is needed
    kind: Literal["torchjd"] = "torchjd"
    name: str = "UPGrad"
    settings: dict[str, float] = field(default_factory=dict)
    scale: float = 2.0
    parameters: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        make(self.name, **self.settings)  # known before anything is drawn or trained

    def combine(self, gradients: Gradients, momenta: Momenta) -> Tensors:
        """The direction for the weights that both tasks share; ``gradients`` are overwritten."""
        return aggregate(make(self.name, **self.settings), gradients, self.scale)
