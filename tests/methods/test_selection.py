"""Patterns on weights' names: what trains, and which part a weight belongs to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from unidecouple.methods.selection import part_of, select
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]


@pytest.fixture(scope="module")
def names(make_model: MakeModel) -> list[str]:
    return [name for name, _ in make_model().named_parameters()]


def test_pattern_that_matches_nothing_is_an_error(names: list[str]) -> None:
    with pytest.raises(ValueError, match=r"'experts' matches no weight"):
        select(names, {"experts": 1.0})


def test_image_tokenizer_never_trains(names: list[str]) -> None:
    chosen = select(names, {"*": 1.0})
    assert len(chosen) == sum("vqmodel" not in name for name in names)
    assert not [name for name in chosen if "vqmodel" in name]


def test_later_entries_win(names: list[str]) -> None:
    chosen = select(names, {"attention": 1.0, "*.layers.0.self_attn.q_proj.weight": 0.1})
    assert sorted(set(chosen.values())) == [0.1, 1.0]


def test_every_weight_has_a_part(make_model: MakeModel) -> None:
    lora = {"lora_rank": 4, "lora_targets": ["attention", "experts", "shared_expert"]}
    names = [name for name, _ in make_model(ffn="ta_moe", context_router=True, **lora).named_parameters()]
    parts = {part_of(name) for name in names}
    assert "other" not in parts
    assert parts >= {"image_tokenizer", "experts", "lora", "alpha", "task_router", "expert_router", "vision", "generation"}
