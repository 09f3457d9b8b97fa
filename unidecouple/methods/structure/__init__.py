"""Structures: which weights serve which task. Each is a change of configuration plus an exact upcycle of a dense checkpoint.

To add one: a file with a frozen dataclass that has ``kind``, ``configure`` and ``upcycle``, its name in ``Upcycled``, a recipe.
Both methods take the text configuration of the model to change, for its sizes. A structure that needs the expert usage of a
trained model has ``partition`` instead of ``upcycle`` and stands in ``UsagePartitioned``; it may change what the model computes.
"""

from __future__ import annotations

from typing import get_args

from unidecouple.methods.structure.dense import Dense
from unidecouple.methods.structure.i_lora import ILora
from unidecouple.methods.structure.mode import MoDE
from unidecouple.methods.structure.moe import MoE
from unidecouple.methods.structure.mot import MoT
from unidecouple.methods.structure.rosetta import Rosetta
from unidecouple.methods.structure.symbiotic import Symbiotic
from unidecouple.methods.structure.ta_moe import TaskAwareMoE
from unidecouple.methods.structure.unifork import UniFork
from unidecouple.methods.structure.unix import UniX

LoraStructure = ILora | MoDE
"""Structures that only add low-rank updates; these change nothing until they are trained, and make up the run's LoRA."""

Upcycled = Dense | MoE | TaskAwareMoE | MoT | UniFork | UniX | Rosetta | LoraStructure
"""Structures of a dense model. They start as it is, but for the one whose layers attend otherwise."""

UsagePartitioned = Symbiotic
"""Structures built from the measured expert usage of a mixture. Their output may differ from that of the mixture."""

Structure = Upcycled | UsagePartitioned
"""The typed union that recipes choose from by ``kind``, and that property tests run over."""

UPCYCLED: tuple[type[Upcycled], ...] = get_args(Upcycled)
STRUCTURES: tuple[type[Structure], ...] = get_args(Structure)

__all__ = [
    "STRUCTURES",
    "UPCYCLED",
    "Dense",
    "ILora",
    "LoraStructure",
    "MoDE",
    "MoE",
    "MoT",
    "Rosetta",
    "Structure",
    "Symbiotic",
    "TaskAwareMoE",
    "UniFork",
    "UniX",
    "Upcycled",
    "UsagePartitioned",
]
