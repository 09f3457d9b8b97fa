"""Fits the VQ tokenizer (vector quantisation, arXiv 1711.00937) of a tiny model to synthetic images.

Our choices, each against a failure seen here (docs/experiments/image-tokenizer.md): foreground pixels weigh more than background
(else capacity goes to white); chroma weighs more than lightness (else line art takes every code and colours merge); the codebook
follows moving averages and starts from k-means of encoder outputs, and codes nobody uses are moved to latents nobody serves (else
most codes die); the first steps go without quantisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from unidecouple import bounds
from unidecouple.models.vq import decode_latents, latents, nearest_codes

KMEANS_PICTURES, KMEANS_ROUNDS = 1536, 10


@dataclass(frozen=True)
class TokenizerTraining:
    """Hyperparameters of ``fit_tokenizer``.

    Attributes:
        steps: the first ``warmup_share`` of them go without quantisation.
        batch_size: images per step.
        foreground_weight, chroma_weight: of foreground pixels and of colour in the pixel loss.
        commitment: weight of the distance from latents to their codes.
        ema_decay: of the codebook's moving averages.
        restart_every: steps between moves of unused codes.
    """

    steps: int = 2500
    batch_size: int = 10
    learning_rate: float = 2e-3
    warmup_share: float = 0.15
    foreground_weight: float = 8.0
    chroma_weight: float = 4.0
    commitment: float = 0.25
    ema_decay: float = 0.99
    restart_every: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "steps", "foreground_weight", "chroma_weight", "commitment", "seed")
        bounds.at_least(1, self, "batch_size", "restart_every")
        bounds.above(0, self, "learning_rate")
        bounds.between(0, 1, self, "warmup_share", "ema_decay")


def fit_tokenizer(
    vq: JanusVQVAE,
    images: Tensor,
    training: TokenizerTraining,
    report: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> None:
    """Train ``vq`` in place.

    Args:
        vq: the tokenizer; ends frozen and in eval mode, with codebook rows of unit norm.
        images: uint8 images (N, 3, H, W).
        training: hyperparameters.
        report: called every 50 steps with the step and its losses, share of used codes and perplexity.
    """
    generator = torch.Generator().manual_seed(training.seed)
    vq.requires_grad_(True).train().to(memory_format=torch.channels_last)  # about 1.5 times as fast on a CPU
    codebook = vq.quantize.embedding.weight.requires_grad_(False)
    ema = _Codebook(codebook, training.ema_decay)
    weights = [p for p in vq.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    warmup = round(training.warmup_share * training.steps)
    for step in range(training.steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * min(1.0, (step + 1) / 50) * _cosine(step / training.steps)
        index = torch.randint(len(images), (training.batch_size,), generator=generator)
        target = (images[index].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        z = latents(vq, target)
        quantized, commit = z, z.new_zeros(())
        if step == warmup:
            ema.start_from(_many_latents(vq, images, generator), generator)
        if step >= warmup:
            tokens = nearest_codes(vq, z)
            chosen = F.embedding(tokens, F.normalize(codebook, dim=-1))
            commit = F.mse_loss(z, chosen) * z.shape[-1]
            quantized = z + (chosen - z).detach()
            ema.update(z.detach().flatten(0, 1), tokens.flatten())
            if step % training.restart_every == 0 and step < 0.8 * training.steps:
                ema.restart_dead(z.detach().flatten(0, 1), generator)
        reconstruction = decode_latents(vq, quantized)
        weight = 1 + (training.foreground_weight - 1) * _foreground(target)
        pixel_loss = (weight * _color_error(reconstruction - target, training.chroma_weight)).sum() / weight.sum() / 3
        loss = pixel_loss + training.commitment * commit
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == training.steps - 1:
            report(step, {"pixel_loss": pixel_loss.item(), "commitment": commit.item(), **ema.usage()})
    vq.requires_grad_(False).eval()


@torch.no_grad()
def _many_latents(vq: JanusVQVAE, images: Tensor, generator: torch.Generator) -> Tensor:
    chosen = images[torch.randint(len(images), (KMEANS_PICTURES,), generator=generator)].float() / 127.5 - 1
    return torch.cat([latents(vq, part.contiguous(memory_format=torch.channels_last)) for part in chosen.split(64)]).flatten(0, 1)


class _Codebook:
    """Moving averages of a codebook of unit vectors: per code, how many latents it serves and their sum."""

    def __init__(self, weight: Tensor, decay: float) -> None:
        self.weight, self.decay = weight, decay
        self.count = torch.zeros(len(weight))
        self.total = torch.zeros_like(weight)

    def start_from(self, z: Tensor, generator: torch.Generator) -> None:
        """Spherical k-means over the latents ``z`` (N, embed_dim), started from random ones."""
        self.weight.copy_(z[torch.randint(len(z), (len(self.weight),), generator=generator)])
        for _ in range(KMEANS_ROUNDS):
            self.count.zero_()
            tokens = (z @ self.weight.T).argmax(-1)
            self.count += torch.bincount(tokens, minlength=len(self.weight)).float()
            self.total.zero_().index_add_(0, tokens, z)
            empty = self.count == 0
            self.total[empty] = z[torch.randint(len(z), (int(empty.sum()),), generator=generator)]
            self.weight.copy_(F.normalize(self.total, dim=-1))
        self.count.fill_(1.0)
        self.total.copy_(self.weight)

    def update(self, z: Tensor, tokens: Tensor) -> None:
        served = torch.bincount(tokens, minlength=len(self.weight)).float()
        summed = torch.zeros_like(self.total).index_add_(0, tokens, z)
        self.count.lerp_(served, 1 - self.decay)
        self.total.lerp_(summed, 1 - self.decay)
        used = self.count > 1e-3
        self.weight[used] = F.normalize(self.total[used], dim=-1)

    def restart_dead(self, z: Tensor, generator: torch.Generator) -> None:
        dead = (self.count < 0.03).nonzero().flatten()
        if not len(dead):
            return
        similarity = (z @ self.weight.T).amax(-1)
        chance = (1 - similarity).clamp_min(1e-4)
        picks = torch.multinomial(chance, min(len(dead), len(z) // 4), generator=generator)
        dead = dead[torch.randperm(len(dead), generator=generator)[: len(picks)]]
        self.weight[dead] = z[picks]
        self.count[dead] = 0.5
        self.total[dead] = 0.5 * z[picks]

    def usage(self) -> dict[str, float]:
        share = self.count / self.count.sum().clamp_min(1e-9)
        entropy = -(share * share.clamp_min(1e-12).log()).sum()
        return {"used_codes": float((self.count > 0.03).float().mean()), "perplexity": math.exp(float(entropy))}


def _foreground(target: Tensor) -> Tensor:
    """1 on and next to foreground pixels, else 0: (B, 3, H, W) -> (B, 1, H, W)."""
    foreground = (target.amin(1, keepdim=True) < 0.95).float()
    return F.max_pool2d(foreground, 3, stride=1, padding=1)


def _color_error(difference: Tensor, chroma_weight: float) -> Tensor:
    """|d| + d^2 of lightness and, weighted, of what is left of each channel: (B, 3, H, W) -> the same."""
    lightness = difference.mean(1, keepdim=True)
    chroma = difference - lightness
    return lightness.abs() + lightness.square() + chroma_weight * (chroma.abs() + chroma.square())


def _cosine(progress: float) -> float:
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
