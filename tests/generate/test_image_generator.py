"""Drawing by the engine: the plain loop's tokens, whoever comes and goes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration

from decoder_kinds import KINDS, every_kind, refusal
from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder, collate, pixels
from unidecouple.generate.image import draw_tokens
from unidecouple.generate.image_generator import ImageGenerator, ImageProgress, generate_image_tokens
from unidecouple.generate.jobs import ImageJob
from unidecouple.generate.one_task import one_task
from unidecouple.generate.padding import left_pad
from unidecouple.generate.sampling import SamplingParams
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.vq import encode_image_tokens

MakeModel = Callable[..., UniJanusForConditionalGeneration]

PROMPTS = ["a photo of a cow", "a photo of a red cow and a blue pig", "a sketch of three yellow buses"]
CHOICES = [
    SamplingParams(temperature=0.0),
    SamplingParams(),
    SamplingParams(temperature=0.7, top_k=5),
    SamplingParams(temperature=1.0, top_p=0.6),
]


def plainly(model: Any, builder: SequenceBuilder, order: ImageJob) -> Tensor:
    """The plain loop's tokens of one order, drawn alone."""
    return draw_tokens(model, builder, [order], routing="label")[0]


def mixed_orders(builder: SequenceBuilder) -> list[ImageJob]:
    """Prompts of three lengths, some with source images, all ways to choose, with and without guidance and negative prompts."""
    orders = []
    shown = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    sources = {2: [shown[0]], 3: [shown[1]], 5: [shown[1], shown[0]]}
    for number, choice in enumerate([*CHOICES, *CHOICES]):
        scale = (1.0, 3.0, 5.0)[number % 3]
        orders.append(
            ImageJob.of(
                builder,
                PROMPTS[number % 3],
                (number, 0, number % 2),
                replace(choice, guidance_scale=scale),
                "a blue pig" if number == 5 else None,
                sources.get(number, []),
            )
        )
    return orders


@pytest.mark.slow
@every_kind
def test_whole_pictures_are_the_plain_loops(make_model: MakeModel, builder: SequenceBuilder, kind: dict[str, Any]) -> None:
    model, orders = make_model(**kind), mixed_orders(builder)
    expected = torch.stack([plainly(model, builder, order) for order in orders])
    if refused := refusal(kind):
        with pytest.raises(ValueError, match=refused):
            ImageGenerator(model, builder)
        return
    found = generate_image_tokens(
        ImageGenerator(model, builder, max_batch_size=3, max_prompt_length=40), orders
    )  # fewer at a time than there are
    assert torch.equal(found, expected)
    assert len({tuple(row) for row in found.tolist()}) == len(orders)


@pytest.mark.parametrize("guidance", [3.0])
def test_greedy_pictures_equal_transformers(
    make_model: MakeModel,
    builder: SequenceBuilder,
    as_plain_janus: Callable[..., JanusForConditionalGeneration],
    guidance: float,
) -> None:
    model = make_model()
    plain, tokenizer = as_plain_janus(model), builder.tokenizer
    ids, mask = left_pad([builder.generation_prompt(prompt) for prompt in PROMPTS], tokenizer.pad_token_id, torch.device("cpu"))
    plain.generation_config.generation_kwargs = {"boi_token_id": tokenizer.convert_tokens_to_ids("<begin_of_image>")}
    for name in ("pad", "bos", "eos"):
        setattr(plain.generation_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    theirs = plain.generate(input_ids=ids, attention_mask=mask, generation_mode="image", guidance_scale=guidance, do_sample=False)
    orders = [ImageJob.of(builder, prompt, (0,), SamplingParams(guidance_scale=guidance, temperature=0.0)) for prompt in PROMPTS]
    assert torch.equal(generate_image_tokens(ImageGenerator(model, builder), orders), theirs)


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[4]], ids=str)
def test_neighbours_do_not_notice_who_comes_and_goes(make_model: MakeModel, builder: SequenceBuilder, kind: dict[str, Any]) -> None:
    """Images join at different steps, one is cancelled in the middle, and its slot is taken by the next."""
    model, orders = make_model(**kind), mixed_orders(builder)
    expected = [plainly(model, builder, order) for order in orders]
    drawing, found, given, step = ImageGenerator(model, builder, max_batch_size=4, max_prompt_length=40), {}, {}, 0
    waiting = list(range(len(orders)))
    cancelled: ImageProgress | None = None
    while waiting or drawing.images:
        if waiting and drawing.free_slots and step % 3 == 0:
            number = waiting.pop(0)
            given[number] = drawing.add([orders[number]])[0]
        if step == 7:
            cancelled = given.pop(1)
            assert torch.equal(drawing.partial(cancelled), expected[1][: cancelled.count])  # of a growing image
            drawing.remove(cancelled)
        for picture in drawing.step():
            number = next(n for n, one in given.items() if one is picture)
            found[number] = picture.tokens
        step += 1
    assert sorted(found) == [0, *range(2, 8)]
    assert all(torch.equal(tokens, expected[number]) for number, tokens in found.items())
    assert drawing.free_slots == 4
    assert cancelled is not None
    with pytest.raises(ValueError, match="not being generated"):
        drawing.remove(cancelled)


