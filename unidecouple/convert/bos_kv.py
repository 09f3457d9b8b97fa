"""Keys and values of the BOS for a model slimmed to generation, which lacks the weights that compute them."""

from __future__ import annotations

import copy
import re

import torch
from torch import Tensor

from unidecouple.batch import Task
from unidecouple.convert.parts import Part
from unidecouple.convert.structure import slim
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.decoder import UniLlamaDecoderLayer

_LAYER = re.compile(r"^model\.language_model\.layers\.(?P<layer>\d+)\.")
_EMBEDDINGS = "model.language_model.embed_tokens.weight"


class BosKeyValues:
    """Store the keys and values of the BOS in every layer of a model slimmed to generation.

    In the whole model the BOS passes through understanding's weights and attends to itself alone. So one token passes through the
    layers once, while they are converted in order.
    """

    def __init__(self, text: UniLlamaConfig) -> None:
        if text.bos_token_id is None:
            raise ValueError("bos_token_id is missing in the text configuration: every sequence starts with that token")
        self._text = copy.deepcopy(text)
        self._text.experts_backend, self._text._attn_implementation = "loop", "eager"
        self._hidden = torch.empty(0)

    def __call__(self, part: Part) -> Part:
        """``slim`` for generation, and the BOS's keys and values.

        Args:
            part: of the whole model; that of the word embeddings first, then the layers in order.
        """
        out = slim(part, Task.T2I)
        embeddings = part.get(_EMBEDDINGS)
        if embeddings is not None and not embeddings.is_meta:
            self._hidden = embeddings[self._text.bos_token_id].float().view(1, 1, -1)
        match = next((found for name in part if (found := _LAYER.match(name))), None)
        if match is None:
            return out
        like = part[f"{match[0]}self_attn.k_proj.weight"]
        if like.is_meta:
            key = value = like.new_empty(len(like))
        else:
            key, value = self._pass({name.removeprefix(match[0]): w.float() for name, w in part.items()}, int(match["layer"]))
        attention = f"{match[0]}self_attn"
        return out | {f"{attention}.first_key": key.to(like.dtype), f"{attention}.first_value": value.to(like.dtype)}

    @torch.no_grad()
    def _pass(self, state: Part, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values (kv width) of the BOS in a layer; its state moves on to the next."""
        with torch.device("meta"):
            layer = UniLlamaDecoderLayer(self._text, number)
        layer.load_state_dict(state, assign=True)
        understanding = torch.full((1, 1), int(Task.MMU))
        turn = torch.ones(1, 1, self._text.head_dim)
        normed = layer.input_layernorm(self._hidden)
        key, value = (project(normed, understanding).flatten() for project in (layer.self_attn.k_proj, layer.self_attn.v_proj))
        labels = {"group": understanding, "group_ids": understanding, "routing": "label"}
        self._hidden = layer(self._hidden, position_embeddings=(turn, torch.zeros_like(turn)), **labels)[0]
        return key, value


def drop_bos_kv(part: Part) -> Part:
    """A part without keys and values of the BOS, which other layouts have no place for."""
    return {name: tensor for name, tensor in part.items() if ".self_attn.first_" not in name}
