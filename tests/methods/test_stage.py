"""Names of groups of weights: together they name every weight that may train, none twice."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

import pytest

from unidecouple.methods.objective import LoadBalance, Objective
from unidecouple.methods.stage import PARTS, GradientShielding, Lora, Stage
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


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda: Stage(share=-1), "share=-1 must be at least 0"),
        (lambda: Stage(learning_rate=-1), "learning_rate=-1 must be at least 0"),
        (lambda: Stage(learning_rate=float("inf")), "learning_rate=inf"),
        (lambda: Stage(train={"ffn": 1, "vision": -1}), "train.vision=-1 must be at least 0"),
        (lambda: Stage(group_lr_scale={"mmu": -0.5}), "group_lr_scale.mmu=-0.5"),
        (lambda: Stage(warmup_steps=-1), "warmup_steps=-1"),
        (lambda: Stage(min_lr_ratio=1.5), "min_lr_ratio=1.5 must be from 0 to 1"),
        (lambda: Lora(r=0), "r=0 must be at least 1"),
        (lambda: Lora(lora_alpha=0), "lora_alpha=0 must be above 0"),
        (lambda: GradientShielding(steps=-1), "steps=-1"),
        (lambda: GradientShielding(scale_after=-0.1), "scale_after=-0.1"),
        (lambda: Objective(mmu_coeff=-1), "mmu_coeff=-1"),
        (lambda: LoadBalance(coeff=float("nan")), "coeff=nan"),
    ],
)
def test_numbers_of_a_stage_have_bounds(part: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        part()


def test_zeroes_that_mean_off_are_legal() -> None:
    Stage(share=0, learning_rate=0, train={"vision": 0}, warmup_steps=0, min_lr_ratio=0, group_lr_scale={"mmu": 0})
    GradientShielding(steps=0, scale_after=0)
    Objective(mmu_coeff=0, t2i_coeff=0, auxiliary=())
