"""The joint model: what it shares with transformers' Janus, its losses by hand, files that give back the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor, JanusForConditionalGeneration

from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Batch, Task
from unidecouple.data.sequences import QAPair, Sample, SequenceBuilder, collate
from unidecouple.models.configuration import UniJanusConfig, UniLlamaConfig
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor

MakeModel = Callable[..., UniJanusForConditionalGeneration]
Joint = tuple[Batch, Batch]

LORA = {"lora_rank": 4, "lora_targets": ["attention", "experts", "shared_expert"], "lora_per_task": ["attention", "shared_expert"]}
KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "dense with LoRA": {"lora_rank": 4, "lora_targets": ["attention", "mlp"]},
    "moe": {"ffn": "moe"},
    "ta_moe": {"ffn": "ta_moe"},
    "ta_moe without shared expert": {"ffn": "ta_moe", "shared_expert": False, "num_experts_per_tok": 2},
    "ta_moe by label": {"ffn": "ta_moe", "task_routing": "label"},
    "ta_moe with LoRA": {"ffn": "ta_moe", **LORA},
    "ta_moe by context": {"ffn": "ta_moe", "context_router": True, **LORA},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def rows(batch: Batch) -> Iterator[tuple[Batch, int]]:
    """Each row alone, its padding cut off, and how many placeholders it has."""
    for row in range(len(batch.input_ids)):
        length = int(batch.attention_mask[row].sum())
        cut = [part[row : row + 1, :length] for part in (batch.input_ids, batch.attention_mask, batch.task_ids, batch.labels)]
        pictures = None if batch.pixel_values is None else batch.pixel_values[row : row + 1]
        yield Batch(*cut, batch.image_tokens[row : row + 1, :length], pictures), length


def image_logits(model: JanusForConditionalGeneration, batch: Batch, **kwargs: Any) -> Tensor:
    """Teacher-forced logits of image tokens, with transformers' own methods."""
    drawn = batch.image_tokens != NO_IMAGE_TOKEN
    embeds = model.get_input_embeddings()(batch.input_ids)
    embeds[drawn] = model.prepare_embeddings_for_image_generation(batch.image_tokens[drawn])
    return model.model.generation_head(model.model.language_model(inputs_embeds=embeds, **kwargs).last_hidden_state)


def understanding_logits(model: JanusForConditionalGeneration, batch: Batch, **kwargs: Any) -> Tensor:
    return model(input_ids=batch.input_ids, pixel_values=batch.pixel_values, **kwargs).logits


def cross_entropy(logits: Tensor, targets: Tensor, ignore: int) -> tuple[float, int]:
    """Sum over positions: the logits at t - 1 predict the target at t."""
    total, count = 0.0, 0
    for row, of_row in zip(logits, targets.tolist(), strict=True):
        for position, target in enumerate(of_row):
            if target != ignore:
                total -= float(row[position - 1].double().log_softmax(-1)[target])
                count += 1
    return total, count


@pytest.mark.slow
@every_kind
@torch.no_grad()
def test_saved_and_loaded_is_the_same_model(
    make_model: MakeModel, processor: UniJanusProcessor, joint_batch: Joint, tmp_path: Path, kind: str
) -> None:
    model = make_model(**KINDS[kind])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is UniJanusForConditionalGeneration
    ours, theirs = (of.config.text_config.to_dict() | {"dtype": None} for of in (model, loaded))
    assert ours == theirs
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    for weight in loaded.parameters():
        weight.data = weight.data.clone()  # out of the mapped file: how memory is aligned decides which kernel rounds
    for batch in joint_batch:
        kwargs = {"task_ids": batch.task_ids}
        assert torch.equal(understanding_logits(loaded, batch, **kwargs), understanding_logits(model, batch, **kwargs))
        assert torch.equal(image_logits(loaded, batch, **kwargs), image_logits(model, batch, **kwargs))
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is UniJanusProcessor
    assert (again.system_prompt, again.num_image_tokens) == (processor.system_prompt, processor.num_image_tokens)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a cow in the image?"}]}]
    assert again.apply_chat_template(chat) == processor.apply_chat_template(chat)


