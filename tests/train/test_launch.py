"""Where a command computes: a missing device is reported in one line."""

from __future__ import annotations

import pytest
import torch

from unidecouple.train.launch import device_of


def test_auto_takes_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == device_of("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("auto", 1) == device_of("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="device=cuda:2, but torch sees 2 GPUs"):
        device_of("cuda:2")


@pytest.mark.parametrize(
    ("name", "said"),
    [("cuda", "torch sees no GPU"), ("cuda:3", "torch sees no GPU"), ("gpu", "device=gpu cannot be used"), ("", "cannot be used")],
)
def test_a_device_that_is_not_there(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=said):
        device_of(name)
