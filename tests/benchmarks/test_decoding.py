"""C3 to C6: sides that agree, counts done by hand, and a wrong weight that stops them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import decode_layer, image_loop, operators, slim_bytes
from benchmarks.side_by_side import Shape
from benchmarks.timing import SidesDifferError
from unidecouple.batch import Task
from unidecouple.models.configuration import UniLlamaConfig

TINY = Shape(2, hidden=32, inner=64)


@pytest.fixture
def tiny_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_layer, "SHAPES", (TINY, replace(TINY, tokens=5)))
    monkeypatch.setattr(decode_layer, "CALLS", 1)


@pytest.mark.usefixtures("tiny_layer")
def test_the_decoding_layer(tmp_path: Path) -> None:
    result = decode_layer.run(repeats=7)
    assert [row.what.split(":")[0] for row in result.rows] == ["2 rows"] * 2 + ["5 rows"] * 2
    assert [bool(row.goal) for row in result.rows] == [False, True, False, False]
    assert json.loads(result.write(tmp_path).read_text())["name"] == "decode_layer"


@pytest.mark.usefixtures("tiny_layer")
def test_a_wrong_side_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    right = decode_layer.sides
    monkeypatch.setattr(decode_layer, "sides", lambda shape: right(shape) | {"wrong": lambda x: x})
    with pytest.raises(SidesDifferError, match="wrong is off laid out"):
        decode_layer.run(repeats=7)


def test_operators_are_counted() -> None:
    with operators.Count() as count:
        x = torch.ones(3).add(1).view(3, 1)
        x.sum().item()
    assert count.names == ["ones", "add", "view", "sum", "_local_scalar_dense"]
    assert count.waits == 1
    found = {row.what: row for row in operators.run().rows}
    assert found["waits, laid out, as on a GPU"].value == 0
    assert found["operators, laid out, as on a GPU"].met
    assert found["operators, transformers eager"].value > found["operators, laid out, as on a CPU"].value


@pytest.mark.slow
def test_all_loops_draw_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedily; and a wrong weight is found before anything is timed."""
    small = replace(image_loop.SMALL, image_size=32, hidden_size=32, num_hidden_layers=2, intermediate_size=64, codes=32)
    small = replace(small, vision_hidden_size=16, vq_channel_multiplier=(1, 1, 1, 1))
    monkeypatch.setattr(image_loop, "SMALL", small)
    monkeypatch.setattr(image_loop, "PICTURES", (2, 1))
    result = image_loop.run(repeats=7)
    assert len(result.rows) == 8
    assert [bool(row.goal) for row in result.rows] == [False, True, True, True, *[False] * 4]
    made = image_loop.sides(2)
    wrong = made.plain.model.language_model.layers[0].mlp.up_proj
    wrong.weight = torch.nn.Parameter(-wrong.weight)  # the library's alone: the weights are ours, too
    with pytest.raises(SidesDifferError, match="transformers generate draws other tokens"):
        image_loop.measured(made, 7)


def test_bytes_by_hand() -> None:
    text = UniLlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, ffn="ta_moe", num_experts=4
    )
    ffn, attention, norms = 3 * 8 * 16, 4 * 64, 16
    assert slim_bytes.computed(text, None, merged=True) == attention + 5 * ffn + 1 + 8 * 4 + 8 * 2 + norms
    assert slim_bytes.computed(text, Task.MMU, merged=True) == attention + 3 * ffn + 1 + 8 * 2 + norms
    assert slim_bytes.computed(text, Task.T2I, merged=True) == attention + 3 * ffn + 1 + 8 * 2 + norms + 16
    result = slim_bytes.run()
    assert [row.met for row in result.rows] == [True, True, None, None]
