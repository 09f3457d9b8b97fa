"""A base from nothing: what `unidecouple assemble RECIPE` writes loads; alignment teaches words."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from small_runs import SMALL, save_small_base
from unidecouple.convert.load import load
from unidecouple.world import scratch as scratch_module
from unidecouple.world.alignment import WORDS, Alignment, align_generation, align_vision
from unidecouple.world.dataset import tokenizer_pictures
from unidecouple.world.prompts import held_out
from unidecouple.world.scratch import Scratch, align, make_scratch
from unidecouple.world.tokenizer import TokenizerTraining, fit_tokenizer


@pytest.mark.slow
def test_a_base_from_nothing_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, keys = held_out("val")
    monkeypatch.setattr(scratch_module, "held_out", lambda split: (prompts[::12], keys))  # drawing and judging all takes 30 s
    little = Alignment(steps=2, batch_size=2)
    scratch = Scratch(SMALL, TokenizerTraining(steps=4, batch_size=2), little, pictures=8)
    said: list[str] = []
    make_scratch(scratch, tmp_path / "base", said.append)
    model, processor = load(str(tmp_path / "base"))
    assert model.config.vq_config.encode_window == 32
    assert processor.tokenizer.unk_token_id not in processor.tokenizer("a photo of a red cow")["input_ids"]
    bounds = json.loads((tmp_path / "base" / "image_tokenizer.json").read_text())
    assert bounds["ceiling"] == 1.0
    assert bounds["floor"] < bounds["ceiling"]
    assert [json.loads(line)["step"] for line in (tmp_path / "base" / "image_tokenizer.jsonl").read_text().splitlines()] == [0, 3]
    assert any(line.startswith("alignment step") for line in said)


@pytest.mark.slow
def test_alignment_teaches_the_words_of_what_is_shown(tmp_path: Path) -> None:
    """Words (for a random tokenizer's tokens, which tell little: tokens) are found better than by guessing; nothing else moves."""
    model, processor = load(str(save_small_base(tmp_path)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sides = {
        align_vision: ("vision_model", "aligner"),
        align_generation: ("generation_embeddings", "generation_aligner", "generation_head"),
    }
    for side, parts in sides.items():
        losses: list[dict[str, float]] = []
        size = 16 if side is align_vision else 96
        side(model, processor.tokenizer, Alignment(150, size, 2e-3), lambda step, values, kept=losses: kept.append(values))
        assert set(losses[0]) >= set(WORDS)
        assert all(losses[-1][kind] < losses[0][kind] for kind in losses[0]), side
        if side is align_vision:
            assert all(losses[-1][kind] < math.log(len(WORDS[kind])) for kind in ("color", "row", "column"))  # classes take longer
        else:
            assert losses[-1]["token"] < 0.9 * math.log(SMALL.codes)
        for name, value in model.state_dict().items():
            moved = not torch.equal(value, before[name])
            if moved:
                assert name.split(".")[1] in parts, name
        before = {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.slow
def test_align_writes_a_copy_whose_generation_side_alone_is_new(tmp_path: Path) -> None:
    base = save_small_base(tmp_path / "base")
    said: list[str] = []
    folder = align(base, tmp_path / "aligned", said.append, Alignment(steps=3, batch_size=4))
    assert [line.split("  ")[0] for line in said] == ["alignment step 0/3", "alignment step 2/3"]
    (before, _), (after, _) = load(str(base)), load(str(folder))
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert changed
    assert all(name.startswith("model.generation_") for name in changed)


@pytest.mark.slow
def test_an_image_tokenizer_learns(tmp_path: Path) -> None:
    """Two dozen steps halve the pixel loss; codes end on the unit sphere and in use."""
    vq = load(str(save_small_base(tmp_path)))[0].model.vqmodel
    windows = tokenizer_pictures(16, 0).reshape(16, 2, 32, 2, 32, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 32, 32, 3)
    images = torch.from_numpy(windows).permute(0, 3, 1, 2).contiguous()
    losses: list[dict[str, float]] = []
    fit_tokenizer(
        vq, images, TokenizerTraining(steps=32, batch_size=4, warmup_share=0.5), lambda step, values: losses.append(values)
    )
    assert losses[-1]["pixel_loss"] < 0.5 * losses[0]["pixel_loss"]
    assert losses[-1]["perplexity"] > 4
    torch.testing.assert_close(vq.quantize.embedding.weight.norm(dim=-1), torch.ones(SMALL.codes))
    assert not any(weight.requires_grad for weight in vq.parameters())


def test_pictures_for_the_tokenizer_are_mostly_full_boards() -> None:
    cells = tokenizer_pictures(40, 2).reshape(40, 2, 32, 2, 32, 3).transpose(0, 1, 3, 2, 4, 5)
    drawn = (cells < 250).any((3, 4, 5)).sum((1, 2))
    assert np.mean(drawn == 4) >= 0.75
    assert drawn.min() >= 1
