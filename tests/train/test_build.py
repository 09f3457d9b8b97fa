"""Broken and missing checkpoints are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from published import write_published
from unidecouple.convert.convert import convert
from unidecouple.convert.load import checkpoint_folder, load, load_processor, load_shapes
from unidecouple.convert.steps import Conversion


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no checkpoint at .* config\.json is missing.*understanding, unified"):
        load(str(tmp_path / "nowhere"))


def test_a_runs_folder_stands_for_its_newest_checkpoint(small_base: Path, tmp_path: Path) -> None:
    for step in (90, 100):
        shutil.copytree(small_base, tmp_path / "run" / f"checkpoint-{step}")
    assert checkpoint_folder(str(tmp_path / "run")) == tmp_path / "run" / "checkpoint-100"
    load(str(tmp_path / "run"))


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("layouts")
    found = {"deepseek": write_published(folder / "deepseek")}
    for layout in ("transformers", "unidecouple"):
        found[layout] = folder / layout
        convert(found["deepseek"], found[layout], Conversion(to=layout, max_shard_bytes=500_000), lambda line: None)
    return found


def test_transformers_layout_is_loaded_as_it_is(layouts: dict[str, Path]) -> None:
    (theirs, first), (ours, second) = load(str(layouts["transformers"])), load(str(layouts["unidecouple"]))
    assert (theirs.config.model_type, theirs.config.text_config.ffn) == ("unidecouple_janus", "dense")
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    assert (type(first), first.system_prompt) == (type(second), second.system_prompt)


@pytest.mark.parametrize("layout", ["transformers", "unidecouple"])
def test_precision_in_memory(layouts: dict[str, Path], layout: str) -> None:
    for dtype, expected in ((torch.float32, torch.float32), ("auto", torch.bfloat16), (torch.float16, torch.float16)):
        model = load(str(layouts[layout]), dtype)[0]
        assert {weight.dtype for weight in model.parameters()} == {expected}
        assert model.decoder.rotary_emb.inv_freq.dtype == torch.float32


def test_a_checkpoint_without_its_tokenizer(small_base: Path, tmp_path: Path) -> None:
    shutil.copytree(small_base, tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        load(str(tmp_path / "copy"))


def test_truncated_weights(small_base: Path, tmp_path: Path) -> None:
    shutil.copytree(small_base, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cannot read .*model\.safetensors.*Is it truncated"):
        load(str(tmp_path / "copy"))


def test_weights_of_another_model(small_base: Path, tmp_path: Path) -> None:
    shutil.copytree(small_base, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("lm_head.weight")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks lm_head\.weight, which must be of shape"):
        load(str(tmp_path / "copy"))


def test_the_processor_alone(small_base: Path, tmp_path: Path) -> None:
    assert load_processor(str(small_base)).num_image_tokens == load(str(small_base))[1].num_image_tokens
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((small_base / name).read_bytes())
    (tmp_path / "processor_config.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"cannot read .*processor_config\.json"):
        load_processor(str(tmp_path))


def test_shapes_are_those_of_the_weights(tmp_path: Path) -> None:
    """Of a checkpoint in half precision, too: processes that disagree about a weight's size wait for each other forever."""
    convert(write_published(tmp_path / "published"), tmp_path / "ours", Conversion(), lambda line: None)
    (model, _), (shapes, _) = load(str(tmp_path / "ours")), load_shapes(str(tmp_path / "ours"))
    again = type(shapes)(shapes.config)  # as training builds it anew
    for other in (shapes, again):
        assert {n: (p.shape, p.dtype) for n, p in other.named_parameters()} == {
            n: (p.shape, p.dtype) for n, p in model.named_parameters()
        }
    for name, weight in model.model.vqmodel.state_dict().items():
        assert torch.equal(shapes.model.vqmodel.state_dict()[name], weight)
