"""The decoders that both generation loops are tested with: dense, mixtures, routing by label, LoRA routed by task, by context."""

from __future__ import annotations

from typing import Any

import pytest

LORA = {"lora_rank": 4, "lora_targets": ["attention", "experts", "shared_expert"], "lora_per_task": ["attention", "shared_expert"]}
KINDS: list[dict[str, Any]] = [
    {},
    {"ffn": "moe"},
    {"ffn": "ta_moe", "num_experts_per_tok": 2},
    {"ffn": "ta_moe", "task_routing": "label"},
    {"ffn": "ta_moe", **LORA},
    {"ffn": "ta_moe", "context_router": True, **LORA},
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
