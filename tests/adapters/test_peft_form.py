"""The real PEFT reads what we write, and stops where it would misread."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftConfig, PeftModel

from unidecouple.adapters.peft_form import from_peft, to_peft
from unidecouple.convert.load import load
from unidecouple.methods.stage import Lora
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.train.build import restructure

# PEFT 0.21 asks transformers 5.23 by an old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
MakeModel = Callable[..., UniJanusForConditionalGeneration]
ALL = Lora(4, 8.0)
DENSE = Lora(4, 8.0, ("attention", "mlp"))
LAYER = "model.language_model.layers.0"


def test_packing_by_hand() -> None:
    """Two experts of rank 2: A stands expert after expert, B's columns alternate between experts."""
    stacked = {
        f"{LAYER}.mlp.experts.down_lora_A": torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]),
        f"{LAYER}.mlp.experts.down_lora_B": torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]),
        f"{LAYER}.mlp.experts.gate_up_lora_A": torch.zeros(2, 2, 1),
        f"{LAYER}.self_attn.q_proj.lora_B": torch.tensor([[[5.0, 6.0]]]),
        "model.generation_head.proj_out.weight": torch.ones(1),
    }
    packed = to_peft(stacked)
    prefix = f"base_model.model.{LAYER}"
    assert packed[f"{prefix}.mlp.experts.lora_A.weight"].tolist() == [[1.0], [2.0], [3.0], [4.0]]
    assert packed[f"{prefix}.mlp.experts.lora_B.weight"].tolist() == [[1.0, 3.0, 2.0, 4.0]]
    assert packed[f"{prefix}.mlp.experts.base_layer.lora_A.weight"].shape == (4, 1)
    assert packed[f"{prefix}.self_attn.q_proj.lora_B.weight"].tolist() == [[5.0, 6.0]]
    back = from_peft(packed, rank=2)
    assert back.keys() == stacked.keys()
    assert all(torch.equal(back[name], stacked[name]) for name in stacked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "lora", "parts"),
    [
        ({}, DENSE, []),
        ({}, replace(DENSE, targets=("mlp",)), ["generation", "norms", "text_head", "embeddings"]),
        ({"ffn": "ta_moe"}, ALL, ["generation", "task_router", "expert_router", "norms", "model.aligner.*"]),
        ({"ffn": "ta_moe", "context_router": True}, replace(ALL, targets=("experts",)), ["task_router"]),
        ({"ffn": "moe", "num_experts_per_tok": 2}, ALL, ["expert_router"]),
        ({"ffn": "ta_moe", "moe_layers": [1]}, Lora(4, 8.0, ("attention", "mlp", "experts")), []),
    ],
    ids=["dense", "small parts", "ta_moe", "context router", "moe", "some layers"],
)
def test_peft_computes_the_same(
    make_model: MakeModel,
    write: Any,
    train: Any,
    saved: Any,
    logits: Any,
    text: dict[str, Any],
    lora: Lora,
    parts: list[str],
) -> None:
    base = make_model(**text)
    start, trained = write("base", base), train(base, lora, parts)
    folder = saved(write("trained", trained), start)
    expected, before = logits(trained), logits(base)
    assert float((expected - before).abs().max()) > 0.1
    model = PeftModel.from_pretrained(load(str(start))[0], folder)
    torch.testing.assert_close(logits(model.get_base_model()), expected, atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model.get_base_model()), before, atol=1e-5, rtol=1e-5)
    allowed = ["unidecouple.models.janus"]  # PEFT finds the base by its recorded path and class
    whole = AutoPeftModel.from_pretrained(folder, import_allowlist=allowed)
    torch.testing.assert_close(logits(whole.get_base_model()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lora": replace(ALL, per_task=("attention",))}, "updates of attention are routed by task"),
        ({"parts": ["alpha"]}, "mlp.alpha is no module of its own"),
        ({"lora": None, "parts": ["task_router"]}, "there are no low-rank updates"),
        ({"dense": True}, "the base is dense and becomes ta_moe first"),
    ],
    ids=["routed", "alpha", "no updates", "dense base"],
)
def test_what_peft_has_no_form_for_it_refuses(
    make_model: MakeModel, write: Any, train: Any, saved: Any, change: dict[str, Any], reason: str
) -> None:
    start = make_model() if change.get("dense") else make_model(ffn="ta_moe")
    base = write("base", start)
    mixture = restructure(start, TaskAwareMoE(), 0) if change.get("dense") else start
    said: list[str] = []
    folder = saved(write("trained", train(mixture, change.get("lora", ALL), change.get("parts", []))), base, said=said)
    assert reason in said[-1]
    assert "PEFT refuses it" in said[-1]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "UNIDECOUPLE"
    assert any(reason in why for why in config["auto_mapping"]["unidecouple"]["not_peft"])
    with pytest.raises(KeyError, match="UNIDECOUPLE"):
        PeftConfig.from_pretrained(folder)
    with pytest.raises(KeyError, match="UNIDECOUPLE"):
        PeftModel.from_pretrained(load(str(base))[0], folder)


def test_updates_over_a_bases_own_are_refused(make_model: MakeModel, write: Any, train: Any, saved: Any, tmp_path: Path) -> None:
    adapted = train(make_model(), DENSE, [])
    base = write("base", adapted)
    said: list[str] = []
    saved(write("trained", train(adapted, None, ["lora"])), base, said=said)
    assert "low-rank updates of its own" in said[-1]
