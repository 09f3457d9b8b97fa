"""Adapters that the real PEFT trained and saved: merged and unmerged they compute what PEFT does; the rest is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tiny_emu3 import plain_emu3
from unidecouple.adapters.load import apply_peft
from unidecouple.adapters.peft_own import read_peft
from unidecouple.cli import main
from unidecouple.convert.load import checkpoint_folder, load
from unidecouple.models.janus import UniJanusForConditionalGeneration

# PEFT 0.21 asks transformers 5.23 by an old name, and warns where it targets stacked experts
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
MakeModel = Callable[..., UniJanusForConditionalGeneration]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def trained(model: Any, folder: Path, **lora: Any) -> PeftModel:
    """An adapter of ``model`` with random numbers, saved by PEFT to ``folder``."""
    wrapped = get_peft_model(model, LoraConfig(r=lora.pop("r", 4), lora_alpha=8, **lora))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in (weight for weight in wrapped.parameters() if weight.requires_grad):
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ({}, {"target_modules": r".*language_model.*\.(q_proj|v_proj|down_proj)", "use_rslora": True}),
        ({}, {"target_modules": ["q_proj", "gate_proj"], "exclude_modules": ".*vision.*", "alpha_pattern": {"q_proj": 3}, "r": 3}),
        ({"ffn": "ta_moe"}, {"target_modules": [], "target_parameters": EXPERTS}),
        ({"ffn": "moe"}, {"target_modules": r".*language_model.*o_proj", "target_parameters": EXPERTS[1:]}),
    ],
    ids=["dense", "patterns", "experts", "one stack"],
)
def test_merged_and_unmerged_compute_what_peft_does(
    make_model: MakeModel, write: Any, logits: Any, tmp_path: Path, text: dict[str, Any], lora: dict[str, Any]
) -> None:
    base = make_model(**text)
    start, before = write("base", base), logits(base)
    wrapped = trained(load(str(start))[0], tmp_path / "adapter", **lora)
    expected = logits(wrapped.merge_and_unload())
    assert float((expected - before).abs().max()) > 0.01
    for option in ([], ["--unmerged"]):
        out = tmp_path / f"out{len(option)}"
        assert main(["adapter", "load", str(start), str(tmp_path / "adapter"), "--output", str(out), *option]) == 0
        made = load(str(out))[0]
        torch.testing.assert_close(logits(made), expected, atol=1e-5, rtol=1e-5)
        assert bool(made.config.text_config.lora_rank) == bool(option)


def test_other_layers_and_whole_modules_are_merged(make_model: MakeModel, write: Any, logits: Any, tmp_path: Path) -> None:
    """Word embeddings (a table), the image head, the vision tower; a norm trained in full."""
    start = write("base", make_model())
    layers = ["embed_tokens", "generation_head.proj_out", "vision_model.encoder.layers.0.self_attn.q_proj"]
    wrapped = trained(load(str(start))[0], tmp_path / "adapter", target_modules=layers, modules_to_save=["language_model.norm"])
    expected = logits(wrapped.merge_and_unload())
    made, _, found = apply_peft(str(start), tmp_path / "adapter", keep_unmerged=False)
    torch.testing.assert_close(logits(made), expected, atol=1e-5, rtol=1e-5)
    assert "model.language_model.norm.weight" in found.replaced
    with pytest.raises(ValueError, match="takes no low-rank update in this structure: leave out --unmerged"):
        apply_peft(str(start), tmp_path / "adapter", keep_unmerged=True)


def test_an_adapter_of_transformers_emu3(emu3_base: Path, tmp_path: Path) -> None:
    """Its module names are not ours; the base is what ``convert`` made of the same weights."""
    plain = plain_emu3()
    before = {name: weight.clone() for name, weight in plain.model.text_model.state_dict().items()}
    merged = trained(plain, tmp_path / "adapter", target_modules=r".*text_model.*\.(q_proj|up_proj)").merge_and_unload()
    made, _, found = apply_peft(str(emu3_base), tmp_path / "adapter", keep_unmerged=False)
    assert len(found.updates) == 4
    ours = made.decoder.state_dict()
    for name, weight in merged.model.text_model.state_dict().items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=1e-6)
    assert sum(not torch.equal(ours[name], weight) for name, weight in before.items()) == 4


class TestRefusals:
    @pytest.fixture
    def start(self, make_model: MakeModel, write: Any) -> Path:
        return write("base", make_model())

    @pytest.fixture
    def adapter(self, start: Path, tmp_path: Path) -> Path:
        trained(load(str(start))[0], tmp_path / "adapter", target_modules=r".*language_model.*q_proj")
        return tmp_path / "adapter"

    def test_what_has_no_form_is_named(self, start: Path, adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        model = load(str(start))[0]
        raw = json.loads(path.read_text())
        changes: list[tuple[dict[str, Any], str]] = [
            ({"peft_type": "IA3"}, "peft_type='IA3'"),
            ({"use_dora": True}, "use_dora=True has no form here"),
            ({"bias": "all"}, "bias='all' has no form here"),
            ({"lora_bias": True}, "lora_bias=True"),
            ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
            ({"layer_replication": [[0, 2]]}, "layer_replication="),
            ({"trainable_token_indices": [1]}, "trainable_token_indices="),
            ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changed the base's weights"),
            ({"lora_alpha": "8"}, "lora_alpha='8' of .* is no number"),
            ({"auto_map": {"AutoModel": "evil.Evil"}}, "auto_map names code to run"),
        ]
        for change, said in changes:
            path.write_text(json.dumps(raw | change))
            with pytest.raises(ValueError, match=said):
                read_peft(adapter, model.config, model.state_dict())

    def test_broken_and_foreign_weights_are_named(self, start: Path, adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        model, tensors = load(str(start))[0], load_file(adapter / "adapter_model.safetensors")
        first = next(iter(tensors))
        changes: list[tuple[dict[str, torch.Tensor], str]] = [
            ({first: tensors[first] * float("nan")}, "has NaN or infinite numbers in base_model"),
            ({first: torch.ones(4, 7)}, "for which the base has no weight"),
            ({first: torch.ones(4, 7, 1, 1)}, "matrices A and B are needed"),
            ({"base_model.model.other.weight": torch.ones(3)}, r"has other\.weight of shape \(3,\)"),
        ]
        for change, said in changes:
            save_file(tensors | change, path)
            with pytest.raises(ValueError, match=said):
                read_peft(adapter, model.config, model.state_dict())
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ValueError, match="Is it truncated"):
            read_peft(adapter, model.config, model.state_dict())
        path.unlink()
        with pytest.raises(ValueError, match="have PEFT save the adapter in safetensors"):
            read_peft(adapter, model.config, model.state_dict())

    def test_the_message_leads_to_the_command_that_works(self, start: Path, adapter: Path) -> None:
        with pytest.raises(ValueError, match=f"unidecouple adapter load .* {adapter} --output FOLDER"):
            checkpoint_folder(str(adapter))
