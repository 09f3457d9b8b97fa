"""Frozen matrices of linear layers stored in 16, 8 or 4 bits: ``y = x dequantize(W)^T + b``.

Stored codes follow bitsandbytes: "int8" has one float32 scale per row (LLM.int8, arXiv 2208.07339, without its outliers); "nf4"
and "fp4" have one per 64 weights (QLoRA, arXiv 2305.14314, section 3, without double quantisation). "bf16" needs no package, and
changes no result of a run with ``bf16``. Gradients pass to the inputs; neither pass keeps a dequantised matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from unidecouple.extras import missing_package

Storage = Literal["bf16", "int8", "nf4", "fp4"]
BLOCK = 64
"""Weights per scale in 4 bits."""
_ALIGNMENT = 16


@dataclass(frozen=True)
class StoredForm:
    """How the bytes of a ``CompressedWeight`` are read.

    Attributes:
        storage: format.
        shape: (out, in).
        original: safetensors file with the matrix as it was, under ``name``; None where nobody will ask for it.
        name: of the parameter.
    """

    storage: Storage
    shape: tuple[int, int]
    original: Path | None = None
    name: str = ""

    @property
    def code_bytes(self) -> int:
        """Bytes of the codes, without the padding after them."""
        numbers = prod(self.shape)
        return {"bf16": 2 * numbers, "int8": numbers}.get(self.storage, -(-numbers // 2))

    @property
    def scales(self) -> int:
        """Number of float32 scales."""
        return {"bf16": 0, "int8": self.shape[0]}.get(self.storage, -(-prod(self.shape) // BLOCK))

    @property
    def scales_start(self) -> int:
        """Byte at which the scales begin."""
        return -(-self.code_bytes // _ALIGNMENT) * _ALIGNMENT

    @property
    def bytes(self) -> int:
        """Bytes in all."""
        return self.scales_start + 4 * self.scales


class CompressedWeight(nn.Parameter):
    """A frozen matrix as uint8 (bytes,): codes, then scales. ``F.linear`` takes it as its weight; no other operation does."""

    form: StoredForm

    def __new__(cls, packed: Tensor, form: StoredForm) -> CompressedWeight:
        """``packed`` as ``form`` describes it."""
        made = torch.Tensor._make_subclass(cls, packed, False)
        made.form = form
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedWeight:
        copied = memo[id(self)] = CompressedWeight(self.data.clone(), self.form)
        return copied

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Multiply by the dequantised matrix in ``F.linear``; otherwise act on the bytes."""
        if func is F.linear and isinstance(args[1], CompressedWeight):
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            return _Product.apply(args[0], args[1], bias)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix (out, in) that products use."""
        packed, form = self.data, self.form
        codes = packed[: form.code_bytes]
        if form.storage == "bf16":
            return codes.view(torch.bfloat16).view(form.shape).to(dtype)
        functional = _bitsandbytes(form.storage)
        scales = packed[form.scales_start :].view(torch.float32)
        if form.storage == "int8":
            return cast(Tensor, functional.int8_vectorwise_dequant(codes.view(torch.int8).view(form.shape), scales)).to(dtype)
        state = functional.QuantState(
            absmax=scales, shape=torch.Size(form.shape), blocksize=BLOCK, quant_type=form.storage, dtype=dtype
        )
        return cast(Tensor, functional.dequantize_4bit(codes.view(-1, 1), state))

    def uncompressed(self) -> Tensor:
        """The matrix as it was before, bit for bit, from its file.

        Raises:
            ValueError: it was kept nowhere.
        """
        if self.form.original is None:
            raise ValueError(f"{self.form.name} is stored in {self.form.storage}, and its full weights were not kept")
        with safe_open(self.form.original, framework="pt") as file:
            return cast(Tensor, file.get_tensor(self.form.name))


class _Product(torch.autograd.Function):
    """``x W^T + b``, W dequantised to the type of the product in the forward pass, and once more in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: CompressedWeight, bias: Tensor | None) -> Tensor:
        """(..., in) -> (..., out)."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        ctx.weight, ctx.dtype = weight, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(x.to(dtype), weight.dequantize(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        """Gradients of the inputs and of the bias."""
        gradient, into_x, into_bias = gradients[0], None, None
        if ctx.needs_input_grad[0]:
            into_x = (gradient @ ctx.weight.dequantize(gradient.dtype)).to(ctx.dtype)
        if ctx.needs_input_grad[2]:
            into_bias = gradient.flatten(0, -2).sum(0).to(ctx.bias_dtype)
        return into_x, None, into_bias


@torch.no_grad()
def compress(weight: Tensor, form: StoredForm) -> CompressedWeight:
    """``weight`` (out, in) in the format of ``form``, on its device.

    Raises:
        ValueError: bitsandbytes is not installed and the format needs it.
    """
    packed = torch.zeros(form.bytes, dtype=torch.uint8, device=weight.device)
    scales = packed[form.scales_start :].view(torch.float32)
    if form.storage == "bf16":
        codes = weight.to(torch.bfloat16).contiguous()
    elif form.storage == "int8":
        codes, row_scales, _ = _bitsandbytes(form.storage).int8_vectorwise_quant(weight.float())
        scales.copy_(row_scales)
    else:
        functional = _bitsandbytes(form.storage)
        codes, state = functional.quantize_4bit(weight.float().contiguous(), quant_type=form.storage, blocksize=BLOCK)
        scales.copy_(state.absmax)
    packed[: form.code_bytes] = codes.contiguous().view(torch.uint8).flatten()
    return CompressedWeight(packed, form)


def compressed_weights(model: nn.Module) -> Iterator[tuple[str, CompressedWeight]]:
    """Compressed weights of ``model`` by name."""
    return ((name, weight) for name, weight in model.named_parameters() if isinstance(weight, CompressedWeight))


def set_weight(model: nn.Module, name: str, weight: nn.Parameter) -> None:
    """Put ``weight`` in the place of the parameter ``name``."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, weight)


def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state of ``model`` with every compressed weight as it was, mapped from its file."""
    return model.state_dict() | {name: weight.uncompressed() for name, weight in compressed_weights(model)}


def _bitsandbytes(storage: str) -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise missing_package(f"quantize_frozen={storage}", "quantized", error) from error
    return functional
