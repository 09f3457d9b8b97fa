"""Names of groups of weights: together they name every weight that may train, none twice."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

import pytest

from unidecouple.methods.stage import PARTS
from unidecouple.models.janus import UniJanusForConditionalGeneration

LORA = {"lora_rank": 4, "lora_targets": ["attention", "mlp"]}
EXPERTS_LORA = {"ffn": "ta_moe", "lora_rank": 4, "lora_targets": ["attention", "experts", "shared_expert"]}


@pytest.mark.parametrize("text", [{}, {"ffn": "moe"}, {"ffn": "ta_moe"}, LORA, EXPERTS_LORA, {"attention_bias": True}])
def test_every_weight_is_in_one_part(make_model: Callable[..., UniJanusForConditionalGeneration], text: dict[str, Any]) -> None:
    names = [name for name, _ in make_model(**text).named_parameters() if not name.startswith("model.vqmodel.")]
    parts = {
        name: [part for part, patterns in PARTS.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)] for name in names
    }
    assert {name: found for name, found in parts.items() if len(found) != 1} == {}
