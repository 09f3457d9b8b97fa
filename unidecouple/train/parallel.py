"""The processes that share a run: torch's own engine (torchrun, DDP), or one process alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_PATIENCE = timedelta(hours=4)
"""How long a process waits for the others: the first one scores and writes checkpoints meanwhile."""


@dataclass(frozen=True)
class Parallel:
    """This process among those that share a run.

    Attributes:
        rank: its number.
        size: how many there are.
        device: where it computes.
        bf16: matrix products in bfloat16 (autocast), weights, losses and routers in float32.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    bf16: bool = False

    @property
    def first(self) -> bool:
        """Whether this process prints, scores and writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """``model`` as training calls it. Weights that a step leaves unused (one task's head) are found, not waited for."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True)

    @contextlib.contextmanager
    def gradients(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Forward and backward of one part of a step; gradients travel between processes with the ``last`` one only."""
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext():
            yield

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """Autocast, if asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def sum(self, value: Tensor) -> Tensor:
        """``value`` summed over processes, the same on each."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def whole(self, value: Tensor) -> Tensor:
        """A result that may be sharded, whole."""
        return value

    def agree(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(self.sum(torch.tensor(int(flag), device=self.device)))

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block while the others wait, then the others do."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def processes(device: str, bf16: bool) -> Iterator[Parallel]:
    """Join the processes that torchrun started, or be the only one.

    Args:
        device: "auto", "cpu" or "cuda".
        bf16: see ``Parallel``.

    Raises:
        ValueError: ``device`` is "cuda" and torch sees no GPU.
    """
    size, rank, local = (
        int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0))
    )
    place = _device(device, local)
    if size == 1:
        yield Parallel(device=place, bf16=bf16)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Parallel(rank, size, place, bf16)
    finally:
        dist.destroy_process_group()


def _device(name: str, local: int) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU: use device=cpu, or install a CUDA build of torch")
    return torch.device("cuda", local)
