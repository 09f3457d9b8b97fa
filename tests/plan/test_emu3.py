"""Plans of Emu3: FLOPs, gradients and kept bytes against a real step of a tiny one, the image tokenizer's among them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from measured_step import Step, measured_step, micro_batches
from tiny_emu3 import CODES, SIDE, SIZE, write_emu3
from unidecouple import config as configs
from unidecouple.batch import Batch, Task
from unidecouple.cli import main
from unidecouple.convert.load import load
from unidecouple.data.sequences import QAPair, SequenceBuilder, collate
from unidecouple.methods.stage import Lora
from unidecouple.methods.structure import Dense, MoT, TaskAwareMoE
from unidecouple.models import base, emu3
from unidecouple.models.emu3 import UniEmu3ForConditionalGeneration
from unidecouple.models.vq import encode_image_tokens
from unidecouple.plan import heads
from unidecouple.plan.batch_shapes import Lengths, image_tokens_of, joint
from unidecouple.plan.encoding import _Bytes, encoding
from unidecouple.plan.sizes import SIZES, build, configuration
from unidecouple.plan.stages import PlanRequest, plan
from unidecouple.plan.strategies import Placement, memory
from unidecouple.plan.weights import count
from unidecouple.run import RunConfig
from unidecouple.train.build import add_lora, restructure
from unidecouple.world.settings import SyntheticData

RECIPES = Path(__file__).parents[2] / "recipes" / "emu3"
ALL = {"*": 1.0}
STAGE_1 = {"experts": 1.0, "expert_router": 1.0, "task_router": 1.0}
CASES: dict[str, tuple[Any, Lora | None, dict[str, float], str]] = {
    "dense": (Dense(), None, ALL, "learned"),
    "dense, head alone": (Dense(), None, {"text_head": 1.0}, "learned"),
    "dense, no head": (Dense(), None, {"attention": 1.0}, "learned"),
    "stage 1": (TaskAwareMoE(), None, STAGE_1, "label"),
    "stage 2": (TaskAwareMoE(), Lora(4, 8.0), {"lora": 1.0, "task_router": 1.0, "expert_router": 1.0}, "learned"),
    "untied": (MoT(), None, ALL, "learned"),
}


@pytest.fixture(scope="module")
def builder(emu3_base: Path) -> SequenceBuilder:
    return SequenceBuilder(load(str(emu3_base))[1])


@pytest.fixture(scope="module")
def batch(builder: SequenceBuilder) -> tuple[Batch, Batch]:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
    asked = [[QAPair("vqa", "what is this ?", answer)] for answer in ("a red cat", "no", "a blue dog in the picture")]
    seen = [builder.understanding(picture, turns) for picture, turns in zip(pictures, asked, strict=True)]
    drawn = [builder.generation(text, rng.integers(0, CODES, SIDE * SIDE).tolist()) for text in ("a cat", "a photo of a pig")]
    pad = builder.tokenizer.pad_token_id
    return collate(seen, pad), collate(drawn, pad)


def model_of(base: Path, case: str) -> UniEmu3ForConditionalGeneration:
    structure, lora, _, _ = CASES[case]
    model, _ = load(str(base))
    model.config.text_config.experts_backend = "loop"
    model = restructure(model, structure, 0) if structure != Dense() else model
    found = model if lora is None else add_lora(model, lora, 0)
    assert isinstance(found, UniEmu3ForConditionalGeneration)
    return found


def step(base: Path, case: str, batch: tuple[Batch, Batch], attention: str = "eager") -> Step:
    return measured_step(model_of(base, case), batch, *CASES[case][2:], attention)


every_case = pytest.mark.parametrize("case", list(CASES))


@pytest.mark.slow
@every_case
def test_flops_and_gradients_are_the_counter_s_and_autograd_s(case: str, emu3_base: Path, batch: tuple[Batch, Batch]) -> None:
    """The image tokenizer's are in the forward pass: of three images that are seen, none that is drawn."""
    done = step(emu3_base, case, batch)
    assert done.trace.flops(backward=False) == done.forward
    assert done.trace.flops(backward=True) == done.backward
    assert set(done.trace.trains) & done.trace.used == done.moving
    one = encoding(done.model.config.vq_config, SIZE)  # type: ignore[arg-type]
    assert 3 * one.flops == sum(op.flops for op in done.trace.ops if op.part == "image_tokenizer") > 0


@pytest.mark.slow
@every_case
def test_kept_bytes_are_autograd_s(case: str, emu3_base: Path, batch: tuple[Batch, Batch]) -> None:
    done = step(emu3_base, case, batch, "sdpa")
    assert done.trace.kept + done.trace.logits == pytest.approx(done.kept, rel=0.02)


