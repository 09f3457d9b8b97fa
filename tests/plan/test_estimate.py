"""Roofline, split of devices, what fits and what breaks first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unidecouple.batch import Task
from unidecouple.methods.stage import Stage
from unidecouple.methods.structure import Dense, TaskAwareMoE
from unidecouple.plan.batch_shapes import BatchShape
from unidecouple.plan.devices import DEVICES, Hardware
from unidecouple.plan.estimate import StageWorkload, breaks_first, by_part, estimate, place, smallest
from unidecouple.plan.sizes import SIZES, build
from unidecouple.plan.stages import stage_load
from unidecouple.plan.strategies import STRATEGIES, ParallelStrategy, Placement, memory

H100 = Hardware(DEVICES["h100"])
STAGE_1 = {"generation": 1.0, "experts": 1.0, "expert_router": 1.0, "task_router": 1.0}
MMU, T2I = BatchShape(Task.MMU, 4, 706, 256, 0, 4), BatchShape(Task.T2I, 4, 640, 0, 2304, 0)


def for_devices(load: StageWorkload, devices: int) -> StageWorkload:
    """``load`` with a step that gives each of ``devices`` what the whole step was."""
    step = []
    for part in load.step:
        counts = {name: devices * getattr(part, name) for name in ("samples", "answers", "drawn", "pictures")}
        step.append(replace(part, **counts))
    return replace(load, step=tuple(step))


def split(load: StageWorkload, way: ParallelStrategy, gpus: int) -> dict[str, int]:
    """Devices by role, in nodes of eight."""
    placed = place(load, way, gpus, 8)
    assert placed is not None
    return placed.split


@pytest.fixture(scope="module")
def small() -> StageWorkload:
    """Stage 1 of UniDecouple on Janus-Pro-1B, two tasks."""
    return stage_load(build(SIZES["janus-pro-1b"], TaskAwareMoE(), None), Stage(train=STAGE_1, routing="label"), (MMU, T2I), 2)


@pytest.fixture(scope="module")
def large() -> StageWorkload:
    return stage_load(build(SIZES["janus-pro-7b"], TaskAwareMoE(), None), Stage(train=STAGE_1, routing="label"), (MMU, T2I), 2)


@pytest.mark.parametrize("name", list(DEVICES))
@pytest.mark.parametrize("way", list(STRATEGIES))
def test_no_roofline_is_exceeded(small: StageWorkload, name: str, way: str) -> None:
    for gpus in (1, 8, 1024):
        for dtype in ("bf16", "fp32"):
            found = estimate(for_devices(small, gpus), way, gpus, Hardware(DEVICES[name], dtype))  # type: ignore[arg-type]
            if found is not None:
                assert 0 < found.utilization <= H100.assume.compute
                assert found.seconds >= found.flops / (gpus * DEVICES[name].peak(dtype))
                assert found.seconds == pytest.approx(found.compute + found.traffic + found.exposed)
                assert all(one.seconds > one.sent / (DEVICES[name].link + 1) for one in found.collectives)


def test_flops_are_about_six_a_parameter_and_token() -> None:
    """The rule of thumb for a dense decoder that trains whole, plus attention's scores; tokens meet heads and vision unevenly."""
    load = stage_load(build(SIZES["janus-pro-1b"], Dense(), None), Stage(train={"attention": 1, "ffn": 1}), (T2I,), 2)
    parts = by_part(load.trace_ops(load.step))
    weights = sum(load.weights.parts[part][0] for part in ("attention", "ffn"))
    assert sum(sum(parts[part]) for part in ("attention", "ffn")) == pytest.approx(6 * weights * T2I.tokens, rel=0.02)
    assert sum(parts["attention scores"]) == pytest.approx(24 * 3 * 4 * 4 * 640**2 * 2048, rel=0.03)  # 3 passes of 4 B T² d


