"""Shared by tests of training: a size that fits the synthetic images, methods of two stages, a short run, the type of ``run``."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from unidecouple.convert.load import load
from unidecouple.eval.benchmark import Score
from unidecouple.methods.stage import Lora, Stage
from unidecouple.methods.structure import Symbiotic
from unidecouple.models.base import UnifiedModel
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.models.tiny import TinySize, tiny_config, tiny_model, tiny_processor
from unidecouple.run import Evaluation, RunConfig
from unidecouple.world.dataset import vocabulary
from unidecouple.world.settings import SyntheticData, SyntheticEvaluation

SMALL = TinySize(
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=64,
    vision_hidden_size=32,
    vision_layers=1,
    codes=64,
    vq_latent_channels=32,
    vq_channel_multiplier=(1, 1, 1, 1, 1),
)

APART_THEN_JOINT = (
    Stage("apart", 0.5, 1e-2, {"generation": 1, "experts": 1, "expert_router": 1, "task_router": 1}, "label", warmup_steps=1),
    Stage("joint", 0.5, 1e-2, {"generation": 1, "lora": 1, "task_router": 1}, None, Lora(4, 8.0), warmup_steps=1),
)

_ALL_EXPERTS = {"generation": 1.0, "experts": 1.0, "expert_router": 1.0, "shared_expert": 1.0}
MOE_THEN_SYMBIOTIC = (
    Stage("mixture", 0.5, 1e-2, _ALL_EXPERTS, warmup_steps=1),
    Stage("parted", 0.5, 1e-2, _ALL_EXPERTS, structure=Symbiotic(), group_lr_scale={"und": 0.1}, warmup_steps=1),
)

FEW = SyntheticEvaluation(pope_images=2, vqa_questions=2, prompts_per_tag=2, num_images=1)
"""The smallest test sets."""

NOT_SCORED: Callable[..., list[Score]] = lambda *_: [Score("pope", "accuracy", 0.5)]  # noqa: E731
"""In the place of ``Scorer.test`` where a test is of training: even the smallest test sets take a quarter of such a run's time."""

TWO_STEPS = RunConfig(
    data=SyntheticData(pairs=8, scenes=8, evaluation=FEW),
    max_steps=2,
    logging_steps=1,
    diagnose=False,
    evaluation=Evaluation(eval_steps=0),
    report_to=(),
)


def save_small_base(folder: Path, size: TinySize = SMALL) -> Path:
    """Write a base of ``size`` with random weights, model and processor, to ``folder``, and return it."""
    processor = tiny_processor(vocabulary(), size)
    tiny_model(tiny_config(processor.tokenizer, size), seed=0).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@functools.cache
def _loaded(base: str) -> tuple[UnifiedModel, UnifiedProcessor]:
    return load(base)


def load_copy(base: str) -> tuple[UnifiedModel, UnifiedProcessor]:
    """A copy of the checkpoint ``base``, which is read once for all tests of a process."""
    return copy.deepcopy(_loaded(base))


class Run(Protocol):
    """``run(config, folder, stop_after)``: train, asking to stop after that many steps; True if it finished. It is not scored."""

    def __call__(self, config: RunConfig, folder: Path, stop_after: int | None = None) -> bool: ...
