"""Any other stateless aggregator of TorchJD, by its name there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from unidecouple import bounds
from unidecouple.methods.gradient.aggregation import Momenta, Setting, TaskGradients, Tensors, aggregate, draws, make


@dataclass(frozen=True)
class TorchJDAggregator:
    """TorchJD's stateless aggregator ``name``: UPGrad (arXiv 2406.16232), AlignedMTL, IMTLG, FairGrad, GradDrop, ConFIG and more.

    Not those that keep a memory from step to step (NashMTL, GradVac, ExcessMTL, PCD): checkpoints do not hold it. GradDrop,
    ConFIG and others that work on the gradients themselves, not on their inner products, take two more copies of them.

    Attributes:
        name: TorchJD's name of the aggregator.
        settings: its arguments, as ``{alpha: 1.0}`` for FairGrad or ``{pref_vector: [1, 2]}`` for UPGrad. What is no number, no
            word and no list of numbers cannot be given (GradDrop's ``f``, a ``projector``).
        scale: on the direction. Most aggregators average, so that 2 keeps two tasks' direction on the scale of their sum. Those
            that add (Sum, PCGrad, GradDrop) give twice that by default: 1 makes ``Sum`` the sum.
        parameters: names of ``PARTS`` or patterns of the weights it works on.
    """

    by_task: ClassVar[bool] = True  # whether each task's own gradient is needed
    kind: Literal["torchjd"] = "torchjd"
    name: str = "UPGrad"
    settings: dict[str, Setting] = field(default_factory=dict)
    scale: float = 2.0
    parameters: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        bounds.finite(self, "scale")
        make(self.name, **self.settings)  # known before anything is drawn or trained
        tasks = {"mmu": [torch.tensor([1.0, 0.0])], "t2i": [torch.tensor([-1.0, 1.0])]}
        try:
            with draws(0, 0, torch.device("cpu")):
                self.combine(tasks, [None])
        except Exception as error:
            raise ValueError(
                f"gradient: {self.name} with the settings {self.settings} cannot combine the gradients of two tasks "
                f"({type(error).__name__}: {str(error).partition(chr(10))[0]}): give the settings as TorchJD documents them, "
                "or choose another name"
            ) from error

    def combine(self, gradients: TaskGradients, momenta: Momenta) -> Tensors:
        """Return the direction for the weights that both tasks share; ``gradients`` are overwritten."""
        like = next(iter(gradients.values()))[0]
        return aggregate(make(self.name, like, **self.settings), gradients, self.scale)
