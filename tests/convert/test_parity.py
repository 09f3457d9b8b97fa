"""A converted Janus against transformers' own, and against deepseek-ai's formulas on the published weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import JanusForConditionalGeneration

from published import TINY, weights
from unidecouple.convert.load import load
from unidecouple.data.sequences import QAPair, SequenceBuilder, collate, pixels
from unidecouple.generate.image import draw_tokens
from unidecouple.generate.jobs import image_jobs
from unidecouple.generate.padding import left_pad
from unidecouple.generate.sampling import SamplingParams
from unidecouple.generate.text import answer
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.vq import encode_image_tokens

PROMPTS = ["a photo of a blue pig", "a yellow bus", "two red cows and a pig in a photo"]


@pytest.fixture(scope="module")
def theirs(plain: Path) -> JanusForConditionalGeneration:
    return JanusForConditionalGeneration.from_pretrained(plain, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=["ours", "transformers"])
def loaded(request: pytest.FixtureRequest, ours: Path, plain: Path) -> tuple[UniJanusForConditionalGeneration, SequenceBuilder]:
    """Ours, from our layout and straight from transformers'."""
    model, processor = load(str(ours if request.param == "ours" else plain))
    return model, SequenceBuilder(processor)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


Loaded = tuple[UniJanusForConditionalGeneration, SequenceBuilder]


@torch.no_grad()
def test_understanding_logits(loaded: Loaded, theirs: JanusForConditionalGeneration, pictures: np.ndarray) -> None:
    model, builder = loaded
    turns = [QAPair("pope", "Is there a cow in the image?", "yes"), QAPair("count", "How many?", "two red cows.")]
    batch = collate([builder.understanding(picture, turns) for picture in pictures], builder.tokenizer.pad_token_id)
    expected = theirs(input_ids=batch.input_ids, pixel_values=batch.pixel_values).logits
    assert expected.std() > 0.3
    found = model.lm_head(model.decode_batch(batch).last_hidden_state)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_image_head_logits(loaded: Loaded, theirs: JanusForConditionalGeneration) -> None:
    model, builder = loaded
    tokens = torch.randint(0, TINY.codes, (1, TINY.patches), generator=torch.Generator().manual_seed(0))
    batch = collate([builder.generation(PROMPTS[0], tokens[0].tolist())], builder.tokenizer.pad_token_id)
    prompt = torch.tensor([builder.generation_prompt(PROMPTS[0])])
    embeds = [theirs.get_input_embeddings()(prompt), theirs.prepare_embeddings_for_image_generation(tokens)]
    expected = theirs.model.generation_head(theirs.model.language_model(inputs_embeds=torch.cat(embeds, 1)).last_hidden_state)
    assert expected.std() > 0.1
    found = model.model.generation_head(model.decode_batch(batch).last_hidden_state)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_whole_greedy_guided_loop(loaded: Loaded, theirs: JanusForConditionalGeneration) -> None:
    """transformers' ``generate`` needs only what the converted generation_config.json gives it."""
    model, builder = loaded
    rows = [builder.generation_prompt(prompt) for prompt in PROMPTS]
    ids, mask = left_pad(rows, builder.tokenizer.pad_token_id, torch.device("cpu"))
    assert theirs.generation_config.guidance_scale == 5.0
    expected = theirs.generate(input_ids=ids, attention_mask=mask, generation_mode="image", do_sample=False)
    found = draw_tokens(model, builder, image_jobs(builder, PROMPTS, 1, 0, SamplingParams(guidance_scale=5.0, temperature=0)))
    assert torch.equal(found, expected)
    assert len(found.unique()) > 5
    assert len({tuple(row) for row in found.tolist()}) == 3
    assert not torch.equal(
        found, draw_tokens(model, builder, image_jobs(builder, PROMPTS, 1, 0, SamplingParams(guidance_scale=1.0, temperature=0)))
    )
    torch.testing.assert_close(model.decode_image_tokens(found), theirs.decode_image_tokens(expected), atol=1e-5, rtol=1e-5)


def test_answers(loaded: Loaded, theirs: JanusForConditionalGeneration, pictures: np.ndarray) -> None:
    model, builder = loaded
    questions = ["Is there a cow in the image?", "How many?", "a"]
    found = answer(model, builder, list(pictures), questions, max_new_tokens=5)
    for picture, question, said in zip(pictures, questions, found, strict=True):
        ids = torch.tensor([builder.understanding_prompt(question)])
        out = theirs.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels([picture]), max_new_tokens=5, do_sample=False
        )
        assert said == builder.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def published(seed: int = 0) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in weights(TINY, seed).items()}


def affine(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def normed(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)


@torch.no_grad()
def test_the_vision_tower_is_deepseeks(loaded: Loaded, pictures: np.ndarray) -> None:
    """siglip_vit.py and projector.py, on the published names: fused projection, pre-norm blocks, no pooling, two-layer adaptor."""
    w, top = published(), "vision_model.vision_tower"
    x = F.conv2d(pixels(pictures), w[f"{top}.patch_embed.proj.weight"], w[f"{top}.patch_embed.proj.bias"], stride=TINY.patch)
    x = x.flatten(2).transpose(1, 2) + w[f"{top}.pos_embed"]
    for block in range(TINY.blocks):
        name = f"{top}.blocks.{block}"
        fused = affine(w, f"{name}.attn.qkv", normed(w, f"{name}.norm1", x))
        q, k, v = fused.unflatten(-1, (3, TINY.tower_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + affine(w, f"{name}.attn.proj", mixed.transpose(1, 2).flatten(2))
        x = x + affine(w, f"{name}.mlp.fc2", F.gelu(affine(w, f"{name}.mlp.fc1", normed(w, f"{name}.norm2", x))))
    expected = affine(w, "aligner.layers.2", F.gelu(affine(w, "aligner.layers.0", normed(w, f"{top}.norm", x))))
    found = loaded[0].model.get_image_features(pixels(pictures), return_dict=True).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_generation_adaptors_are_deepseeks(loaded: Loaded) -> None:
    w, tokens = published(), torch.arange(TINY.codes)
    embedded = F.embedding(tokens, w["gen_embed.weight"])
    expected = affine(w, "gen_aligner.layers.2", F.gelu(affine(w, "gen_aligner.layers.0", embedded)))
    torch.testing.assert_close(loaded[0].prepare_embeddings_for_image_generation(tokens), expected, atol=1e-5, rtol=1e-5)
    head = affine(w, "gen_head.vision_head", F.gelu(affine(w, "gen_head.output_mlp_projector", expected)))
    torch.testing.assert_close(loaded[0].model.generation_head(expected), head, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_image_tokens_are_deepseeks(loaded: Loaded, theirs: JanusForConditionalGeneration, pictures: np.ndarray) -> None:
    """vq_model.py normalises latents and codebook before the search; transformers' ``encode`` does not, and finds others."""
    vq, codebook = theirs.model.vqmodel, published()["gen_vision_model.quantize.embedding.weight"]
    assert float(codebook.norm(dim=-1).std()) > 0.1
    z = F.normalize(vq.quant_conv(vq.encoder(pixels(pictures))).permute(0, 2, 3, 1).flatten(1, 2), dim=-1)
    reference = torch.cdist(z, F.normalize(codebook, dim=-1)).argmin(-1)
    assert torch.equal(encode_image_tokens(loaded[0].model.vqmodel, pixels(pictures)), reference)
    assert not torch.equal(vq.encode(pixels(pictures)).image_tokens.view(3, -1), reference)
