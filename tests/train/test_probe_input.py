"""What a diagnosis opens: checkpoints and data by every way to name them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from own_data import asked, flat, write_jsonl, write_pictures
from small_runs import Run
from unidecouple.batch import Task
from unidecouple.convert.load import load_processor
from unidecouple.data.settings import Files, Source
from unidecouple.diagnose import alignment, gradient_conflict, routing, routing_history
from unidecouple.diagnose.probe import Skipped
from unidecouple.run import RunConfig
from unidecouple.train.probe_input import OpenedCheckpoint, open_probe_input
from unidecouple.world import source as worlds


@pytest.fixture(autouse=True)
def _small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "UNSEEN", replace(worlds.UNSEEN, pairs=24, scenes=24))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file with three conversations and three images to be drawn."""
    write_pictures(tmp_path, "a.png", "b.png")
    words = ("cow", "cup", "car")
    rows = [asked("a.png", "What is this?", f"A {word}.") for word in words] + [flat("b.png", f"a red {word}") for word in words]
    return write_jsonl(tmp_path / "own.jsonl", rows)


def opened(
    checkpoint: Path, cache: Path, recipe: RunConfig | None = None, data: tuple[Path, ...] = (), batches: int = 1
) -> OpenedCheckpoint:
    return open_probe_input(str(checkpoint), recipe, data, batches, torch.device("cpu"), cache, lambda *progress: None)


def quiet(what: str, done: int, of: int) -> None:
    pass


def test_the_drawn_world_by_default_with_captions_that_describe(small_base: Path, small_cache: Path) -> None:
    probe_input = opened(small_base, small_cache).probe_input
    assert probe_input.tasks == tuple(Task)
    assert (probe_input.step, [*probe_input.routing_log]) == (None, [])
    (talk,), (caption,) = (probe_input.batch(Task.MMU, 4, 0, described=described) for described in (False, True))
    assert len(caption.input_ids) == len(talk.input_ids) == 4
    assert caption.input_ids.shape[1] < talk.input_ids.shape[1], "the caption alone, no questions before it"
    (drawn,) = probe_input.batch(Task.T2I, 16, 0)
    assert (drawn.input_ids[:, 1] != drawn.input_ids[0, -1]).all(), "no prompt is hidden"


def test_a_run_is_known_by_its_folder(small_run: RunConfig, run: Run, small_cache: Path, tmp_path: Path, own: Path) -> None:
    """Its newest checkpoint, its step, its logs, and the files that it is scored on."""
    files = Files((Source(own),), (Source(own),), mmu_batch_size=2, t2i_batch_size=2)
    trained = replace(small_run, data=files, max_steps=2, evaluation=replace(small_run.evaluation, eval_batches=1))
    assert run(trained, tmp_path / "run")
    (tmp_path / "run" / "routing.jsonl").write_text('{"step": 1, "stage": "all", "layers": []}\n')
    for name in (tmp_path / "run", tmp_path / "run" / "checkpoint-2"):
        found = opened(name, small_cache)
        assert (found.probe_input.step, [record["step"] for record in found.probe_input.routing_log]) == (2, [1])
        assert found.data == f"held-out files: {own}"


def test_data_given_goes_before_everything(small_base: Path, small_cache: Path, own: Path) -> None:
    found = opened(small_base, small_cache, data=(own,))
    assert found.data == f"the files given: {own}"
    assert found.probe_input.tasks == tuple(Task)
    conflict = gradient_conflict.measure(found.probe_input, quiet)
    assert isinstance(conflict, Skipped)
    assert conflict.reason == "16 different records of each task are needed, and there are 3 of mmu; give more with --data"
    few = alignment.measure(found.probe_input, quiet)
    assert isinstance(few, Skipped)
    assert "fewer than 8" in few.reason
    assert "--data" in few.reason


def test_files_of_one_task_have_no_conflict(small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path, "b.png")
    alone = write_jsonl(tmp_path / "alone.jsonl", [flat("b.png", "a red cow")])
    probe_input = opened(small_base, small_cache, data=(alone,)).probe_input
    assert probe_input.tasks == (Task.T2I,)
    found = gradient_conflict.measure(probe_input, quiet)
    assert isinstance(found, Skipped)
    assert "t2i only" in found.reason
    assert isinstance(routing.measure(probe_input, quiet), Skipped)
    assert isinstance(routing_history.measure(probe_input, quiet), Skipped)


def test_training_files_are_said_to_be_that(small_base: Path, small_cache: Path, own: Path) -> None:
    recipe = RunConfig(data=Files((Source(own),), mmu_batch_size=2, t2i_batch_size=2))
    assert opened(small_base, small_cache, recipe).data.startswith("training files, since none are held out")


def test_what_cannot_be_looked_at(small_base: Path, small_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--batches 0"):
        opened(small_base, small_cache, batches=0)
    with pytest.raises(ValueError, match="no checkpoint at"):
        opened(tmp_path / "nothing", small_cache)
    monkeypatch.setattr(worlds, "IMAGE_SIZE", 384)
    with pytest.raises(ValueError, match="give your own data with --data"):
        opened(small_base, small_cache)


def test_batches_of_a_conflict_share_no_record(small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    """20 records of understanding, each with an answer of its own: two batches of 10, though eight times as many were asked for.

    On the same batch twice the floor would be exactly 1.
    """
    write_pictures(tmp_path, "a.png", "b.png")
    words = small_words(small_base)[:40]
    rows = [asked("a.png", "What is this?", word) for word in words[:20]] + [flat("b.png", word) for word in words]
    probe_input = opened(small_base, small_cache, data=(write_jsonl(tmp_path / "few.jsonl", rows),), batches=8).probe_input
    assert [probe_input.source.distinct_samples(task, 256) for task in Task] == [20, 40]
    for task in Task:
        batches = [probe_input.distinct_batch(task, 10, number)[0] for number in range(2)]
        shown = [tuple(row.tolist()) for batch in batches for row in batch.input_ids]
        assert len({tuple(token for token in row if token) for row in shown}) == 20
    found = gradient_conflict.measure(probe_input, quiet)
    assert not isinstance(found, Skipped)
    assert found["pairs"] == 2
    assert all(row["floor"] < 0.999 for row in found["rows"])
    assert found["few"] == "20 records of mmu are few, so the cosines are noisy: give 256 or more with --data"


def test_scenes_and_pairs_of_a_conflict_are_not_drawn_twice(small_base: Path, small_cache: Path) -> None:
    probe_input = opened(small_base, small_cache).probe_input
    assert [probe_input.source.distinct_samples(task, 256) for task in Task] == [24, 24]
    pictures = [probe_input.distinct_batch(Task.T2I, 12, number)[0].image_tokens for number in range(2)]
    tokens = [tuple(value for value in row.tolist() if value >= 0) for part in pictures for row in part]
    assert len(tokens) == 24
    assert len(set(tokens)) == 24
    found = gradient_conflict.measure(probe_input, quiet)
    assert not isinstance(found, Skipped)
    assert found["pairs"] == 2


def small_words(base: Path) -> list[str]:
    """Words of the base's vocabulary, each one token."""
    vocabulary = load_processor(str(base)).tokenizer.get_vocab()
    return sorted(word for word in vocabulary if word.isalpha())
