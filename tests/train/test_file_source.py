"""A run on the user's own files: the same loop, held-out scores, exact resume."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file

from own_data import asked, flat, write_jsonl, write_pictures
from small_runs import Run
from unidecouple import config as configs
from unidecouple.convert.load import load
from unidecouple.convert.stored import all_checkpoints
from unidecouple.data.bad_records import BadDataError
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.settings import Files, Source
from unidecouple.run import RunConfig
from unidecouple.train.selection import LOSS, Selection
from unidecouple.train.train import train
from unidecouple.train.validation_loss import open_validation

WORDS = ["cow", "pig", "cup", "bus", "car", "cake", "dog", "cat"]


@pytest.fixture
def own(small_run: RunConfig, tmp_path: Path) -> RunConfig:
    """Conversations and images with prompts; the last two of each are held out."""
    write_pictures(tmp_path, *(f"{word}.png" for word in WORDS))
    for name, words in (("train", WORDS[:-2]), ("held", WORDS[-2:])):
        questions = [asked(f"{word}.png", f"Is there a {word} in the image?") for word in words]
        write_jsonl(tmp_path / f"{name}.jsonl", [*questions, *(flat(f"{word}.png", f"a photo of a {word}") for word in words)])
    files = Files(
        (Source(tmp_path / "train.jsonl"),),
        validation=(Source(tmp_path / "held.jsonl"),),
        mmu_batch_size=3,
        t2i_batch_size=3,
        max_length=128,
    )
    evaluation = replace(small_run.evaluation, eval_steps=2, eval_batches=2)
    return replace(small_run, data=files, evaluation=evaluation)


def scores(folder: Path) -> list[tuple[str, float]]:
    return [(row["benchmark"], row["value"]) for row in json.loads((folder / "scores.json").read_text())["scores"]]


def test_held_out_scores_by_task(own: RunConfig, run: Run, tmp_path: Path) -> None:
    assert run(own, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "scores.jsonl").read_text().splitlines()]
    assert [(row["step"], row["benchmark"]) for row in rows] == [
        (step, name) for step in (0, 2, 4, 6) for name in ("answers", "image_tokens")
    ]
    assert all(row["value"] < 0 for row in rows)
    assert rows[-2]["value"] > rows[0]["value"]
    assert scores(tmp_path / "run") == [(row["benchmark"], row["value"]) for row in rows[-2:]]
    config = load(str(own.model_name_or_path))[0].config
    guesses = [-math.log(config.text_config.vocab_size), -math.log(config.vq_config.num_embeddings)]
    written = json.loads((tmp_path / "run" / "scores.json").read_text())["scores"]
    assert [(row["floor"], row["ceiling"]) for row in written] == [(guess, 0.0) for guess in guesses]


@pytest.mark.slow
def test_resumed_and_cut_runs_are_the_unbroken_one(own: RunConfig, run: Run, tmp_path: Path) -> None:
    assert run(own, tmp_path / "whole")
    assert not run(own, tmp_path / "broken", stop_after=3)
    assert run(own, tmp_path / "broken")
    assert run(replace(own, gradient_accumulation_steps=3), tmp_path / "cut")
    whole, broken, cut = (load_file(all_checkpoints(tmp_path / n)[-1] / "model.safetensors") for n in ("whole", "broken", "cut"))
    assert [name for name in whole if not torch.equal(whole[name], broken[name])] == []
    for name, weight in whole.items():
        torch.testing.assert_close(cut[name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_batches_built_ahead_are_the_same(own: RunConfig, run: Run, tmp_path: Path) -> None:
    ahead = replace(own, dataloader_num_workers=1, gradient_accumulation_steps=3)
    assert run(replace(ahead, dataloader_num_workers=0), tmp_path / "whole")
    assert not run(ahead, tmp_path / "broken", stop_after=3)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert run(ahead, tmp_path / "broken")
    whole, broken = (load_file(all_checkpoints(tmp_path / name)[-1] / "model.safetensors") for name in ("whole", "broken"))
    assert [name for name in whole if not torch.equal(whole[name], broken[name])] == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_vanishes_in_training_stops_it_at_its_step(
    workers: Literal[0, 1], own: RunConfig, small_cache: Path, tmp_path: Path
) -> None:
    """After step 2 all images are gone: steps before theirs are saved, and the error tells where."""
    own = replace(own, save_steps=1, save_total_limit=9, dataloader_num_workers=workers)
    own = replace(own, evaluation=replace(own.evaluation, eval_steps=0))

    def say(line: str) -> None:
        if line.startswith("step 2/"):
            for word in WORDS:
                (tmp_path / f"{word}.png").unlink()

    with pytest.raises(BadDataError, match=r"more than max_bad_ratio=0\.01; the last: .*train\.jsonl:\d+"):
        train(own, tmp_path / "run", small_cache, say, threading.Event())
    newest = int(all_checkpoints(tmp_path / "run")[-1].name.split("-")[1])
    assert newest == 2 + workers, "the batch of step 3 was built before its images vanished, or not"


def test_packed_rows_train_the_same(own: RunConfig, run: Run, tmp_path: Path) -> None:
    assert run(own, tmp_path / "padded")
    assert run(replace(own, data=replace(own.data, pack=True)), tmp_path / "packed")
    for one, two in zip(scores(tmp_path / "padded"), scores(tmp_path / "packed"), strict=True):
        assert one == (two[0], pytest.approx(two[1], rel=1e-3))


def test_scores_need_held_out_files(own: RunConfig, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.validation is empty"):
        run(replace(own, data=replace(own.data, validation=())), tmp_path / "run")


def test_the_recipe_of_a_run_on_files(own: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(configs.dump(own))
    assert configs.load(RunConfig, [tmp_path / "run.yaml"]) == own
    with pytest.raises(ValueError, match="key 'pairs' does not go with the other keys in data"):
        configs.load(RunConfig, [tmp_path / "run.yaml"], ["data.pairs=3"])


@torch.no_grad()
def test_text_alone_is_scored_as_language(own: RunConfig, small_cache: Path, tmp_path: Path) -> None:
    """Beside records about images: "answers" is of both, "text" the model's own loss on the records without an image."""
    write_jsonl(tmp_path / "text.jsonl", [asked(None, f"Is a {word} an animal?", "yes") for word in WORDS[:2]])
    assert isinstance(own.data, Files)
    model, processor = load(str(own.model_name_or_path))
    files = replace(own.data, validation=(*own.data.validation, Source(tmp_path / "text.jsonl")))
    evaluation = replace(own.evaluation, eval_batches=1, eval_batch_size=4)

    def scores(files: Files) -> dict[str, float]:
        opened = open_validation(files, evaluation, processor, SequenceBuilder(processor), model.model.vqmodel, small_cache)
        return {row.benchmark: row.value for row in opened.validate(model)}

    found = scores(files)
    assert list(found) == ["answers", "image_tokens", "text"]
    alone = scores(replace(files, validation=(Source(tmp_path / "text.jsonl"),), t2i_batch_size=0))
    assert list(alone) == ["answers"]
    assert found["text"] == pytest.approx(alone["answers"])
    assert found["text"] != found["answers"]
    assert list(scores(own.data)) == ["answers", "image_tokens"]
    rows = [{"step": 1, "benchmark": name, "metric": "log_probability", "value": -value} for value, name in enumerate(found, 1)]
    assert Selection(LOSS, False)._values(rows) == {1: 1.5}  # text is not counted twice
