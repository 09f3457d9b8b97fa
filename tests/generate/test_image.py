"""Images: the whole loop of image tokens in a batch, alone, recomputed, and in transformers' own loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from decoder_kinds import every_kind
from unidecouple.data.sequences import SequenceBuilder, collate
from unidecouple.generate.image import decode_images, draw, draw_tokens, to_bytes
from unidecouple.generate.jobs import image_jobs
from unidecouple.generate.padding import left_pad, positions
from unidecouple.generate.sampling import SamplingParams
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]

PROMPTS = ["a photo of a cow", "a photo of a red cow and a blue pig", "a sketch of three yellow buses"]
SAMPLINGS = [
    SamplingParams(guidance_scale=guidance, temperature=temperature, top_k=top_k)
    for guidance in (1.0, 3.0)
    for temperature, top_k in ((0.0, 0), (1.0, 0), (0.7, 5))
]


@pytest.mark.slow
@every_kind
def test_a_padded_batch_equals_one_by_one(make_model: MakeModel, builder: SequenceBuilder, kind: dict[str, Any]) -> None:
    """Prompts of three lengths, each image with settings of its own, guided and not."""
    model = make_model(**kind)
    jobs = [image_jobs(builder, PROMPTS, 2, 7, sampling)[number] for number, sampling in enumerate(SAMPLINGS)]
    together = draw_tokens(model, builder, jobs)
    assert together.shape == (6, 16)
    for size in (1, 4):
        assert torch.equal(draw_tokens(model, builder, jobs, size), together)
    assert len({tuple(row) for row in together.tolist()}) == 6
    assert len(together.unique()) > 8


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: f"guidance {s.guidance_scale} temperature {s.temperature}")
def test_neither_other_prompts_nor_more_copies_change_an_image(
    make_model: MakeModel, builder: SequenceBuilder, sampling: SamplingParams
) -> None:
    model = make_model(ffn="ta_moe")
    together = draw_tokens(model, builder, image_jobs(builder, PROMPTS, 2, 7, sampling))
    first = draw_tokens(model, builder, image_jobs(builder, PROMPTS[:1], 3, 7, sampling))
    assert torch.equal(first[:2], together[:2])
    copies = [torch.equal(together[2 * i], together[2 * i + 1]) for i in range(3)]
    assert copies == [sampling.temperature == 0] * 3
    assert len({tuple(row) for row in together.tolist()}) == (3 if sampling.temperature == 0 else 6)


def test_each_image_has_its_own_settings(make_model: MakeModel, builder: SequenceBuilder) -> None:
    model = make_model()
    jobs = [image_jobs(builder, PROMPTS[:1], 1, 7, sampling)[0] for sampling in SAMPLINGS]
    assert torch.equal(draw_tokens(model, builder, jobs), torch.cat([draw_tokens(model, builder, [job]) for job in jobs]))


def test_the_seed_decides(make_model: MakeModel, builder: SequenceBuilder) -> None:
    model = make_model()
    one, same, other = (draw_tokens(model, builder, image_jobs(builder, PROMPTS, 1, seed, SamplingParams())) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert (one != other).any(1).all()
    state = torch.random.get_rng_state()
    draw_tokens(model, builder, image_jobs(builder, PROMPTS[:1], 1, 1, SamplingParams()))
    assert torch.equal(torch.random.get_rng_state(), state)  # drawing leaves training's random numbers alone


def teacher_forced(
    model: UniJanusForConditionalGeneration, builder: SequenceBuilder, tokens: Tensor, dropped: bool, routing: str | None = None
) -> Tensor:
    """Logits of every image token (B, 16, codes) given those before it, from a training batch and without a cache."""
    samples = [builder.generation(prompt, row, dropped) for prompt, row in zip(PROMPTS, tokens.tolist(), strict=True)]
    batch = collate(samples, builder.tokenizer.pad_token_id)
    hidden = model.decode_batch(batch, routing).last_hidden_state
    return model.model.generation_head(
        torch.stack([h[t >= 0] for h, t in zip(hidden[:, :-1], batch.image_tokens[:, 1:], strict=True)])
    )


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@every_kind
@torch.no_grad()
def test_cache_equals_full_recompute(
    make_model: MakeModel, builder: SequenceBuilder, kind: dict[str, Any], guidance: float
) -> None:
    model = make_model(**kind)
    tokens = draw_tokens(model, builder, image_jobs(builder, PROMPTS, 1, 0, SamplingParams(guidance_scale=guidance, temperature=0)))
    cond, uncond = (teacher_forced(model, builder, tokens, dropped) for dropped in (False, True))
    assert torch.equal((uncond + guidance * (cond - uncond)).argmax(-1), tokens)
    assert (cond.argmax(-1) == tokens).all().item() == (guidance == 1)


@torch.no_grad()
def test_greedy_guided_pictures_equal_transformers(
    make_model: MakeModel, builder: SequenceBuilder, as_plain_janus: Callable[..., JanusForConditionalGeneration]
) -> None:
    """The whole loop of the library's ``generate`` on a left-padded batch of different prompts."""
    model = make_model()
    plain, tokenizer = as_plain_janus(model), builder.tokenizer
    ids, mask = left_pad([builder.generation_prompt(prompt) for prompt in PROMPTS], tokenizer.pad_token_id, torch.device("cpu"))
    plain.generation_config.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids("<begin_of_image>")}
    plain.generation_config.pad_token_id = tokenizer.pad_token_id
    plain.generation_config.bos_token_id = tokenizer.bos_token_id
    plain.generation_config.eos_token_id = tokenizer.eos_token_id
    theirs = plain.generate(input_ids=ids, attention_mask=mask, generation_mode="image", guidance_scale=3.0, do_sample=False)
    ours = draw_tokens(model, builder, image_jobs(builder, PROMPTS, 1, 0, SamplingParams(guidance_scale=3.0, temperature=0)))
    assert torch.equal(ours, theirs)
    assert len(ours.unique()) > 8


