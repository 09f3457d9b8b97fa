"""Parameters counted by the part names that training uses, by who trains them, and by layer."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod

from unidecouple.methods.selection import part_of
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.deltas import DELTAS
from unidecouple.plan.op_trace import Shape

_LAYER = re.compile(r"^model\.language_model\.layers\.(\d+)\.")
_FINAL_NORM = "model.language_model.norm.weight"
_LOW_RANK = ("_proj.lora_A", "_proj.lora_B", "_proj.lora_R")


@dataclass(frozen=True)
class ShardingUnit:
    """Parameters of one layer, or of all that is in none (the root): how many, and how many of them get gradients."""

    total: int
    trainable: int


@dataclass(frozen=True)
class WeightCounts:
    """Parameters of a model in one stage.

    Attributes:
        parts: (all, trainable) by part, see ``PARTS``.
        active: those a token meets: all but the image tokenizer, the experts that it is not sent to, and sets and low-rank updates
            of other groups.
        trainable: those that get gradients; what trains but takes no part in the run has none, and no optimizer state.
        tensors: how many tensors ``trainable`` is made of.
        private: of ``trainable``, those private to a task, of both tasks together; only if each has a half.
        tokenizer: of the image tokenizer, which is frozen and never sharded.
        layers: of the decoder and the vision tower, by prefix of their parameters' names; each is a unit of sharding.
        root: all others but the image tokenizer.
        averaged: those that an exponential moving average is kept of (see ``train/ema.py``).
        per_task_gradients: (floats, tensors) kept until they are combined; zeros where one backward pass makes their sum.
        compressed: (parameters, bytes) of each frozen matrix that ``quantize_frozen`` compresses, by name.
        absent: of ``trainable``, experts of a task without samples in the stage, which have no gradient in a single process.
        stacked: of ``trainable``, those in stacked matrices, of which autocast keeps no copy.
        small_states: bytes of the optimizer's states where they are not AdamW's float32 ones.
    """

    parts: Mapping[str, tuple[int, int]]
    active: int
    trainable: int
    tensors: int
    private: int
    tokenizer: int
    layers: Mapping[str, ShardingUnit]
    root: ShardingUnit
    averaged: int = 0
    per_task_gradients: tuple[int, int] = (0, 0)
    compressed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    absent: int = 0
    stacked: int = 0
    small_states: int | None = None

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(total for total, _ in self.parts.values())

    @property
    def by_task(self) -> bool:
        """Whether each task's gradient is kept by itself."""
        return self.per_task_gradients != (0, 0)

    @property
    def optimizer_bytes(self) -> int:
        """AdamW's two float32 moments per parameter and one step count per tensor, or ``small_states``."""
        return 8 * self.trainable + 4 * self.tensors if self.small_states is None else self.small_states

    @property
    def largest(self) -> ShardingUnit:
        """The layer with most parameters."""
        return max(self.layers.values(), key=lambda unit: unit.total)


def count(text: UniLlamaConfig, shapes: Mapping[str, Shape], moving: Collection[str], layers: Collection[str]) -> WeightCounts:
    """The parameters of ``shapes``, of which those named in ``moving`` get gradients; ``layers`` are prefixes of names."""
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    parts: dict[str, tuple[int, int]] = {}
    units = dict.fromkeys(layers, ShardingUnit(0, 0))
    root = ShardingUnit(0, 0)
    for name, size in sizes.items():
        part, trains = part_of(name), size * (name in moving)
        before = parts.get(part, (0, 0))
        parts[part] = (before[0] + size, before[1] + trains)
        layer = next((prefix for prefix in units if name.startswith(f"{prefix}.")), None)
        if layer is not None:
            units[layer] = ShardingUnit(units[layer].total + size, units[layer].trainable + trains)
        elif part != "image_tokenizer":
            root = ShardingUnit(root.total + size, root.trainable + trains)
    experts = sum(size for name, size in sizes.items() if ".mlp.experts." in name)
    apart = sum(size * (1 - _met(name, shapes[name], text) / _sets(name, text)) for name, size in sizes.items())
    apart += sum(size for name, size in sizes.items() if f".{DELTAS}." in name and name.endswith(".weight"))  # in another's place
    tokenizer = parts.get("image_tokenizer", (0, 0))[0]
    resting = 1 - text.num_experts_per_tok / text.num_experts
    return WeightCounts(
        parts=parts,
        active=sum(sizes.values()) - tokenizer - round(experts * resting) - round(apart),
        trainable=sum(sizes[name] for name in moving),
        tensors=len(moving),
        private=sum(sizes[name] for name in moving if _private(name, shapes[name], text)),
        stacked=sum(sizes[name] for name in moving if len(shapes[name]) == 3),
        tokenizer=tokenizer,
        layers=units,
        root=root,
    )


def _sets(name: str, text: UniLlamaConfig) -> int:
    """How many sets of weights are stacked in a tensor: of untied parts of a layer, shared experts per task, or the final norm."""
    match = _LAYER.match(name)
    if match is None:
        return text.num_tasks if text.per_group_norm and name == _FINAL_NORM else 1
    if text.shared_expert_per_task and (".mlp.shared_expert." in name or name.endswith(".mlp.alpha")):
        return text.num_groups
    part = "attention" if ".self_attn." in name else "ffn" if ".mlp." in name else "norms"
    return text.num_weight_sets(int(match[1]), part)


def _updates(name: str, shape: Shape) -> int:
    """How many low-rank pairs are stacked in a tensor; 1 in all other tensors."""
    return shape[0] if name.endswith(_LOW_RANK) else 1


def _met(name: str, shape: Shape, text: UniLlamaConfig) -> float:
    """Share of the low-rank pairs in a tensor that a token meets: its task's, all, or a text token's (image tokens meet one)."""
    pairs = _updates(name, shape)
    return 1 / pairs if text.lora_kind == "plain" else min(pairs, text.lora_experts) / pairs


def _private(name: str, shape: Shape, text: UniLlamaConfig) -> bool:
    """Whether each half of the tensor serves one task: experts, their routers, low-rank pairs and sets of one per task.

    Groups of a "typed_moe" are none a task's halves: text of both tasks meets the same experts.
    """
    if _sets(name, text) == 2:
        return text.group_by == "task"
    if f".{DELTAS}." in name:
        return len(text.task_deltas) == 2
    if text.ffn == "ta_moe" and (".mlp.experts." in name or ".mlp.gate." in name):
        return True
    return text.lora_kind == "plain" and _updates(name, shape) == 2