@pytest.mark.parametrize(
    "kind", [{}, {"ffn": "ta_moe"}, {"per_group_layers": [1], "per_group_norm": True, "group_by": "task"}], ids=str
)
def test_rows_that_end(emu3_base: Path, enliven: Any, kind: dict[str, Any]) -> None:
    """Emu3: images that stand at different places of their rows, some at an end, some not."""
    dense, processor = load(str(emu3_base))
    raw = dense.config.to_dict()
    torch.manual_seed(0)
    model = type(dense)(type(dense.config)(**raw | {"text_config": raw["text_config"] | kind})).eval()
    enliven(model.decoder, 1)
    enliven(model.lm_head, 2)
    builder = SequenceBuilder(processor)
    orders = [
        ImageJob.of(builder, prompt, (3, 0, 0), SamplingParams(guidance_scale=3.0), away)
        for prompt, away in (("a red cat", None), ("dog", "no blue"))
    ]
    expected = [plainly(model, builder, order) for order in orders]
    drawing = ImageGenerator(model, builder, max_batch_size=2)
    first = drawing.add(orders[:1])[0]
    for _ in range(2):
        drawing.step()
    second, done = drawing.add(orders[1:])[0], []
    while drawing.images:
        done += [(picture, picture.tokens) for picture in drawing.step()]
    assert [picture for picture, _ in done] == [first, second]
    assert all(torch.equal(tokens, wanted) for (_, tokens), wanted in zip(done, expected, strict=True))


def test_two_groups_in_one_drawing_are_refused(emu3_base: Path) -> None:
    dense, processor = load(str(emu3_base))
    raw = dense.config.to_dict()
    text = raw["text_config"] | {"per_group_layers": [0], "per_group_norm": True, "group_by": "image_out"}
    model = type(dense)(type(dense.config)(**raw | {"text_config": text}))
    with pytest.raises(ValueError, match=r"group_by='image_out'.*plain loop"):
        ImageGenerator(model, SequenceBuilder(processor))


def test_what_there_is_no_room_for(make_model: MakeModel, builder: SequenceBuilder) -> None:
    model = make_model()
    drawing = ImageGenerator(model, builder, max_batch_size=1, max_prompt_length=12)
    with pytest.raises(ValueError, match="2 images do not fit, there is room for 1"):
        drawing.add([ImageJob.of(builder, "a cow", (0,))] * 2)
    with pytest.raises(ValueError, match="shorten the prompt"):
        drawing.add([ImageJob.of(builder, "a cow " * 30, (0,))])
    assert drawing.step() == []


def test_one_task_is_the_whole_models_side(make_model: MakeModel) -> None:
    """A dense model is not copied; of a mixture only its group's weights are new."""
    dense, mixture = make_model(), make_model(ffn="ta_moe")
    assert one_task(dense, Task.T2I) is dense
    slim = one_task(mixture, Task.T2I)
    assert slim.config.text_config.num_experts == 2
    shared = {p.data_ptr() for p in mixture.parameters()} & {p.data_ptr() for p in slim.parameters()}
    assert len(shared) == sum(".experts." not in n and ".gate." not in n and ".first_" not in n for n, _ in slim.named_parameters())


@torch.no_grad()
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[4]], ids=str)
@pytest.mark.parametrize("negative", [None, "a blue pig"])
def test_edits_are_what_the_models_forward_chooses(
    make_model: MakeModel, builder: SequenceBuilder, kind: dict[str, Any], negative: str | None
) -> None:
    """Without cache and padding: the training sequence of the tokens so far, with the prompt and with the negative one."""
    model, length = make_model(**kind), builder.num_image_tokens
    shown = list(np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8))
    codes = encode_image_tokens(model.model.vqmodel, pixels(shown)).tolist()

    def logits(prompt: str, dropped: bool, tokens: list[int]) -> Tensor:
        whole = tuple(tokens) + (0,) * (length - len(tokens))
        sample = builder.conversation([("user", [*shown, prompt]), ("assistant", [whole])], Task.T2I, dropped)
        sample = replace(sample, sources=() if dropped else tuple(map(tuple, codes)))
        states = model.decode_batch(collate([sample], builder.tokenizer.pad_token_id), "label").last_hidden_state[0]
        return model.image_logits(states[sample.image_mask.index(True) - 1 + len(tokens)])

    tokens: list[int] = []
    for _ in range(length):
        away = logits(negative or PROMPTS[1], negative is None, tokens)
        tokens.append(int((away + 5 * (logits(PROMPTS[1], dropped=False, tokens=tokens) - away)).argmax()))
    order = ImageJob.of(builder, PROMPTS[1], (0,), SamplingParams(guidance_scale=5.0, temperature=0.0), negative, shown)
    drawing = ImageGenerator(model, builder, max_batch_size=2, max_prompt_length=40)
    other = ImageJob.of(builder, PROMPTS[0])
    assert generate_image_tokens(drawing, [order, other])[0].tolist() == tokens
    assert plainly(model, builder, order).tolist() == tokens
