"""Two checkpoints in any layouts, and refusals that give the figure."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moved_weights import SHARE, MakeTuned
from unidecouple.batch import Task
from unidecouple.convert.convert import convert
from unidecouple.convert.steps import Conversion
from unidecouple.delta.checkpoint import open_checkpoint
from unidecouple.delta.pair import check_same_base, open_pair, relative_change
from unidecouple.models.processing import UniJanusProcessor


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


@pytest.mark.parametrize("layout", ["transformers", "deepseek", "unidecouple"])
def test_layouts_are_read_as_one(base: Path, tuned: Path, layout: str, tmp_path: Path) -> None:
    convert(tuned, tmp_path / "other", Conversion(to=layout, max_shard_bytes=100_000), lambda line: None)
    assert len(list((tmp_path / "other").glob("*.safetensors"))) > 1
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    seen = set()
    for name, old, new in open_pair(str(base), str(tmp_path / "other")).tensors():
        assert torch.equal(old, before[name])
        assert torch.equal(new, after[name])
        seen.add(name)
    assert seen == before.keys()


def test_low_rank_updates_are_merged(tmp_path: Path, base: Path) -> None:
    folder = copied(base, tmp_path / "lora")
    raw = json.loads((folder / "config.json").read_text())
    raw["text_config"] |= {"lora_rank": 2, "lora_alpha": 4.0, "lora_targets": ["attention"]}
    (folder / "config.json").write_text(json.dumps(raw))
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if "language_model" in name and ".self_attn." in name]:
        outer, inner = state[name].shape
        start = name.removesuffix("weight")
        state |= {f"{start}lora_A": torch.ones(1, 2, inner), f"{start}lora_B": torch.full((1, outer, 2), 0.01)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    for name, old, new in open_pair(str(base), str(folder)).tensors():
        wanted = 0.04 if "language_model" in name and ".self_attn." in name else 0.0  # 4 / 2 * (0.01 + 0.01)
        torch.testing.assert_close(new, old + wanted)


def test_updates_per_task_name_the_command_that_gives_one_tasks_model(
    tmp_path: Path, base: Path, make_model: Callable[..., Any], processor: UniJanusProcessor
) -> None:
    """That command's result is compared with the base; experts have no counterpart there, and no command gives one."""

    def saved(name: str, **settings: Any) -> str:
        make_model(**settings).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    lora = {"lora_rank": 2, "lora_targets": ["attention", "mlp"], "lora_per_task": ["attention"]}
    folder = saved("per task", **lora)
    remedy = f"convert '{folder}' --task mmu --to transformers --output FOLDER"
    with pytest.raises(ValueError, match=rf"one LoRA per task \(attention\).*{re.escape(remedy)}"):
        open_pair(str(base), folder)
    for task in Task:
        converted = tmp_path / task.key
        convert(Path(folder), converted, Conversion(task=task, to="transformers"), lambda line: None)
        assert open_pair(str(base), str(converted)).tuned.shapes.keys() == open_checkpoint(str(base)).shapes.keys()
    with pytest.raises(ValueError, match=r"has experts \(ffn='ta_moe'\) and one LoRA per task"):
        open_pair(str(base), saved("both", ffn="ta_moe", **lora | {"lora_targets": ["attention"]}))
    with pytest.raises(ValueError, match=r"another structure than .* \(ffn='ta_moe', not 'dense'\).*`unidecouple eval`"):
        open_pair(str(base), saved("experts", ffn="ta_moe"))


def test_the_relative_change(base: Path, tuned: Path) -> None:
    assert relative_change(open_pair(str(base), str(base))) == 0
    assert relative_change(open_pair(str(base), str(tuned))) == pytest.approx(SHARE, rel=1e-3)


def test_unrelated_weights_are_refused_with_the_figure(base: Path, make_tuned: MakeTuned, tmp_path: Path) -> None:
    other = make_tuned(
        tmp_path / "other",
        change=lambda state: state.update({n: torch.randn_like(w) * w.std() for n, w in state.items() if ".layers." in n}),
    )
    pair = open_pair(str(base), str(other))
    change = relative_change(pair)
    assert change == pytest.approx(math.sqrt(2), rel=0.05)
    with pytest.raises(ValueError, match=rf"other was not fine-tuned from .*differ by {change:.2f} of their norm"):
        check_same_base(pair, change)


def test_what_cannot_be_compared_is_named(base: Path, make_tuned: MakeTuned, tmp_path: Path) -> None:
    def refused(folder: Path, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            open_pair(str(base), str(folder))
        shutil.rmtree(folder)

    other = copied(base, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    table = tokenizer["model"]["vocab"]
    one, two = [token for token in table if token.isalpha()][:2]
    table[one], table[two] = table[two], table[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(other, rf"number 2 of \d+ tokens differently \(first '({one}|{two})'")
    other = copied(base, tmp_path / "other")
    raw = json.loads((other / "config.json").read_text())
    raw["text_config"]["rms_norm_eps"] = 0.5
    (other / "config.json").write_text(json.dumps(raw))
    refused(other, r"has text_config\.rms_norm_eps=0\.5")
    other = copied(base, tmp_path / "other")
    raw = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(raw | {"quantization_config": {"bits": 4}}))
    refused(other, "quanti")
    refused(make_tuned(tmp_path / "other", change=lambda state: state.pop("lm_head.weight")), r"lacks lm_head\.weight")


def test_other_families_are_read_by_their_names(tmp_path: Path) -> None:
    """A folder without config.json, one with an unknown model, and a single file of any name."""
    state = {"model.layers.0.mlp_moe_gen.up_proj.weight": torch.ones(4, 4), "time_embedder.bias": torch.ones(4)}
    folder = tmp_path / "bagel"
    folder.mkdir()
    save_file(state, folder / "ema.safetensors")
    save_file({name: 1.5 * weight for name, weight in state.items()}, folder / "model.safetensors")
    bare = open_checkpoint(str(folder))
    (folder / "config.json").write_text('{"model_type": "bagel"}')
    assert open_checkpoint(str(folder)).shapes.keys() == bare.shapes.keys() == state.keys()
    pair = open_pair(str(folder / "ema.safetensors"), str(folder))
    assert relative_change(pair) == pytest.approx(0.5)
    save_file({**state, "extra": torch.ones(1)}, folder / "ema.safetensors")
    with pytest.raises(ValueError, match=r"ema\.safetensors has extra, and .*bagel has not \(1 names differ\)"):
        open_pair(str(folder / "ema.safetensors"), str(folder))
    save_file(state | {"time_embedder.bias": torch.ones(5)}, folder / "ema.safetensors")
    with pytest.raises(ValueError, match=r"time_embedder\.bias is of shape \(4,\) in .* and \(5,\) in .*1 shapes differ"):
        open_pair(str(folder / "ema.safetensors"), str(folder))
    with pytest.raises(ValueError, match="no checkpoint at"):
        open_pair(str(folder), str(tmp_path / "none"))
    words = {"embed_tokens.weight": torch.ones(4, 2), "lm_head.weight": torch.ones(4, 2)}
    save_file(words, folder / "ema.safetensors")
    save_file({name: torch.ones(5, 2) for name in words}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"bagel has no config\.json of a known model, so .* not those of"):
        open_pair("understanding", str(folder))
    with pytest.raises(ValueError, match=r"\(5, 2\) in .*bagel and \(4, 2\) in .*: add the same tokens to the base"):
        open_pair(str(folder / "ema.safetensors"), str(folder))
