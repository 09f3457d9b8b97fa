"""A decoupled checkpoint against the checkpoints that it was made of: outputs bit for bit, or those of an independent SVD."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from moved_weights import MakeTuned
from unidecouple.batch import Batch, Task
from unidecouple.convert.convert import convert
from unidecouple.convert.load import load
from unidecouple.convert.steps import Conversion
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.delta.checkpoint import open_checkpoint
from unidecouple.delta.decoupled import Sources, find_changes, plan_decoupled, whole_bytes
from unidecouple.delta.forms import Fidelity
from unidecouple.delta.pair import open_pair
from unidecouple.delta.write import PROVENANCE, Provenance, write_decoupled
from unidecouple.generate.image import draw_tokens
from unidecouple.generate.image_generator import ImageGenerator, generate_image_tokens
from unidecouple.generate.jobs import image_jobs
from unidecouple.generate.one_task import load_one_task, one_task
from unidecouple.generate.sampling import SamplingParams
from unidecouple.models.base import UnifiedModel
from unidecouple.models.sharing import unshared

Joint = tuple[Batch, Batch]
MADE = Provenance("unidecouple decouple BASE TUNED", {"mode": "residual"})


def decouple(base: Path, tuned: Path, target: Path, fidelity: Fidelity, protect: Task = Task.MMU) -> Path:
    plan = plan_decoupled(Sources.protecting(open_pair(str(base), str(tuned)), protect), fidelity)
    write_decoupled(plan, target, MADE, lambda line: None, max_shard_bytes=200_000)
    return target


@torch.no_grad()
def logits(model: UnifiedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Text and image logits of every token."""
    hidden = model.decode_batch(batch).last_hidden_state
    return model.lm_head(hidden), model.image_logits(hidden)


def one_row(batch: Batch) -> Batch:
    """The first row without its padding: every token of one task."""
    length = int(batch.attention_mask[0].sum())
    parts = {name: part[:1, :length] for name, part in vars(batch).items() if name != "pixel_values" and part is not None}
    return replace(batch, **parts, pixel_values=None if batch.pixel_values is None else batch.pixel_values[:1])


