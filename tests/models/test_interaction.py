"""Attention between the modalities: spans by hand, uniform attention by hand, and every decoder against eager maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from decoder_kinds import every_kind
from unidecouple.batch import IGNORE, Batch, JointBatch, Task
from unidecouple.data.packing import pack
from unidecouple.data.sequences import QAPair, Sample, SequenceBuilder, collate
from unidecouple.models.interaction import Interaction, cross_modal_mask
from unidecouple.models.janus import UniJanusForConditionalGeneration

MakeModel = Callable[..., UniJanusForConditionalGeneration]
PAD, BOS, PICTURE = 0, 1, 9


def sample(text: str) -> Sample:
    """``text`` spells a sequence: ^ BOS, w a word, _ a dropped word, S an input image, D a generated token, A an answer learned."""
    ids = [{"^": BOS, "w": 2, "A": 3, "S": PICTURE}.get(token, PAD) for token in text]
    labels = [3 if token == "A" else IGNORE for token in text]
    mask, dropped = [token == "D" for token in text], [token == "_" for token in text]
    return Sample(ids, [Task.MMU] * len(ids), labels, mask, dropped, images=((7,) * sum(mask),))


def spans_of(texts: list[str], row: int | None = None) -> list[tuple[Task, str, str]]:
    """Task, queries and keys of each sample found in ``texts``, each marked by x; in packed rows of ``row`` tokens."""
    samples = [sample(text) for text in texts]
    batch = collate(samples, PAD) if row is None else pack(samples, row, PAD)
    spans = cross_modal_mask(batch, batch.input_ids == PICTURE)
    out = []
    for task, weights in zip(spans.task.tolist(), spans.queries, strict=True):
        assert float(weights.sum()) == pytest.approx(1)
        assert len(weights[weights > 0].unique()) == 1, "a mean"
        (here,) = (weights > 0).view(batch.input_ids.shape).any(1).nonzero().flatten().tolist()
        marks = ((weights > 0).view(batch.input_ids.shape)[here], spans.keys[here, :, task])
        out.append((Task(task), *("".join(".x"[int(x)] for x in mark) for mark in marks)))
    return out


def test_spans_by_hand() -> None:
    """The drawn tokens' own rows look at all words before them; the answers' own rows at the image's tokens alone."""
    assert spans_of(["^wwwDDD"]) == [(Task.T2I, "....xxx", "xxxx...")]
    assert spans_of(["^wSSwwAA"]) == [(Task.MMU, "......xx", "..xx....")]
    assert spans_of(["^wSwAAwwA"]) == [(Task.MMU, "....xx..x", "..x......")]
    assert spans_of(["^wSwDD"]) == [(Task.T2I, "....xx", "xx.x..")], "an input image is no word of the prompt"


def test_who_is_left_out() -> None:
    assert spans_of(["^___DD", "^__wDDwDD"]) == [], "prompts dropped"
    assert spans_of(["^wwAA", "^wSSw"]) == [], "no image; no answer"
    assert spans_of(["^wAwSwA"]) == [(Task.MMU, "......x", "....x..")], "an answer before the first image"
    assert spans_of(["^w_DD"]) == [(Task.T2I, "...xx", "xxx..")], "a pad that ends a turn drops nothing"


def test_rows_of_both_tasks_and_their_padding() -> None:
    found = spans_of(["^wDDD", "^SwAAAAA", "^_DD", "^wA"])
    assert found == [(Task.MMU, "...xxxxx", ".x......"), (Task.T2I, "..xxx...", "xx......")]


def test_packed_sequences_are_samples_of_their_own() -> None:
    """One row: each generated image, each answer has a mean of its own, and a dropped prompt drops its own image only."""
    found = spans_of(["^wDD", "^__D", "^SwA", "^wwD", "^wA"], row=40)
    assert [(task, queries.count("x")) for task, queries, _ in found] == [(Task.MMU, 1), (Task.T2I, 2), (Task.T2I, 1)]
    assert spans_of(["^SwA", "^wA"], row=7)[0][1].count("x") == 1, "an answer does not look into another sequence's image"


