"""Names of the published files against transformers' by hand, and every name and shape of Janus-Pro-1B and 7B."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import JanusConfig, JanusForConditionalGeneration

from published import PRO_1B, PRO_7B, Published, config, shapes, write_json
from unidecouple.convert.layouts import config_json, read_config
from unidecouple.convert.names import from_deepseek, to_deepseek, unused
from unidecouple.convert.parts import Part, read_deepseek, split_into_parts, write_deepseek
from unidecouple.convert.processors import read_processor

PAIRS = {
    "language_model.model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "language_model.model.layers.7.self_attn.o_proj.weight": "model.language_model.layers.7.self_attn.o_proj.weight",
    "language_model.model.norm.weight": "model.language_model.norm.weight",
    "language_model.lm_head.weight": "lm_head.weight",
    "vision_model.vision_tower.pos_embed": "model.vision_model.embeddings.position_embedding.weight",
    "vision_model.vision_tower.patch_embed.proj.bias": "model.vision_model.embeddings.patch_embedding.bias",
    "vision_model.vision_tower.blocks.11.norm1.weight": "model.vision_model.encoder.layers.11.layer_norm1.weight",
    "vision_model.vision_tower.blocks.11.norm2.bias": "model.vision_model.encoder.layers.11.layer_norm2.bias",
    "vision_model.vision_tower.blocks.3.attn.proj.weight": "model.vision_model.encoder.layers.3.self_attn.projection_layer.weight",
    "vision_model.vision_tower.blocks.0.mlp.fc2.bias": "model.vision_model.encoder.layers.0.mlp.fc2.bias",
    "vision_model.vision_tower.norm.weight": "model.vision_model.post_layernorm.weight",
    "aligner.layers.0.weight": "model.aligner.fc1.weight",
    "aligner.layers.2.bias": "model.aligner.hidden_layers.0.bias",
    "gen_aligner.layers.0.bias": "model.generation_aligner.fc1.bias",
    "gen_aligner.layers.4.weight": "model.generation_aligner.hidden_layers.1.weight",
    "gen_embed.weight": "model.generation_embeddings.weight",
    "gen_head.output_mlp_projector.weight": "model.generation_head.proj_out.weight",
    "gen_head.vision_head.bias": "model.generation_head.vision_head.bias",
    "gen_vision_model.encoder.conv_in.weight": "model.vqmodel.encoder.conv_in.weight",
    "gen_vision_model.encoder.conv_blocks.4.res.1.conv2.weight": "model.vqmodel.encoder.down.4.block.1.conv2.weight",
    "gen_vision_model.encoder.conv_blocks.4.attn.0.proj_out.bias": "model.vqmodel.encoder.down.4.attn.0.proj_out.bias",
    "gen_vision_model.encoder.conv_blocks.2.downsample.conv.bias": "model.vqmodel.encoder.down.2.downsample.conv.bias",
    "gen_vision_model.encoder.mid.0.norm1.weight": "model.vqmodel.encoder.mid.block_1.norm1.weight",
    "gen_vision_model.encoder.mid.1.q.weight": "model.vqmodel.encoder.mid.attn_1.q.weight",
    "gen_vision_model.decoder.mid.2.conv1.bias": "model.vqmodel.decoder.mid.block_2.conv1.bias",
    "gen_vision_model.decoder.conv_blocks.0.res.2.norm2.bias": "model.vqmodel.decoder.up.0.block.2.norm2.bias",
    "gen_vision_model.decoder.conv_blocks.1.upsample.conv.weight": "model.vqmodel.decoder.up.1.upsample.conv.weight",
    "gen_vision_model.quantize.embedding.weight": "model.vqmodel.quantize.embedding.weight",
    "gen_vision_model.post_quant_conv.weight": "model.vqmodel.post_quant_conv.weight",
}


@pytest.mark.parametrize("theirs", PAIRS)
def test_names_by_hand(theirs: str) -> None:
    assert from_deepseek(theirs) == PAIRS[theirs]
    assert to_deepseek(PAIRS[theirs]) == theirs


def test_what_janus_does_not_use() -> None:
    dropped = [name for name in shapes(PRO_1B) if unused(name)]
    assert len(dropped) == 14  # the pooling's thirteen, and a counter
    assert unused("language_model.model.layers.0.self_attn.rotary_emb.inv_freq")
    assert from_deepseek("mm_projector.weight") is None
    with pytest.raises(ValueError, match=r"unexpected weight mm_projector\.weight"):
        read_deepseek({"mm_projector.weight": torch.ones(1)})


def on_meta(size: Published) -> Part:
    return {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes(size).items()}


def through(part: Part, transform: object) -> Part:
    return {name: tensor for names in split_into_parts(part) for name, tensor in transform({n: part[n] for n in names}).items()}  # type: ignore[operator]


@pytest.mark.parametrize(("size", "billions"), [(PRO_1B, 2.09), (PRO_7B, 7.42)], ids=["1B", "7B"])
def test_every_published_name_and_shape(published: Path, tmp_path: Path, size: Published, billions: float) -> None:
    """On both sides of the conversion, with the numbers of parameters that the model pages give."""
    listed = on_meta(size)
    assert round(sum(tensor.numel() for tensor in listed.values()) / 1e9, 2) == billions
    write_json(tmp_path / "config.json", config(size, shortened=size is PRO_7B))
    ours = read_config(tmp_path).build(read_processor(read_config(published)))
    with torch.device("meta"):
        expected = JanusForConditionalGeneration(JanusConfig(**config_json(ours, "transformers"))).state_dict()
    found = through(listed, read_deepseek)
    assert {name: tensor.shape for name, tensor in found.items()} == {name: tensor.shape for name, tensor in expected.items()}
    back = through(found, write_deepseek)
    assert {name: tuple(tensor.shape) for name, tensor in back.items()} == shapes(size)


@pytest.mark.parametrize("size", [PRO_1B, PRO_7B], ids=["1B", "7B"])
def test_published_configurations_come_back(published: Path, tmp_path: Path, size: Published) -> None:
    write_json(tmp_path / "config.json", config(size, shortened=size is PRO_7B))
    ours = read_config(tmp_path).build(read_processor(read_config(published)))
    text = ours.text_config
    heads = (text.num_attention_heads, text.num_key_value_heads, text.head_dim)
    assert heads == ((16, 16, 128) if size is PRO_1B else (32, 32, 128))
    assert (text.rms_norm_eps, text.rope_parameters["rope_theta"], ours.tie_word_embeddings) == (1e-6, 10000.0, False)
    back = config_json(ours, "deepseek")
    said = config(size)
    assert {name: back[name] for name in said if name.endswith("_config") and name != "language_config"} == {
        name: said[name] for name in said if name.endswith("_config") and name != "language_config"
    }
    assert said["language_config"].items() <= back["language_config"].items()
    assert (back["model_type"], back["architectures"]) == ("multi_modality", ["MultiModalityCausalLM"])


def test_layers_stay_together() -> None:
    names = ["a.layers.10.x.weight", "a.layers.2.y.weight", "a.layers.10.y.weight", "b.bias", "b.weight", "a.embed.weight"]
    assert split_into_parts(names) == [
        ("a.embed.weight",),
        ("a.layers.2.y.weight",),
        ("a.layers.10.x.weight", "a.layers.10.y.weight"),
        ("b.bias", "b.weight"),
    ]
