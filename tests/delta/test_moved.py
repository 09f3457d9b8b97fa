"""What moved, against numpy and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moved_weights import SHARE, MakeTuned
from unidecouple.delta.moved import measure_moved, to_json
from unidecouple.delta.pair import open_pair

Q = "model.language_model.layers.0.self_attn.q_proj.weight"


def test_norms_and_ranks(base: Path, tuned: Path) -> None:
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    found = {row.name: row for row in measure_moved(open_pair(str(base), str(tuned)))}
    assert found.keys() == {name for name, weight in before.items() if weight.is_floating_point()}
    tau = (after[Q] - before[Q]).double().numpy()
    energy = np.cumsum(np.linalg.svd(tau, compute_uv=False) ** 2)
    wanted = tuple(int(np.searchsorted(energy, share * energy[-1])) + 1 for share in (0.5, 0.9, 0.99))
    assert found[Q].ranks == wanted
    assert found[Q].squared == pytest.approx(float((tau**2).sum()))
    assert found[Q].relative == pytest.approx(SHARE, rel=1e-3)
    assert (found[Q].kind, found[Q].layer) == ("attention", 0)
    assert found["model.language_model.norm.weight"].ranks == ()
    assert found["model.vqmodel.quantize.embedding.weight"].relative == 0


def test_sums_by_kind_and_layer(base: Path, make_tuned: MakeTuned, tmp_path: Path) -> None:
    """Only two weights move: by 3 and by 4 in norm, one of them in one direction."""
    start = load_file(base / "model.safetensors")

    def change(state: dict[str, torch.Tensor]) -> None:
        state.update(start)
        state[Q] = start[Q].clone()
        state[Q][0, 0] += 3
        head = start["lm_head.weight"]
        state["lm_head.weight"] = head + 4 / head.numel() ** 0.5

    other = make_tuned(tmp_path / "other", change=change)
    result = to_json(measure_moved(open_pair(str(base), str(other))))
    assert result["total"]["norm"] == pytest.approx(5, rel=1e-5)
    kinds = {row["kind"]: row for row in result["kinds"]}
    assert kinds["attention"]["share"] == pytest.approx(9 / 25, rel=1e-5)
    assert kinds["text_head"]["median_ranks"] == kinds["attention"]["median_ranks"] == [1, 1, 1]
    assert kinds["ffn"]["changed"] == 0
    layers = {(row["kind"], row["layer"]): row["norm"] for row in result["layers"]}
    assert layers["attention", 0] == pytest.approx(3, rel=1e-5)
    assert layers["attention", 1] == 0
    assert result == to_json(measure_moved(open_pair(str(base), str(other))))
