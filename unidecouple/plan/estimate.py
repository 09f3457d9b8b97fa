"""Roofline estimate of a stage on a number of devices: seconds per step, tokens, days and the bottleneck."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from unidecouple.plan.batch_shapes import BatchShape
from unidecouple.plan.devices import Hardware
from unidecouple.plan.op_trace import Op, OpTrace
from unidecouple.plan.strategies import Collective, Memory, ParallelStrategy, Placement, communication, memory, memory_of_weights
from unidecouple.plan.weights import WeightCounts

OPTIMIZER_TRAFFIC = 32
"""Bytes per trainable parameter that clipping and AdamW move: gradient twice, weight and two moments read and written (float32)."""
MOST = 1024
HEAVY = 0.2
"""Share of a step that visible communication may take before the link counts as the bottleneck."""


@dataclass(frozen=True)
class StageWorkload:
    """A stage's work. Devices have roles: "both" in ddp and fsdp2, a task's name where devices keep to one.

    Attributes:
        weights: of the stage.
        step: shapes of a whole step, over all devices and micro-batches.
        accumulation: micro-batches per device and step.
        trace_ops: traces a forward and backward over some shapes.
    """

    weights: WeightCounts
    step: tuple[BatchShape, ...]
    accumulation: int
    trace_ops: Callable[[tuple[BatchShape, ...]], OpTrace]

    @property
    def samples(self) -> dict[str, int]:
        """Samples per step by task, without router samples."""
        return {part.task.key: part.samples for part in self.step if part.counted}

    def part(self, role: str, devices: int) -> tuple[BatchShape, ...]:
        """The largest micro-batch of one of ``devices`` of ``role``. Empty if there are fewer samples than micro-batches."""
        mine, parts = [part for part in self.step if role in ("both", part.task.key)], devices * self.accumulation
        return () if min(part.samples for part in mine) < parts else tuple(part.cut(parts) for part in mine)

    def trace(self, role: str, devices: int) -> OpTrace:
        """The trace of ``part(role, devices)``, which must not be empty."""
        return self.trace_ops(self.part(role, devices))


@dataclass(frozen=True)
class Estimate(Placement):
    """One stage with one parallel strategy on a number of devices. Seconds are per step.

    Attributes:
        parts: shapes of one micro-batch of a device, by role.
        memory: with every activation kept, and ``checkpointed`` with gradient checkpointing.
        fits, fits_checkpointed: whether these do. If only the second does, the times are with checkpointing.
        flops: of all devices, forward and backward, without recomputation.
        compute, traffic, exposed: seconds bound by FLOPs, by memory bandwidth (the optimizer too), and of communication that
            does not overlap.
        seconds: their sum, of the slowest role.
        collectives: of that role.
        samples, tokens: per step, over all devices, without router samples.
        utilization: of peak FLOPs.
    """

    parts: dict[str, tuple[BatchShape, ...]]
    memory: Memory
    checkpointed: Memory
    fits: bool
    fits_checkpointed: bool
    flops: int
    compute: float
    traffic: float
    exposed: float
    seconds: float
    collectives: list[Collective]
    samples: int
    tokens: int
    utilization: float

    @property
    def tokens_per_second(self) -> float:
        """Of all devices."""
        return self.tokens / self.seconds

    @property
    def bottleneck(self) -> str:
        """Capacity if it does not fit, else what takes most of the step."""
        if not self.fits_checkpointed:
            return "capacity"
        shares = {"compute": self.compute, "memory bandwidth": self.traffic, "link": self.exposed}
        return max(shares, key=lambda name: shares[name])


def place(load: StageWorkload, way: ParallelStrategy, gpus: int, node: int) -> Placement | None:
    """Split devices between roles: by samples, in whole nodes of ``node`` devices if there are several, at least one each.

    None if impossible: strategy "tasks" needs two devices and two tasks, each device needs a sample, a method that combines the
    tasks' gradients needs both in full on every device, and FSDP2 takes neither compressed weights nor 8-bit states.
    """
    reduced = bool(load.weights.compressed) or load.weights.small_states is not None
    if (load.weights.by_task and way != "ddp") or (reduced and way == "fsdp2"):
        return None
    split, tasks = {"both": gpus}, list(load.samples)
    if way == "tasks":
        if len(tasks) < 2 or gpus < 2:
            return None
        grain = node if gpus >= 2 * node and gpus % node == 0 else 1
        pieces = gpus // grain
        first = min(max(round(pieces * load.samples[tasks[0]] / sum(load.samples.values())), 1), pieces - 1)
        split = {tasks[0]: first * grain, tasks[1]: (pieces - first) * grain}
    return Placement(way, gpus, split) if all(load.part(role, devices) for role, devices in split.items()) else None


def estimate(load: StageWorkload, way: ParallelStrategy, gpus: int, hardware: Hardware) -> Estimate | None:
    """Estimate the stage with strategy ``way`` on ``gpus`` devices; None if impossible (see ``place``)."""
    placed = place(load, way, gpus, hardware.device.node)
    if placed is None:
        return None
    traces = [load.trace(role, devices) for role, devices in placed.split.items()]
    full, small = (
        max((memory(placed, load.weights, trace, again) for trace in traces), key=lambda m: m.total) for again in (False, True)
    )
    again = full.total > hardware.memory
    slowest = max((_times(placed, load, trace, hardware, again) for trace in traces), key=lambda times: times.seconds)
    whole = load.trace_ops(load.step)
    flops = whole.flops(False) + whole.flops(True) - whole.again
    return Estimate(
        **vars(placed),
        parts={role: load.part(role, devices) for role, devices in placed.split.items()},
        memory=full,
        checkpointed=small,
        fits=not again,
        fits_checkpointed=small.total <= hardware.memory,
        flops=flops,
        **slowest._asdict(),
        seconds=slowest.seconds,
        samples=sum(load.samples.values()),
        tokens=sum(part.tokens for part in load.step if part.counted),
        utilization=flops / (gpus * slowest.seconds * hardware.device.peak(hardware.dtype)),
    )


def smallest(load: StageWorkload, way: ParallelStrategy, hardware: Hardware) -> int | None:
    """Return the least number of devices, up to ``MOST``, on which the stage fits, with checkpointing if needed."""
    width = load.trace_ops(load.step).width

    def fits(gpus: int) -> bool:
        placed = place(load, way, gpus, hardware.device.node)
        if placed is None or memory_of_weights(placed, load.weights, width).total > hardware.memory:
            return False  # tracing the operations would take far longer, and change nothing
        traces = [load.trace(role, devices) for role, devices in placed.split.items()]
        return all(memory(placed, load.weights, one, checkpointing=True).total <= hardware.memory for one in traces)

    numbers = range(1, _most(load, way, hardware) + 1)
    if way == "tasks":  # devices are shared by samples and in whole nodes, so one more device may enlarge another's part
        return next((gpus for gpus in numbers if fits(gpus)), None)
    found = bisect.bisect_left(numbers, True, key=fits)
    return numbers[found] if found < len(numbers) else None


def breaks_first(load: StageWorkload, way: ParallelStrategy, hardware: Hardware) -> str:
    """Return what limits scaling first, over powers of two up to ``MOST`` devices."""
    least, most = smallest(load, way, hardware), _most(load, way, hardware)
    if not most:
        return "impossible: the stage does not allow this strategy"
    if least is None:
        return f"capacity: it fits on no number of devices up to {most}"
    grown = (estimate(load, way, 2**power, hardware) for power in range(math.ceil(math.log2(least)), 11))
    for found in grown:
        if found is not None and found.exposed > HEAVY * found.seconds:
            share = round(100 * found.exposed / found.seconds)
            return f"link: from {found.gpus} devices on, communication that does not overlap takes {share}% of a step or more"
    return f"nothing up to {most} devices"


def by_part(trace: OpTrace) -> dict[str, tuple[int, int]]:
    """(forward, backward) FLOPs by part, largest first."""
    sums: Counter[tuple[str, bool]] = Counter()
    for op in trace.ops:
        sums[op.part, op.backward] += op.flops
    parts = {part: (sums[part, False], sums[part, True]) for part in dict.fromkeys(op.part for op in trace.ops)}
    return {part: pair for part, pair in sorted(parts.items(), key=lambda item: -sum(item[1])) if sum(pair)}


def executed(trace: OpTrace, again: bool) -> Iterator[Op]:
    """Yield the operations as they run; with ``again`` (checkpointing), layers that gradients pass run their forward twice.

    This is an upper bound: torch stops a recomputed forward at the last tensor that is needed.
    """
    yield from trace.ops
    if again:
        moving = {index for index, block in enumerate(trace.blocks) if block.kept}
        yield from (op._replace(backward=True) for op in trace.ops if not op.backward and op.block in moving)


def _most(load: StageWorkload, way: ParallelStrategy, hardware: Hardware) -> int:
    """The largest number of devices, up to ``MOST``, for which the step has samples."""
    samples = sum(part.samples for part in load.step) // load.accumulation  # every device needs one in each micro-batch
    return next((gpus for gpus in range(min(MOST, samples), 0, -1) if place(load, way, gpus, hardware.device.node)), 0)


class _Times(NamedTuple):
    """Seconds per step of one role, and its communication; see ``Estimate``."""

    compute: float
    traffic: float
    exposed: float
    collectives: list[Collective]

    @property
    def seconds(self) -> float:
        return self.compute + self.traffic + self.exposed


def _times(placed: Placement, load: StageWorkload, trace: OpTrace, hardware: Hardware, again: bool) -> _Times:
    """Times of a device whose micro-batch is ``trace``; with ``again``, of checkpointed layers."""
    weights, parts = load.weights, load.accumulation
    rate, stream = hardware.flops, hardware.bandwidth
    bound = {(backward, by_flops): 0.0 for backward in (False, True) for by_flops in (False, True)}
    for op in executed(trace, again):
        computing, moving = op.flops / rate, op.moved / stream
        bound[op.backward, computing >= moving] += max(computing, moving)
    optimizer = OPTIMIZER_TRAFFIC * placed.updated(weights) / placed.shards / stream
    # DDP reduces in the last backward pass, per-task gradients after it; FSDP2 gathers in both passes of each micro-batch
    both_passes = placed.way == "fsdp2"
    hiding = parts * sum(bound.values()) if both_passes else 0.0 if weights.by_task else bound[True, True] + bound[True, False]
    collectives = communication(placed, weights, trace, hardware, parts)
    exposed = max(0.0, sum(one.seconds for one in collectives) - hardware.assume.overlap * hiding)
    computing, moving = (parts * (bound[False, limit] + bound[True, limit]) for limit in (True, False))
    return _Times(computing, moving + optimizer, exposed, collectives)
