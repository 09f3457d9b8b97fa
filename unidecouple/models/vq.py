"""Image tokens of either family's tokenizer: Emu3's as transformers makes them, and the VQ encode that its Janus lacks.

deepseek-ai's tokenizer (``codebook_l2_norm``) normalises the latent and the codebook before the nearest-neighbour search.
transformers normalises in decode only, so ``JanusVQVAE.encode`` returns other tokens whenever stored codebook rows are not of
unit norm. ``encode_image_tokens`` follows the original.
"""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE
from transformers.models.janus.modeling_janus import JanusVQVAE

ImageTokenizer: TypeAlias = JanusVQVAE | Emu3VQVAE
"""Both have their codebook as ``quantize.embedding.weight``."""


def tokenizer_hash(vq: ImageTokenizer) -> str:
    """Return the hexadecimal SHA-256 of all that decides which tokens an image gets: the weights in float32, and the windows."""
    weights = {name: weight.detach().float().contiguous().cpu() for name, weight in vq.state_dict().items()}
    window = str(getattr(vq.config, "encode_window", 0) or 0)
    return hashlib.sha256(save(weights) + window.encode()).hexdigest()


def latents(vq: JanusVQVAE, pixel_values: Tensor) -> Tensor:
    """Return the unit-norm latents before quantisation: (B, 3, H, W) in [-1, 1] -> (B, h*w, embed_dim), positions in raster order.

    With the configuration's ``encode_window``, windows of that size are encoded as images of their own.
    """
    size = getattr(vq.config, "encode_window", 0) or pixel_values.shape[-1]
    windows = _cut(pixel_values, size)
    rows, columns = windows.shape[1:3]
    encoded = vq.quant_conv(vq.encoder(windows.flatten(0, 2)))
    joined = encoded.unflatten(0, (-1, rows, columns)).permute(0, 1, 4, 2, 5, 3).flatten(1, 4)
    return F.normalize(joined, dim=-1)


def nearest_codes(vq: JanusVQVAE, unit_latents: Tensor) -> Tensor:
    """Return the index of the most similar (cosine) codebook row: (..., embed_dim) -> (...), int64."""
    codebook = F.normalize(vq.quantize.embedding.weight, dim=-1)
    return (unit_latents @ codebook.T).argmax(-1)


@torch.no_grad()
def encode_image_tokens(vq: ImageTokenizer, pixel_values: Tensor) -> Tensor:
    """Return discrete image tokens: (B, 3, H, W) in [-1, 1] -> (B, h*w) int64, raster order."""
    if isinstance(vq, Emu3VQVAE):
        found = vq.encode(pixel_values, [pixel_values.shape[-2:]] * len(pixel_values), return_dict=True)
        return torch.stack(found.image_tokens).flatten(1)
    return nearest_codes(vq, latents(vq, pixel_values))


def decode_latents(vq: JanusVQVAE, quantized: Tensor) -> Tensor:
    """Return the image of unit-norm quantised latents: (B, h*w, embed_dim) -> (B, 3, H, W), about [-1, 1]."""
    side = int(quantized.shape[1] ** 0.5)
    grid = quantized.transpose(1, 2).unflatten(2, (side, side))
    return vq.decoder(vq.post_quant_conv(grid))


def _cut(pixel_values: Tensor, size: int) -> Tensor:
    """Windows of an image: (B, 3, H, W) -> (B, rows, columns, 3, size, size)."""
    if pixel_values.shape[-1] % size or pixel_values.shape[-2] % size:
        raise ValueError(f"encode_window={size} does not divide images of {tuple(pixel_values.shape[-2:])} pixels")
    return pixel_values.unflatten(-1, (-1, size)).unflatten(-3, (-1, size)).permute(0, 2, 4, 1, 3, 5)
