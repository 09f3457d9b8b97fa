"""Emu3's whole loops: images with rows that end, and answers, alone, in a batch, and in transformers' own generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decoder_kinds import every_kind
from tiny_emu3 import SIDE, SIZE, emu3_processor, plain_emu3
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder, collate
from unidecouple.generate.image import draw, draw_tokens
from unidecouple.generate.image_generator import ImageGenerator, generate_image_tokens
from unidecouple.generate.jobs import ImageJob, image_jobs
from unidecouple.generate.sampling import SamplingParams
from unidecouple.generate.text import answer
from unidecouple.models.base import UnifiedModel

PROMPTS = ["a red cat", "a photo of a blue pig in the picture", "dog"]
NEGATIVE = "no blue"
QUESTIONS = ["what is this ?", "is there a red cat in the image ?", "dog ?"]


@pytest.fixture(scope="module")
def builder(emu3_base: Path) -> SequenceBuilder:
    return SequenceBuilder(load(str(emu3_base))[1])


def lively(base: Path, enliven: Any, **text: Any) -> UnifiedModel:
    """The base with other fields of its text configuration, all of its decoder's weights random."""
    dense, _ = load(str(base))
    raw = dense.config.to_dict()
    torch.manual_seed(0)
    model = type(dense)(type(dense.config)(**raw | {"text_config": raw["text_config"] | text})).eval()
    enliven(model.decoder, 1)
    enliven(model.lm_head, 2)
    return model


def transformers_own(prompt: str, guidance: float, negative: str) -> Tensor:
    """Codes (1, tokens) of greedy drawing by transformers' generate, constrained as its documentation does it."""
    model, processor = plain_emu3(), emu3_processor()
    made = {"return_for_image_generation": True, "image_area": SIZE**2, "return_tensors": "pt"}
    inputs, away = (processor(text=[text], **made) for text in (prompt, negative))
    names = processor.tokenizer.get_vocab()
    codes = [number for name, number in names.items() if name.startswith("<|visual token")]
    start = names["<|image token|>"]

    def allowed(row: int, ids: Tensor) -> list[int]:
        place = len(ids) - int((ids == start).nonzero()[0])
        tail = {(SIDE + 1) * SIDE + 1: "<|extra_201|>", (SIDE + 1) * SIDE + 2: "<|image end|>"}
        return [names["<|extra_200|>"]] if place % (SIDE + 1) == 0 else [names[tail[place]]] if place in tail else codes

    steered = {} if guidance == 1 else {"guidance_scale": guidance, "negative_prompt_ids": away["input_ids"]}
    out = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=SIDE * (SIDE + 1) + 2,
        do_sample=False,
        prefix_allowed_tokens_fn=allowed,
        **steered,
    )
    rows = out[:, inputs["input_ids"].shape[1] : -2].view(1, SIDE, SIDE + 1)
    assert set(rows[..., -1].flatten().tolist()) == {names["<|extra_200|>"]}
    return rows[..., :-1].flatten(1) - names["<|visual token 000000|>"]


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "negative"), [(1.0, ""), (3.0, ""), (3.0, NEGATIVE)])
def test_drawing_is_transformers_own_greedy_loop(emu3_base: Path, builder: SequenceBuilder, guidance: float, negative: str) -> None:
    model, _ = load(str(emu3_base))
    sampling = SamplingParams(guidance_scale=guidance, temperature=0.0)
    ours = draw_tokens(model, builder, image_jobs(builder, PROMPTS, 1, 0, sampling, negative or None))
    expected = torch.cat([transformers_own(prompt, guidance, negative) for prompt in PROMPTS])
    assert torch.equal(ours, expected)
    assert len({tuple(row) for row in ours.tolist()}) == len(PROMPTS)


@pytest.mark.slow
@every_kind
def test_a_padded_batch_equals_one_by_one(emu3_base: Path, builder: SequenceBuilder, enliven: Any, kind: dict[str, Any]) -> None:
    """Guided, since then prompts and hidden prompts, of other lengths, are rows of one batch."""
    model = lively(emu3_base, enliven, **kind)
    together, alone = (
        draw_tokens(
            model,
            builder,
            image_jobs(builder, PROMPTS, 1, 7, SamplingParams(guidance_scale=3.0, temperature=1.0, top_k=20)),
            batch_size=size,
        )
        for size in (256, 1)
    )
    assert torch.equal(alone, together)
    assert together.shape == (3, SIDE * SIDE)
    assert len(together.unique()) > 8


@torch.no_grad()
def test_the_cached_loop_equals_full_recompute(emu3_base: Path, builder: SequenceBuilder, enliven: Any) -> None:
    """Rows' ends are where training has them: a training batch of what was drawn gives the same choices."""
    model = lively(emu3_base, enliven, ffn="ta_moe")
    tokens = draw_tokens(model, builder, image_jobs(builder, PROMPTS, 1, 0, SamplingParams(guidance_scale=3.0, temperature=0.0)))
    logits = []
    for dropped in (False, True):
        samples = [builder.generation(prompt, row, dropped) for prompt, row in zip(PROMPTS, tokens.tolist(), strict=True)]
        batch = collate(samples, builder.tokenizer.pad_token_id)
        hidden = model.decode_batch(batch).last_hidden_state
        states = torch.stack([h[t >= 0] for h, t in zip(hidden[:, :-1], batch.image_tokens[:, 1:], strict=True)])
        logits.append(model.image_logits(states))
    assert torch.equal((logits[1] + 3 * (logits[0] - logits[1])).argmax(-1), tokens)


def test_pictures_come_out(emu3_base: Path, builder: SequenceBuilder) -> None:
    model, _ = load(str(emu3_base))
    (first, second), (other, _) = draw(
        model, builder, PROMPTS[:2], 2, 3, SamplingParams(guidance_scale=3.0, temperature=1.0, top_k=32)
    )
    assert (first.shape, first.dtype) == ((SIZE, SIZE, 3), np.uint8)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_answers_are_transformers_own(emu3_base: Path, builder: SequenceBuilder) -> None:
    model, _ = load(str(emu3_base))
    pictures = list(np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8))
    together = answer(model, builder, pictures, QUESTIONS, 8)
    alone = [answer(model, builder, [p], [q], 8)[0] for p, q in zip(pictures, QUESTIONS, strict=True)]
    assert together == alone
    theirs, processor = plain_emu3(), emu3_processor()
    texts = [f"You are a helpful assistant. USER: <image>{question} ASSISTANT:" for question in QUESTIONS]
    for text, picture, found in zip(texts, pictures, together, strict=True):
        inputs = processor(text=[text], images=[picture], return_tensors="pt")
        out = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert processor.tokenizer.decode(out, skip_special_tokens=True) == found
    assert len(set(together)) > 1


def test_source_images_stand_as_tokens_once(emu3_base: Path) -> None:
    """Ours: a prompt's source image is the block of a question; the engine and the plain loop agree."""
    model, processor = load(str(emu3_base))
    builder, shown = SequenceBuilder(processor), np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    assert builder.source_length == len(builder._image)
    jobs = [
        ImageJob.of(builder, "a red cat", (3, number), SamplingParams(guidance_scale=2.0), pictures=[picture])
        for number, picture in enumerate(shown)
    ]
    expected = torch.stack([draw_tokens(model, builder, [job])[0] for job in jobs])
    assert torch.equal(generate_image_tokens(ImageGenerator(model, builder, max_batch_size=2), jobs), expected)
