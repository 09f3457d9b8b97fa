"""What a run leaves for the report about its inside: attention between the modalities, as the report reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from small_runs import Run
from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.convert.stored import all_checkpoints
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.diagnose.attention_interaction import attention_interaction, interaction_of
from unidecouple.diagnose.probe import BATCH
from unidecouple.report.logs import read_measured
from unidecouple.run import RunConfig
from unidecouple.world.batches import world_batches


def test_curves_of_the_trained_model(small_run: RunConfig, run: Run, small_cache: Path, tmp_path: Path) -> None:
    config = replace(small_run, max_steps=1, diagnose=True)
    assert run(config, tmp_path)
    found = read_measured(tmp_path / "interaction.json", interaction_of)
    assert found is not None
    assert (found.step, found.correlation) == (1, None), "two layers have no correlation"
    model, processor = load(str(all_checkpoints(tmp_path)[-1]))
    source = world_batches(config.data, model, SequenceBuilder(processor), config.seed, small_cache, lambda *_: None)
    rows = attention_interaction(model, lambda task, number: source.task_batch(task, BATCH, number), batches=16)
    for task in Task:
        wanted = [row.intensity for row in rows if row.task == task.key]
        assert [point.intensity for point in found.curves[task.key]] == pytest.approx(wanted, rel=1e-5)
        assert len(wanted) == 2
