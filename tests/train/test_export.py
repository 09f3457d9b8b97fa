"""`unidecouple export` writes the same model, smaller."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from small_runs import save_small_base
from unidecouple.convert.load import load
from unidecouple.train.export import export


def test_export_is_the_same_model_with_a_tokenizer_of_half_the_bytes(tmp_path: Path) -> None:
    base = save_small_base(tmp_path / "base")
    small = export(base, tmp_path / "small")
    (whole, _), (halved, _) = load(str(base)), load(str(small))
    for (name, one), (_, two) in zip(whole.state_dict().items(), halved.state_dict().items(), strict=True):
        assert two.dtype == torch.float32
        if name.startswith("model.vqmodel"):
            assert torch.equal(one.half().float(), two)
        else:
            assert torch.equal(one, two)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (base, small)]
    assert sizes[1] < sizes[0] - 1.9 * sum(weight.numel() for weight in whole.model.vqmodel.parameters())
    with pytest.raises(ValueError, match="no checkpoint"):
        export(tmp_path / "nothing", tmp_path / "other")
