"""``import unidecouple as ud``: lazy, complete, and what the command line calls."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import JanusForConditionalGeneration

import unidecouple as ud
from own_data import asked, flat, write_jsonl, write_pictures
from published import write_published
from unidecouple import api, cli

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_import_brings_no_torch_and_every_name_is_there() -> None:
    code = """
import sys, unidecouple as ud
assert "torch" not in sys.modules
assert callable(ud.train) and callable(ud.compare) and callable(ud.convert) and callable(ud.diagnose)
assert "torch" not in sys.modules
assert {"train", "load", "TrainOptions"} <= set(dir(ud))
import unidecouple.train.stop_request, unidecouple.convert.licences as licences
from unidecouple.train import stop_request
assert callable(ud.train) and ud.train.stop_request is stop_request and licences.carry_licences
assert "torch" not in sys.modules
try: ud.nothing
except AttributeError as error: assert "nothing" in str(error)
else: raise SystemExit("no AttributeError")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_function_of_the_api_is_offered_and_documented() -> None:
    for name in api.__all__:
        assert getattr(ud, name) is getattr(api, name) or name in ud._PACKAGES, name
        assert getattr(api, name).__doc__, name
    assert set(api.__all__) == {*ud._NAMES, *ud._PACKAGES}


@pytest.mark.slow
def test_the_quick_start_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From a published folder and a jsonl to a trained model that answers, generates and opens in transformers."""
    monkeypatch.chdir(tmp_path)
    write_published(tmp_path / "deepseek-ai" / "Janus-Pro-1B")
    names = [f"{number}.png" for number in range(40)]
    write_pictures(tmp_path / "data", "cat.png", *names)
    records = [record for n in range(20) for record in (asked(names[n]), flat(names[20 + n]))]
    write_jsonl(tmp_path / "data" / "train.jsonl", records)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    small = '{"max_steps": 2, "evaluation.eval_batches": 1, "diagnose": False, "device": "cpu", "report_to": []}'
    code = code.replace('{"max_steps": 200}', small).replace('ud.load("runs/mine")', 'ud.load("runs/mine", device="cpu")')
    scope: dict[str, object] = {}
    exec(code, scope)  # the page's own
    assert JanusForConditionalGeneration.from_pretrained("out/mine").config.model_type == "janus"
    assert isinstance(scope["model"], ud.Engine)
    with Image.open("image-1.png") as image:
        assert image.size == (16, 16)
    shown = capsys.readouterr().out
    assert "data: 19 mmu and 19 t2i samples to train on; held out: a fraction of 0.05 of each task" in shown
    given = json.loads(small.replace("False", "false"))
    again = ud.train("runs/mine", model="deepseek-ai/Janus-Pro-1B", data="data/train.jsonl", overrides=given)
    assert again == Path("runs/mine/checkpoint-2")  # finished
    write_jsonl(tmp_path / "ask.jsonl", [{"prompt": "a cow"}])
    assert ud.infer("runs/mine", "ask.jsonl", "out.jsonl", ud.InferOptions(device="cpu")).done == 1


def test_evaluate_returns_the_scores_that_it_writes(small_base: Path, tmp_path: Path) -> None:
    shown: list[str] = []
    options = ud.EvalOptions(limit=2, device="cpu", print_line=shown.append)
    result = ud.evaluate(small_base, ["pope"], tmp_path / "eval", options=options)["pope"]
    assert result is not None
    assert (tmp_path / "eval" / "scores.json").is_file()
    assert any(line.startswith("pope accuracy: ") for line in shown)


def test_guard_and_decouple(small_base: Path, tmp_path: Path) -> None:
    """The change is found, and the decoupled model has both weights."""
    shutil.copytree(small_base, tmp_path / "tuned")
    state, name = load_file(small_base / "model.safetensors"), "model.language_model.layers.0.mlp.up_proj"
    tuned = state[f"{name}.weight"] + 0.01
    save_file(state | {f"{name}.weight": tuned}, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    lines: list[str] = []
    report = ud.guard(small_base, tmp_path / "tuned", tmp_path / "report", device="cpu", print_line=lines.append)
    assert report["weights"]["total"]["changed"] == 1
    assert (tmp_path / "report" / "guard.json").is_file()
    options = ud.DecoupleOptions(fidelity=ud.Fidelity(full=True))
    made = ud.decouple(small_base, tmp_path / "tuned", tmp_path / "made", options, device="cpu", print_line=lines.append)
    found = load_file(made / "model.safetensors")
    assert torch.equal(found[f"{name}.deltas.t2i.weight"], tuned)
    assert torch.equal(found[f"{name}.weight"], state[f"{name}.weight"])
    assert any("matrices changed" in line for line in lines)


def test_a_dry_run_trains_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    small = {"data": {"pairs": 8, "scenes": 8}}
    options = ud.TrainOptions(dry_run=True, print_line=lines.append, cache=tmp_path / "cache")
    ud.train(tmp_path / "run", recipe="base/unified", overrides=small, options=options)
    assert not (tmp_path / "run").exists()
    assert "memory of one process" in "\n".join(lines)


def test_the_command_line_calls_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: dict[str, object] = {}
    monkeypatch.setattr(api, "train", lambda output, **given: called.update(given, output=output) or output)
    words = ["train", "a=1", "--model", "m", "--data", "a", "b", "b=2", "--method", "moe", "--output", str(tmp_path), "c=3"]
    assert cli.main(words) == 0
    assert (called["model"], called["method"]) == ("m", "moe")
    assert called["overrides"] == ["a=1", "c=3", "b=2"]
    assert called["data"] == [Path("a"), Path("b")]
