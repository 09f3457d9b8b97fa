"""C1: our full-rank task-aware mixture against a dense SwiGLU of the same FLOPs, and against transformers' experts in its place.

The mixture is upcycled from a dense FFN, so that all of its experts are alike and a dense SwiGLU of double width (the FFN beside
the shared one, alpha in the latter's W_down) computes the same. Which tokens go where is decided as ever: half of the tokens are
understanding, half generation, and the expert routers are random.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts

from benchmarks.side_by_side import Shape, SideBySide
from benchmarks.timing import BACKWARD, DIRECTIONS, Side
from unidecouple.methods.structure.upcycling import copy_into_experts
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.moe import FeedForward, MixtureOfExperts


def text_config(shape: Shape, **fields: object) -> UniLlamaConfig:
    """The configuration of a layer of ``shape``."""
    sizes = {"hidden_size": shape.hidden, "intermediate_size": shape.inner, "num_attention_heads": 1}
    return UniLlamaConfig(**{**sizes, "num_experts": 2 * shape.experts_per_group, "ffn": "ta_moe", **fields})


def upcycled(shape: Shape) -> MixtureOfExperts:
    """A mixture as stage 1 starts: every expert and the shared one a copy of one random FFN."""
    torch.manual_seed(0)
    config = text_config(shape)
    name = "model.layers.0.mlp."
    dense = {f"{name}{part}": weight for part, weight in FeedForward(config, "mlp").state_dict().items()}
    moe = MixtureOfExperts(config)
    state = copy_into_experts(dense, 2 * shape.experts_per_group, shared_experts=1, alpha=config.alpha_init)
    moe.load_state_dict({key.removeprefix(name): tensor for key, tensor in state.items()}, strict=False)
    return moe


def same_flops(moe: MixtureOfExperts, shape: Shape) -> FeedForward:
    """The dense SwiGLU of width 2 I that computes what ``moe`` does while its experts are alike."""
    wide = FeedForward(text_config(replace(shape, inner=2 * shape.inner)), "mlp")
    gate, up = moe.experts.gate_up_proj[0].chunk(2)
    shared = moe.shared_expert
    assert isinstance(shared, FeedForward)
    assert moe.alpha is not None
    with torch.no_grad():
        wide.gate_proj.weight.copy_(torch.cat([gate, shared.gate_proj.weight]))
        wide.up_proj.weight.copy_(torch.cat([up, shared.up_proj.weight]))
        wide.down_proj.weight.copy_(torch.cat([moe.experts.down_proj[0], moe.alpha * shared.down_proj.weight], dim=1))
    return wide


def with_their_experts(moe: MixtureOfExperts, implementation: str) -> MixtureOfExperts:
    """``moe`` with transformers' experts ("eager" or "grouped_mm") of the same weights in place of ours."""
    ours = moe.experts
    config = Qwen2MoeConfig(
        num_experts=ours.num_experts, hidden_size=ours.down_proj.shape[1], moe_intermediate_size=ours.down_proj.shape[2]
    )
    config._experts_implementation = implementation
    theirs = Qwen2MoeExperts(config)
    theirs.load_state_dict({"gate_up_proj": ours.gate_up_proj, "down_proj": ours.down_proj})
    replaced = copy.deepcopy(moe)
    replaced.experts = theirs  # called alike
    return replaced


def mixture_side(name: str, moe: nn.Module, tasks: Tensor) -> Side:
    """A mixture as a side; its experts' gradients are summed, which is the dense layer's; the input's holds the router's part."""

    def gradients(_: Tensor) -> dict[str, Tensor]:
        found = {key: weight.grad for key, weight in moe.named_parameters() if weight.grad is not None}
        gate, up = found["experts.gate_up_proj"].sum(0).chunk(2)
        return {
            "gate": torch.cat([gate, found["shared_expert.gate_proj.weight"]]),
            "up": torch.cat([up, found["shared_expert.up_proj.weight"]]),
            "down": found["experts.down_proj"].sum(0),
        }

    return Side(name, lambda x: moe(x.unsqueeze(0), tasks, "label")[0].squeeze(0), moe, gradients)


def dense_side(wide: FeedForward) -> Side:
    """The dense SwiGLU as a side."""

    def gradients(_: Tensor) -> dict[str, Tensor]:
        gate, up, down = (p.weight.grad for p in (wide.gate_proj, wide.up_proj, wide.down_proj))
        assert gate is not None
        assert up is not None
        assert down is not None
        return {"gate": gate, "up": up, "down": down.chunk(2, dim=1)[0]}

    return Side("dense", wide, wide, gradients)


def sides(shape: Shape) -> list[Side]:
    """Ours first, then ours in a loop, the dense layer, and transformers' two."""
    moe, tasks = upcycled(shape), shape.tasks
    theirs = [mixture_side(f"transformers {name}", with_their_experts(moe, name), tasks) for name in ("eager", "grouped_mm")]
    loop = copy.deepcopy(moe)
    loop.experts.backend = "loop"
    return [mixture_side("ours", moe, tasks), mixture_side("ours, loop", loop, tasks), dense_side(same_flops(moe, shape)), *theirs]


BENCHMARK = SideBySide(
    "layers",
    "C1: our mixture of full-rank experts against a dense SwiGLU of the same FLOPs, and transformers' experts (less is better)",
    sides,
    ours_over_other=True,
    goals={("dense", "fwd"): 1.12, ("dense", BACKWARD): 1.15}
    | {("transformers grouped_mm", direction): 1.0 for direction in DIRECTIONS},
)

if __name__ == "__main__":
    BENCHMARK.command()
