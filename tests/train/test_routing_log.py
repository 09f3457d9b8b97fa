"""Routing over steps: counted in the step itself, written, resumed, and alarmed about."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from small_runs import APART_THEN_JOINT, Run
from step_settings import step_settings
from unidecouple.batch import Batch, Task, count_tokens
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.methods.objective import Objective
from unidecouple.methods.stage import Stage
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.run import RunConfig
from unidecouple.train import stages as stage_runs
from unidecouple.train.build import restructure
from unidecouple.train.routing_log import RoutingLog, read_routing_log
from unidecouple.train.run_logs import ROUTING
from unidecouple.train.step import train_step
from unidecouple.world.batches import world_batches


@pytest.fixture
def unidecouple_run(small_run: RunConfig) -> RunConfig:
    return replace(small_run, structure=TaskAwareMoE(), stages=APART_THEN_JOINT)


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_step_counts_every_token_once_however_it_is_cut(small_run: RunConfig, small_cache: Path, pieces: int) -> None:
    base, processor = load(small_run.model_name_or_path)
    source = world_batches(small_run.data, base, SequenceBuilder(processor), 0, small_cache, lambda *lines: None)
    parts = [source.batch(0, part, pieces) for part in range(pieces)] if pieces == 1 else [source.batch(0), source.batch(1)]
    model = restructure(base, TaskAwareMoE(experts_per_group=3), 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = train_step(model, optimizer, parts, step_settings(Objective(), tuple(Task), "label", 1.0), expert_groups=(3, 3))
    assert step.routing is not None
    batches: list[Batch] = [batch for part in parts for batch in part]
    tokens = count_tokens(batches).double()
    for layer in step.routing:
        torch.testing.assert_close(layer[:, -1], tokens)
        torch.testing.assert_close(layer[:, :-2].sum(1), tokens)
        assert layer[Task.MMU, 3:5].sum() == layer[Task.T2I, :3].sum() == 0, "by label"
    unasked = train_step(model, optimizer, parts, step_settings(Objective(), tuple(Task), "label", 1.0))
    assert unasked.routing is None
    assert unasked.losses == pytest.approx(step.losses)


def test_a_run_writes_a_record_every_logging_step(unidecouple_run: RunConfig, run: Run, tmp_path: Path) -> None:
    assert run(replace(unidecouple_run, logging_steps=2), tmp_path)
    records = read_routing_log(tmp_path)
    assert [(record["step"], record["stage"]) for record in records] == [(2, "apart"), (4, "joint"), (6, "joint")]
    assert [row["layer"] for row in records[0]["layers"]] == [0, 1]
    assert records[0]["layers"][0]["group_share"] == {"mmu": [1.0, 0.0], "t2i": [0.0, 1.0]}, "stage 1 routes by label"


def test_a_dense_run_writes_none(small_run: RunConfig, run: Run, tmp_path: Path) -> None:
    assert run(replace(small_run, max_steps=1), tmp_path)
    assert not (tmp_path / ROUTING).exists()
    assert read_routing_log(tmp_path) == []


@pytest.mark.slow
def test_an_interrupted_run_has_the_log_of_an_unbroken_one(unidecouple_run: RunConfig, run: Run, tmp_path: Path) -> None:
    assert run(unidecouple_run, tmp_path / "whole")
    assert not run(unidecouple_run, tmp_path / "broken", stop_after=5)
    stray = {"step": 6, "stage": "joint", "layers": []}
    with (tmp_path / "broken" / ROUTING).open("a") as file:
        file.write(json.dumps(stray) + "\n")  # logged, but not saved before a kill
    assert run(unidecouple_run, tmp_path / "broken")
    assert read_routing_log(tmp_path / "broken") == read_routing_log(tmp_path / "whole")


CONFIG = UniLlamaConfig(num_hidden_layers=1, ffn="moe", num_experts=4)


@pytest.fixture
def spread() -> torch.Tensor:
    """Counts of one layer whose four experts share understanding's tokens."""
    counts = torch.zeros(1, 2, 6, dtype=torch.float64)
    counts[0, 0] = torch.tensor([25, 25, 25, 25, 10, 100])
    return counts


@pytest.fixture
def gathered(spread: torch.Tensor) -> torch.Tensor:
    counts = spread.clone()
    counts[0, 0, :4] = torch.tensor([100, 0, 0, 0])
    return counts


@pytest.mark.parametrize("resumed", [False, True])
def test_the_alarm_starts_anew_where_the_structure_changes(
    resumed: bool, spread: torch.Tensor, gathered: torch.Tensor, tmp_path: Path
) -> None:
    """Experts of the stage before are no history of the new ones; within a stage they are."""
    lines: list[str] = []
    log = RoutingLog(tmp_path, lines.append, [10])
    log.write(10, "one", CONFIG, spread)
    log.write(20, "two", CONFIG, gathered)
    assert lines == []
    if resumed:
        log = RoutingLog(tmp_path, lines.append, [10])
    log.write(30, "two", CONFIG, spread)
    log.write(40, "two", CONFIG, gathered)
    assert [line.split(":")[0] for line in lines] == ["step 40"]


def test_a_run_tells_its_log_where_the_structure_changes(
    small_run: RunConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[int]] = []

    class Spy(RoutingLog):
        def __init__(self, folder: Path, say: Callable[[str], None], changes: Sequence[int] = ()) -> None:
            made.append([*changes])
            super().__init__(folder, say, changes)

    monkeypatch.setattr(stage_runs, "RoutingLog", Spy)
    dense, parted = Stage(train={"ffn": 1}), Stage(train={"experts": 1, "expert_router": 1})
    stages = (dense, replace(parted, structure=TaskAwareMoE()), parted)
    assert run(replace(small_run, stages=stages, max_steps=3), tmp_path)
    assert made == [[1]]


def test_the_alarm_remembers_what_an_earlier_attempt_logged(spread: torch.Tensor, gathered: torch.Tensor, tmp_path: Path) -> None:
    lines: list[str] = []
    means = RoutingLog(tmp_path, lines.append).write(10, "joint", CONFIG, spread)
    assert means == {"load_entropy/mmu": pytest.approx(1.0), "token_entropy/mmu": pytest.approx(0.1)}
    assert lines == []
    RoutingLog(tmp_path, lines.append).write(20, "joint", CONFIG, gathered)
    (warning,) = lines
    assert warning.startswith("step 20: warning")
    assert "one expert" in warning
    assert "layer 0 e1, layer 0 e2, layer 0 e3" in warning
