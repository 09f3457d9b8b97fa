"""Cost of encoding images to tokens within a step, as Emu3 does with images to be understood: its tokenizer on the meta device."""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

from unidecouple.models.vq import encode_image_tokens


class Encoding(NamedTuple):
    """Of one image, in float32: FLOPs, bytes that operations read and write, most bytes at once beside the weights."""

    flops: int
    moved: int
    peak: int


class _Bytes(TorchDispatchMode):
    """Adds up what operations move, and follows what is alive; views move nothing and share their tensor's bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = self.alive = self.peak = 0
        self._holders: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if {_storage(tensor) for tensor in made} - {_storage(tensor) for tensor in given}:
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*made, *given))
        for tensor in made:
            self._hold(tensor)
        return out

    def _hold(self, tensor: Tensor) -> None:
        key, size = _storage(tensor), tensor.untyped_storage().nbytes()
        self.alive += 0 if self._holders[key] else size
        self.peak = max(self.peak, self.alive)
        self._holders[key] += 1
        weakref.finalize(tensor, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        self.alive -= 0 if self._holders[key] else size


def encoding(config: Emu3VQVAEConfig, image_size: int) -> Encoding:
    """Of a square image of ``image_size`` pixels a side; nothing is computed."""
    return _encoding(config.to_json_string(), image_size)


@functools.cache
def _encoding(config: str, image_size: int) -> Encoding:
    import json

    with torch.device("meta"):
        plain = Emu3VQVAEConfig(**json.loads(config))
        tokenizer = Emu3VQVAE._from_config(plain, attn_implementation="eager").eval()  # the counter knows no fused attention
        picture = torch.empty(1, plain.in_channels, image_size, image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _Bytes() as held:
        encode_image_tokens(tokenizer, picture)
    return Encoding(counter.get_total_flops(), held.moved, held.peak)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
