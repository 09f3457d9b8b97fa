"""Emu3 with our decoder: losses over its one vocabulary, images to be understood as tokens, what its configuration refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForImageTextToText

from tiny_emu3 import CODES, SIDE, SIZE, plain_emu3
from unidecouple.batch import Batch, Task
from unidecouple.convert.load import load
from unidecouple.data.sequences import QAPair, SequenceBuilder, collate
from unidecouple.methods.structure import UPCYCLED, TaskAwareMoE, UniX
from unidecouple.models.emu3 import UniEmu3Config, UniEmu3ForConditionalGeneration
from unidecouple.models.families import FAMILIES, configuration
from unidecouple.models.vq import encode_image_tokens
from unidecouple.train.build import restructure


@pytest.fixture(scope="module")
def ours(emu3_base: Path) -> UniEmu3ForConditionalGeneration:
    model, _ = load(str(emu3_base))
    assert isinstance(model, UniEmu3ForConditionalGeneration)
    return model


@pytest.fixture(scope="module")
def builder(emu3_base: Path) -> SequenceBuilder:
    return SequenceBuilder(load(str(emu3_base))[1])


@pytest.fixture(scope="module")
def joint(builder: SequenceBuilder) -> tuple[Batch, Batch]:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    codes = rng.integers(0, CODES, (2, SIDE * SIDE)).tolist()
    asked = [[QAPair("vqa", "what is this ?", "a red cat")], [QAPair("vqa", "a dog ?", "no")]]
    seen = [builder.understanding(picture, turns) for picture, turns in zip(pictures, asked, strict=True)]
    drawn = [builder.generation("a cat", codes[0]), builder.generation("a photo of a pig", codes[1], dropped=True)]
    pad = builder.tokenizer.pad_token_id
    return collate(seen, pad), collate(drawn, pad)


@torch.no_grad()
def test_losses_are_transformers_own_over_the_whole_vocabulary(
    ours: UniEmu3ForConditionalGeneration, joint: tuple[Batch, Batch]
) -> None:
    """The same ids written out by hand, through transformers' model."""
    theirs = plain_emu3()
    found = ours(batch=joint)
    first = ours.config.vocabulary_map["<|visual token 000000|>"]
    seen, drawn = joint
    assert seen.pixel_values is not None
    sizes = torch.tensor([[SIZE, SIZE]] * 2)
    codes = theirs.model.get_image_tokens(seen.pixel_values, sizes).long()
    place = seen.input_ids == ours.config.image_token_id
    for ids, labels, part in (
        (seen.input_ids.masked_scatter(place, codes), seen.labels, found.mmu),
        (torch.where(drawn.image_tokens >= 0, drawn.image_tokens + first, drawn.input_ids), drawn.image_tokens, found.t2i),
    ):
        targets = labels if part is found.mmu else torch.where(labels >= 0, labels + first, -100)
        logits = theirs(input_ids=ids).logits[:, :-1].flatten(0, 1)
        expected = F.cross_entropy(logits, targets[:, 1:].flatten(), reduction="sum", ignore_index=-100)
        torch.testing.assert_close(part.total, expected, rtol=1e-5, atol=0)
        assert int(part.count) == int((targets[:, 1:] != -100).sum())
    assert int(found.t2i.count) == 2 * SIDE * SIDE