def test_checkpointing_costs_a_forward(small: StageWorkload) -> None:
    roomy, tight = (
        estimate(for_devices(small, 8), "fsdp2", 8, Hardware(replace(H100.device, memory=memory_bytes)))
        for memory_bytes in (80e9, 26e9)
    )
    assert roomy is not None
    assert tight is not None
    assert (roomy.fits, tight.fits, tight.fits_checkpointed) == (True, False, True)
    assert 1.2 < tight.compute / roomy.compute < 1.6
    assert tight.flops == roomy.flops  # what is computed twice is no progress


def test_devices_are_split_by_samples_in_whole_nodes(small: StageWorkload) -> None:
    assert place(small, "ddp", 64, 8) is None  # four samples of each task
    assert place(replace(small, accumulation=2), "ddp", 4, 8) is None
    small = for_devices(small, 64)
    assert split(small, "ddp", 64) == {"both": 64}
    assert place(small, "tasks", 1, 8) is None
    assert split(small, "tasks", 2) == {"mmu": 1, "t2i": 1}
    assert split(small, "tasks", 64) == {"mmu": 32, "t2i": 32}
    model = build(SIZES["janus-pro-1b"], TaskAwareMoE(), None)
    parts = (replace(MMU, samples=1), replace(T2I, samples=15))
    scarce = for_devices(stage_load(model, Stage(train=STAGE_1), parts, 2), 1024)
    assert split(scarce, "tasks", 64) == {"mmu": 8, "t2i": 56}  # one node at least
    assert split(scarce, "tasks", 1024) == {"mmu": 64, "t2i": 960}
    alone = stage_load(model, Stage(train=STAGE_1), (T2I,), 2)
    assert place(alone, "tasks", 64, 8) is None
    assert estimate(alone, "tasks", 64, H100) is None


def test_a_step_counts_all_devices(small: StageWorkload) -> None:
    for way in STRATEGIES:
        found = estimate(for_devices(small, 64), way, 64, H100)
        assert found is not None
        assert found.samples == 64 * 8
        assert found.tokens == 64 * (MMU.tokens + T2I.tokens)
        traces = [(n, for_devices(small, 64).trace(role, n)) for role, n in found.split.items()]
        assert found.flops == pytest.approx(sum(n * (trace.flops(False) + trace.flops(True)) for n, trace in traces))


def test_the_smallest_number_that_fits_is_the_smallest(large: StageWorkload) -> None:
    large = for_devices(large, 64)
    least = smallest(large, "fsdp2", H100)
    assert least is not None
    assert least > 1
    needed = [
        memory(Placement("fsdp2", gpus, {"both": gpus}), large.weights, large.trace("both", gpus), True).total
        for gpus in (least - 1, least)
    ]
    assert needed[0] > H100.memory >= needed[1]
    assert smallest(large, "ddp", H100) is None
    assert estimate(large, "ddp", 8, H100).bottleneck == "capacity"  # type: ignore[union-attr]


def test_what_breaks_first(small: StageWorkload, large: StageWorkload) -> None:
    small, large = (for_devices(load, 64) for load in (small, large))
    assert breaks_first(large, "ddp", H100) == "capacity: it fits on no number of devices up to 256"
    slow = replace(H100, device=replace(H100.device, network=1e8))
    assert breaks_first(small, "ddp", slow).startswith("link: from 16 devices on")
    assert estimate(small, "ddp", 16, slow).bottleneck == "link"  # type: ignore[union-attr]
    instant = Hardware(replace(H100.device, link=1e15, network=1e15), assume=replace(H100.assume, hop=0, far_hop=0))
    assert breaks_first(small, "fsdp2", instant) == "nothing up to 256 devices"


def test_slow_memory_is_named(small: StageWorkload) -> None:
    found = estimate(for_devices(small, 8), "ddp", 8, Hardware(replace(H100.device, bandwidth=1e11)))
    assert found is not None
    assert found.bottleneck == "memory bandwidth"
