"""The processes of a run: from torchrun's environment, or a single one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from unidecouple.shares import local_rank
from unidecouple.train.faults import naming_lost_processes
from unidecouple.train.parallel import Parallel

_JOINING = timedelta(minutes=10)
"""How long a process waits for the others to start."""
_PATIENCE = timedelta(hours=4)
"""How long a process waits for the others: the first one scores and writes checkpoints meanwhile."""


@contextlib.contextmanager
def processes(device: str, bf16: bool, kind: str) -> Iterator[Parallel]:
    """Join the processes that torchrun started, or be the only one.

    After an error of the block the process group stays, since its destructor may wait for ever for a process that is gone: report
    the error and end by ``os._exit``, as the command line does.

    Args:
        device: "auto", "cpu" or "cuda".
        bf16: see ``Parallel``.
        kind: "ddp" or "fsdp"; without torchrun it does not matter.

    Raises:
        ValueError: ``device`` is "cuda" and torch sees no GPU.
        LostProcessError: another process ended, at once; or did not start in ``_JOINING``, or answer in ``_PATIENCE``.
    """
    from transformers.utils.logging import disable_progress_bar

    size, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
    place = device_of(device, local_rank())
    disable_progress_bar()  # of every checkpoint's shards; steps have their own lines
    if size == 1:
        yield Parallel(device=place, bf16=bf16)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    with naming_lost_processes():
        store, _, _ = next(rendezvous("env://", rank, size, timeout=_JOINING))
        backend = "nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
        if kind == "fsdp":
            from unidecouple.train.sharded import Sharded

            yield Sharded(rank, size, place, bf16)
        else:
            yield Parallel(rank, size, place, bf16)
        dist.destroy_process_group()


@contextlib.contextmanager
def float32_products(device: torch.device, tf32: bool) -> Iterator[None]:
    """Context in which float32 matrix products and convolutions on a GPU use TF32, if asked for; then torch's settings return."""
    if device.type != "cuda" or not tf32:
        yield
        return
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions


def device_of(name: str, local: int = 0) -> torch.device:
    """The device called ``name``: "auto", "cpu", "cuda", or any other name that torch knows; ``local`` is the GPU of several.

    Raises:
        ValueError: there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(name)
        if place.type != "cuda":
            torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={name} cannot be used here: use cpu, cuda, or cuda:1 for the second GPU") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name}, but torch sees no GPU: use device=cpu, or install a CUDA build of torch")
    if place.type == "cuda":
        place = torch.device("cuda", local if place.index is None else place.index)
        if place.index >= (there := torch.cuda.device_count()):
            raise ValueError(f"device={place}, but torch sees {there} GPUs, of which the first is cuda:0")
    return place
