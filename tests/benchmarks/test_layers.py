"""C1 and C2 at a tiny size: all sides compute the same, and a side with one wrong weight stops the benchmark."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import layers, lora, peft_layout
from benchmarks.record import Result, Row
from benchmarks.side_by_side import Shape, SideBySide
from benchmarks.timing import Side, SidesDifferError

TINY = Shape(tokens=24, hidden=16, inner=24)
NAMES = {
    "layers": ["ours", "ours, loop", "dense", "transformers eager", "transformers grouped_mm"],
    "lora": ["ours", "PEFT modules", "PEFT eager", "PEFT grouped_mm"],
}
each = pytest.mark.parametrize("benchmark", [layers.BENCHMARK, lora.BENCHMARK], ids=lambda one: one.name)


@each
def test_a_whole_benchmark(benchmark: SideBySide, tmp_path: Path) -> None:
    result = benchmark.run((TINY,), repeats=7)
    detail = result.details["24 tokens"]
    assert 0 < detail["largest relative difference"] < 1e-5
    for direction in ("fwd", "fwd+bwd"):
        assert list(detail["seconds"][direction]) == NAMES[benchmark.name]
    assert len(result.rows) == 2 * (len(NAMES[benchmark.name]) - 1)
    assert {row.goal for row in result.rows if row.met is not None} == {
        "layers": {"at most 1.12", "at most 1.15", "at most 1.00"},
        "lora": {"at least 1.50", "at least 1.30"},
    }[benchmark.name]
    written = json.loads(result.write(tmp_path).read_text())
    assert written["made"]["versions"].keys() >= {"torch", "transformers", "peft"}
    assert written["rows"][0]["value"] == result.rows[0].value


@each
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_wrong_weight_stops_it(benchmark: SideBySide, number: int) -> None:
    def spoiled(shape: Shape) -> list[Side]:
        sides = benchmark.sides(shape)
        *_, last = (weight for weight in sides[number].module.parameters() if weight.requires_grad and weight.ndim > 1)
        with torch.no_grad():
            last += 0.01
        return sides

    with pytest.raises(SidesDifferError, match="nothing was timed"):
        replace(benchmark, sides=spoiled).run((TINY,), repeats=7)


@each
def test_ratios_point_the_right_way(benchmark: SideBySide, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours takes 2 seconds, all others 3: that is 2/3 of their time, or 1.5 times as fast."""
    seconds = {name: [2.0 if name == "ours" else 3.0] * 7 for name in NAMES[benchmark.name]}
    monkeypatch.setattr("benchmarks.side_by_side.measure", lambda *_: {"fwd": seconds, "fwd+bwd": seconds})
    rows = benchmark.run((TINY,), repeats=7).rows
    assert {round(row.value, 3) for row in rows} == {0.667 if benchmark.name == "layers" else 1.5}
    assert {row.met for row in rows} == {None, True}


def test_the_dense_side_has_the_mixtures_active_flops() -> None:
    shape = replace(TINY, experts_per_group=3)
    ours, _, dense, *_ = layers.sides(shape)
    stacks = ours.module.get_parameter("experts.gate_up_proj"), ours.module.get_parameter("experts.down_proj")
    shared = sum(weight.numel() for name, weight in ours.module.named_parameters() if name.startswith("shared_expert."))
    assert sum(weight.numel() for weight in dense.module.parameters()) == sum(stack[0].numel() for stack in stacks) + shared


def test_all_experts_are_visited() -> None:
    """Tokens of one expert alone would flatter every side."""
    for moe in (layers.upcycled(TINY), lora.adapted(TINY)):
        _, routing = moe(TINY.inputs()[0].unsqueeze(0), TINY.tasks, "label")
        assert set(routing.expert.flatten().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("way", ["eager", "modules"])
def test_what_goes_into_pefts_layout_comes_out(way: str) -> None:
    """Gate and up each have the A that ours share, so that one's "gradient", their sum, comes back doubled."""
    moe = lora.adapted(TINY)
    wrapped = lora.peft_layer(moe, TINY, way)
    for weight in wrapped.parameters():
        weight.grad = weight.detach().clone() if weight.requires_grad else None
    found = peft_layout.gradients(wrapped, 4)
    own = {name: weight for name, weight in moe.named_parameters() if weight.requires_grad}
    assert found.keys() == own.keys()
    for name, weight in own.items():
        doubled = way == "modules" and name == "experts.gate_up_lora_A"
        assert torch.equal(found[name], weight * (2 if doubled else 1)), name


def test_a_table_says_what_is_met() -> None:
    rows = [Row("a", 1.5, "x", 1.25, 1.75, "at least 2.00", False), Row("b", 1152.0, "bytes")]
    assert Result("n", "T", {"repeats": 7}, rows, {}).table().splitlines() == [
        "",
        "T",
        "repeats 7",
        "   value        spread          goal",
        "a  1.500 x      1.250 to 1.750  at least 2.00: missed",
        "b  1,152 bytes",
    ]