@pytest.mark.parametrize("case", ["dense", "dense, no head"])
def test_a_head_in_pieces_is_computed_again(
    case: str, emu3_base: Path, batch: tuple[Batch, Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = step(emu3_base, case, batch, "sdpa").trace
    for module in (base, emu3, heads):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", 8)
    counted, kept = step(emu3_base, case, batch), step(emu3_base, case, batch, "sdpa")
    assert counted.trace.flops(backward=True) == counted.backward
    targets = sum(sum(part.num_targets) for part in batch)
    assert counted.trace.again == 2 * targets * counted.model.lm_head.weight.numel()
    assert counted.trace.flops(backward=True) - counted.trace.again == whole.flops(backward=True)
    assert kept.trace.kept + kept.trace.logits == pytest.approx(kept.kept, rel=0.02)
    assert kept.trace.logits < whole.logits
    assert kept.trace.head < whole.head


def test_encoding_a_picture_is_measured_by_torch(emu3_base: Path) -> None:
    """FLOPs against a batch of two; peak bytes against the CPU allocator's, whose convolutions take scratch memory besides."""
    model = load(str(emu3_base))[0]
    tokenizer, picture = model.model.vqmodel, torch.rand(1, 3, SIZE, SIZE)
    tokenizer.set_attn_implementation("eager")
    found = encoding(model.config.vq_config, SIZE)
    with FlopCounterMode(display=False) as counter:
        encode_image_tokens(tokenizer, torch.rand(2, 3, SIZE, SIZE))
    assert counter.get_total_flops() == 2 * found.flops
    with profile(profile_memory=True) as profiler:
        encode_image_tokens(tokenizer, picture)
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert found.peak < peak < 1.6 * found.peak
    assert found.moved > found.peak


def test_bytes_alive_and_moved_by_hand() -> None:
    with torch.device("meta"), _Bytes() as held:
        x = torch.empty(1000)  # 4,000 bytes made
        y = x + 1  # 4,000 read, 4,000 written
        z = y.view(10, 100)[:5]  # nothing moves, and y's memory stays while this does
        del y
        total = (x * 2).sum()  # 8,000, then 4,004; x, z and the product at once
        del z
        x = x.reshape(10, 100)
    assert (held.moved, held.peak, held.alive) == (4000 + 8000 + 8000 + 4004, 12004, 4004)
    assert total.shape == ()


def test_encoding_counts_where_it_takes_more_than_all_that_is_kept(emu3_base: Path, batch: tuple[Batch, Batch]) -> None:
    done = step(emu3_base, "dense, head alone", batch)
    shapes = {name: tuple(p.shape) for name, p in done.model.named_parameters()}
    layers = [f"model.language_model.layers.{index}" for index in range(2)]
    weights = count(done.model.config.text_config, shapes, done.moving, layers)
    held = memory(Placement("ddp", 1, {"both": 1}), weights, done.trace, checkpointing=False)
    assert done.trace.encoding == 3 * encoding(done.model.config.vq_config, SIZE).peak  # type: ignore[arg-type]
    assert held.working + held.activations + held.logits == done.trace.encoding > 2 * done.trace.largest


def test_lengths_are_those_of_real_sequences(emu3_base: Path, builder: SequenceBuilder, batch: tuple[Batch, Batch]) -> None:
    model = load(str(emu3_base))[0]
    tokens = image_tokens_of(model.config)
    empty = len(builder.generation_prompt(""))
    assert tokens.seen == len(builder.understanding_prompt("?")) - len(builder.understanding_prompt("?", images=0))
    assert tokens.source == builder.source_length
    assert (tokens.drawn, tokens.learned) == (len(builder.generation("", [0] * SIDE**2).input_ids) - empty, SIDE**2)
    mmu, t2i = joint(SyntheticData(mmu_batch_size=3, t2i_batch_size=2), str(emu3_base), model.config, Lengths())
    real = micro_batches(batch)
    assert (mmu.samples, mmu.pictures, t2i.samples, t2i.drawn) == (3, 3, 2, real[1].drawn)
    assert mmu.length > tokens.seen
    assert t2i.length > tokens.drawn
    assert {part.task for part in (mmu, t2i)} == set(Task)


def test_the_published_size() -> None:
    model = build(SIZES["emu3"], Dense(), None)
    decoder = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("model.vqmodel."))
    assert decoder == 8_492_011_520  # by hand in tests/models/test_emu3_published.py
    assert image_tokens_of(model.config) == (
        90 * 91 + 9,
        90 * 91 + 9,
        90 * 91,
        8100,
    )  # <|image start|> 9 0 * 9 0 <|image token|> rows, two ends


@pytest.mark.slow
def test_recipes_are_planned(tmp_path: Path, emu3_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = replace(configs.load(RunConfig, [RECIPES / "unidecouple.yaml"]), model_name_or_path="emu3")
    apart, together = plan(run, PlanRequest(gpus=(8,)))
    for stage in (apart, together):
        found = {one.way: one for one in stage.estimates}
        assert set(found) == {"ddp", "fsdp2", "tasks"}
        assert all(one.seconds > 0 for one in stage.estimates)
        assert [part.samples for part in stage.load.step] == [32, 32]
    assert apart.load.weights.parts["experts"][1] == 32 * 4 * 3 * 4096 * 14336
    assert "generation" not in apart.load.weights.parts
    held = {one.way: one for one in apart.estimates}["fsdp2"].checkpointed
    assert held.activations + held.logits + held.working >= 4 * encoding(apart.config.vq_config, 720).peak > 4 * 8e9
    assert main(["plan", str(RECIPES / "dense_joint.yaml"), f"model_name_or_path={emu3_base}", "--gpus", "1", "2"]) == 0
    assert "image_tokenizer" in capsys.readouterr().out
    published = configuration(str(write_emu3(tmp_path / "published")))  # as transformers has it; images of the published size
    assert (published["model_type"], published["image_size"]) == ("unidecouple_emu3", 720)