@pytest.fixture(scope="module")
def full(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decouple(base, tuned, tmp_path_factory.mktemp("full") / "janus", Fidelity(full=True))


@pytest.fixture(scope="module")
def low(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decouple(base, tuned, tmp_path_factory.mktemp("low") / "janus", Fidelity(rank=3))


@pytest.mark.parametrize("kind", ["full", "low"])
def test_understanding_is_the_bases_bit_for_bit(kind: str, base: Path, joint_batch: Joint, request: pytest.FixtureRequest) -> None:
    made, start = load(str(request.getfixturevalue(kind)))[0], load(str(base))[0]
    for mine, theirs in zip(logits(made, joint_batch[0]), logits(start, joint_batch[0]), strict=True):
        assert mine.shape == theirs.shape
        if mine.shape[-1] == start.config.text_config.vocab_size:  # the image head is generation's
            assert torch.equal(mine, theirs)
    text, _ = logits(made, joint_batch[0])
    assert not torch.equal(text, logits(load(str(request.getfixturevalue("tuned")))[0], joint_batch[0])[0])


def test_full_generation_is_the_tuned_models(full: Path, tuned: Path, joint_batch: Joint) -> None:
    """Each task's BOS counts as the task's own: a sequence is what one model makes of it."""
    made, after = load(str(full))[0], load(str(tuned))[0]
    row = one_row(joint_batch[1])
    assert int(row.task_ids[0, 0]) == Task.MMU
    assert torch.equal(logits(made, row)[1], logits(after, row)[1])
    torch.testing.assert_close(logits(made, joint_batch[1])[1][1], logits(after, joint_batch[1])[1][1])
    packed = logits(made, row)[1]
    assert not torch.allclose(packed, logits(load(str(Path(full)))[0], replace(row, task_ids=row.task_ids * 0))[1])


def test_a_rank_is_that_of_the_svd(low: Path, base: Path, tuned: Path, joint_batch: Joint) -> None:
    """The tuned model, its decoder's matrices replaced by numpy's truncation."""
    model = load(str(tuned))[0]
    before = load_file(base / "model.safetensors")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".language_model.layers." in name and weight.ndim == 2:
                tau = (weight - before[name]).double().numpy()
                left, values, right = np.linalg.svd(tau, full_matrices=False)
                kept = (left[:, :3] * values[:3]) @ right[:3]
                weight.copy_(before[name].double() + torch.from_numpy(kept))
    row = one_row(joint_batch[1])
    torch.testing.assert_close(logits(load(str(low))[0], row)[1], logits(model, row)[1], rtol=1e-4, atol=1e-4)


def test_bits(base: Path, tuned: Path, joint_batch: Joint, tmp_path: Path) -> None:
    """sign(tau) times mean |tau| of each matrix (BitDelta, eq. 3), all else as tuned."""
    made = load(str(decouple(base, tuned, tmp_path / "bits", Fidelity(bits=True))))[0]
    model, before = load(str(tuned))[0], load_file(base / "model.safetensors")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".language_model.layers." in name and weight.ndim == 2:
                tau = weight - before[name]
                weight.copy_(before[name] + tau.sign() * tau.abs().mean())
    row = one_row(joint_batch[1])
    torch.testing.assert_close(logits(made, row)[1], logits(model, row)[1], rtol=1e-4, atol=1e-4)


def test_sparse_signs(base: Path, tuned: Path, joint_batch: Joint, tmp_path: Path) -> None:
    """The largest entries' signs times their mean size (ComPEFT's form), as many as the budget holds; all else as tuned."""
    before, model = load_file(base / "model.safetensors"), load(str(tuned))[0]
    matrices = {name: weight for name, weight in model.named_parameters() if ".language_model.layers." in name and weight.ndim == 2}
    signs = sum(weight.numel() for weight in matrices.values()) // 16  # half of one bit per number
    sources = Sources.protecting(open_pair(str(base), str(tuned)), Task.MMU)
    whole = whole_bytes(sources, find_changes(sources, spectra=False))
    budget = signs + whole
    folder = decouple(base, tuned, tmp_path / "sparse", Fidelity(bits=True, budget=budget))
    stored = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    with torch.no_grad():
        for name, weight in matrices.items():
            tau = (weight - before[name]).double().numpy()
            count = len(stored[name.replace(".weight", ".deltas.t2i.index")])
            assert 0.009 < count / tau.size < 0.016, "4 bytes and a bit per entry"
            least = np.sort(np.abs(tau), axis=None)[-count]
            kept = np.where(np.abs(tau) >= least, np.sign(tau), 0)
            weight.copy_(before[name].double() + torch.from_numpy(kept * np.abs(tau[kept != 0]).mean()))
    places = sum(tensor.nbytes for name, tensor in stored.items() if name.endswith((".index", ".sign", ".deltas.t2i.scale")))
    assert 0.9 * signs < places <= signs
    assert sum(tensor.nbytes for name, tensor in stored.items() if ".deltas." in name) <= budget
    with pytest.raises(ValueError, match=rf"stored whole, and take {whole:,} bytes"):
        decouple(base, tuned, tmp_path / "none", Fidelity(budget=whole))
    row, made = one_row(joint_batch[1]), load(str(folder))[0]
    torch.testing.assert_close(logits(made, row)[1], logits(model, row)[1], rtol=1e-4, atol=1e-4)
    asked = one_row(joint_batch[0])
    assert torch.equal(logits(made, asked)[0], logits(load(str(base))[0], asked)[0])
    alone = one_task(made, Task.T2I)
    for name, weight in matrices.items():
        torch.testing.assert_close(alone.get_parameter(name), weight, rtol=1e-6, atol=1e-6)


def test_generation_may_be_the_protected_task(base: Path, tuned: Path, joint_batch: Joint, tmp_path: Path) -> None:
    made = load(str(decouple(base, tuned, tmp_path / "other", Fidelity(full=True), Task.T2I)))[0]
    before, after = load(str(base))[0], load(str(tuned))[0]
    row = one_row(joint_batch[1])
    assert torch.equal(logits(made, row)[1], logits(before, row)[1])
    asked = one_row(joint_batch[0])
    assert torch.equal(logits(made, asked)[0], logits(after, asked)[0])


def test_two_tuned_models_one_per_task(base: Path, tuned: Path, make_tuned: MakeTuned, joint_batch: Joint, tmp_path: Path) -> None:
    other = make_tuned(tmp_path / "other", seed=2)
    first, second = open_pair(str(base), str(other)), open_pair(str(base), str(tuned))
    sources = Sources(first.base, {Task.MMU: first.tuned, Task.T2I: second.tuned})
    write_decoupled(plan_decoupled(sources, Fidelity(full=True)), tmp_path / "both", MADE, lambda line: None)
    made = load(str(tmp_path / "both"))[0]
    asked, row = one_row(joint_batch[0]), one_row(joint_batch[1])
    assert torch.equal(logits(made, asked)[0], logits(load(str(other))[0], asked)[0])
    assert torch.equal(logits(made, row)[1], logits(load(str(tuned))[0], row)[1])
    assert len(json.loads((tmp_path / "both" / PROVENANCE).read_text())["sources"]) == 3


def test_the_engine_and_the_plain_loops(full: Path, base: Path, tuned: Path, builder: SequenceBuilder) -> None:
    """One checkpoint serves both tasks; each task's slimmed model has the base's or the tuned model's weights."""
    made, after = load(str(full))[0], load(str(tuned))[0]
    jobs = image_jobs(builder, ["a red cow", "two blue cups and a pig"], 1, 0, SamplingParams(guidance_scale=2.0))
    plain = draw_tokens(made, builder, jobs)
    assert torch.equal(plain, draw_tokens(after, builder, jobs))
    assert torch.equal(plain, generate_image_tokens(ImageGenerator(made, builder, 2), jobs))
    for task, source in ((Task.MMU, base), (Task.T2I, tuned)):
        wanted = load(str(source))[0].state_dict()
        for slim in (one_task(made, task), load_one_task(str(full), task)[0]):
            found = slim.state_dict()
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in found if ".language_model." in name)
            assert not slim.config.text_config.task_deltas


@pytest.mark.parametrize("layout", ["transformers", "deepseek"])
def test_sources_in_any_layout_make_the_same(layout: str, full: Path, base: Path, tuned: Path, tmp_path: Path) -> None:
    other = tmp_path / "tuned"
    convert(tuned, other, Conversion(to=layout), lambda line: None)
    decouple(base, other, tmp_path / "made", Fidelity(full=True))
    mine, theirs = open_checkpoint(str(tmp_path / "made")), open_checkpoint(str(full))
    assert mine.shapes.keys() == theirs.shapes.keys()
    for names in mine:
        found, wanted = mine.read(names), theirs.read(names)
        assert all(torch.equal(found[name], wanted[name]) for name in names)


def test_a_task_is_taken_out_by_convert(full: Path, tuned: Path, tmp_path: Path) -> None:
    convert(full, tmp_path / "t2i", Conversion(to="transformers", task=Task.T2I), lambda line: None)
    state, wanted = load_file(tmp_path / "t2i" / "model.safetensors"), load_file(tuned / "model.safetensors")
    assert all(torch.equal(state[name], wanted[name]) for name in wanted if ".language_model." in name)
    with pytest.raises(ValueError, match=r"weights per task .*have no place in the transformers layout.*--task"):
        convert(full, tmp_path / "whole", Conversion(to="transformers"), lambda line: None)


def test_deltas_train_and_are_one_tasks(low: Path, joint_batch: Joint) -> None:
    made = load(str(low))[0].train()
    own = unshared(made)
    deltas = {name: weight for name, weight in made.named_parameters() if ".deltas." in name}
    assert deltas
    assert {id(weight) for weight in deltas.values()} <= own
    made(batch=joint_batch[:1]).mmu.total.backward()
    assert all(weight.grad is None or not weight.grad.any() for weight in deltas.values())
    made(batch=joint_batch[1:]).t2i.total.backward()
    assert all(weight.grad is not None and weight.grad.any() for name, weight in deltas.items() if "layers.0.self_attn" in name)


def test_a_decoupled_checkpoint_is_no_base(low: Path, tuned: Path) -> None:
    for pair in ((low, tuned), (tuned, low)):
        with pytest.raises(ValueError, match=r"low\S*/janus has weights per task .*unidecouple convert --task"):
            open_pair(*map(str, pair))


def test_sizes_and_provenance(base: Path, tuned: Path, low: Path) -> None:
    plan = plan_decoupled(Sources.protecting(open_pair(str(base), str(tuned)), Task.MMU), Fidelity(rank=3))
    state = {name: tensor for file in low.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert list(state.keys() ^ plan.shapes.keys()) == []
    assert plan.extra_bytes == sum(tensor.nbytes for name, tensor in state.items() if ".deltas." in name)
    about = json.loads((low / PROVENANCE).read_text())
    assert [source["role"] for source in about["sources"]] == ["base", "tuned"]
    assert about["sources"][0]["sha256"]["model.safetensors"]
    card = (low / "README.md").read_text()
    assert about["command"] in card
    assert about["sources"][1]["sha256"]["model.safetensors"] in card


def test_what_cannot_be_decoupled_is_refused(
    base: Path, make_tuned: MakeTuned, tmp_path: Path, make_model: Callable[..., Any]
) -> None:
    far = make_tuned(
        tmp_path / "far",
        change=lambda state: state.update({n: torch.randn_like(w) * w.std() for n, w in state.items() if ".layers." in n}),
    )
    with pytest.raises(ValueError, match=r"was not fine-tuned from .*differ by 1\.\d\d of their norm"):
        decouple(base, far, tmp_path / "made", Fidelity(rank=2))
    assert not (tmp_path / "made").exists()
    for name in ("one", "two"):
        make_model(ffn="ta_moe").save_pretrained(tmp_path / name)
        for file in base.glob("*token*"):
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        for file in base.glob("*processor*"):
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"one is ta_moe.*weights per task are added to a dense decoder"):
        decouple(tmp_path / "one", tmp_path / "two", tmp_path / "made", Fidelity(rank=2))
