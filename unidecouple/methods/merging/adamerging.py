"""AdaMerging (arXiv 2310.02575): the coefficients of task arithmetic learned without labels, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unidecouple import bounds
from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, JointBatch
from unidecouple.methods.merging.rule import Coefficients, OnStep, States
from unidecouple.models.base import UnifiedModel


@dataclass(frozen=True)
class AdaMerging:
    """``theta^l = theta_0^l + sum_k lambda_k^l tau_k^l``, lambda learned by minimising the entropy of the model's predictions.

    A layer l is one weight tensor, as in the authors' code. Ours: the entropy is that of the next token where a task predicts one
    (the paper classifies), averaged over tokens and summed over tasks. It is teacher-forced: the samples' own answers and images
    are what it conditions on, though no loss compares with them; the paper needs inputs alone.

    Attributes:
        start: initial value of every lambda.
        learning_rate: of Adam. Lambda is clamped to [0, 1] after each step (in the authors' code where it is used, so that one that
            has left the bounds gets no gradient any more).
        steps: 500 in the authors' code.
        batch_size: samples per task and step.
    """

    kind: Literal["adamerging"] = "adamerging"
    start: float = 0.3
    learning_rate: float = 1e-3
    steps: int = 500
    batch_size: int = 16

    def __post_init__(self) -> None:
        bounds.between(0, 1, self, "start")
        bounds.above(0, self, "learning_rate")
        bounds.at_least(1, self, "steps", "batch_size")

    @property
    def batches(self) -> int:
        """Joint batches that ``learn`` reads."""
        return self.steps

    def learn(self, model: UnifiedModel, tuned: States, batches: Iterable[JointBatch], on_step: OnStep) -> Coefficients:
        """The coefficients that ``batches`` teach.

        Args:
            model: the base; its weights are overwritten on the way, and left merged.
            tuned: weights of the models to merge, by the base's names.
            batches: samples of both tasks with their answers and images (see above), one joint batch a step.
            on_step: called with each step and its entropy in nats.
        """
        base, vectors = changes(model, tuned)
        weights = {name: weight.requires_grad_(name in vectors) for name, weight in model.named_parameters()}
        factors = torch.full((len(vectors), len(tuned)), self.start)
        optimizer = torch.optim.Adam([factors], lr=self.learning_rate)
        for step, joint in enumerate(batches):
            self._place(weights, base, vectors, factors)
            model.zero_grad()
            entropy = prediction_entropy(model, joint)
            entropy.backward()
            factors.grad = torch.stack([_along(weights[name].grad, moved) for name, moved in vectors.items()])
            optimizer.step()
            factors.clamp_(0, 1)
            on_step(step, entropy.item())
        self._place(weights, base, vectors, factors)
        found = dict(zip(vectors, factors.tolist(), strict=True))
        return lambda name: found.get(name, [0.0] * len(tuned))

    @torch.no_grad()
    def _place(
        self, weights: Mapping[str, Tensor], base: Mapping[str, Tensor], vectors: Mapping[str, Sequence[Tensor]], factors: Tensor
    ) -> None:
        """Put the merged weights in their places."""
        for row, (name, moved) in zip(factors.tolist(), vectors.items(), strict=True):
            weights[name].copy_(base[name])
            for factor, vector in zip(row, moved, strict=True):
                weights[name].add_(vector, alpha=factor)


def changes(model: UnifiedModel, tuned: States) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """The base's parameters, and each tuned model's difference from those that any of them changed."""
    base = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    vectors = {name: [state[name].to(start) - start for state in tuned] for name, start in base.items()}
    return base, {name: moved for name, moved in vectors.items() if any(bool(vector.any()) for vector in moved)}


def prediction_entropy(model: UnifiedModel, joint: JointBatch) -> Tensor:
    """Entropy in nats of the next token after the sample's own, where a task predicts one: mean over its tokens, tasks summed."""
    entropies: dict[str, list[Tensor]] = {"mmu": [], "t2i": []}
    for batch in joint:
        hidden = model.decode_batch(batch).last_hidden_state[:, :-1]
        places = {"mmu": batch.labels[:, 1:] != IGNORE, "t2i": batch.image_tokens[:, 1:] != NO_IMAGE_TOKEN}
        for (task, chosen), head in zip(places.items(), (model.lm_head, model.image_logits), strict=True):
            if chosen.any():
                log_p = head(hidden[chosen]).float().log_softmax(-1)
                entropies[task].append(-(log_p.exp() * log_p).sum(-1))
    return torch.stack([torch.cat(found).mean() for found in entropies.values() if found]).sum()


def _along(gradient: Tensor | None, moved: Sequence[Tensor]) -> Tensor:
    """``d entropy / d lambda_k`` of one weight: its gradient along each difference, (models,) on the CPU."""
    return torch.tensor([0.0 if gradient is None else (gradient * vector).sum().item() for vector in moved])
