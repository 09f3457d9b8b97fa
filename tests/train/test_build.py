"""Broken and missing checkpoints are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from unidecouple.train.build import checkpoint_folder, load, load_processor


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint at .* config\.json is missing.*understanding, unified"):
        load(str(tmp_path / "nowhere"))


def test_a_runs_folder_stands_for_its_newest_checkpoint(small_base: Path, tmp_path: Path) -> None:
    for step in (90, 100):
        shutil.copytree(small_base, tmp_path / "run" / f"checkpoint-{step}")
    assert checkpoint_folder(str(tmp_path / "run")) == tmp_path / "run" / "checkpoint-100"
    load(str(tmp_path / "run"))


def test_truncated_weights(small_base: Path, tmp_path: Path) -> None:
    shutil.copytree(small_base, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot read the checkpoint"):
        load(str(tmp_path / "copy"))


def test_weights_of_another_model(small_base: Path, tmp_path: Path) -> None:
    shutil.copytree(small_base, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("lm_head.weight")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing_keys.*lm_head"):
        load(str(tmp_path / "copy"))


def test_the_processor_alone(small_base: Path, tmp_path: Path) -> None:
    assert load_processor(str(small_base)).num_image_tokens == load(str(small_base))[1].num_image_tokens
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((small_base / name).read_bytes())
    (tmp_path / "processor_config.json").write_text("{broken")
    with pytest.raises(ValueError, match="cannot read the processor at"):
        load_processor(str(tmp_path))