def test_uniform_attention_by_hand(make_model: MakeModel, builder: SequenceBuilder) -> None:
    """With queries of zero every token looks at all up to itself alike, so that each row's share can be counted."""
    model = make_model(num_hidden_layers=2)
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.self_attn.q_proj.weight.zero_()
    prompt = builder.generation_prompt("a photo of a cow")
    drawn = collate([builder.generation("a photo of a cow", [1] * 16)], PAD)
    picture = np.zeros((16, 16, 3), np.uint8)
    asked = collate([builder.understanding(picture, [QAPair("pope", "Is there a cow in the image?", "yes")])], PAD)
    t2i, mmu = model(batch=(drawn, asked), interaction=True).interaction
    by_hand = np.mean([len(prompt) / (row + 1) for row in range(len(prompt), len(prompt) + 16)])
    assert t2i.intensity.flatten().tolist() == pytest.approx([by_hand] * 2, abs=1e-6)
    answers = (asked.labels[0] != IGNORE).nonzero().flatten().tolist()
    assert answers == [asked.input_ids.shape[1] - 2, asked.input_ids.shape[1] - 1], "yes and the EOS"
    assert mmu.intensity.flatten().tolist() == pytest.approx([np.mean([16 / (row + 1) for row in answers])] * 2, abs=1e-6)


def by_maps(model: UniJanusForConditionalGeneration, batch: Batch) -> Interaction:
    """The same from whole maps of eager attention, row by row of samples that the spans name."""
    maps: list[Tensor] = []
    hooks = [layer.self_attn.register_forward_hook(lambda _, __, out: maps.append(out[1])) for layer in model.decoder.layers]
    implementation = model.config.text_config._attn_implementation
    model.set_attn_implementation("eager")
    model.decode_batch(batch)
    model.set_attn_implementation(implementation)
    for hook in hooks:
        hook.remove()
    spans = model.spans(batch)
    rows = []
    for task, weights in zip(spans.task.tolist(), spans.queries, strict=True):
        row, queries = (weights > 0).view(batch.input_ids.shape).nonzero().unbind(1)
        keys = spans.keys[row[0], :, task].nonzero().flatten()
        rows.append(torch.stack([m[row[0]][:, queries][..., keys].sum(-1).mean() for m in maps]))
    return Interaction(torch.stack(rows, 1), spans.task)


def gradients(model: UniJanusForConditionalGeneration, found: list[Interaction]) -> dict[str, Tensor]:
    model.zero_grad()
    sum(one.intensity.square().sum() for one in found).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(wanted: dict[str, Tensor], found: dict[str, Tensor], rounding: float = 5e-5) -> None:
    scale = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert scale > 1e-4
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) <= rounding * scale, name


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@every_kind
def test_values_and_gradients_are_those_of_eager_maps(
    make_model: MakeModel, joint_batch: JointBatch, kind: dict[str, Any], attention: str
) -> None:
    rounding = 5e-5 if attention == "eager" else 5e-4  # the maps are of eager attention
    model = make_model(**kind)
    model.set_attn_implementation(attention)
    output = model(batch=joint_batch, interaction=True)
    wanted = [by_maps(model, batch) for batch in joint_batch]
    assert [one.task.tolist() for one in output.interaction] == [[Task.MMU, Task.MMU], [Task.T2I]], "one prompt is dropped"
    for one, other in zip(output.interaction, wanted, strict=True):
        torch.testing.assert_close(one.intensity, other.intensity, atol=1e-6, rtol=rounding)
        assert one.intensity.std().item() > 1e-4, "no constant"
    assert_same_gradients(gradients(model, wanted), gradients(model, output.interaction), rounding)


