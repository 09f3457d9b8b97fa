"""A tiny base, and models whose decoder, norms, word embeddings and generation modules moved a little from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from moved_weights import Change, MakeTuned, moved
from unidecouple.models.processing import UniJanusProcessor


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Any], processor: UniJanusProcessor) -> Path:
    """In our layout, float32; every matrix has variance 1 / fan-in, so that outputs depend on all of them."""
    folder = tmp_path_factory.mktemp("base") / "janus"
    make_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_tuned(base: Path) -> MakeTuned:
    def make(folder: Path, seed: int = 1, change: Change = lambda state: None) -> Path:
        shutil.copytree(base, folder)
        state = moved(load_file(folder / "model.safetensors"), seed)
        change(state)
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


@pytest.fixture(scope="session")
def tuned(make_tuned: MakeTuned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tuned(tmp_path_factory.mktemp("tuned") / "janus")
