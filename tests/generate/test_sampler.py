"""Choosing tokens: by hand, by frequency, and each row for itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from unidecouple.generate.sampler import Sampler, uniforms
from unidecouple.generate.sampling import SamplingParams

HAND = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
CPU = torch.device("cpu")


def drawn(choice: SamplingParams, uniform: list[float]) -> list[int]:
    """Tokens of ``HAND`` for each uniform number."""
    rows = HAND.expand(len(uniform), -1)
    return Sampler([choice] * len(uniform), CPU)(rows, torch.tensor(uniform)).tolist()


def test_by_hand() -> None:
    assert drawn(SamplingParams(), [0.0, 0.09, 0.11, 0.49, 0.51, 0.69, 0.71, 0.99]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert drawn(SamplingParams(temperature=0.0), [0.0, 0.99]) == [1, 1]
    assert drawn(SamplingParams(top_k=2), [0.0, 0.56, 0.58, 0.99]) == [1, 1, 3, 3]  # 4/7 and 3/7 are left
    assert drawn(SamplingParams(top_k=1), [0.0, 0.99]) == [1, 1]
    assert drawn(SamplingParams(top_k=9), [0.05, 0.95]) == [0, 3]  # more than there are
    # temperature 1/2 squares them: 1, 16, 4, 9 of 30
    assert drawn(SamplingParams(temperature=0.5), [0.03, 0.04, 0.56, 0.57, 0.69, 0.71]) == [0, 1, 1, 2, 2, 3]


def test_nucleus_by_hand() -> None:
    """0.4 and 0.3 hold 0.7: the fewest that hold at least 0.6; at 0.75 a third is needed."""
    assert drawn(SamplingParams(top_p=0.6), [0.0, 0.57, 0.58, 0.99]) == [1, 1, 3, 3]
    assert drawn(SamplingParams(top_p=0.75), [0.0, 0.43, 0.45, 0.66, 0.67, 0.99]) == [1, 1, 2, 2, 3, 3]
    assert drawn(SamplingParams(top_p=0.4), [0.0, 0.99]) == [1, 1]
    assert drawn(SamplingParams(top_p=1e-6), [0.0, 0.99]) == [1, 1]


@pytest.mark.parametrize(
    "choice",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.3, top_k=6),
        SamplingParams(temperature=1.0, top_p=0.8),
    ],
    ids=str,
)
def test_frequencies_follow_the_distribution(choice: SamplingParams) -> None:
    """20,000 draws against the probabilities that the definition gives, by chi-square."""
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 1.5
    wanted = (logits[0].double() / choice.temperature).softmax(-1)
    order = wanted.argsort(descending=True)
    if choice.top_k:
        wanted[order[choice.top_k :]] = 0
    if choice.top_p < 1:
        before = wanted[order].cumsum(0) - wanted[order]
        wanted[order[before >= choice.top_p]] = 0
    wanted = (wanted / wanted.sum()).numpy()
    count = 20_000
    found = Sampler([choice] * count, CPU)(logits.expand(count, -1), uniforms((3, 1), count))
    seen = np.bincount(found, minlength=12)
    assert (seen[wanted == 0] == 0).all()
    assert chisquare(seen[wanted > 0], wanted[wanted > 0] * count).pvalue > 1e-3
    off = np.roll(wanted[wanted > 0], 1) * count
    assert chisquare(seen[wanted > 0], off).pvalue < 1e-6  # the test can fail


def test_rows_are_chosen_each_for_itself() -> None:
    choices = [
        SamplingParams(temperature=0.0),
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=1.0, top_p=0.6),
        SamplingParams(temperature=2.0, top_k=50, top_p=0.9),
    ]
    generator = torch.Generator().manual_seed(1)
    logits, uniform = torch.randn(5, 40, generator=generator) * 2, torch.rand(5, generator=generator)
    together = Sampler(choices, CPU)(logits, uniform)
    alone = [Sampler([choice], CPU)(row[None], u[None]) for choice, row, u in zip(choices, logits, uniform, strict=True)]
    assert torch.equal(together, torch.cat(alone))
    turned = Sampler(choices[::-1], CPU)(logits.flip(0), uniform.flip(0))
    assert torch.equal(turned.flip(0), together)


def test_seeds() -> None:
    assert torch.equal(uniforms((1, 2), 9)[:4], uniforms((1, 2), 4))
    assert not torch.equal(uniforms((1, 2), 4), uniforms((2, 1), 4))


@pytest.mark.parametrize(
    "choice",
    [
        SamplingParams(temperature=5e-324),
        SamplingParams(temperature=1e-30),
        SamplingParams(temperature=1e-7),
        SamplingParams(temperature=1.0, top_p=5e-324),
        SamplingParams(temperature=100.0, top_p=1e-30),
    ],
)
def test_settings_that_float32_cannot_hold_take_the_likeliest_token(choice: SamplingParams) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.9]]).repeat(50, 1)
    sampler = Sampler([choice] * 50, logits.device)
    assert sampler(logits, torch.linspace(0, 0.999, 50)).tolist() == [1] * 50


def test_top_k_above_the_vocabulary_is_all() -> None:
    logits, uniform = torch.randn(20, 7), torch.rand(20)
    every = Sampler([SamplingParams()] * 20, logits.device)(logits, uniform)
    assert torch.equal(Sampler([SamplingParams(top_k=1 << 20)] * 20, logits.device)(logits, uniform), every)  # type: ignore[arg-type]
