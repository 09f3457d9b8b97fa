"""Compressed matrices multiply as the library's dequantised ones do, and take the bytes that their form implies."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from unidecouple.models.compressed import CompressedWeight, StoredForm, compress, full_state_dict, set_weight
from unidecouple.models.lora import LoraLinear

NEEDS_PACKAGE = ("int8", "nf4", "fp4")
STORAGES = ("bf16", *NEEDS_PACKAGE)


@pytest.fixture(params=STORAGES)
def storage(request: pytest.FixtureRequest) -> str:
    if request.param in NEEDS_PACKAGE:
        pytest.importorskip("bitsandbytes")
    return str(request.param)


def reference(weight: torch.Tensor, storage: str) -> torch.Tensor:
    """``weight`` there and back by the library itself."""
    if storage == "bf16":
        return weight.bfloat16().float()
    functional: Any = pytest.importorskip("bitsandbytes").functional
    if storage == "int8":
        codes, scales, _ = functional.int8_vectorwise_quant(weight)
        return torch.as_tensor(functional.int8_vectorwise_dequant(codes, scales))
    return torch.as_tensor(functional.dequantize_4bit(*functional.quantize_4bit(weight, quant_type=storage, blocksize=64)))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("shape", [(24, 64), (33, 7), (1, 1)])
def test_the_matrix_is_the_librarys(storage: str, shape: tuple[int, int]) -> None:
    weight = random(*shape)
    made = compress(weight, StoredForm(storage, shape))  # type: ignore[arg-type]
    assert torch.equal(made.dequantize(), reference(weight, storage))
    assert made.data.nbytes == made.form.bytes


def test_bytes_by_hand() -> None:
    assert StoredForm("bf16", (64, 128)).bytes == 64 * 128 * 2
    assert StoredForm("int8", (64, 128)).bytes == 64 * 128 + 4 * 64
    assert StoredForm("nf4", (64, 128)).bytes == 64 * 128 // 2 + 4 * (64 * 128 // 64) == StoredForm("fp4", (64, 128)).bytes


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "autocast"])
def test_products_and_gradients_are_those_of_the_dequantised_matrix(storage: str, bf16: bool) -> None:
    weight = random(24, 64)
    layers = [LoraLinear(64, 24, bias=True, groups=2, rank=4, scale=0.5) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    nn.init.normal_(layers[0].lora_B)
    layers[1].lora_B.data.copy_(layers[0].lora_B.data)
    layers[0].weight = nn.Parameter(reference(weight, storage), requires_grad=False)
    layers[1].weight = compress(weight, StoredForm(storage, (24, 64)))  # type: ignore[arg-type]
    group = torch.tensor([[0, 1, 1], [1, 0, 0]])
    results = []
    for layer in layers:
        x = random(2, 3, 64).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = layer(x, group)
        y.float().square().sum().backward()
        results.append((y, x.grad, layer.bias.grad, layer.lora_A.grad, layer.lora_B.grad))
    for wanted, found in zip(*results, strict=True):
        assert wanted is not None
        assert found is not None
        assert wanted.dtype == found.dtype
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_no_dequantised_matrix_is_kept_for_the_backward_pass(storage: str) -> None:
    layer = nn.Linear(64, 256)
    layer.weight = compress(layer.weight.detach(), StoredForm(storage, (256, 64)))  # type: ignore[arg-type]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(random(2, 64).requires_grad_()).sum()
    assert all(tensor.numel() < 256 * 64 for tensor in kept)


def test_state_dict_has_the_matrix_as_it_was(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    whole = copy.deepcopy(model.state_dict())
    save_file({"0.weight": model[0].weight.detach()}, tmp_path / "full.safetensors")
    set_weight(
        model, "0.weight", compress(model[0].weight.detach(), StoredForm("bf16", (4, 8), tmp_path / "full.safetensors", "0.weight"))
    )
    assert not torch.equal(model[0].weight.dequantize(), whole["0.weight"])
    assert all(torch.equal(full_state_dict(model)[name], weight) for name, weight in whole.items())
    twin = copy.deepcopy(model)
    assert torch.equal(F.linear(torch.eye(8), twin[0].weight), model[0].weight.dequantize().t())


def test_without_its_file_the_matrix_as_it_was_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    set_weight(model, "0.weight", compress(model[0].weight.detach(), StoredForm("bf16", (4, 8), None, "0.weight")))
    with pytest.raises(ValueError, match=r"0\.weight is stored in bf16, and its full weights were not kept"):
        full_state_dict(model)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"quantize_frozen=nf4 needs bitsandbytes.*extra 'quantized'"):
        compress(random(4, 4), StoredForm("nf4", (4, 4)))


def test_only_products_take_it() -> None:
    weight = compress(random(4, 8), StoredForm("bf16", (4, 8)))
    assert isinstance(weight, CompressedWeight)
    assert weight.to("cpu").dtype == torch.uint8
    assert not weight.requires_grad
