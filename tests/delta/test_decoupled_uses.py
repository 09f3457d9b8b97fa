"""What a decoupled checkpoint is used for: the engine with both tasks at once, further training, Emu3's shared head."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from moved_weights import moved
from small_runs import TWO_STEPS
from tiny_emu3 import CODES, SIDE, SIZE
from unidecouple.batch import Batch
from unidecouple.convert.load import load, load_shapes
from unidecouple.data.sequences import QAPair, SequenceBuilder, collate
from unidecouple.delta.decouple import DecoupleOptions, decouple
from unidecouple.delta.forms import Fidelity
from unidecouple.generate.engine import Engine
from unidecouple.methods.stage import Stage
from unidecouple.train.train import train


@torch.no_grad()
def test_the_engine_serves_both_tasks(base: Path, tuned: Path, pictures: np.ndarray, tmp_path: Path) -> None:
    """Answers are the base's, images the tuned model's; the shapes alone are read as well (a server's other processes)."""
    made = decouple(str(base), str(tuned), tmp_path / "made", DecoupleOptions(fidelity=Fidelity(full=True)))
    engines = [Engine.load(str(folder)) for folder in (made, base, tuned)]
    image = Image.fromarray(pictures[0])
    answers = [one.understand([image], ["Is there a cow in the image?"], 4) for one in engines]
    made_of = [np.asarray(one.generate_images(["a red cow"], seed=3)[0][0]) for one in engines]
    assert answers[0] == answers[1]
    assert np.array_equal(made_of[0], made_of[2])
    assert not np.array_equal(made_of[0], made_of[1])
    assert load_shapes(str(made))[0].state_dict().keys() == load(str(made))[0].state_dict().keys()


@torch.no_grad()
def test_emu3_has_a_head_per_task(emu3_base: Path, tmp_path: Path) -> None:
    """Words and image tokens share one table and one head, so generation gets rows and a head of its own."""
    shutil.copytree(emu3_base, tmp_path / "tuned")
    start = load_file(emu3_base / "model.safetensors")
    state = moved(start, 1)
    save_file(state, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    made = decouple(str(emu3_base), str(tmp_path / "tuned"), tmp_path / "made", DecoupleOptions(fidelity=Fidelity(full=True)))
    models = [load(str(folder))[0] for folder in (made, emu3_base, tmp_path / "tuned")]
    builder = SequenceBuilder(load(str(emu3_base))[1])
    rng = np.random.default_rng(0)
    asked = builder.understanding(
        rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8), [QAPair("vqa", "what is this ?", "a red cat")]
    )
    drawn = builder.generation("a cat", rng.integers(0, CODES, SIDE * SIDE).tolist())
    batches: list[Batch] = [collate([sample], builder.tokenizer.pad_token_id) for sample in (asked, drawn)]
    losses = [model(batch=tuple(batches)) for model in models]
    assert torch.equal(losses[0].mmu.total, losses[1].mmu.total)
    assert torch.equal(losses[0].t2i.total, losses[2].t2i.total)
    assert not torch.equal(losses[0].t2i.total, losses[1].t2i.total)
    hidden = [model.decode_batch(batches[1]).last_hidden_state for model in models]
    assert torch.equal(models[0].image_logits(hidden[0]), models[2].image_logits(hidden[2]))
    state["model.vqmodel.quantize.embedding.weight"] = state["model.vqmodel.quantize.embedding.weight"] + 1
    save_file(state, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.vqmodel\.quantize\.embedding\.weight differs .*both tasks use it"):
        decouple(str(emu3_base), str(tmp_path / "tuned"), tmp_path / "other")


@pytest.mark.slow
def test_it_is_trained_further(small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    """Only the deltas train: the base's weights stay bit for bit, and a run's checkpoint is a decoupled one again."""
    shutil.copytree(small_base, tmp_path / "tuned")
    state = moved(load_file(small_base / "model.safetensors"), 1)
    save_file(state, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    made = decouple(str(small_base), str(tmp_path / "tuned"), tmp_path / "made", DecoupleOptions(fidelity=Fidelity(rank=2)))
    stage = Stage("deltas", learning_rate=1e-2, train={"deltas": 1.0}, warmup_steps=0)
    config = replace(TWO_STEPS, model_name_or_path=str(made), stages=(stage,))
    train(config, tmp_path / "run", small_cache, lambda line: None, threading.Event())
    before = load(str(made))[0].state_dict()
    after, _ = load(str(tmp_path / "run"))
    assert after.config.text_config.task_deltas == load(str(made))[0].config.text_config.task_deltas
    changed = [name for name, weight in after.state_dict().items() if not torch.equal(weight, before[name])]
    assert changed
    assert all(".deltas.t2i." in name for name in changed)
