"""Image tokens are the codebook's nearest rows by angle, which the library's own encode does not give."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.models.janus.modeling_janus import JanusVQVAE

from unidecouple.data.sequences import pixels
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.vq import decode_latents, encode_image_tokens, latents


@pytest.fixture
def vq(make_model: Callable[..., UniJanusForConditionalGeneration]) -> JanusVQVAE:
    """Its codebook rows have norms between 0.3 and 3."""
    vq = make_model().model.vqmodel
    scale = torch.logspace(-0.5, 0.5, 64).unsqueeze(-1)
    vq.quantize.embedding.weight.data = F.normalize(vq.quantize.embedding.weight.data, dim=-1) * scale
    return vq


@torch.no_grad()
def test_tokens_are_the_nearest_rows_by_angle(vq: JanusVQVAE, pictures: np.ndarray) -> None:
    tokens = encode_image_tokens(vq, pixels(pictures))
    assert tokens.shape == (4, 16)
    grid = vq.quant_conv(vq.encoder(pixels(pictures)))
    rows = vq.quantize.embedding.weight
    for picture, row, column in [(0, 0, 0), (1, 2, 3), (2, 3, 0), (3, 3, 3)]:
        cosine = [float(F.cosine_similarity(grid[picture, :, row, column], code, dim=0)) for code in rows]
        assert int(tokens[picture, 4 * row + column]) == int(np.argmax(cosine))
    assert len(tokens.unique()) > 8


@torch.no_grad()
def test_the_library_agrees_only_on_unit_rows(vq: JanusVQVAE, pictures: np.ndarray) -> None:
    def library() -> torch.Tensor:
        return vq.encode(pixels(pictures)).image_tokens.view(4, 16)

    ours = encode_image_tokens(vq, pixels(pictures))
    assert (library() != ours).any()
    vq.quantize.embedding.weight.data = F.normalize(vq.quantize.embedding.weight.data, dim=-1)
    assert torch.equal(encode_image_tokens(vq, pixels(pictures)), ours)
    assert torch.equal(library(), ours)


@torch.no_grad()
def test_latents_and_their_picture(vq: JanusVQVAE, pictures: np.ndarray) -> None:
    unit = latents(vq, pixels(pictures))
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(4, 16))
    tokens = encode_image_tokens(vq, pixels(pictures))
    quantized = F.normalize(vq.quantize.embedding.weight, dim=-1)[tokens]
    torch.testing.assert_close(decode_latents(vq, quantized), vq.decode(tokens), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_window_is_encoded_as_if_it_were_the_whole_picture(vq: JanusVQVAE, pictures: np.ndarray) -> None:
    values = pixels(pictures)
    whole, quarter = latents(vq, values), latents(vq, values[:, :, 8:, :8])
    vq.config.encode_window = 8
    windowed = latents(vq, values).view(4, 4, 4, -1)
    torch.testing.assert_close(windowed[:, 2:, :2].flatten(1, 2), quarter)
    assert not torch.allclose(whole.view(4, 4, 4, -1), windowed, atol=0.1)
    redrawn = values.clone()
    redrawn[:, :, :, 8:] = 1
    left, left_before = (encode_image_tokens(vq, shown).view(4, 4, 4)[..., :2] for shown in (redrawn, values))
    assert torch.equal(left, left_before)


def test_a_window_that_does_not_fit(vq: JanusVQVAE, pictures: np.ndarray) -> None:
    vq.config.encode_window = 12
    with pytest.raises(ValueError, match=r"encode_window=12 does not divide images of \(16, 16\) pixels"):
        encode_image_tokens(vq, pixels(pictures))
