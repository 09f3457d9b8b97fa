"""Our step and the Trainer's, on a tiny model: both see the same losses, and a difference is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import hf_trainer
from benchmarks.timing import SidesDifferError

TINY = replace(hf_trainer.SIZE, hidden_size=32, num_hidden_layers=1, intermediate_size=64, vision_hidden_size=32, vision_layers=1)


@pytest.fixture(autouse=True)
def _small_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_trainer, "VOCABULARY", 256)
    monkeypatch.setattr(hf_trainer, "WARMUP", 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_losses_are_those_of_the_trainer() -> None:
    result = hf_trainer.run(TINY, count=2, repeats=2)
    wanted = result.details["losses"]["Trainer + PEFT"]
    assert wanted == sorted(wanted, reverse=True)
    assert len(wanted) == 2
    assert all(losses == pytest.approx(wanted, rel=1e-4) for losses in result.details["losses"].values())
    assert [row.what for row in result.rows] == ["Trainer + PEFT / ours, padded", "Trainer + PEFT / ours, packed"]


def test_other_losses_are_refused() -> None:
    hf_trainer.check_losses("ours", [2.0, 1.00001], [2.0, 1.0])
    with pytest.raises(SidesDifferError, match=r"ours: the loss of step 2 is 1\.1, the Trainer's 1\.0"):
        hf_trainer.check_losses("ours", [2.0, 1.1], [2.0, 1.0])
