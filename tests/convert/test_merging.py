"""Merged folders: the arithmetic on every weight, files carried along, and refusals that name what differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unidecouple.convert import merging
from unidecouple.convert.load import load
from unidecouple.convert.merging import write_merged
from unidecouple.methods.merging import TaskArithmetic

Tensors = Callable[[Path], dict[str, Tensor]]
HALF = TaskArithmetic().rule(0.5)


def tuned(base: Path, folder: Path, seed: int, change: Callable[[dict[str, Tensor]], object] = lambda state: None) -> Path:
    """A copy whose decoder moved."""
    shutil.copytree(base, folder)
    state = load_file(folder / "model.safetensors")
    torch.manual_seed(seed)
    state |= {n: w + torch.randn_like(w) for n, w in state.items() if ".layers." in n and "language_model" in n}
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("layout", ["ours", "plain"])
def test_every_weight(
    layout: str, request: pytest.FixtureRequest, tensors_of: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "MAX_SHARD_BYTES", 100_000)
    base: Path = request.getfixturevalue(layout)
    one, two = tuned(base, tmp_path / "one", 1), tuned(base, tmp_path / "two", 2)
    (tmp_path / "base").symlink_to(base)
    lines: list[str] = []
    write_merged(base, [one, two], tmp_path / "merged", HALF, lines.append)
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    start, a, b, found = (tensors_of(folder) for folder in (base, one, two, tmp_path / "merged"))
    assert found.keys() == start.keys()
    for name, weight in found.items():
        expected = start[name].double() + 0.5 * sum(tuned[name].double() - start[name].double() for tuned in (a, b))
        torch.testing.assert_close(weight, expected.to(weight.dtype))
    assert torch.equal(found["lm_head.weight"], start["lm_head.weight"])
    kept = {file.name for file in base.iterdir() if "model" not in file.name}
    assert kept <= {file.name for file in (tmp_path / "merged").iterdir()}
    if layout == "ours":
        load(str(tmp_path / "merged"))


def test_what_does_not_fit_is_named(ours: Path, tmp_path: Path) -> None:
    def refused(change: Callable[[dict[str, Tensor]], object], says: str) -> None:
        other = tuned(ours, tmp_path / "other", 0, change)
        with pytest.raises(ValueError, match=says):
            write_merged(ours, [other, other], tmp_path / "merged", HALF, print)
        shutil.rmtree(other)

    refused(
        lambda state: state.pop("lm_head.weight"),
        r"has the weight lm_head\.weight, .*other does not: merge models that were fine-tuned from",
    )
    refused(lambda state: state.update({"a.lora_A": torch.ones(1)}), r"other has the weight a\.lora_A.*--merge-lora")
    refused(lambda state: state.update({"lm_head.weight": torch.ones(2, 2)}), r"lm_head\.weight is of shape \(2, 2\) in .*other")
    assert not (tmp_path / "merged").exists()


def test_another_configuration_is_refused(ours: Path, tmp_path: Path) -> None:
    """Shapes alone do not tell the number of heads."""
    other = tuned(ours, tmp_path / "other", 0)
    raw = json.loads((other / "config.json").read_text())
    raw["text_config"]["rope_theta"] = raw["text_config"]["rms_norm_eps"] = 0.5
    (other / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=r"config\.json of .*other has text_config\.\w+=0\.5"):
        write_merged(ours, [other], tmp_path / "merged", TaskArithmetic().rule(0.3), print)


def test_targets_and_layouts_that_are_refused(ours: Path, published: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is read, or a folder around it"):
        write_merged(ours, [ours], ours, TaskArithmetic().rule(0.3), print)
    with pytest.raises(ValueError, match="deepseek-ai's original layout: convert it first"):
        write_merged(published, [published], tmp_path / "merged", TaskArithmetic().rule(0.3), print)
