"""Tiny checkpoints in every layout, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from published import write_published
from unidecouple.convert.convert import convert
from unidecouple.convert.steps import Conversion
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor

Convert = Callable[..., Path]


def run(source: Path, target: Path, **wanted: Any) -> Path:
    """Convert in silence."""
    convert(source, target, Conversion(**wanted), lambda line: None)
    return target


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture(scope="session", name="converted")
def _converted() -> Convert:
    return run


@pytest.fixture(scope="session", name="tensors_of")
def _tensors_of() -> Callable[[Path], dict[str, torch.Tensor]]:
    return tensors


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Janus-Pro in deepseek-ai's layout."""
    return write_published(tmp_path_factory.mktemp("published") / "janus")


@pytest.fixture(scope="session")
def ours(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(published, tmp_path_factory.mktemp("ours") / "janus")


@pytest.fixture(scope="session")
def plain(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in transformers' layout."""
    return run(published, tmp_path_factory.mktemp("plain") / "janus", to="transformers")


@pytest.fixture
def save(tmp_path: Path, processor: UniJanusProcessor) -> Callable[[UniJanusForConditionalGeneration], Path]:
    """Write one of our tiny models to a folder."""

    def write(model: UniJanusForConditionalGeneration) -> Path:
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return write
