"""An interrupted run, resumed, is the unbroken run: the same losses and weights, bit for bit.

At every step of it, with logs and averages; for every structure and gradient method, at one, see ``test_members.py``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from small_runs import APART_THEN_JOINT, FEW, Run
from unidecouple.batch import count_tokens
from unidecouple.convert.load import load
from unidecouple.convert.stored import all_checkpoints
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.methods.structure import Dense, MoE, Structure, TaskAwareMoE
from unidecouple.run import RunConfig
from unidecouple.train.train import train
from unidecouple.world.batches import world_batches


def logged(folder: Path) -> list[dict[str, float]]:
    """Log lines without what a clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


@pytest.mark.parametrize(
    ("structure", "stop_after"),
    [
        (MoE(), 1),
        *(pytest.param(one, stop, marks=pytest.mark.slow) for one, stop in ((Dense(), 4), (MoE(), 3))),
        *(pytest.param(TaskAwareMoE(), stop, marks=pytest.mark.slow) for stop in (1, 3, 4, 5)),  # its stage changes after 3
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_resumed_equals_unbroken(
    structure: Structure, stop_after: int, small_run: RunConfig, run: Run, run_once: Run, tmp_path: Path
) -> None:
    config = replace(small_run, structure=structure, ema_decay=0.9)
    if structure.kind == "ta_moe":
        config = replace(config, stages=APART_THEN_JOINT)
    elif structure.kind == "moe":
        config = replace(
            config, stages=(replace(config.stages[0], train={"experts": 1, "expert_router": 1, "generation": 1, "alpha": 1}),)
        )
    assert run_once(config, tmp_path / "whole")
    finished = run(config, tmp_path / "broken", stop_after)
    assert not finished or (structure.kind == "ta_moe" and stop_after == 3), "a stop at the end of a stage is seen in the next"
    assert run(config, tmp_path / "broken")
    assert logged(tmp_path / "broken") == logged(tmp_path / "whole")
    for file in ("model.safetensors", "ema.safetensors"):
        whole, broken = (load_file(all_checkpoints(tmp_path / name)[-1] / file) for name in ("whole", "broken"))
        assert whole.keys() == broken.keys()
        assert [name for name in whole if not torch.equal(whole[name], broken[name])] == []


@pytest.mark.slow
def test_seconds_and_memory_are_of_all_attempts(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    """An attempt of a quarter of an hour, made up; then a checkpoint of an earlier version, which tells of none."""
    before = {"wall_seconds": 900.0, "cpu_seconds": 800.0, "peak_memory_bytes": 1 << 50}
    assert not run(small_run, tmp_path, stop_after=3)
    path = all_checkpoints(tmp_path)[-1] / "trainer_state.json"
    state = json.loads(path.read_text())
    assert 0 < state["spent"]["cpu_seconds"] < 800
    path.write_text(json.dumps(state | {"spent": before}))
    assert not run(small_run, tmp_path, stop_after=5)
    later = json.loads((all_checkpoints(tmp_path)[-1] / "trainer_state.json").read_text())
    assert run(small_run, tmp_path)
    found = json.loads((tmp_path / "scores.json").read_text())
    assert 900 < later["spent"]["wall_seconds"] < found["wall_seconds"] < 1800
    assert 800 < later["spent"]["cpu_seconds"] < found["cpu_seconds"] < 1600
    assert found["peak_memory_bytes"] == 1 << 50

    (tmp_path / "scores.json").unlink()
    path = all_checkpoints(tmp_path)[-1] / "trainer_state.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "spent"}))
    assert run(small_run, tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["wall_seconds"] < 800


def test_finished_run_is_not_run_again(small_run: RunConfig, small_cache: Path, tmp_path: Path) -> None:
    """And it says so, as the first attempt says what it loads, how it validates and what to do next."""
    said: list[str] = []
    config = replace(small_run, evaluation=replace(small_run.evaluation, eval_steps=6))
    train(config, tmp_path, small_cache, said.append, threading.Event())
    ending = f"checkpoint: {tmp_path / 'checkpoint-6'}; next: unidecouple chat {tmp_path}"
    assert said[0] == f"loading {small_run.model_name_or_path}"
    assert [line.partition(" [")[0] for line in said if "[validation]" in line] == ["step 0", "step 6"]
    assert said[-1] == ending
    before = (tmp_path / "scores.json").stat().st_mtime_ns
    said.clear()
    train(config, tmp_path, small_cache, said.append, threading.Event())
    assert said == [f"{tmp_path} is finished after 6 steps; {ending}"]
    assert (tmp_path / "scores.json").stat().st_mtime_ns == before


def test_folder_of_another_run_is_refused(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    assert not run(small_run, tmp_path, stop_after=1)
    with pytest.raises(ValueError, match=r"holds another run .*seed: 0, not 7"):
        run(replace(small_run, seed=7), tmp_path)


def test_output_that_is_a_model_is_refused_before_anything_is_written(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    """Its folder would afterwards stand for the run, and be converted and hashed with the run's files."""
    base, adapter, file = tmp_path / "base", tmp_path / "adapter", tmp_path / "file"
    for folder, name in ((base, "model.safetensors"), (adapter, "adapter_config.json")):
        folder.mkdir()
        (folder / name).write_bytes(b"")
    file.write_bytes(b"")
    own = replace(small_run, model_name_or_path=str(tmp_path / "link" / ".." / "base"))
    (tmp_path / "link").mkdir()
    with pytest.raises(ValueError, match=r"/base is the model that the run starts from: choose another output folder"):
        run(own, base)
    (base / "config.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"/base holds a model \(config.json\)"):
        run(small_run, base)
    with pytest.raises(ValueError, match=r"/adapter holds a model \(adapter_config.json\)"):
        run(small_run, adapter)
    with pytest.raises(ValueError, match=r"/file is a file or a broken link"):
        run(small_run, file)
    assert {path.name for path in base.iterdir()} == {"model.safetensors", "config.json"}
    assert [path.name for path in adapter.iterdir()] == ["adapter_config.json"]


def test_old_checkpoints_are_dropped_after_the_new_is_whole(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    assert run(replace(small_run, save_total_limit=2), tmp_path)
    assert [path.name for path in all_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]


def test_a_finished_run_is_no_other_run_s(small_run: RunConfig, run: Run, run_once: Run, tmp_path: Path) -> None:
    assert run_once(small_run, tmp_path)
    with pytest.raises(ValueError, match=r"max_steps: 6, not 5"):
        run(replace(small_run, max_steps=5), tmp_path)


def test_a_setting_newer_than_the_folder_has_its_default_there(
    small_run: RunConfig, run: Run, run_once: Run, tmp_path: Path
) -> None:
    assert run_once(small_run, tmp_path)
    saved = tmp_path / "run.yaml"
    older = [line for line in saved.read_text().splitlines(keepends=True) if not line.startswith("weight_decay:")]
    assert len(older) == len(saved.read_text().splitlines()) - 1
    saved.write_text("".join(older))
    assert run(small_run, tmp_path)


def test_tokens_logged_are_those_of_all_batches_so_far(
    small_run: RunConfig, run_once: Run, small_cache: Path, tmp_path: Path
) -> None:
    """Counted again from the data; that a resumed run logs the same is part of its equality above."""
    assert run_once(small_run, tmp_path)
    model, processor = load(small_run.model_name_or_path)
    source = world_batches(small_run.data, model, SequenceBuilder(processor), small_run.seed, small_cache, lambda *_: None)
    seen = torch.stack([count_tokens(source.batch(step)) for step in range(small_run.max_steps)]).cumsum(0)
    lines = logged(tmp_path)
    assert [[line["tokens/mmu"], line["tokens/t2i"]] for line in lines] == seen.tolist()


def test_what_is_trained_may_be_scored_by_a_test_of_other_size(
    small_run: RunConfig, run: Run, run_once: Run, tmp_path: Path
) -> None:
    """But nothing else may differ, and what has scores keeps them."""
    assert run_once(small_run, tmp_path)
    larger = replace(small_run, data=replace(small_run.data, evaluation=replace(FEW, vqa_questions=3)))
    with pytest.raises(ValueError, match="vqa_questions: 2, not 3"):
        run(larger, tmp_path)
    (tmp_path / "scores.json").unlink()
    before = logged(tmp_path)
    with pytest.raises(ValueError, match="seed: 0, not 7"):
        run(replace(larger, seed=7), tmp_path)
    assert run(larger, tmp_path)
    assert logged(tmp_path) == before
    assert "vqa_questions: 3" in (tmp_path / "run.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"step": 6, "scores": []}', b"\0" * 99])
def test_torn_scores_are_no_sign_of_an_end(content: bytes, small_run: RunConfig, run: Run, run_once: Run, tmp_path: Path) -> None:
    config = replace(small_run, max_steps=1)
    assert run_once(config, tmp_path)
    whole = json.loads((tmp_path / "scores.json").read_text())["scores"]
    (tmp_path / "scores.json").write_bytes(content)
    assert run(config, tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["scores"] == whole


def test_a_failed_start_leaves_the_folder_free(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    stage = replace(small_run.stages[0], train={"attentoin": 1})
    with pytest.raises(ValueError, match="attentoin"):
        run(replace(small_run, stages=(stage,)), tmp_path)
    assert not run(small_run, tmp_path, stop_after=1)
    (tmp_path / "run.yaml").unlink()
    with pytest.raises(ValueError, match=r"but no run\.yaml"):
        run(small_run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("trainer_state.json", lambda state: state | {"step": "3"}, "whole numbers"),
        ("trainer_state.json", lambda state: state | {"step": 2}, "of step 2"),
        ("trainer_state.json", lambda state: state | {"spent": {"hours": 1}}, "hours"),
        ("trainer_state.json", lambda state: state | {"new": 1}, "new"),
        ("trainer_state.json", lambda state: state | {"stage": 1}, "no step of this run's stages"),
        ("optimizer.safetensors", lambda tensors: {}, "other weights|is empty"),
        ("optimizer.safetensors", lambda tensors: {name: value[:1] for name, value in tensors.items()}, "other weights"),
        ("optimizer.safetensors", lambda tensors: {f"x{name}": value for name, value in tensors.items()}, "other weights"),
        ("ema.safetensors", lambda tensors: {name: value[:1] for name, value in tensors.items()}, "other weights"),
    ],
)
def test_files_of_another_run_are_refused(
    name: str, change: Callable[[Any], Any], problem: str, small_run: RunConfig, run: Run, run_once: Run, tmp_path: Path
) -> None:
    config = replace(small_run, ema_decay=0.9)
    assert not run_once(config, tmp_path, stop_after=3)
    path = tmp_path / "checkpoint-3" / name
    if path.suffix == ".json":
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    else:
        save_file({key: value.contiguous() for key, value in change(load_file(path)).items()}, path)
    with pytest.raises(ValueError, match=rf"cannot resume: .*({problem})"):
        run(config, tmp_path)
