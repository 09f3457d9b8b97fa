"""The processes that share a run: DDP under torchrun, or a single process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unidecouple.files import atomic_directory
from unidecouple.models.compressed import full_state_dict

if TYPE_CHECKING:
    from unidecouple.models.base import UnifiedModel as Model


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

    @property
    def holds_weights(self) -> bool:
        """Whether this process has the whole model."""
        return True

    @property
    def keeps_full_gradients(self) -> bool:
        """Whether this process has full (unsharded) gradients."""
        return True

    def wrap(self, model: Model) -> nn.Module:
        """``model`` as training calls it. DDP detects weights that a step leaves unused (one task's head).

        Gradients are views into DDP's buckets, so that they are stored once.
        """
        model.to(self.device)
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True, gradient_as_bucket_view=True)

    def trained(self, wrapped: nn.Module) -> Model:
        """The model whose parameters the optimizer gets."""
        return cast("Model", wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped)

    @contextlib.contextmanager
    def gradients(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Context of one micro-batch's forward and backward; gradients are reduced with the ``last`` one only."""
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else contextlib.nullcontext():
            yield

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """Autocast, if asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @contextlib.contextmanager
    def full_model(self, wrapped: nn.Module, model: Model) -> Iterator[Model]:
        """Yield ``model`` with the current weights, unsharded in the first process, for the block."""
        yield model

    def sum(self, value: Tensor) -> Tensor:
        """``value`` summed over processes, the same on each."""
        return self.sum_(value.clone()) if self.size > 1 else value

    def sum_(self, value: Tensor) -> Tensor:
        """``sum``, written over ``value``."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def full_tensor(self, value: Tensor) -> Tensor:
        """Return a possibly sharded tensor in full."""
        return value

    def any_process(self, flag: bool) -> bool:
        """Return whether ``flag`` is set in any process."""
        return bool(self.sum(torch.tensor(int(flag), device=self.device)))

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block while the others wait, then the others do."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    @contextlib.contextmanager
    def folder(self, target: Path) -> Iterator[Path]:
        """``atomic_directory`` of the first process, in which all may write."""
        with atomic_directory(target, internal=True) if self.first else contextlib.nullcontext(target) as made:
            shared = [made]
            if self.size > 1:
                dist.broadcast_object_list(shared)
            yield shared[0]
            self.wait()

    def save_weights(self, folder: Path, wrapped: nn.Module) -> None:
        """Write configuration and weights as ``from_pretrained`` reads them, compressed ones as they were before."""
        if self.first:
            model = self.trained(wrapped)
            model.save_pretrained(folder, state_dict=full_state_dict(model))

    def save_tensors(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write ``tensors`` as one safetensors file."""
        if self.first:
            save_file(dict(tensors), path)

    def load_tensors(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Fill ``tensors`` from a safetensors file that has them."""
        with safe_open(path, framework="pt") as file:
            for name, tensor in tensors.items():
                found = file.get_tensor(name)
                if found.shape != tensor.shape:  # copy_ would broadcast
                    raise ValueError(f"it is of other weights: {name} is {list(found.shape)}, not {list(tensor.shape)}")
                tensor.copy_(found)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def local_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """Return this process's shard of ``tensor``, and the index of its first row in the full tensor."""
    from torch.distributed.tensor import DTensor  # imports sympy, a second

    if not isinstance(tensor, DTensor):
        return tensor, 0
    mesh = tensor.device_mesh
    (placement,) = tensor.placements
    each = -(-tensor.shape[0] // mesh.size())
    return tensor.to_local(), mesh.get_local_rank() * each if placement.is_shard(0) else 0
