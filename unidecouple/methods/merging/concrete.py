"""Concrete subspace learning (arXiv 2312.06173): a mask of the weights that all models share, learned without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from unidecouple import bounds
from unidecouple.batch import JointBatch
from unidecouple.methods.merging.adamerging import AdaMerging, changes, prediction_entropy
from unidecouple.methods.merging.rule import OnStep, Rule, States
from unidecouple.models.base import UnifiedModel

_SEED = 0


@dataclass(frozen=True)
class Concrete:
    """``theta = theta_0 + m / mean(m) * sum_k lambda_k tau_k``, m a relaxed binary mask that minimises the entropy of predictions.

    Each step samples ``m = sigmoid((x + log(u / (1 - u))) / temperature)``, u uniform; Adam moves the logits x, one per weight,
    which start at zero. The entropy is AdaMerging's here. With ``adamerging_steps``, each step first takes one step of Adam on
    lambda (one per tensor and model), whose result counts for that step alone, as in FusionBench; then the mask is fixed and
    AdaMerging learns lambda, clamped to [0, 1] (FusionBench does not clamp). The mask that is used at the end is a sample, too.

    Attributes:
        scale: of every lambda, or where it starts.
        learning_rate: of Adam on the logits, and on lambda at the end.
        inner_rate: of Adam on lambda within a step.
        temperature: of the relaxation.
        steps: of the mask; 2,000 in the authors' code, 1,000 with AdaMerging.
        adamerging_steps: 0 leaves every lambda at ``scale``; 1,000 in the authors' code.
        batch_size: samples per task and step.
    """

    kind: Literal["concrete"] = "concrete"
    scale: float = 0.3
    learning_rate: float = 1e-3
    inner_rate: float = 1.0
    temperature: float = 0.5
    steps: int = 2000
    adamerging_steps: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        bounds.between(0, 1, self, "scale")
        bounds.above(0, self, "learning_rate", "inner_rate", "temperature")
        bounds.at_least(1, self, "steps", "batch_size")
        bounds.at_least(0, self, "adamerging_steps")

    @property
    def batches(self) -> int:
        """Joint batches that ``learn`` reads."""
        return self.steps * (2 if self.adamerging_steps else 1) + self.adamerging_steps

    def learn(self, model: UnifiedModel, tuned: States, batches: Iterable[JointBatch], on_step: OnStep) -> Rule:
        """The rule that ``batches`` teach; arguments as of ``AdaMerging.learn``."""
        base, vectors = changes(model, tuned)
        learned = _Masked(self, model, base, vectors)
        remaining = iter(batches)
        generator = torch.Generator().manual_seed(_SEED)
        for step in range(self.steps):
            noise = {name: torch.rand(moved[0].shape, generator=generator) for name, moved in vectors.items()}
            if self.adamerging_steps:
                learned.inner_step(noise, next(remaining))
            on_step(step, learned.outer_step(noise, next(remaining)))
        noise = {name: torch.rand(moved[0].shape, generator=generator) for name, moved in vectors.items()}
        masks = {name: learned.mask(name, noise[name]).detach() for name in vectors}
        learned.restore()
        factors = {name: [self.scale] * len(tuned) for name in vectors}
        if self.adamerging_steps:
            inner = AdaMerging("adamerging", self.scale, self.learning_rate, self.adamerging_steps, self.batch_size)
            masked = [
                base | {name: base[name] + masks[name] * moved[number] for name, moved in vectors.items()}
                for number in range(len(tuned))
            ]
            after = islice(remaining, self.adamerging_steps)
            found = inner.learn(model, masked, after, lambda step, entropy: on_step(self.steps + step, entropy))
            factors = {name: list(found(name)) for name in vectors}

        def rule(name: str, moved: Sequence[Tensor]) -> Tensor:
            total = sum((factor * tau for factor, tau in zip(factors[name], moved, strict=True)), torch.zeros_like(moved[0]))
            return masks[name].double() * total

        return rule


class _Masked:
    """A model whose weights are ``theta_0 + m / mean(m) * sum_k lambda_k tau_k``."""

    def __init__(
        self, method: Concrete, model: UnifiedModel, base: Mapping[str, Tensor], vectors: Mapping[str, Sequence[Tensor]]
    ) -> None:
        self.method, self.model, self.base, self.vectors = method, model, base, vectors
        self.weights = {name: weight.requires_grad_(name in vectors) for name, weight in model.named_parameters()}
        self.logits = {name: torch.zeros_like(moved[0]).requires_grad_() for name, moved in vectors.items()}
        count = len(next(iter(vectors.values()), ()))
        self.factors = torch.full((len(vectors), count), method.scale)
        self.optimizer = torch.optim.Adam(self.logits.values(), method.learning_rate)
        self.inner = torch.optim.Adam([self.factors], method.inner_rate)

    def mask(self, name: str, noise: Tensor) -> Tensor:
        """A sample of the mask, of mean 1."""
        found = torch.sigmoid((self.logits[name] + torch.logit(noise, eps=1e-6)) / self.method.temperature)
        return found / found.mean()

    def inner_step(self, noise: Mapping[str, Tensor], joint: JointBatch) -> None:
        """One step of the coefficients from where they start, under a fixed mask."""
        with torch.no_grad():
            self.factors.fill_(self.method.scale)
        slopes = self._slopes(noise, joint)[1]
        self.factors.grad = torch.stack(
            [
                torch.stack([(slopes[name] * self.mask(name, noise[name]).detach() * tau).sum() for tau in moved])
                for name, moved in self.vectors.items()
            ]
        )
        self.inner.step()

    def outer_step(self, noise: Mapping[str, Tensor], joint: JointBatch) -> float:
        """One step of the logits; returns the entropy before it."""
        entropy, slopes = self._slopes(noise, joint)
        for row, (name, moved) in zip(self.factors.tolist(), self.vectors.items(), strict=True):
            along = slopes[name] * sum((factor * tau for factor, tau in zip(row, moved, strict=True)), torch.zeros_like(moved[0]))
            (self.logits[name].grad,) = torch.autograd.grad(self.mask(name, noise[name]), self.logits[name], along)
        self.optimizer.step()
        return entropy

    def restore(self) -> None:
        """Make the model the base again."""
        with torch.no_grad():
            for name in self.vectors:
                self.weights[name].copy_(self.base[name])

    def _slopes(self, noise: Mapping[str, Tensor], joint: JointBatch) -> tuple[float, dict[str, Tensor]]:
        """The entropy at the present mask and coefficients, and its gradient in every changed weight."""
        with torch.no_grad():
            for row, (name, moved) in zip(self.factors.tolist(), self.vectors.items(), strict=True):
                total = sum((factor * tau for factor, tau in zip(row, moved, strict=True)), torch.zeros_like(moved[0]))
                self.weights[name].copy_(self.base[name] + self.mask(name, noise[name]) * total)
        self.model.zero_grad()
        entropy = prediction_entropy(self.model, joint)
        entropy.backward()
        gradients = {name: self.weights[name].grad for name in self.vectors}
        return entropy.item(), {
            name: torch.zeros_like(self.base[name]) if grad is None else grad for name, grad in gradients.items()
        }
