"""Settings of sampling: their ranges, and where a command's defaults for images come from."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

from unidecouple.convert.load import checkpoint_folder
from unidecouple.generate.engine import Engine
from unidecouple.generate.jobs import AnswerJob
from unidecouple.generate.sampling import GREEDY, IMAGE_SAMPLING, SamplingParams, image_sampling


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "guidance_scale"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e30, 10**400, "1", True, [1.0]])
def test_impossible_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}=.* must be"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("top_p", 0.0), ("top_p", 1.1), ("top_k", 2.5), ("temperature", 100.1), ("guidance_scale", 100.1)]
)
def test_ends_of_the_ranges(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}={value} must be"):
        SamplingParams(**{name: value})


def test_override_takes_what_is_given() -> None:
    before = SamplingParams(guidance_scale=3.0, temperature=0.5, top_k=9, top_p=0.8)
    assert before.override(temperature=None, top_k=None) == before
    assert before.override(temperature=0.0, top_k=3) == SamplingParams(guidance_scale=3.0, temperature=0.0, top_k=3, top_p=0.8)
    with pytest.raises(ValueError, match="temperature=-1 must be from 0 to 100"):
        before.override(temperature=-1)


def test_answers_have_no_guidance() -> None:
    with pytest.raises(ValueError, match="guidance_scale=3: answers have no guidance"):
        AnswerJob([1], sampling=GREEDY.override(guidance_scale=3.0))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, {}),
        ({}, {}),
        ({"guidance_scale": 3.0}, {"guidance_scale": 3.0}),
        ({"temperature": 0.5, "top_k": 9}, {}),  # without do_sample they do not count
        ({"do_sample": True, "temperature": 0.5, "top_k": 9, "top_p": 0.8}, {"temperature": 0.5, "top_k": 9, "top_p": 0.8}),
    ],
)
def test_defaults_are_those_of_generation_config(config: dict[str, Any] | None, expected: dict[str, float]) -> None:
    found = image_sampling(None if config is None else GenerationConfig(**config))
    assert found == SamplingParams(**{"guidance_scale": 5.0, **expected})


def test_a_value_out_of_range_in_generation_config_is_named() -> None:
    with pytest.raises(ValueError, match=r"top_p=3\.0 must be above 0 and at most 1"):
        image_sampling(GenerationConfig(do_sample=True, top_p=3.0))


@pytest.mark.parametrize("task", [None, "t2i"])
def test_the_shipped_base_has_its_own_settings(task: str | None) -> None:
    engine, prompts = Engine.load("unified", task=task), ["a photo of a red cow"]
    assert engine.image_sampling == SamplingParams(guidance_scale=1.5, temperature=0.7)
    [[default]], [[same]] = engine.generate_images(prompts), engine.generate_images(prompts, sampling=engine.image_sampling)
    [[other]] = engine.generate_images(prompts, sampling=engine.image_sampling.override(guidance_scale=5.0))
    assert default.tobytes() == same.tobytes() != other.tobytes()


def test_without_settings_in_the_checkpoint_guidance_is_5(tmp_path: Path) -> None:
    shutil.copytree(checkpoint_folder("unified"), tmp_path / "silent")
    path = tmp_path / "silent" / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: config[name] for name in config if name.endswith("_token_id")}))
    assert Engine.load(str(tmp_path / "silent")).image_sampling == IMAGE_SAMPLING
