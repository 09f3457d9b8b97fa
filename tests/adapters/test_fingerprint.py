"""Hashes see every bit, every name, type and shape, and not how weights are spread over files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unidecouple.adapters.fingerprint import fingerprint, fingerprint_of, same
from unidecouple.convert.weights import save_shards

WEIGHTS = {"b": torch.tensor([[1.0, float("nan")]]), "a": torch.tensor([0.0]).bfloat16(), "c": torch.arange(6.0).view(2, 3)}


@pytest.mark.parametrize("most", [10**6, 8])
def test_of_files_and_of_memory_alike(tmp_path: Path, most: int) -> None:
    finite = WEIGHTS | {"b": torch.tensor([[1.0, 2.0]])}  # NaN is never written
    assert len(save_shards(tmp_path, finite, [dict(finite)], most)) == (1 if most > 100 else 3)
    assert fingerprint_of(tmp_path) == fingerprint(finite) == fingerprint(dict(reversed(finite.items())))
    assert fingerprint(WEIGHTS) == fingerprint(dict(reversed(WEIGHTS.items()))) != fingerprint(finite)


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.tensor([-0.0]).bfloat16()},
        {"a": torch.tensor([0.0])},
        {"c": WEIGHTS["c"].view(3, 2)},
        {"c": WEIGHTS["c"].nextafter(torch.tensor(9.0))},
        {"d": torch.zeros(0)},
    ],
    ids=["sign of zero", "type", "shape", "last bit", "name"],
)
def test_every_change_is_seen(change: dict[str, torch.Tensor]) -> None:
    assert fingerprint(WEIGHTS | change) != fingerprint(WEIGHTS)
    assert not all(name in WEIGHTS and same(WEIGHTS[name], tensor) for name, tensor in change.items())


def test_a_nan_is_itself_and_views_count_as_what_they_show() -> None:
    assert all(same(tensor, tensor.clone()) for tensor in WEIGHTS.values())
    assert same(WEIGHTS["c"].T, WEIGHTS["c"].T.contiguous())
