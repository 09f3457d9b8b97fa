"""How pictures are drawn where nobody says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from unidecouple.convert.load import checkpoint_folder
from unidecouple.generate.engine import Engine
from unidecouple.generate.image_defaults import ImageDefaults, image_defaults
from unidecouple.generate.sampler import Choice


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({}, ImageDefaults(5.0, Choice())),
        ({"guidance_scale": 3.0}, ImageDefaults(3.0, Choice())),
        ({"temperature": 0.5, "top_k": 9}, ImageDefaults(5.0, Choice())),  # without do_sample they count for nothing
        ({"do_sample": True, "temperature": 0.5, "top_k": 9, "top_p": 0.8}, ImageDefaults(5.0, Choice(0.5, 9, 0.8))),
    ],
)
def test_a_checkpoint_says_what_its_generation_config_says(said: dict[str, Any], meant: ImageDefaults) -> None:
    assert image_defaults(GenerationConfig(**said)) == meant
    assert meant.filled(None, None, None) == meant
    assert meant.filled(1.0, 0.0, 3, 0.5) == ImageDefaults(1.0, Choice(0.0, 3, 0.5))


def test_a_value_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"top_p=3\.0 must be from 0 to 1"):
        image_defaults(GenerationConfig(do_sample=True, top_p=3.0))


@pytest.mark.parametrize("task", [None, "t2i"])
def test_a_base_draws_as_our_tables_do_unless_told(task: str | None) -> None:
    engine, prompts = Engine.load("unified", task=task), ["a photo of a red cow"]
    assert engine.image_defaults == ImageDefaults(1.5, Choice(0.7))
    [[ours]], [[told]] = engine.generate_images(prompts), engine.generate_images(prompts, 1, 0, 1.5, Choice(0.7))
    [[other]] = engine.generate_images(prompts, guidance_scale=5.0)
    assert ours.tobytes() == told.tobytes() != other.tobytes()


def test_a_checkpoint_that_is_silent_is_drawn_with_guidance_5(tmp_path: Path) -> None:
    shutil.copytree(checkpoint_folder("unified"), tmp_path / "silent")
    path = tmp_path / "silent" / "generation_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({name: said[name] for name in said if name.endswith("_token_id")}))
    assert Engine.load(str(tmp_path / "silent")).image_defaults == ImageDefaults()
