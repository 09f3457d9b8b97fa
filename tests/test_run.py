"""Numbers of a run: what would train nothing, or fail only when all is trained, is refused at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from unidecouple.generate.sampling import SamplingParams
from unidecouple.methods.stage import Stage
from unidecouple.run import Evaluation, RunConfig
from unidecouple.world.settings import CurriculumPhase, SyntheticData, SyntheticEvaluation


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda: RunConfig(max_steps=-5), "max_steps=-5 must be at least 0"),
        (lambda: RunConfig(seed=-1), "seed=-1 must be at least 0"),
        (lambda: RunConfig(logging_steps=0), "logging_steps=0 must be at least 1"),
        (lambda: RunConfig(save_steps=-1), "save_steps=-1"),
        (lambda: RunConfig(save_total_limit=-1), "save_total_limit=-1"),
        (lambda: RunConfig(gradient_accumulation_steps=0), "gradient_accumulation_steps=0 must be at least 1"),
        (lambda: RunConfig(weight_decay=-0.1), "weight_decay=-0.1"),
        (lambda: RunConfig(max_grad_norm=0), "max_grad_norm=0 must be above 0"),
        (lambda: RunConfig(stages=()), "no stage takes a share of max_steps=400"),
        (lambda: RunConfig(stages=(Stage(share=0),)), "no stage takes a share"),
        (lambda: SyntheticData(pairs=0), "pairs=0 must be at least 1"),
        (lambda: SyntheticData(scenes=0), "scenes=0 must be at least 1"),
        (lambda: SyntheticData(t2i_batch_size=-3), "t2i_batch_size=-3 must be at least 0"),
        (lambda: SyntheticData(mmu_batch_size=-1), "mmu_batch_size=-1"),
        (lambda: SyntheticData(router_aux_samples=-1), "router_aux_samples=-1"),
        (lambda: SyntheticData(cond_dropout_prob=7), "cond_dropout_prob=7 must be from 0 to 1"),
        (lambda: CurriculumPhase("asking", -1), "steps=-1"),
        (lambda: CurriculumPhase("asking", 1, 0), "batch_size=0"),
        (lambda: Evaluation(eval_steps=-1), "eval_steps=-1"),
        (lambda: SyntheticEvaluation(num_images=0), "num_images=0 must be at least 1"),
        (lambda: SyntheticEvaluation(prompts_per_tag=1), "prompts_per_tag=1 must be at least 2"),
        (lambda: SyntheticEvaluation(pope_images=1), "pope_images=1 must be at least 2"),
        (lambda: SyntheticEvaluation(vqa_questions=0), "vqa_questions=0"),
        (lambda: Evaluation(sampling=SamplingParams(temperature=-1)), "temperature=-1"),
        (lambda: Evaluation(parser="nosuch"), "unknown parser 'nosuch'; POPE has official"),
    ],
)
def test_what_cannot_be_run_or_scored_is_refused(part: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        part()


def test_zeroes_that_mean_off_are_legal() -> None:
    SyntheticData(t2i_batch_size=0, single_object_steps=0, router_aux_samples=0, cond_dropout_prob=0)
    SyntheticData(mmu_batch_size=0)
    Evaluation(eval_steps=0, sampling=SamplingParams(temperature=0, top_k=0))
    RunConfig(max_steps=0, stages=(), save_steps=0, max_grad_norm=float("inf"))
