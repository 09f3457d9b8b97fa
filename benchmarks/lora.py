"""C2: our stage-2 layer (rank-16 updates of experts and shared expert, on activations) against PEFT's ways to the same.

Ours adds ``B A x`` to the frozen experts' products. PEFT has two ways: for stacked experts (``target_parameters``) it adds
``B A`` to a copy of all weights in every forward pass; for experts that are modules (``target_modules``) it works on
activations, too, an expert and a projection at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.layers import text_config, with_their_experts
from benchmarks.peft_layout import PROJECTIONS, STACKS, fill
from benchmarks.peft_layout import gradients as gradients_of
from benchmarks.side_by_side import Shape, SideBySide
from benchmarks.timing import BACKWARD, Side
from unidecouple.models.experts import Experts
from unidecouple.models.moe import FeedForward, MixtureOfExperts

RANK = 16


class ExpertModules(nn.Module):
    """Experts as transformers had them before they were stacked: a list of FFNs and a loop over those that have tokens."""

    def __init__(self, ours: Experts, shape: Shape) -> None:
        super().__init__()
        self.members = nn.ModuleList([FeedForward(text_config(shape), "mlp") for _ in range(ours.num_experts)])
        with torch.no_grad():
            for member, gate_up, down in zip(self.members, ours.gate_up_proj, ours.down_proj, strict=True):
                for projection, weight in zip(PROJECTIONS, (*gate_up.chunk(2), down), strict=True):
                    member.get_parameter(f"{projection}.weight").copy_(weight)

    def forward(self, x: Tensor, expert: Tensor, weight: Tensor) -> Tensor:
        """As ``Experts.forward``."""
        out = torch.zeros_like(x)
        for number, member in enumerate(self.members):
            token, place = torch.where(expert == number)
            if len(token):
                y = member(x[token]) * weight[token, place].unsqueeze(-1)
                out = out.index_add(0, token, y.to(x.dtype))
        return out


def adapted(shape: Shape) -> MixtureOfExperts:
    """A mixture of unlike experts as in the middle of stage 2: all frozen but the updates, which are no longer zero."""
    torch.manual_seed(0)
    config = text_config(shape, lora_rank=RANK, lora_targets=["experts", "shared_expert"])
    moe = MixtureOfExperts(config)
    for name, weight in moe.named_parameters():
        weight.requires_grad_("lora" in name)
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.02)
    return moe


def without_updates(moe: MixtureOfExperts, shape: Shape) -> MixtureOfExperts:
    """``moe`` as it was before the updates."""
    plain = MixtureOfExperts(text_config(shape))
    state = moe.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain


def peft_layer(moe: MixtureOfExperts, shape: Shape, way: str) -> nn.Module:
    """PEFT's adapter of the same updates, on transformers' stacked experts ("eager", "grouped_mm") or on "modules"."""
    plain = without_updates(moe, shape)
    settings = {"r": RANK, "lora_alpha": text_config(shape).lora_alpha, "target_modules": list(PROJECTIONS)}
    if way == "modules":
        plain.experts = ExpertModules(plain.experts, shape)  # type: ignore[assignment]  # it is called alike
    else:
        plain = with_their_experts(plain, way)
        settings["target_parameters"] = [f"experts.{stack}_proj" for stack in STACKS]
    wrapped = get_peft_model(plain, LoraConfig(**settings))
    fill(wrapped, dict(moe.named_parameters()))
    return wrapped


def sides(shape: Shape) -> list[Side]:
    """Ours first, then PEFT's three."""
    moe, tasks = adapted(shape), shape.tasks

    def side(name: str, layer: nn.Module, gradients: Callable[[], dict[str, Tensor]]) -> Side:
        return Side(
            name, lambda x: layer(x.unsqueeze(0), tasks, "label")[0].squeeze(0), layer, lambda into: {"input": into, **gradients()}
        )

    def own() -> dict[str, Tensor]:
        return {name: weight.grad for name, weight in moe.named_parameters() if weight.grad is not None}

    made = [side("ours", moe, own)]
    for way in ("modules", "eager", "grouped_mm"):
        layer = peft_layer(moe, shape, way)
        made.append(side(f"PEFT {way}", layer, functools.partial(gradients_of, layer, moe.experts.num_experts)))
    return made


STACKED = ("PEFT eager", "PEFT grouped_mm")
BENCHMARK = SideBySide(
    "lora",
    "C2: our stage-2 layer (low-rank updates on activations) against PEFT's (more is better)",
    sides,
    ours_over_other=False,
    goals={(way, direction): goal for way in STACKED for direction, goal in (("fwd", 1.5), (BACKWARD, 1.3))},
)

if __name__ == "__main__":
    BENCHMARK.command()