@torch.no_grad()
def test_forced_routing(make_model: MakeModel, builder: SequenceBuilder) -> None:
    """With task labels, tokens go where training by label sends them (the BOS to understanding), not where the router would."""
    model = make_model(ffn="ta_moe")
    for layer in model.decoder.layers:
        layer.mlp.router.weight.zero_()  # all to understanding
    chosen, forced = (
        draw_tokens(model, builder, image_jobs(builder, PROMPTS, 1, 0, SamplingParams(temperature=0)), routing=routing)
        for routing in (None, "label")
    )
    assert torch.equal(teacher_forced(model, builder, forced, dropped=False, routing="label").argmax(-1), forced)
    assert torch.equal(teacher_forced(model, builder, chosen, dropped=False).argmax(-1), chosen)
    assert not torch.equal(chosen, forced)


def test_sampling_follows_the_softmax(make_model: MakeModel, builder: SequenceBuilder) -> None:
    """First tokens of 600 images against the model's own probabilities; with top_k none outside the k likeliest."""
    model = make_model()
    ids = torch.tensor([builder.generation_prompt(PROMPTS[0])])
    with torch.no_grad():
        logits = model.model.generation_head(model.decoder(input_ids=ids).last_hidden_state[0, -1])
    drawn = draw_tokens(model, builder, image_jobs(builder, PROMPTS[:1], 600, 0, SamplingParams(temperature=0.8)))[:, 0]
    probability = (logits / 0.8).softmax(-1)
    share = torch.bincount(drawn, minlength=64) / 600
    assert float((share - probability).abs().max()) < 4 * float((probability * (1 - probability) / 600).sqrt().max())
    few = draw_tokens(model, builder, image_jobs(builder, PROMPTS[:1], 100, 0, SamplingParams(top_k=3)))[:, 0]
    assert set(few.tolist()) == set(logits.topk(3).indices.tolist())


@torch.no_grad()
def test_pictures_of_tokens(make_model: MakeModel, builder: SequenceBuilder) -> None:
    model = make_model()
    pictures = draw(model, builder, PROMPTS, num_images=2, seed=3)
    tokens = draw_tokens(model, builder, image_jobs(builder, PROMPTS, 2, 3, SamplingParams()))
    assert [len(of_prompt) for of_prompt in pictures] == [2, 2, 2]
    flat = np.stack([picture for of_prompt in pictures for picture in of_prompt])
    assert (flat.shape, flat.dtype) == ((6, 16, 16, 3), np.uint8)
    assert np.array_equal(flat, decode_images(model, tokens))
    exact = (model.decode_image_tokens(tokens).clamp(-1, 1).numpy() + 1) * 127.5
    assert -0.01 <= (exact - flat).min() <= (exact - flat).max() <= 1.01
    assert flat.std() > 10


@torch.no_grad()
def test_a_picture_s_bytes_do_not_depend_on_those_beside_it(make_model: MakeModel, builder: SequenceBuilder) -> None:
    model = make_model()
    tokens = draw_tokens(model, builder, image_jobs(builder, PROMPTS, 3, 3, SamplingParams()))
    together = decode_images(model, tokens)
    for number, one in enumerate(tokens):
        assert np.array_equal(together[number], decode_images(model, one.unsqueeze(0))[0])


@pytest.mark.parametrize(
    ("value", "level"), [(-1.0, 0), (1.0, 255), (-3.0, 0), (3.0, 255), (0.0, 127), (0.999, 254), (-0.992, 1), (0.5, 191)]
)
def test_levels_are_truncated(value: float, level: int) -> None:
    assert to_bytes(torch.full((1, 1, 1, 3), value)).tolist() == [[[[level] * 3]]]


def test_levels_are_those_of_deepseek_and_nearly_those_of_transformers() -> None:
    pictures = torch.rand(2, 8, 8, 3) * 2.4 - 1.2
    deepseek = np.zeros(pictures.shape, dtype=np.uint8)
    deepseek[:] = np.clip((pictures.numpy() + 1) / 2 * 255, 0, 255)
    assert np.array_equal(to_bytes(pictures), deepseek)
    processor = JanusImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    theirs = np.stack(processor.postprocess(list(pictures.permute(0, 3, 1, 2).numpy()))["pixel_values"])
    assert np.abs(theirs.transpose(0, 2, 3, 1).astype(int) - deepseek).max() <= 1  # another order of the same products


def test_padding_is_on_the_left() -> None:
    ids, mask = left_pad([[5, 6, 7], [8]], pad_token_id=9, device=torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions(mask).tolist() == [[0, 1, 2], [0, 0, 0]]
