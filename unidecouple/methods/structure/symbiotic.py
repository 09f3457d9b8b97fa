"""Symbiotic-MoE's structure: a trained mixture whose experts are split by use (arXiv 2604.07753, expert disentanglement)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from unidecouple import bounds

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig

_GATE = re.compile(r"^(?P<mlp>.*\.layers\.(?P<layer>\d+)\.mlp)\.gate\.weight$")


@dataclass(frozen=True)
class Symbiotic:
    """The experts that understanding uses most serve text and images to be understood, the others the images to be generated.

    Starts from a plain mixture (``kind: moe``), not from a dense model. Per layer, experts are ranked by how often understanding
    tokens are sent to them, a figure that must be measured. The router of a group is the rows of its experts in the old router,
    ``W_r^g = W_r[:, I_g]``: every weight stays, in another order, and none is new. The modality of a
    token decides its group; the shared expert, if there is one, serves all tokens.

    Not exact at the start, by design: a token's best experts may now be another group's. Where they are all in its own group,
    that layer's output is what it was.

    Attributes:
        understanding_share: share of a layer's experts that understanding gets, rounded to whole ones; the paper's best is 96
            of 128.
    """

    kind: Literal["symbiotic"] = "symbiotic"
    understanding_share: float = 0.75

    def __post_init__(self) -> None:
        bounds.between(0, 1, self, "understanding_share")

    def configure(self, text: UniLlamaConfig) -> dict[str, Any]:
        """Fields of the text configuration that this structure sets; number of experts, k and shared expert stay as they are."""
        return {"ffn": "typed_moe", "group_by": "image_out", "group_sizes": list(self._sizes(text))}

    def _sizes(self, text: UniLlamaConfig) -> tuple[int, int]:
        if text.ffn != "moe":
            raise ValueError(
                f"ffn={text.ffn!r}: symbiotic parts a plain mixture; start from one (kind: moe), trained until its experts differ"
            )
        most, least = text.num_experts - text.num_experts_per_tok, text.num_experts_per_tok
        understanding = round(self.understanding_share * text.num_experts)
        if not least <= understanding <= most:
            raise ValueError(
                f"understanding_share={self.understanding_share} of {text.num_experts} experts gives one group fewer than the "
                f"{least} that a token is sent to: choose a share nearer to a half, or start from a mixture with more experts"
            )
        return understanding, text.num_experts - understanding

    def partition(self, state: Mapping[str, Tensor], text: UniLlamaConfig, usage: Sequence[Tensor]) -> dict[str, Tensor]:
        """The weights of ``state`` with each mixture's experts and router rows in the order of the groups.

        Inside a group experts keep their order; of two used as often, the first counts as the more used.

        Args:
            state: weights by name, of a model whose mixtures have one group.
            text: that model's text configuration.
            usage: for each mixture, (E,) how often understanding tokens were sent to each expert.

        Raises:
            ValueError: the model is no plain mixture.
        """
        sizes = self._sizes(text)
        gates = sorted((int(match["layer"]), match["mlp"]) for name in state if (match := _GATE.match(name)))
        out = dict(state)
        for (_, mlp), used in zip(gates, usage, strict=True):
            order = _order(used, sizes[0])
            for name in state:
                if name.startswith(f"{mlp}.experts."):
                    out[name] = state[name][order.to(state[name].device)]
            router = state[f"{mlp}.gate.weight"][0]
            rows = router[order.to(router.device)]
            out[f"{mlp}.gate.weight"] = rows.unflatten(0, (2, -1)) if sizes[0] == sizes[1] else rows
        return out


def _order(used: Tensor, most: int) -> Tensor:
    """(E,) experts: first the ``most`` that are used most, then the others, each by number."""
    ranked = used.argsort(descending=True, stable=True)
    return torch.cat([ranked[:most].sort().values, ranked[most:].sort().values])
