"""AdamW with 8-bit states: near AdamW, exactly resumable, and an absent task's rows stay where they are."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from unidecouple.methods.optimizers import first_moment, fresh_state, make_optimizer, saved_state, set_step_counts


def weights() -> list[nn.Parameter]:
    """One tensor with 8-bit states, one that is too small."""
    return [nn.Parameter(torch.ones(64, 128)), nn.Parameter(torch.ones(16))]


def made(name: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return make_optimizer(name, [{"params": parameters, "names": ["large", "small"], "lr": 1e-2, "peak": 1e-2}], weight_decay=0.0)


def step(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], seed: int) -> None:
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        parameter.grad[:8] = 0
    optimizer.step()


def test_8_bit_states_are_near_adamw_and_small() -> None:
    pytest.importorskip("bitsandbytes")
    ours, exact = weights(), weights()
    optimizer, reference = made("adamw_8bit", ours), made("adamw_torch_fused", exact)
    for seed in range(10):
        step(optimizer, ours, seed)
        step(reference, exact, seed)
    moved = (exact[0] - 1).norm()
    assert 0 < (ours[0] - exact[0]).norm() < 0.05 * moved
    torch.testing.assert_close(ours[1], exact[1], rtol=0, atol=1e-6)
    assert torch.equal(ours[0][:8], torch.ones(8, 128))  # no gradient, no step: exactly where they were
    size = sum(tensor.nbytes for tensor in saved_state(optimizer.state[ours[0]]).values())
    assert size == 2 * (64 * 128 + 4 * 64 * 128 // 256) + 4  # codes, scales, count
    moment, wanted = first_moment(optimizer, ours[0]), first_moment(reference, exact[0])
    assert moment is not None
    assert wanted is not None
    assert (moment - wanted).norm() < 0.05 * wanted.norm()
    assert first_moment(made("adamw_8bit", ours), ours[0]) is None


@pytest.mark.parametrize("name", ["adamw_torch_fused", "adamw_8bit"])
def test_restored_goes_on_bit_for_bit(name: str) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    unbroken = weights()
    optimizer = made(name, unbroken)
    for seed in range(2):
        step(optimizer, unbroken, seed)
    states = {f"{place}|{key}": t for place, p in enumerate(unbroken) for key, t in saved_state(optimizer.state[p]).items()}
    stored = load(save({key: tensor.contiguous() for key, tensor in states.items()}))
    resumed = [nn.Parameter(parameter.detach().clone()) for parameter in unbroken]
    again = made(name, resumed)
    for place in range(2):
        for key, tensor in fresh_state(again, 0, place).items():
            assert not tensor.any()
            tensor.copy_(stored[f"{place}|{key}"])
    set_step_counts(again, {f"{again_name}|step": stored[f"{place}|step"] for place, again_name in enumerate(("large", "small"))})
    for seed in range(2, 4):
        step(optimizer, unbroken, seed)
        step(again, resumed, seed)
    assert all(torch.equal(one, other) for one, other in zip(unbroken, resumed, strict=True))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(ValueError, match=r"optim=adamw_8bit needs bitsandbytes.*extra 'quantized'"):
        made("adamw_8bit", weights())
