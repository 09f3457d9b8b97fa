"""Bases, and checkpoints as if trained from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unidecouple.adapters.save import save
from unidecouple.batch import Batch
from unidecouple.convert.load import load_processor
from unidecouple.methods.selection import select
from unidecouple.methods.stage import Lora
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.ownership import MARKER
from unidecouple.train.build import add_lora

Write = Callable[[str, UniJanusForConditionalGeneration], Path]
Train = Callable[[UniJanusForConditionalGeneration, Lora | None, list[str]], UniJanusForConditionalGeneration]
Save = Callable[..., Path]
Same = Callable[[Path, Path], bool]
Logits = Callable[[UniJanusForConditionalGeneration], torch.Tensor]


@pytest.fixture
def write(tmp_path: Path, processor: UniJanusProcessor) -> Write:
    """Save a model and its processor, read from disk as runs read it, under a name."""

    def to_disk(name: str, model: UniJanusForConditionalGeneration) -> Path:
        folder = tmp_path / name
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        load_processor(str(folder)).save_pretrained(folder)
        return folder

    return to_disk


@pytest.fixture(scope="session")
def train() -> Train:
    """A copy of the model with low-rank updates, its parts (see ``PARTS``) moved at random, the updates in any case."""

    @torch.no_grad()
    def moved(model: UniJanusForConditionalGeneration, lora: Lora | None, parts: list[str]) -> UniJanusForConditionalGeneration:
        model = add_lora(model, lora, seed=5) if lora else model
        generator = torch.Generator().manual_seed(7)
        weights = dict(model.named_parameters())
        for name in select(weights, dict.fromkeys([*parts, *(["lora"] if lora else [])], 1.0)):
            weights[name] += 0.1 * torch.randn(weights[name].shape, generator=generator)
        return model

    return moved


@pytest.fixture
def saved(tmp_path: Path) -> Save:
    """``unidecouple adapter save``; its folder."""

    def run(checkpoint: Path, base: Path, seed: int = 0, with_experts: bool = False, said: list[str] | None = None) -> Path:
        save(str(checkpoint), tmp_path / "adapter", str(base), seed, with_experts, [].append if said is None else said.append)
        return tmp_path / "adapter"

    return run


@pytest.fixture(scope="session")
def same_checkpoint() -> Same:
    """Whether two folders hold the same files, byte for byte, optimizer and trainer state left out."""

    def compare(ours: Path, theirs: Path) -> bool:
        rest = ("trainer_state.json", "optimizer.safetensors", "ema.safetensors", MARKER)
        names = [{file.name for file in folder.iterdir()} - set(rest) for folder in (ours, theirs)]
        left, right = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
        assert left.keys() == right.keys()
        assert [name for name in left if left[name].dtype != right[name].dtype or not torch.equal(left[name], right[name])] == []
        return names[0] == names[1] and all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names[0])

    return compare


@pytest.fixture(scope="session")
def logits(joint_batch: tuple[Batch, Batch]) -> Logits:
    """Of both heads on both batches, one long vector."""

    @torch.no_grad()
    def of(model: UniJanusForConditionalGeneration) -> torch.Tensor:
        hidden = [model.decode_batch(batch).last_hidden_state for batch in joint_batch]
        return torch.cat([head(part).flatten() for part in hidden for head in (model.lm_head, model.model.generation_head)])

    return of