@torch.no_grad()
def test_dense_model_is_transformers_janus(
    make_model: MakeModel, as_plain_janus: Callable[..., JanusForConditionalGeneration], joint_batch: Joint
) -> None:
    model = make_model()
    plain = as_plain_janus(model)
    understanding, generation = joint_batch
    expected = understanding_logits(plain, understanding)
    assert expected.std() > 0.5
    torch.testing.assert_close(understanding_logits(model, understanding), expected, atol=1e-5, rtol=1e-5)
    expected = image_logits(plain, generation)
    torch.testing.assert_close(
        model.model.generation_head(model.decode_batch(generation).last_hidden_state), expected, atol=1e-5, rtol=1e-5
    )


@every_kind
@pytest.mark.parametrize("routing", ["learned", "label"])
@torch.no_grad()
def test_joint_losses_by_hand(make_model: MakeModel, joint_batch: Joint, kind: str, routing: str) -> None:
    """Row by row without padding, through the library's forward for understanding."""
    model = make_model(**KINDS[kind])
    output = model(batch=joint_batch, routing=routing)
    sums = {Task.MMU: [0.0, 0], Task.T2I: [0.0, 0]}
    for task, batch in zip(Task, joint_batch, strict=True):
        for row, _ in rows(batch):
            kwargs = {"task_ids": row.task_ids, "routing": routing}
            logits = (understanding_logits if task is Task.MMU else image_logits)(model, row, **kwargs)
            total, count = cross_entropy(
                logits, *((row.labels, IGNORE) if task is Task.MMU else (row.image_tokens, NO_IMAGE_TOKEN))
            )
            sums[task][0] += total
            sums[task][1] += count
    assert (int(output.mmu.count), int(output.t2i.count)) == (sums[Task.MMU][1], sums[Task.T2I][1]) == (2 + 8 + 2, 32)
    for task in Task:
        assert float(output.loss(task)) == pytest.approx(sums[task][0] / sums[task][1], rel=1e-5)
    layers = 0 if "dense" in kind else 2
    assert [len(decisions) for decisions in output.routing] == [layers, layers]


@pytest.fixture
def mixed(builder: SequenceBuilder, pictures: np.ndarray) -> Sample:
    """One row that answers a question and then draws an image."""
    asked = builder.understanding(pictures[0], [QAPair("pope", "Is there a cow in the image?", "yes")])
    drawn = builder.generation("a photo of a cow", range(16))
    names = ("input_ids", "task_ids", "labels", "image_mask", "prompt_dropped")
    both = {name: getattr(asked, name) + getattr(drawn, name)[1:] for name in names}
    return Sample(**both, pictures=asked.pictures, images=drawn.images)


@every_kind
@torch.no_grad()
def test_a_row_may_hold_both_tasks(
    make_model: MakeModel, builder: SequenceBuilder, mixed: Sample, joint_batch: Joint, kind: str
) -> None:
    model, pad = make_model(**KINDS[kind]), builder.tokenizer.pad_token_id
    row = collate([mixed], pad)
    assert set(mixed.task_ids) == {0, 1}
    output = model(batch=(row,), routing="label")
    assert (int(output.mmu.count), int(output.t2i.count)) == (2, 16)
    logits = model.model.generation_head(model.decode_batch(row, "label").last_hidden_state)
    assert float(output.t2i.total) == pytest.approx(cross_entropy(logits, row.image_tokens, NO_IMAGE_TOKEN)[0], rel=1e-5)
    asked = mixed.image_tokens.index(0) - len(builder.generation_prompt("a photo of a cow")) + 1
    columns = (mixed.input_ids, mixed.task_ids, mixed.labels, mixed.image_mask, mixed.prompt_dropped)
    cut = Sample(*(column[:asked] for column in columns), mixed.pictures)
    alone = model(batch=(collate([cut], pad),), routing="label")
    assert float(output.mmu.total) == pytest.approx(float(alone.mmu.total), rel=1e-5)  # what comes later changes nothing
    if KINDS[kind].get("ffn") == "ta_moe":
        assert all(torch.equal(layer.group, row.task_ids.flatten()) for layer in output.routing[0])
    together = collate([mixed, mixed], pad)
    assert float(model(batch=(together, *joint_batch), routing="label").t2i.total) == pytest.approx(
        2 * float(output.t2i.total) + float(model(batch=joint_batch, routing="label").t2i.total), rel=1e-5
    )


