"""Memory and traffic of the three ways: how they scale, and torch's own collectives counted."""

from __future__ import annotations

import collections
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from measured_step import Step, shapes_of
from unidecouple.batch import Batch
from unidecouple.plan.devices import DEVICES, Hardware
from unidecouple.plan.op_trace import OpTrace
from unidecouple.plan.strategies import STRATEGIES, ParallelStrategy, Placement, communication, memory
from unidecouple.plan.weights import WeightCounts, count
from unidecouple.train.parallel import Parallel

TakeStep = Callable[..., Step]
LAYERS = [f"model.language_model.layers.{index}" for index in range(2)] + ["model.vision_model.encoder.layers.0"]
STAGE_1 = {"generation": 1, "experts": 1, "expert_router": 1, "task_router": 1}
H100 = Hardware(DEVICES["h100"])


@pytest.fixture
def stage(step: TakeStep) -> tuple[WeightCounts, OpTrace]:
    done = step(STAGE_1, "label", ffn="ta_moe")
    return count(done.model.config.text_config, shapes_of(done.model), done.moving, LAYERS), done.trace


def placed(way: ParallelStrategy, gpus: int) -> Placement:
    """``gpus`` devices, half of them for each task where devices keep to one."""
    return Placement(way, gpus, {"mmu": gpus // 2, "t2i": gpus - gpus // 2} if way == "tasks" else {"both": gpus})


def sent(way: ParallelStrategy, stage: tuple[WeightCounts, OpTrace], gpus: int) -> dict[str, float]:
    return {one.name: one.sent for one in communication(placed(way, gpus), *stage, H100)}


def test_memory_of_copies_by_hand(stage: tuple[WeightCounts, OpTrace]) -> None:
    weights, trace = stage
    for gpus in (1, 8, 1024):
        held = memory(placed("ddp", gpus), weights, trace, checkpointing=False)
        assert held.weights == 4 * weights.total
        assert held.gradients == 4 * weights.trainable
        assert held.optimizer == weights.optimizer_bytes
        assert held.activations == trace.kept
        assert held.gathered == 0
    assert memory(placed("ddp", 8), weights, trace, checkpointing=True).activations == trace.kept_by_checkpoints() < trace.kept


def test_shards_shrink_as_one_over_n(stage: tuple[WeightCounts, OpTrace]) -> None:
    weights, trace = stage

    def sharded(gpus: int) -> int:
        held = memory(placed("fsdp2", gpus), weights, trace, checkpointing=False)
        return held.weights + held.gradients + held.optimizer - 4 * weights.tokenizer - 4 * weights.tensors

    for gpus in (2, 8, 64, 1024):
        assert sharded(gpus) == pytest.approx(sharded(1) / gpus, abs=3)


def test_gathered_weights_do_not_shrink(stage: tuple[WeightCounts, OpTrace]) -> None:
    weights, trace = stage
    gathered = [memory(placed("fsdp2", gpus), weights, trace, checkpointing=False).gathered for gpus in (1, 2, 1024)]
    assert gathered[0] == 0
    assert gathered[1] == gathered[2] >= 4 * (weights.root.total + 2 * weights.largest.total)


def test_a_task_alone_needs_half_of_the_private_states(stage: tuple[WeightCounts, OpTrace]) -> None:
    weights, trace = stage
    both, one = (memory(placed(way, 8), weights, trace, checkpointing=False) for way in ("ddp", "tasks"))
    assert both.gradients - one.gradients == 4 * weights.private // 2
    assert both.optimizer - one.optimizer == 8 * weights.private // 2
    assert both.weights == one.weights


@pytest.mark.parametrize("gpus", [2, 8, 64, 1024])
def test_all_reduce_sends_two_of_n_minus_one(stage: tuple[WeightCounts, OpTrace], gpus: int) -> None:
    assert sent("ddp", stage, gpus) == {"all-reduce": pytest.approx(2 * (gpus - 1) / gpus * 4 * stage[0].trainable)}


@pytest.mark.parametrize("gpus", [2, 8, 64, 1024])
def test_homogeneous_ranks_halve_the_experts_gradients(stage: tuple[WeightCounts, OpTrace], gpus: int) -> None:
    weights, _ = stage
    shared_part = 2 * (gpus - 1) / gpus * 4 * (weights.trainable - weights.private)
    experts_before = sent("ddp", stage, gpus)["all-reduce"] - shared_part
    after = sent("tasks", stage, gpus)
    assert after["all-reduce"] == pytest.approx(shared_part)
    assert after["all-reduce inside the task"] <= 0.52 * experts_before


def test_one_device_sends_nothing(stage: tuple[WeightCounts, OpTrace]) -> None:
    assert [sent(way, stage, 1) for way in STRATEGIES] == [{}, {}, {}]


def test_links_bound_the_time(stage: tuple[WeightCounts, OpTrace]) -> None:
    for way in STRATEGIES:
        for gpus, peak in ((8, H100.device.link), (64, H100.device.network * H100.device.node)):
            for one in communication(placed(way, gpus), *stage, H100):
                assert one.seconds > one.sent / peak


class Collectives(TorchDispatchMode):
    """Counts torch's collectives and the bytes of the whole that they gather or reduce, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: collections.Counter[str] = collections.Counter()
        self.bytes: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith("c10d."):
            name = {"_allgather_base_": "all-gather", "_reduce_scatter_base_": "reduce-scatter"}[str(func).split(".")[1]]
            self.calls[name] += 1
            self.bytes[name] += max(tensor.numel() * tensor.element_size() for tensor in args[:2])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def process_group() -> Iterator[None]:
    """Two processes, one of them here and the other pretended: calls are made, nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_copies_have_gradients_once(step: TakeStep, joint_batch: tuple[Batch, Batch]) -> None:
    """They are views of what DDP sends, so the storage behind them is what is planned for gradients, and nothing else."""
    done = step({"*": 1}, "label", ffn="ta_moe")
    weights = count(done.model.config.text_config, shapes_of(done.model), done.moving, LAYERS)
    done.model.zero_grad()
    wrapped = Parallel(size=2).wrap(done.model)
    output = wrapped(batch=joint_batch, routing="label")
    (output.mmu.mean + output.t2i.mean).backward()
    gradients = [weight.grad for weight in done.model.parameters() if weight.grad is not None]
    behind = {gradient.untyped_storage().data_ptr(): gradient.untyped_storage().nbytes() for gradient in gradients}
    assert len(behind) < len(gradients)
    assert sum(behind.values()) == memory(placed("ddp", 2), weights, done.trace, checkpointing=False).gradients


def gathered_and_reduced(step: TakeStep, joint_batch: tuple[Batch, Batch]) -> None:
    done = step({"*": 1}, "label", ffn="ta_moe")
    weights = count(done.model.config.text_config, shapes_of(done.model), done.moving, LAYERS)
    planned = {one.name: one for one in communication(placed("fsdp2", 2), weights, done.trace, H100)}
    model = done.model
    model.zero_grad()
    for layer in (*model.decoder.layers, *model.model.vision_model.encoder.layers):
        fully_shard(layer)
    fully_shard(model, ignored_params=set(model.model.vqmodel.parameters()))
    with Collectives() as found:
        output = model(batch=joint_batch, routing="label")
        (output.mmu.mean + output.t2i.mean).backward()
    assert (
        {name: one.calls for name, one in planned.items()} == {"all-gather": 1 + 2 * 2 * 2 + 2, "reduce-scatter": 4} == found.calls
    )
    for name, one in planned.items():
        assert found.bytes[name] == pytest.approx(2 * one.sent, rel=0.01)  # torch pads shards of odd size


@pytest.mark.usefixtures("process_group")
def test_layers_are_gathered_each_time_and_reduced_once(step: TakeStep, joint_batch: tuple[Batch, Batch]) -> None:
    """A joint step passes each decoder layer once a micro-batch: as many gathers, forward and backward, but one reduction.

    In a process of its own: DTensor remembers shapes of shards for good, and those of a pretended first process would be wrong for
    real ones that other tests fork.
    """
    child = multiprocessing.get_context("fork").Process(target=gathered_and_reduced, args=(step, joint_batch))
    child.start()
    child.join(120)
    assert child.exitcode == 0


def test_devices_are_told_in_peaks() -> None:
    for device in DEVICES.values():
        assert device.peak("fp32") == device.fp32
        assert device.peak("bf16") == device.bf16
        assert device.link < device.bandwidth
