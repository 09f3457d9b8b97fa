"""One task of a decoupled checkpoint as PEFT's adapter: read by PEFT itself and by our reader, both give that task's model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from unidecouple.adapters.load import apply_peft
from unidecouple.batch import Batch, Task
from unidecouple.cli import main
from unidecouple.convert.load import load
from unidecouple.delta.decouple import DecoupleOptions, decouple
from unidecouple.delta.forms import Fidelity
from unidecouple.delta.peft import save_peft
from unidecouple.generate.one_task import one_task


@pytest.fixture(scope="module")
def mixed(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks that differ by matrix, with norms and three rows of the word embeddings beside them."""
    target = tmp_path_factory.mktemp("mixed") / "janus"
    return decouple(str(base), str(tuned), target, DecoupleOptions(fidelity=Fidelity(energy=0.6)))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@torch.no_grad()
def test_peft_reads_it(mixed: Path, base: Path, joint_batch: tuple[Batch, Batch], tmp_path: Path) -> None:
    assert main(["adapter", "save", str(mixed), "--task", "t2i", "--output", str(tmp_path / "adapter")]) == 0
    made = load(str(mixed))[0]
    forms = made.config.text_config.task_deltas["t2i"]
    assert len({form for form in forms.values() if form.startswith("rank:")}) > 1
    alone = one_task(made, Task.T2I)
    batch = replace(joint_batch[1], task_ids=joint_batch[1].task_ids)
    wanted = alone.image_logits(alone.decode_batch(batch).last_hidden_state)
    adapted = PeftModel.from_pretrained(load(str(base))[0], tmp_path / "adapter").base_model.model.eval()
    torch.testing.assert_close(adapted.image_logits(adapted.decode_batch(batch).last_hidden_state), wanted, rtol=1e-4, atol=1e-4)
    merged, _, _ = apply_peft(str(base), tmp_path / "adapter", keep_unmerged=False)
    for name, weight in merged.state_dict().items():
        if not name.startswith(("model.vision_model", "model.aligner", "lm_head")):
            torch.testing.assert_close(weight, alone.state_dict()[name])


def test_what_peft_cannot_hold_is_refused(mixed: Path, base: Path, tuned: Path, tmp_path: Path) -> None:
    bits = decouple(str(base), str(tuned), tmp_path / "bits", DecoupleOptions("bits"))
    with pytest.raises(ValueError, match=r"layers\.0\.\S+ of t2i is kept as signs and a scale, for which PEFT has no form"):
        save_peft(str(bits), Task.T2I, tmp_path / "adapter", None, print)
    sparse = decouple(str(base), str(tuned), tmp_path / "bits", DecoupleOptions("bits", Fidelity(bits=True, budget=100_000)))
    with pytest.raises(ValueError, match="is kept as signs and a scale, for which PEFT has no form"):
        save_peft(str(sparse), Task.T2I, tmp_path / "adapter", None, print)
    with pytest.raises(ValueError, match=r"mmu of .* is its base's, so there is nothing to save"):
        save_peft(str(mixed), Task.MMU, tmp_path / "adapter", None, print)
    with pytest.raises(ValueError, match=r"is not the base of .*: model\.safetensors has another hash"):
        save_peft(str(mixed), Task.T2I, tmp_path / "adapter", str(tuned), print)
    with pytest.raises(ValueError, match="has no weights per task"):
        save_peft(str(base), Task.T2I, tmp_path / "adapter", None, print)
    assert not (tmp_path / "adapter").exists()