def test_logits_made_in_pieces_change_nothing(emu3_base: Path, joint: tuple[Batch, Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    for at_once in (2048, 5):
        monkeypatch.setattr("unidecouple.models.emu3.LOGITS_AT_ONCE", at_once)
        model, sizes = load(str(emu3_base))[0], []
        model.lm_head.register_forward_hook(lambda head, rows, out, sizes=sizes: sizes.append(len(out)))
        loss = model(batch=joint[1:]).t2i.total
        loss.backward()
        assert max(sizes) == min(at_once, 2 * SIDE * SIDE)
        made.append((loss, [weight.grad for weight in model.decoder.parameters()] + [model.lm_head.weight.grad]))
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-5)


def test_understood_pictures_are_seen(ours: UniEmu3ForConditionalGeneration, joint: tuple[Batch, Batch]) -> None:
    seen, _ = joint
    assert seen.pixel_values is not None
    before = ours(batch=(seen,)).mmu.total
    assert not torch.isclose(ours(batch=(replace(seen, pixel_values=seen.pixel_values.flip(0)),)).mmu.total, before)
    with pytest.raises(ValueError, match="40 image placeholders for 1 images of 20 tokens"):
        ours(batch=(replace(seen, pixel_values=seen.pixel_values[:1]),))
    with pytest.raises(ValueError, match=r"images of \(8, 16\) pixels, but this model's are of image_size=16"):
        ours(batch=(replace(seen, pixel_values=seen.pixel_values[:, :, :8]),))


def test_image_logits_are_the_heads_rows_of_codes(ours: UniEmu3ForConditionalGeneration) -> None:
    hidden = torch.randn(3, 32)
    first = ours.config.first_code_id
    torch.testing.assert_close(ours.image_logits(hidden), ours.lm_head(hidden)[:, first : first + CODES])
    codes = torch.tensor([[0, CODES - 1]])
    assert torch.equal(ours.embed_image_tokens(codes), ours.get_input_embeddings()(codes + first))


@torch.no_grad()
def test_render_is_transformers_own(ours: UniEmu3ForConditionalGeneration) -> None:
    pixels = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    codes = encode_image_tokens(ours.model.vqmodel, pixels)
    assert codes.shape == (2, SIDE * SIDE)
    theirs = plain_emu3()
    ids = theirs.model.get_image_tokens(pixels, torch.tensor([[SIZE, SIZE]] * 2)).view(2, -1)
    picture = theirs.decode_image_tokens(image_tokens=F.pad(ids, (0, 3)), height=SIDE, width=SIDE)
    torch.testing.assert_close(ours.render(codes), picture.permute(0, 2, 3, 1))


def test_every_task_reaches_its_experts(emu3_base: Path, joint: tuple[Batch, Batch]) -> None:
    model = restructure(load(str(emu3_base))[0], TaskAwareMoE(), 0)
    out = model(batch=joint, routing="label")
    (out.mmu.mean + out.t2i.mean).backward()
    used = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0}
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= used
    assert all(weight.grad is None for weight in model.model.vqmodel.parameters())
    grad = model.model.language_model.layers[0].mlp.experts.down_proj.grad
    assert grad is not None
    assert (grad.flatten(1).abs().sum(1) > 0).view(2, 2).any(1).all()  # of each task's group


@pytest.mark.slow
@pytest.mark.parametrize("structure", [kind for kind in UPCYCLED if kind is not UniX])
@torch.no_grad()
def test_every_structure_starts_as_the_dense_model(emu3_base: Path, joint: tuple[Batch, Batch], structure: type) -> None:
    dense = load(str(emu3_base))[0]
    found = restructure(dense, structure(), 0)(batch=joint, routing="label")
    expected = dense(batch=joint)
    for task in Task:
        torch.testing.assert_close(found.loss(task), expected.loss(task), rtol=1e-5, atol=0)


def test_auto_classes_and_families(ours: UniEmu3ForConditionalGeneration, tmp_path: Path) -> None:
    ours.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), UniEmu3Config)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(again, UniEmu3ForConditionalGeneration)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert isinstance(configuration(ours.config.to_dict()), UniEmu3Config)
    assert len({kind.model_type for kind, _ in FAMILIES}) == len(FAMILIES) == 2
    with pytest.raises(ValueError, match="model_type='llama' is not one of unidecouple_janus, unidecouple_emu3"):
        configuration({"model_type": "llama"})


def test_configurations_that_are_refused(ours: UniEmu3ForConditionalGeneration) -> None:
    raw = ours.config.to_dict()
    names = dict(raw["vocabulary_map"])
    lacking = {name: number for name, number in names.items() if name != "<|extra_200|>"}
    swapped = names | {"<|visual token 000003|>": names["<|visual token 000004|>"]}
    for change, message in (
        ({"image_size": 18}, "image_size=18 is no multiple of the 4 pixels"),
        ({"vocabulary_map": lacking}, r"vocabulary_map has no '<\|extra_200\|>'"),
        ({"vocabulary_map": swapped}, r"vocabulary_map has '<\|visual token 000003\|>' elsewhere than at"),
    ):
        with pytest.raises(ValueError, match=message):
            UniEmu3Config(**raw | change)
