"""Weights, gradients and optimizer sharded over processes: FSDP2 (``fully_shard``) and torch's distributed checkpoints."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from unidecouple.models.base import UnifiedModel as Model
from unidecouple.train.parallel import Parallel

_TOKENIZER = "model.vqmodel."
"""What the names of the image tokenizer's weights begin with."""


class Sharded(Parallel):
    """Processes that hold a shard of every weight each. Only the first has the full model, on the CPU; others its shapes.

    Gradients are reduced with every micro-batch: otherwise FSDP2 keeps them unsharded on each process until the last.
    """

    @property
    def holds_weights(self) -> bool:
        """Weights are read once, not by each process."""
        return self.first

    @property
    def keeps_full_gradients(self) -> bool:
        """Each process has a shard of every gradient."""
        return False

    def wrap(self, model: Model) -> nn.Module:
        """A sharded copy of the first process's ``model``: one FSDP group per decoder layer, one for the rest.

        The vision tower is in the rest: a separate group would wait for processes without an image in a step. The image tokenizer
        is frozen and whole in each process already; the copy shares it.
        """
        # what layers report of their routing are views, which nobody changes in place
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        mesh = init_device_mesh(self.device.type, (self.size,))
        trains = {name: weight.requires_grad for name, weight in model.named_parameters()}
        with torch.device("meta"):
            sharded = type(model)(model.config)
        sharded.model.vqmodel = None
        for name, weight in sharded.named_parameters():
            weight.requires_grad_(trains[name])

        def place(weight: nn.Parameter) -> Shard:
            """Stacked experts by their second dimension: there are fewer experts than processes."""
            return Shard(1 if weight.ndim == 3 and weight.shape[1] % self.size == 0 else 0)

        for layer in sharded.decoder.layers:
            fully_shard(layer, mesh=mesh, shard_placement_fn=place)
        fully_shard(sharded, mesh=mesh, shard_placement_fn=place)
        sharded.to_empty(device=self.device)
        with _without_tokenizer(model):
            whole = model.state_dict() if self.first else {}
        set_model_state_dict(sharded, whole, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))
        there = dict(model.named_buffers())
        for name, buffer in sharded.named_buffers():
            if self.first:
                buffer.copy_(there[name])
            dist.broadcast(buffer, 0)
        sharded.model.vqmodel = model.model.vqmodel.to(self.device)
        return cast(nn.Module, sharded)

    @contextlib.contextmanager
    def full_model(self, wrapped: nn.Module, model: Model) -> Iterator[Model]:
        """``model`` with the weights that training has reached, on the first process's device for the length of the block."""
        with _without_tokenizer(self.trained(wrapped)), _without_tokenizer(model):
            state = get_model_state_dict(wrapped, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            if self.first:
                model.load_state_dict(state)
        if self.first:
            model.to(self.device)
        yield model
        if self.first:
            model.to("cpu")
            model.model.vqmodel.to(self.device)  # the sharded copy's, too
        self.wait()

    def full_tensor(self, value: Tensor) -> Tensor:
        """Return a sharded tensor in full, on each process."""
        return value.full_tensor() if isinstance(value, DTensor) else value

    def save_weights(self, folder: Path, wrapped: nn.Module) -> None:
        """Write configuration and weights as ``from_pretrained`` reads them, without gathering them in one process."""
        model = self.trained(wrapped)
        with _without_tokenizer(model):
            state = cast(dict[str, Tensor], get_model_state_dict(wrapped))
        if self.first:
            model.config.save_pretrained(folder)
            model.generation_config.save_pretrained(folder)
            state |= model.model.vqmodel.state_dict(prefix=_TOKENIZER)
        counters = {name: tensor for name, tensor in state.items() if tensor.dtype == torch.int64}
        self.save_tensors(
            folder / "model.safetensors", state | {name: t.view(1).view(torch.float64) for name, t in counters.items()}
        )
        if counters and self.first:
            _say_int64(folder / "model.safetensors", counters)

    def save_tensors(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write sharded ``tensors`` as one safetensors file: each process its shards, the first joins them."""
        parts = path.with_suffix(".parts")
        writer = HuggingFaceStorageWriter(str(parts), save_distributed=True, enable_consolidation=True)
        with _unwrapped():
            save(dict(tensors), storage_writer=writer)
        if self.first:
            next(parts.glob("*.safetensors")).rename(path)
            shutil.rmtree(parts)
        self.wait()

    def load_tensors(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Fill sharded ``tensors`` from a safetensors file, each process reading its shards."""
        with _unwrapped():
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(path.parent)))


@contextlib.contextmanager
def _without_tokenizer(model: Model) -> Iterator[None]:
    """Take the image tokenizer, which is no process's shard, out of ``model`` for the block."""
    tokenizer = model.model.vqmodel
    model.model.vqmodel = None  # in place of `del`, which would move it to the end of the model's parts
    try:
        yield
    finally:
        model.model.vqmodel = tokenizer


def _say_int64(path: Path, names: Iterable[str]) -> None:
    """Correct the type and shape of counters in a safetensors file, whose bytes are right.

    torch's distributed safetensors (2.13) join floating-point tensors only, and drop the value of scalars.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        for name in names:
            header[name] |= {"dtype": "I64", "shape": []}
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))


@contextlib.contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise what went wrong in any process in place of torch's ``CheckpointException``, which is no ``Exception``."""
    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise causes[0] from error
