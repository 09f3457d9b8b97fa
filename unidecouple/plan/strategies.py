"""Parallel strategies: what each keeps on a device, and what it sends between devices in a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from unidecouple.plan.devices import Hardware
from unidecouple.plan.op_trace import OpTrace
from unidecouple.plan.weights import WeightCounts

ParallelStrategy = Literal["ddp", "fsdp2", "tasks"]
STRATEGIES: dict[ParallelStrategy, str] = {
    "ddp": "every device holds everything and both tasks; gradients are all-reduced",
    "fsdp2": "weights, gradients and optimizer states are sharded (fully_shard per layer and the root), gathered for use",
    "tasks": "as ddp, but a device keeps to one task: the other group's experts get no gradient, state or all-reduce there",
}
BUCKET = 25 * 2**20
"""DDP's bucket, bytes."""


@dataclass(frozen=True)
class Placement:
    """A parallel strategy on a number of devices.

    Attributes:
        way, gpus: see ``STRATEGIES``.
        split: devices by role: "both" in ddp and fsdp2, a task's name where devices keep to one.
    """

    way: ParallelStrategy
    gpus: int
    split: dict[str, int]

    @property
    def shards(self) -> int:
        """Parts that weights, gradients and optimizer states are cut into."""
        return self.gpus if self.way == "fsdp2" else 1

    def updated(self, weights: WeightCounts) -> int:
        """Trainable parameters that one device updates, before they are sharded."""
        return weights.trainable - (weights.private // 2 if self.way == "tasks" else 0)


@dataclass(frozen=True)
class Memory:
    """Peak memory in a step of the device that needs most, bytes.

    Attributes:
        weights: in float32, compressed ones in their bytes; trainable ones that are not stacked also in a smaller compute dtype.
        gradients: float32; one copy per loss if a method combines the tasks' gradients.
        optimizer: AdamW's states.
        averages: EMA of weights, if enabled; float32.
        activations: kept for the backward pass.
        logits: the heads' log-probabilities and, for the larger head, their gradient.
        working: gradients of the largest activation, in and out; or, if larger, the workspace for encoding images.
        casts: copies of frozen and stacked float32 matrices in the compute dtype, kept for the backward pass.
        gathered: float32 weights of the root and of two layers (one in use, one on its way), and a gradient before it is reduced.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    logits: int
    working: int
    casts: int = 0
    gathered: int = 0

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(vars(self).values())


class Collective(NamedTuple):
    """One kind of communication in a step: how often, bytes that each device sends, seconds."""

    name: str
    calls: int
    sent: float
    seconds: float


def memory_of_weights(place: Placement, weights: WeightCounts, width: int) -> Memory:
    """Return what the fullest device needs whatever it computes; ``width`` is the computation's bytes per number."""
    shards = place.shards
    moving = place.updated(weights) - (weights.absent if place.gpus == 1 else 0)
    stored = [sum(column) for column in zip(*weights.compressed.values(), strict=True)] or [0, 0]
    whole = weights.total - weights.tokenizer - stored[0]
    copy = (weights.trainable - weights.stacked) * width if width < 4 and shards == 1 else 0
    gathered = 0
    if shards > 1:
        largest, root = weights.largest, weights.root
        gathered = 4 * (root.total + 2 * largest.total) + max(root.trainable, largest.trainable) * (width + 4)
    return Memory(
        weights=4 * whole // shards + stored[1] + copy + 4 * weights.tokenizer,
        gradients=(weights.per_task_gradients[0] if weights.by_task else moving) * 4 // shards,
        optimizer=_states(weights, moving) // shards + 4 * weights.tensors * (weights.small_states is None),
        averages=4 * weights.averaged // shards,
        activations=0,
        logits=0,
        working=0,
        gathered=gathered,
    )


def _states(weights: WeightCounts, moving: int) -> int:
    """Bytes of the moments of ``moving`` of the trainable parameters."""
    if weights.small_states is None:
        return 8 * moving
    return weights.small_states * moving // max(1, weights.trainable)


def memory(place: Placement, weights: WeightCounts, trace: OpTrace, checkpointing: bool) -> Memory:
    """Return the memory of the device that needs most; peaks of gradients and of activations are added."""
    activations, logits = trace.kept_by_checkpoints() if checkpointing else trace.kept, trace.logits + trace.head
    return replace(
        memory_of_weights(place, weights, trace.width),
        activations=activations,
        logits=logits,
        casts=trace.kept_casts(weights.compressed, checkpointing),
        working=max(2 * trace.largest, trace.encoding - activations - logits),
    )


def communication(
    place: Placement, weights: WeightCounts, trace: OpTrace, hardware: Hardware, accumulation: int = 1
) -> list[Collective]:
    """Return the communication of one device in a step.

    Args:
        place: strategy and devices; those of the larger role share its private weights, and fill whole nodes where there are any.
        weights: of the stage.
        trace: of one micro-batch of the device; FSDP2 gathers a layer for each of its passes.
        hardware: the devices and their links.
        accumulation: micro-batches of a device's step. FSDP2 reduces gradients with each (see ``train/sharded.py``), DDP once.
    """
    gpus = place.gpus
    if gpus == 1:
        return []
    if weights.by_task:  # one call per tensor, after the last micro-batch's backward pass
        floats, tensors = weights.per_task_gradients
        return [_all_reduce("all-reduce by task", 4 * floats, gpus, hardware, tensors)]
    if place.way != "fsdp2":
        private = weights.private * (place.way == "tasks")
        found = [_all_reduce("all-reduce", 4 * (weights.trainable - private), gpus, hardware)]
        if private:
            sharing = max(place.split.values())
            found.append(_all_reduce("all-reduce inside the task", 4 * (private // 2), sharing, hardware))
        return found
    passing = {op.block for op in trace.ops if op.backward}
    seen = [(weights.layers[block.name], index in passing) for index, block in enumerate(trace.blocks)]
    gathers = 1 + sum(1 + backward for _, backward in seen)
    gathered = 4 * (weights.root.total + sum(unit.total * (1 + backward) for unit, backward in seen))
    units = [unit for unit in (*weights.layers.values(), weights.root) if unit.trainable]  # once per micro-batch
    reduced = 4 * sum(unit.trainable for unit in units)
    return [
        _ring("all-gather", accumulation * gathers, accumulation * gathered, gpus, hardware),
        _ring("reduce-scatter", accumulation * len(units), accumulation * reduced, gpus, hardware),
    ]


def _ring(name: str, count: int, size: int, gpus: int, hardware: Hardware) -> Collective:
    """Each device sends (N - 1) / N of the whole; a ring takes N - 1 steps, most of them within nodes."""
    sent, assume = size * (gpus - 1) / gpus, hardware.assume
    far = math.ceil(gpus / hardware.device.node) - 1
    wait = count * (far * assume.far_hop + (gpus - 1 - far) * assume.hop)
    return Collective(name, count, sent, sent / hardware.link(gpus) + wait)


def _all_reduce(name: str, size: int, gpus: int, hardware: Hardware, calls: int | None = None) -> Collective:
    """Each device sends 2 (N - 1) / N of the whole; small messages go up and down a tree over nodes. By default in buckets."""
    sent, count = 2 * size * (gpus - 1) / gpus, math.ceil(size / BUCKET) if calls is None else calls
    node, assume = hardware.device.node, hardware.assume
    wait = 2 * count * (math.ceil(math.log2(math.ceil(gpus / node))) * assume.far_hop + (min(gpus, node) - 1) * assume.hop)
    return Collective(name, count, sent, sent / hardware.link(gpus) + wait)
