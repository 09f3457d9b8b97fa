"""AIA's benchmark at a tiny size: the ways agree, a wrong weight stops it, and it counts what autograd keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import aia
from benchmarks.timing import SidesDifferError

TINY = aia.Case(length=48, image=4, hidden=32, layers=2, rows=1)


def test_rows_are_as_long_as_said() -> None:
    _, batch = aia.implementations(TINY)
    assert [part.input_ids.shape for part in batch] == [(1, 48)] * 2
    assert all(part.attention_mask.all() for part in batch)


def test_a_whole_benchmark(tmp_path: Path) -> None:
    result = aia.run((TINY,), repeats=7)
    detail = result.details["48 tokens"]
    assert 0 <= detail["largest difference"] < 1e-5
    kept = detail["bytes kept"]
    assert kept["without the loss"] < kept["ours"] < kept["eager maps"]
    assert [row.what.split(",")[0] for row in result.rows] == ["kept for backward", "time of a step"] * 2
    assert result.rows[0].value == pytest.approx(kept["eager maps"] / kept["ours"])
    assert json.loads(result.write(tmp_path).read_text())["settings"]["layers"] == 2


def test_maps_are_what_grows_with_the_square() -> None:
    """Of twice the length, what the loss needs beside the step itself is about twice as much in ours, four times in maps."""
    kept = {length: {way.name: way.kept(batch) for way in made} for length, (made, batch) in lengths().items()}
    extra = {length: one["eager maps"] - one["without the loss"] for length, one in kept.items()}
    more = {length: one["ours"] - one["without the loss"] for length, one in kept.items()}
    assert extra[192] / extra[96] > 3
    assert more[192] / more[96] < 2.5


def lengths() -> dict[int, tuple[list[aia.Implementation], tuple[object, ...]]]:
    return {length: aia.implementations(aia.Case(length, 4, hidden=32, layers=2, rows=1)) for length in (96, 192)}


def test_a_wrong_weight_stops_it() -> None:
    made, batch = aia.implementations(TINY)
    with torch.no_grad():
        made[1].model.decoder.layers[1].self_attn.k_proj.weight[0] += 0.1
    with pytest.raises(SidesDifferError, match="nothing was timed"):
        aia.difference(made[0], made[1], batch)