def test_fewer_key_heads_than_query_heads(make_model: MakeModel, joint_batch: JointBatch) -> None:
    model = make_model(num_attention_heads=4, num_key_value_heads=2)
    (found,) = model(batch=joint_batch[:1], interaction=True).interaction
    torch.testing.assert_close(found.intensity, by_maps(model, joint_batch[0]).intensity, atol=1e-6, rtol=1e-5)


def test_measuring_changes_no_loss(make_model: MakeModel, joint_batch: JointBatch) -> None:
    model = make_model(ffn="ta_moe", context_router=True)
    plain, measured = model(batch=joint_batch), model(batch=joint_batch, interaction=True)
    assert plain.interaction is None
    for task in Task:
        torch.testing.assert_close(plain.loss(task), measured.loss(task), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_measure_the_same(
    make_model: MakeModel, builder: SequenceBuilder, pictures: np.ndarray, attention: str
) -> None:
    model, pad = make_model(), builder.tokenizer.pad_token_id
    model.set_attn_implementation(attention)
    question = QAPair("pope", "Is there a cow in the image?", "yes")
    samples = [
        builder.understanding(pictures[0], [question]),
        builder.generation("a photo of a cow", [3] * 16),
        builder.conversation([("user", ["yes"]), ("assistant", ["no"])], Task.MMU),
        builder.generation("a photo of two red cups", [4] * 16, dropped=True),
        builder.understanding(pictures[1], [question, question]),
    ]
    (apart,) = model(batch=(collate(samples, pad),), interaction=True).interaction
    packed = pack(samples, 120, pad)
    assert len(packed.input_ids) < len(samples)
    (together,) = model(batch=(packed,), interaction=True).interaction
    for task in Task:
        wanted, found = (one.intensity[:, one.task == task].sort(1).values for one in (apart, together))
        assert found.shape[1] == (2, 1)[task]
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    model.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2': use 'sdpa', or do not pack"):
        model.spans(packed)
    assert len(model.spans(collate(samples, pad)).task) == 3


def test_recomputed_layers_measure_the_same(make_model: MakeModel, joint_batch: JointBatch) -> None:
    model = make_model(ffn="ta_moe").train()
    model.model.vqmodel.eval()
    wanted = gradients(model, model(batch=joint_batch, interaction=True).interaction)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # its new name is not in transformers 5.22
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same_gradients(wanted, gradients(model, model(batch=joint_batch, interaction=True).interaction))


def test_in_bfloat16_it_is_close(make_model: MakeModel, joint_batch: JointBatch) -> None:
    model = make_model()
    exact = model(batch=joint_batch, interaction=True).interaction
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(batch=joint_batch, interaction=True).interaction
    for one, other in zip(exact, rough, strict=True):
        assert other.intensity.dtype == torch.float32
        torch.testing.assert_close(one.intensity, other.intensity, atol=2e-2, rtol=0)


def test_a_batch_without_samples_has_none(make_model: MakeModel, joint_batch: JointBatch) -> None:
    silent = replace(joint_batch[0], labels=torch.full_like(joint_batch[0].labels, IGNORE))
    (found,) = make_model()(batch=(silent,), interaction=True).interaction
    assert found.intensity.shape == (2, 0)
    assert model_samples(make_model(), silent) == [0, 0]
    assert model_samples(make_model(), joint_batch[0]) == [2, 0]


def model_samples(model: UniJanusForConditionalGeneration, batch: Batch) -> list[int]:
    return model.spans(batch).samples.tolist()


def test_a_cache_is_refused(make_model: MakeModel) -> None:
    model, ids = make_model().decoder, torch.ones(1, 3, dtype=torch.long)
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, cache=cache)
    with pytest.raises(ValueError, match="among 3 keys cannot be measured over 6: decode whole sequences"):
        model(input_ids=ids, cache=cache, key_sets=torch.ones(1, 3, 2, dtype=torch.bool))