@torch.no_grad()
def test_text_alone_needs_no_picture(make_model: MakeModel, builder: SequenceBuilder) -> None:
    model = make_model(ffn="ta_moe")
    ids = builder.tokenizer("how many cows are there ?")["input_ids"]
    nothing = [False] * len(ids)
    output = model(
        batch=(collate([Sample(ids, [Task.MMU] * len(ids), [IGNORE, *ids[1:]], nothing, nothing)], builder.tokenizer.pad_token_id),)
    )
    assert int(output.mmu.count) == len(ids) - 1
    logits = model(input_ids=torch.tensor([ids])).logits
    assert float(output.mmu.total) == pytest.approx(cross_entropy(logits, torch.tensor([[IGNORE, *ids[1:]]]), IGNORE)[0], rel=1e-5)


@pytest.mark.parametrize("ffn", ["dense", "ta_moe"])
@pytest.mark.parametrize("task", list(Task))
def test_an_absent_task_has_zero_loss_in_the_graph(make_model: MakeModel, joint_batch: Joint, ffn: str, task: Task) -> None:
    model = make_model(ffn=ffn)
    loss = model(batch=(joint_batch[1 - task],)).loss(task)
    assert (loss.item(), loss.requires_grad) == (0.0, True)
    loss.backward()
    head: nn.Module = model.lm_head if task is Task.MMU else model.model.generation_head.vision_head
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


@pytest.mark.parametrize("pictures_kept", [0, 1])
def test_wrong_number_of_placeholders(make_model: MakeModel, joint_batch: Joint, pictures_kept: int) -> None:
    batch = joint_batch[0]
    kept = batch.pixel_values[:pictures_kept] if pictures_kept else None
    wrong = Batch(batch.input_ids, batch.attention_mask, batch.task_ids, batch.labels, batch.image_tokens, kept)
    with pytest.raises(ValueError, match=f"32 image placeholders for {pictures_kept} images"):
        make_model()(batch=(wrong,))


def test_the_tokenizer_is_frozen_and_nothing_else(make_model: MakeModel) -> None:
    frozen = {name for name, weight in make_model(ffn="ta_moe").named_parameters() if not weight.requires_grad}
    assert frozen == {f"model.vqmodel.{name}" for name, _ in make_model().model.vqmodel.named_parameters()}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ffn": "mixture"}, "ffn='mixture' is not one of dense, moe, ta_moe"),
        ({"task_routing": "oracle"}, "task_routing='oracle' is not one of learned, label"),
        ({"experts_backend": "cuda"}, "experts_backend='cuda' is not one of grouped_mm, loop"),
        ({"lora_targets": ["ffn"]}, "LoRA target 'ffn' is not one of attention, experts"),
        ({"lora_per_task": ["vision"]}, "LoRA target 'vision'"),
        ({"ffn": "ta_moe", "lora_rank": 6, "lora_targets": ["experts"]}, "lora_rank=6 on experts must be a multiple of 4"),
        ({"ffn": "ta_moe", "num_experts_per_tok": 3}, "num_experts_per_tok=3 must be from 1 to the 2 experts"),
        ({"ffn": "moe", "num_experts_per_tok": 5}, "num_experts_per_tok=5 must be from 1 to the 4 experts"),
        ({"ffn": "ta_moe", "num_experts_per_tok": 0}, "num_experts_per_tok=0"),
    ],
)
def test_configuration_names_what_is_wrong(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniLlamaConfig(**fields)


def test_the_library_gives_our_decoder_to_a_bare_configuration() -> None:
    assert type(UniJanusConfig().text_config) is UniLlamaConfig


def test_text_logits_made_in_pieces_change_nothing(
    make_model: MakeModel, joint_batch: tuple[Batch, Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's answers over a vocabulary of 102,400 words would take gigabytes at once."""
    made, sizes = [], {2048: [], 3: []}
    for at_once, seen in sizes.items():
        monkeypatch.setattr("unidecouple.models.base.LOGITS_AT_ONCE", at_once)
        model = make_model()
        model.lm_head.register_forward_hook(lambda head, rows, out, seen=seen: seen.append(len(out)))
        loss = model(batch=joint_batch).mmu.total
        loss.backward()
        made.append((loss, [weight.grad for weight in model.decoder.parameters()] + [model.lm_head.weight.grad]))
    targets = len(joint_batch[0].places.text)
    assert max(sizes[2048]) == targets > 3 == max(sizes[3])
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-5)
