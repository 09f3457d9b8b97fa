"""Weights compared and hashed to the last bit, however they are spread over files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from unidecouple.convert.weights import Weights


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Hexadecimal SHA-256 over names, types, shapes and numbers, in the order of names."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        _add(whole, name, tensors[name])
    return whole.hexdigest()


def fingerprint_of(folder: Path) -> str:
    """``fingerprint`` of a checkpoint's weights as they are stored, one in memory at a time."""
    weights, whole = Weights(folder), hashlib.sha256()
    for name in sorted(weights.shapes):
        _add(whole, name, weights.read([name])[name])
    return whole.hexdigest()


def same(left: Tensor, right: Tensor) -> bool:
    """Whether type, shape and every bit agree; unlike ``torch.equal``, a NaN is itself and -0.0 is not 0.0."""
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(_bits(left), _bits(right))


def _add(whole: hashlib._Hash, name: str, tensor: Tensor) -> None:
    whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    whole.update(_bits(tensor).numpy().data)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
