"""Mixture-of-Transformers and its kin: the decoder's weights have one set per group of tokens, and attention joins them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from unidecouple.methods.structure.untying import copy_into_sets, untied

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig


@dataclass(frozen=True)
class MoT:
    """Q, K, V, O, FFN and norms, the final one too, have one set per group; one causal attention runs over all tokens.

    Embeddings and heads stay as in Janus, which has a text side and an image side of each.

    Attributes:
        group_by: "modality" is Mixture-of-Transformers (arXiv 2411.04996, section 3: text against image tokens), "image_out" is
            BAGEL (arXiv 2505.14683: a second set for tokens to be generated; text and images to be understood share the base
            set; its generated tokens are a diffusion model's, ours are Janus's discrete ones), "task" is task-decoupled MoT (arXiv
            2609.01607: the prompt of an image goes with the image). LMFusion (arXiv 2412.15188) is "image_out" with the base set
            frozen, see ``Stage.group_lr_scale``.
        parts: which weights of a layer have a set per group. ("ffn",) shares attention and norms, as arXiv 2608.05000 supports; the
            final norm goes with "norms". Known to us by summary only, so what else its model does is not followed.
    """

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"split": "group_by"}
    RENAMED_VALUES: ClassVar[dict[str, dict[str, str]]] = {"group_by": {"drawn": "image_out"}}

    kind: Literal["mot"] = "mot"
    group_by: Literal["modality", "task", "image_out"] = "modality"
    parts: tuple[Literal["attention", "ffn", "norms"], ...] = ("attention", "ffn", "norms")

    def configure(self, text: UniLlamaConfig) -> dict[str, Any]:
        """Fields of the text configuration that this structure sets."""
        return untied(range(text.num_hidden_layers), self.group_by, norm="norms" in self.parts, parts=self.parts)

    def upcycle(self, state: Mapping[str, Tensor], text: UniLlamaConfig) -> dict[str, Tensor]:
        """Exact start from dense weights: every set is a copy."""
        return copy_into_sets(state, range(text.num_hidden_layers), norm="norms" in self.parts, parts=self.parts)
