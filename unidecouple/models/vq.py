"""Image tokens: the VQ encode that transformers' Janus lacks.

deepseek-ai's tokenizer (``codebook_l2_norm``) normalises the latent and the codebook before the nearest-neighbour search.
transformers normalises in decode only, so ``JanusVQVAE.encode`` returns other tokens whenever stored codebook rows are not of
unit norm. ``encode_image_tokens`` follows the original.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE


def latents(vq: JanusVQVAE, pixel_values: Tensor) -> Tensor:
    """Unit-norm latents before quantisation: (B, 3, H, W) in [-1, 1] -> (B, h*w, embed_dim), positions in raster order."""
    encoded = vq.quant_conv(vq.encoder(pixel_values))
    return F.normalize(encoded.flatten(2).transpose(1, 2), dim=-1)


def nearest_codes(vq: JanusVQVAE, unit_latents: Tensor) -> Tensor:
    """Index of the most similar (cosine) codebook row: (..., embed_dim) -> (...), int64."""
    codebook = F.normalize(vq.quantize.embedding.weight, dim=-1)
    return (unit_latents @ codebook.T).argmax(-1)


@torch.no_grad()
def encode_image_tokens(vq: JanusVQVAE, pixel_values: Tensor) -> Tensor:
    """Discrete image tokens: (B, 3, H, W) in [-1, 1] -> (B, h*w) int64, raster order."""
    return nearest_codes(vq, latents(vq, pixel_values))


def decode_latents(vq: JanusVQVAE, quantized: Tensor) -> Tensor:
    """Picture of unit-norm quantised latents: (B, h*w, embed_dim) -> (B, 3, H, W), about [-1, 1]."""
    side = int(quantized.shape[1] ** 0.5)
    grid = quantized.transpose(1, 2).unflatten(2, (side, side))
    return vq.decoder(vq.post_quant_conv(grid))
