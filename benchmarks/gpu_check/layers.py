"""G1 and G2: the mixture's layer, full rank and with LoRA, beside the library's experts and PEFT, in bf16."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import layers, lora
from benchmarks.gpu_check.check import Check
from benchmarks.gpu_check.findings import Goal
from benchmarks.side_by_side import Shape
from benchmarks.timing import Side

PEER = {"G1": "transformers grouped_mm", "G2": "PEFT grouped_mm"}


@dataclass(frozen=True)
class Times:
    """Seconds forward, and with backward; GB beyond weights and input."""

    forward: float
    both: float
    memory: float


def run(check: Check) -> None:
    """Both layers."""
    for name, make in (("G1", layers.sides), ("G2", lora.sides)):
        with check.attempt(name):
            _layer(check, name, make)


def _layer(check: Check, name: str, make: Callable[[Shape], list[Side]]) -> None:
    shape = Shape(64, 32, 64) if check.tiny else Shape(16384, 2048, 5632)
    with check.device:
        made = make(shape)
    x = torch.randn(shape.tokens, shape.hidden, device=check.device, dtype=torch.bfloat16)
    found: dict[str, Times] = {}
    flops = 2 * shape.tokens * 3 * shape.hidden * shape.inner * 2  # one expert and the shared one; frozen weights have no gradient
    for side in made:
        with check.attempt(f"{name} {side.name}"):
            side.module.to(torch.bfloat16)
            found[side.name] = times = _times(check, side, x)
            rates = (flops / times.forward / 1e12, (3 if name == "G1" else 2) * flops / times.both / 1e12)
            goals = (Goal(580), Goal(520)) if (name, side.name) == ("G1", "ours") else (None, None)
            check.add(f"{name} {side.name}, forward", rates[0], "TFLOP/s", goals[0], seconds=times.forward)
            check.add(
                f"{name} {side.name}, forward and backward",
                rates[1],
                "TFLOP/s",
                goals[1],
                seconds=times.both,
                memory_gb=times.memory,
            )
    ours, peer = found["ours"], found[PEER[name]]
    check.add(f"{name}: {PEER[name]} / ours, forward and backward", peer.both / ours.both, "x", Goal(1.2 if name == "G1" else 1.4))
    if name == "G2" and peer.memory:
        check.add(f"{name}: memory, ours / {PEER[name]}", ours.memory / peer.memory, "x", Goal(0.6, at_most=True))


def _times(check: Check, side: Side, x: Tensor) -> Times:
    ones = torch.ones_like(x)

    def both() -> None:
        side.module.zero_grad(set_to_none=True)
        side.step(x, ones)

    with torch.no_grad():
        forward = check.timed(lambda: side.forward(x))
    whole = check.timed(both, 5, 1)
    side.module.zero_grad(set_to_none=True)
    if not check.cuda:
        return Times(forward, whole, 0.0)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    side.module.zero_grad(set_to_none=True)
    return Times(forward, whole, (torch.cuda.max_memory_allocated() - before) / 1e9)
