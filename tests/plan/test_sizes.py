"""Named sizes, shipped bases and checkpoints' configurations, on the meta device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from published import write_published
from unidecouple.convert.convert import convert
from unidecouple.convert.load import load
from unidecouple.convert.steps import Conversion
from unidecouple.methods.stage import Lora
from unidecouple.methods.structure import UPCYCLED, Dense, MoE, Symbiotic, TaskAwareMoE
from unidecouple.plan.sizes import SIZES, build, configuration
from unidecouple.train.build import add_lora, restructure


@pytest.mark.parametrize(("name", "billions"), [("janus-pro-1b", 2.08), ("janus-pro-7b", 7.41)])
def test_published_sizes(name: str, billions: float) -> None:
    """By hand: embeddings and text head 2 V d, layers 4 d^2 + 3 d f, the rest (vision, generation, tokenizer) below 0.45."""
    model, text = build(SIZES[name], Dense(), None), SIZES[name]["text_config"]
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == pytest.approx(billions * 1e9, rel=0.003)
    d, f, layers = text["hidden_size"], text["intermediate_size"], text["num_hidden_layers"]
    body = 2 * 102400 * d + layers * (4 * d * d + 3 * d * f)
    assert 0 < total - body < 0.53e9
    assert model.config.vision_config.num_image_tokens == 576
    assert (model.config.vq_config.num_embeddings, model.config.vq_config.embed_dim) == (16384, 8)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.slow
@pytest.mark.parametrize("structure", UPCYCLED)
def test_meta_models_are_those_that_training_builds(structure: type, small_base: Path) -> None:
    real = restructure(load(str(small_base))[0], structure(), 0)
    lora = None
    text = real.config.text_config
    if text.per_group_layers is None and not text.lora_rank:  # which take no low-rank updates
        lora = Lora(r=4, targets=("attention", "mlp") if structure is Dense else ("attention", "experts", "shared_expert"))
        real = add_lora(real, lora, 0)
    planned = build(configuration(str(small_base)), structure(), lora)
    assert {name: p.shape for name, p in planned.named_parameters()} == {name: p.shape for name, p in real.named_parameters()}


def test_a_structure_after_another_keeps_every_parameter(small_base: Path) -> None:
    raw, mixture = configuration(str(small_base)), MoE(num_experts=8)
    before, after = (build(raw, mixture, None, later) for later in ((), (Symbiotic(),)))
    assert after.config.text_config.expert_groups == (6, 2)
    assert sum(p.numel() for p in before.parameters()) == sum(p.numel() for p in after.parameters())
    with pytest.raises(ValueError, match="ffn='dense': symbiotic parts a plain mixture"):
        build(raw, Dense(), None, (Symbiotic(),))


def test_a_configuration_of_transformers_own_janus(tmp_path: Path, small_base: Path) -> None:
    raw = json.loads((small_base / "config.json").read_text())
    ours = {"ffn", "num_experts", "shared_expert", "alpha_init", "task_routing", "lora_rank", "experts_backend"}
    text = {key: value for key, value in raw["text_config"].items() if key not in ours} | {"model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(raw | {"model_type": "janus", "text_config": text}))
    found = build(configuration(str(tmp_path)), TaskAwareMoE(), None)
    assert found.config.text_config.ffn == "ta_moe"


def test_unknown_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no configuration at 'nowhere'.*janus-pro-1b"):
        configuration("nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "multi_modality"}')
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        configuration(str(tmp_path))


def test_published_layouts_and_names_on_the_hub_are_planned_as_they_are(tmp_path: Path) -> None:
    """Without a conversion, and without the network."""
    published, plain = write_published(tmp_path / "published"), tmp_path / "plain"
    planned = configuration(str(published))
    convert(published, plain, Conversion(), lambda line: None)
    assert planned["text_config"] == configuration(str(plain))["text_config"]
    assert configuration("deepseek-ai/Janus-Pro-7B") == configuration("janus-pro-7b")


def test_scratch_has_the_shipped_size() -> None:
    assert configuration("scratch") == configuration("understanding")
