"""Where tasks can meet in stacked weights, by how tokens are distinguished."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.sharing import common_rows, unshared

MakeModel = Callable[..., UniJanusForConditionalGeneration]


@pytest.mark.parametrize(
    ("kind", "name", "common"),
    [
        ({"ffn": "moe"}, "mlp.experts.down_proj", None),
        ({"ffn": "ta_moe"}, "mlp.experts.down_proj", []),
        ({"ffn": "ta_moe"}, "mlp.gate.weight", []),
        ({"ffn": "ta_moe"}, "mlp.shared_expert.up_proj.weight", None),
        ({"ffn": "typed_moe", "group_by": "image_out", "group_sizes": [3, 1]}, "mlp.experts.down_proj", [0, 1, 2]),
        ({"ffn": "typed_moe", "group_by": "type", "num_experts": 8, "group_sizes": [2, 3, 3]}, "mlp.gate.weight", [0, 1]),
        ({"per_group_layers": [0], "group_by": "task"}, "self_attn.q_proj.weight", []),
        ({"per_group_layers": [0], "group_by": "modality"}, "self_attn.q_proj.weight", [0, 1]),
        ({"per_group_layers": [0], "group_by": "image_out"}, "input_layernorm.weight", [0]),
        ({"per_group_layers": [1], "group_by": "task"}, "self_attn.q_proj.weight", None),
    ],
    ids=str,
)
def test_rows_that_are_no_tasks_own(make_model: MakeModel, kind: dict[str, Any], name: str, common: list[int] | None) -> None:
    model = make_model(**kind)
    weight = model.decoder.layers[0].get_parameter(name)
    assert common_rows(model).get(id(weight)) == common
    assert (id(weight) in unshared(model)) == (common == [])
