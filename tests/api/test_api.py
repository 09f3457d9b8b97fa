"""``import unidecouple as ud``: lazy, complete, and what the command line calls."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import JanusForConditionalGeneration

import unidecouple as ud
from own_data import asked, flat, write_jsonl, write_pictures
from published import write_published
from unidecouple import api, cli
from unidecouple.batch import Task


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
    write_published(tmp_path / "janus")
    write_pictures(tmp_path, "a.png", "b.png")
    write_jsonl(tmp_path / "train.jsonl", [record for _ in range(4) for record in (asked("a.png"), flat("b.png"))])
    small = {"max_steps": 2, "evaluation.eval_batches": 1, "diagnose": False, "device": "cpu", "report_to": []}
    trained = ud.train("mine", model="janus", data="train.jsonl", method="lora_task", overrides=small)
    assert trained == Path("mine/checkpoint-2")
    assert ud.train("mine", model="janus", data="train.jsonl", method="lora_task", overrides=small) == trained  # finished
    model = ud.load("mine", device="cpu")
    assert isinstance(model, ud.Engine)
    assert len(model.understand([tmp_path / "a.png", tmp_path / "b.png"], ["What?", "How many?"], max_new_tokens=2)) == 2
    ((first,), (second,)) = model.generate_images(["a cow", "a pig"], seed=0)
    assert first.size == second.size == (16, 16)
    write_jsonl(tmp_path / "ask.jsonl", [{"prompt": "a cow"}])
    assert ud.infer("mine", "ask.jsonl", "out.jsonl", ud.InferOptions(device="cpu")).done == 1
    converted = ud.convert("mine", "hf", conversion=ud.Conversion("transformers", task=Task.T2I, merge=True))
    assert JanusForConditionalGeneration.from_pretrained(converted).config.model_type == "janus"
    assert "held out: a fraction of 0.05 of each task" in capsys.readouterr().out


def test_evaluate_returns_the_scores_that_it_writes(small_base: Path, tmp_path: Path) -> None:
    shown: list[str] = []
    options = ud.EvalOptions(limit=2, device="cpu", print_line=shown.append)
    result = ud.evaluate(small_base, ["pope"], tmp_path / "eval", options=options)["pope"]
    assert result is not None
    assert (tmp_path / "eval" / "scores.json").is_file()
    assert any(line.startswith("pope accuracy: ") for line in shown)


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
