"""Shared by all tests: one thread, and the smallest Janus that still has every part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig

from small_runs import SMALL, save_small_base
from tiny_emu3 import write_emu3
from tiny_language import write_language
from unidecouple.batch import Batch
from unidecouple.convert.convert import convert
from unidecouple.convert.language import assemble_base
from unidecouple.convert.steps import Conversion
from unidecouple.data.sequences import QAPair, SequenceBuilder, collate
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.models.tiny import tiny_config, tiny_model, tiny_processor
from unidecouple.train.launch import device_of
from unidecouple.world.dataset import vocabulary
from unidecouple.world.questions import CAPTION_REQUEST

torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a loaded one is no fault
settings.load_profile("any machine")

TINY = replace(SMALL, image_size=16, vq_channel_multiplier=(1, 1, 1), vq_encode_window=0)
"""Images of 16 pixels, 16 tokens each."""


LONGEST = (
    "test_the_pages_commands_run",
    "test_two_processes_equal_one",
    "test_killed_runs_lose_nothing",
    "test_killed_processes_lose_nothing",
    "test_demo_in_small",
    "test_processes_change_nothing",
    "test_torchrun_starts_the_command",
    "test_the_example_passes_the_property_tests_of_the_union",
    "test_comparison_recipes_take_a_step",
)
"""Started first, so that no process waits for another's at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tests compute that take the device fixture: cpu, cuda")


@pytest.fixture(autouse=True)
def _default_dtype() -> Iterator[None]:
    """Libraries set torch's default type while they load; no test may leave another one to the next."""
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return device_of(request.config.getoption("--device"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: getattr(item, "originalname", item.name) not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Checkpoints that tests convert on the way stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNIDECOUPLE_CACHE", str(tmp_path_factory.mktemp("conversions")))
        yield


MakeModel = Callable[..., UniJanusForConditionalGeneration]
"""``make_model(seed=0, **text)``; ``text`` overrides fields of its ``UniLlamaConfig``."""


@torch.no_grad()
def enliven(model: torch.nn.Module, seed: int) -> None:
    """Give every matrix variance 1 / fan-in, LoRA's B and the task routers too, so that outputs depend on all of them.

    Norms with a scale a group get scales that differ; those with one keep theirs.

    At the start of training attention is near uniform and logits are near zero: tests on such a model see little.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and name.endswith("norm.weight"):
            weight.normal_(mean=1, std=0.2, generator=generator)
        elif weight.ndim > 1:
            fan_in = weight.shape[-1] if weight.ndim == 3 else weight[0].numel()
            weight.normal_(std=fan_in**-0.5, generator=generator)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base on disk that fits the synthetic benchmark's images."""
    return save_small_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def emu3_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Emu3 on disk as it comes out of ``unidecouple convert``."""
    folder = tmp_path_factory.mktemp("emu3")
    convert(write_emu3(folder / "published"), folder / "ours", Conversion(), lambda line: None)
    return folder / "ours"


@pytest.fixture(scope="session")
def language_base(tmp_path_factory: pytest.TempPathFactory, small_base: Path) -> Path:
    """A tiny language model with grouped heads and tied embeddings as it comes out of ``unidecouple assemble``."""
    folder = tmp_path_factory.mktemp("language")
    assemble_base(write_language(folder / "lm"), folder / "base", str(small_base), say=lambda line: None)
    return folder / "base"


@pytest.fixture(scope="session")
def processor() -> UniJanusProcessor:
    return tiny_processor(vocabulary(), TINY)


@pytest.fixture(scope="session")
def builder(processor: UniJanusProcessor) -> SequenceBuilder:
    return SequenceBuilder(processor)


@pytest.fixture(scope="session", name="enliven")
def _enliven() -> Callable[[torch.nn.Module, int], None]:
    return enliven


@pytest.fixture(scope="session")
def make_model(processor: UniJanusProcessor) -> MakeModel:
    def make(seed: int = 0, **text: Any) -> UniJanusForConditionalGeneration:
        model = tiny_model(tiny_config(processor.tokenizer, TINY, **text), seed).eval()
        enliven(model, seed)
        return model

    return make


@pytest.fixture(scope="session")
def as_plain_janus() -> Callable[[UniJanusForConditionalGeneration], JanusForConditionalGeneration]:
    """transformers' own Janus with the weights of a dense model."""

    def convert(model: UniJanusForConditionalGeneration) -> JanusForConditionalGeneration:
        raw = model.config.to_dict()
        known = LlamaConfig().to_dict().keys() - {"model_type"}
        text = LlamaConfig(**{name: value for name, value in raw["text_config"].items() if name in known})
        parts = {name: raw[name] for name in ("vision_config", "vq_config", "image_token_id", "tie_word_embeddings")}
        plain = JanusForConditionalGeneration(JanusConfig(text_config=text, **parts))
        plain.load_state_dict(model.state_dict())
        return plain.eval()

    return convert


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """Four images of noise, uint8 (4, 16, 16, 3)."""
    return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def joint_batch(builder: SequenceBuilder, pictures: np.ndarray) -> tuple[Batch, Batch]:
    """Two conversations and two images to draw (one with its prompt dropped), rows of different lengths."""
    asked = QAPair("pope", "Is there a cow in the image?", "yes")
    described = QAPair("caption", CAPTION_REQUEST, "a red cow and a blue pig")
    understanding = [builder.understanding(pictures[0], [asked, described]), builder.understanding(pictures[1], [asked])]
    tokens = np.random.default_rng(1).integers(0, TINY.codes, (2, TINY.num_image_tokens)).tolist()
    generation = [
        builder.generation("a photo of a cow", tokens[0]),
        builder.generation("a photo of two red cups", tokens[1], dropped=True),
    ]
    pad = builder.tokenizer.pad_token_id
    return collate(understanding, pad), collate(generation, pad)
