"""Decoders for tests of both generation loops: dense, mixtures, by label, LoRA by task, by context, untied, labelled groups."""

from __future__ import annotations

from typing import Any

import pytest

LORA = {"lora_rank": 4, "lora_targets": ["attention", "experts", "shared_expert"], "lora_per_task": ["attention", "shared_expert"]}
MIXED = {"lora_rank": 4, "lora_targets": ["attention", "mlp"], "lora_experts": 3}
KINDS: list[dict[str, Any]] = [
    {},
    {"ffn": "moe"},
    {"ffn": "ta_moe", "num_experts_per_tok": 2},
    {"ffn": "ta_moe", "task_routing": "label"},
    {"ffn": "ta_moe", **LORA},
    {"ffn": "ta_moe", "context_router": True, **LORA},
    {"per_group_layers": [0, 1], "per_group_norm": True, "group_by": "modality"},
    {"per_group_layers": [0, 1], "per_group_norm": True, "group_by": "image_out"},
    {"per_group_layers": [1], "per_group_norm": True, "group_by": "task"},
    {"per_group_layers": [0], "per_group_attention": "group", "group_by": "modality"},
    {"ffn": "typed_moe", "group_by": "image_out", "group_sizes": [3, 1]},
    {"ffn": "typed_moe", "group_by": "type", "num_experts": 8, "group_sizes": [2, 3, 3], "num_experts_per_tok": 2},
    {"ffn": "ta_moe", "shared_expert_per_task": True, **LORA},
    {"per_group_layers": [0, 1], "per_group_parts": ["ffn"], "group_by": "task"},
    {"per_group_layers": [0], "per_group_parts": ["attention", "norms"], "group_by": "image_out"},
    MIXED | {"lora_kind": "interaction"},
    MIXED | {"lora_kind": "modality", "group_by": "modality"},
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def refusal(kind: dict[str, Any]) -> str | None:
    """What the batched engine says of a decoder that it does not run; None where it does."""
    if "per_group_attention" in kind:
        return r"per_group_attention='group'.*plain loops"
    return "a router weighs the updates per token" if "lora_kind" in kind else None
