"""Runs whose frozen layers are compressed: which layers, the same losses as with dequantised weights, checkpoints in full."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from small_runs import APART_THEN_JOINT, Run, load_copy
from unidecouple.convert.stored import all_checkpoints
from unidecouple.methods.selection import frozen_matrices
from unidecouple.methods.stage import Lora, Stage
from unidecouple.methods.structure import Symbiotic, TaskAwareMoE
from unidecouple.models.compressed import compressed_weights
from unidecouple.run import RunConfig
from unidecouple.train.freezing import compress_frozen

LORA = (
    Stage("LoRA", 1.0, 1e-2, {"generation": 1, "lora": 1}, lora=Lora(4, 8.0, ("attention", "mlp"), ("attention",)), warmup_steps=1),
)


def lora_run(small_run: RunConfig, **changes: Any) -> RunConfig:
    return replace(small_run, stages=LORA, max_steps=4, save_steps=2, **changes)


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key.startswith(("loss/", "grad_norm"))} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(all_checkpoints(folder)[-1] / "model.safetensors")


def test_layers_that_no_stage_trains_are_chosen(small_base: Path) -> None:
    model = load_copy(str(small_base))[0]
    of_lora = frozen_matrices(model, LORA)
    assert "model.language_model.layers.0.mlp.up_proj.weight" in of_lora
    assert "model.language_model.layers.1.self_attn.q_proj.weight" in of_lora
    assert not any(name.startswith(("lm_head", "model.generation", "model.vqmodel")) for name in of_lora)
    with_attention = frozen_matrices(model, (*LORA, Stage(train={"attention": 1})))
    assert {
        name for name in of_lora if "language_model" in name and ".self_attn." in name
    } == of_lora.keys() - with_attention.keys()
    everything = (Stage(train={"vision": 1, "attention": 1, "ffn": 1}),)
    with pytest.raises(ValueError, match=r"quantize_frozen=bf16: some stage trains every linear layer"):
        compress_frozen(model, "bf16", everything, small_base, first=True)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_a_run_has_the_losses_of_dequantised_weights(
    storage: str, small_run: RunConfig, small_base: Path, run: Run, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    model, processor = load_copy(str(small_base))
    compress_frozen(model, storage, LORA, tmp_path / "base", first=True)  # type: ignore[arg-type]
    for name, weight in compressed_weights(model):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(weight.dequantize()))
    model.save_pretrained(tmp_path / "dequantised")
    processor.save_pretrained(tmp_path / "dequantised")
    config = lora_run(small_run)
    assert run(replace(config, model_name_or_path=str(tmp_path / "dequantised")), tmp_path / "reference")
    assert run(replace(config, quantize_frozen=storage), tmp_path / "compressed")
    assert losses(tmp_path / "compressed") == losses(tmp_path / "reference")
    frozen = frozen_matrices(model, LORA)
    base, saved, reference = (
        load_file(small_base / "model.safetensors"),
        weights(tmp_path / "compressed"),
        weights(tmp_path / "reference"),
    )
    for name, weight in saved.items():
        assert torch.equal(weight, base[name] if name in frozen else reference[name]), name
    assert not (tmp_path / "compressed" / "frozen").exists()


def test_in_bf16_a_bf16_run_is_unchanged(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    config = lora_run(small_run, bf16=True)
    config = replace(config, stages=(replace(LORA[0], lora=Lora(8, 16.0, ("attention", "mlp"))),))
    for name, storage in (("usual", None), ("compressed", "bf16")):
        assert run(replace(config, quantize_frozen=storage), tmp_path / name)
    assert losses(tmp_path / "usual") == losses(tmp_path / "compressed")
    whole, compressed = (weights(tmp_path / name) for name in ("usual", "compressed"))
    assert all(torch.equal(weight, compressed[name]) for name, weight in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resumed_equals_unbroken_with_8_bit_states(stop_after: int, small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = replace(small_run, structure=TaskAwareMoE(), stages=APART_THEN_JOINT, quantize_frozen="nf4", optim="adamw_8bit")
    assert run(config, tmp_path / "whole")
    run(config, tmp_path / "broken", stop_after)
    assert run(config, tmp_path / "broken")
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert all(torch.equal(weight, broken[name]) for name, weight in whole.items())


def test_what_cannot_be_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="quantize_frozen=nf4 does not work with parallel=fsdp"):
        RunConfig(quantize_frozen="nf4", parallel="fsdp").check_sharding(2)
    with pytest.raises(ValueError, match="optim=adamw_8bit does not work with parallel=fsdp"):
        RunConfig(optim="adamw_8bit", parallel="fsdp").check_sharding(2)
    RunConfig(quantize_frozen="nf4", optim="adamw_8bit", parallel="fsdp").check_sharding(1)
    with pytest.raises(ValueError, match="quantize_frozen=int8: stage 'parted' changes the structure"):
        RunConfig(quantize_frozen="int8", stages=(Stage("parted", structure=Symbiotic()),))
