"""Joint training of an Emu3 on one's own files: the loop, stages and scores that Janus has; nothing in them knows which it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from own_data import asked, flat, write_jsonl, write_pictures
from ranks import assert_close_weights, train_on_ranks
from small_runs import Run
from unidecouple import config as configs
from unidecouple.cli import main
from unidecouple.cli.command import OK
from unidecouple.convert.load import load
from unidecouple.convert.stored import all_checkpoints
from unidecouple.data.settings import Files, Source
from unidecouple.diagnose import attention_interaction, gradient_conflict, routing
from unidecouple.methods.stage import Lora, Stage
from unidecouple.methods.structure import Dense, MoE, TaskAwareMoE
from unidecouple.run import Evaluation, RunConfig

WORDS = ["cow", "pig", "cat", "dog"]
WHOLE = (Stage(learning_rate=1e-2, train={"embeddings": 1, "attention": 1, "ffn": 1, "norms": 1, "text_head": 1}, warmup_steps=1),)
APART_THEN_JOINT = (
    Stage("apart", 0.5, 1e-2, {"experts": 1, "expert_router": 1, "task_router": 1, "text_head": 1}, "label", warmup_steps=1),
    Stage("joint", 0.5, 1e-2, {"lora": 1, "task_router": 1, "text_head": 1}, None, Lora(4, 8.0), warmup_steps=1),
)


@pytest.fixture
def own(emu3_base: Path, tmp_path: Path) -> RunConfig:
    write_pictures(tmp_path, *(f"{word}.png" for word in WORDS))
    questions = [asked(f"{word}.png", f"is there a {word} in the image ?") for word in WORDS]
    records = [*questions, *(flat(f"{word}.png", f"a photo of a {word}") for word in WORDS)]
    source, held_out = (Source(write_jsonl(tmp_path / f"{n}.jsonl", records[n:])) for n in range(2))
    files = Files((source,), validation=(held_out,), mmu_batch_size=3, t2i_batch_size=3, max_length=128)
    return RunConfig(
        model_name_or_path=str(emu3_base),
        data=files,
        stages=WHOLE,
        evaluation=Evaluation(eval_steps=0, eval_batches=1),
        max_steps=6,
        logging_steps=1,
        save_steps=3,
        diagnose=False,
        device="cpu",
    )


def losses(folder: Path, name: str) -> list[float]:
    return [json.loads(line)[f"loss/{name}"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(all_checkpoints(folder)[-1] / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("structure", [Dense(), TaskAwareMoE()], ids=lambda structure: structure.kind)
def test_both_losses_fall_and_a_resumed_run_is_the_unbroken_one(
    own: RunConfig, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, structure: Dense | TaskAwareMoE
) -> None:
    decoupled = structure.kind != "dense"
    wanted = replace(own, structure=structure, stages=APART_THEN_JOINT if decoupled else WHOLE)
    monkeypatch.setattr(gradient_conflict, "LEAST_BATCH", 1)
    for probe in (attention_interaction, gradient_conflict, routing):
        monkeypatch.setattr(probe, "BATCH", 1)
    assert run(replace(wanted, diagnose=decoupled), tmp_path / "whole")
    for task in ("mmu", "t2i"):
        found = losses(tmp_path / "whole", task)
        assert found[-1] < 0.8 * found[0], (task, found)
    assert not run(wanted, tmp_path / "broken", stop_after=3)
    assert run(wanted, tmp_path / "broken")
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert [name for name in whole if not torch.equal(whole[name], broken[name])] == []
    base, _ = load(str(wanted.model_name_or_path))
    frozen = {name: tensor for name, tensor in base.state_dict().items() if ".vqmodel." in name}
    assert frozen
    assert all(torch.equal(whole[name], tensor) for name, tensor in frozen.items())  # running means of its norms, too
    scores = json.loads((tmp_path / "whole" / "scores.json").read_text())["scores"]
    assert [row["benchmark"] for row in scores] == ["answers", "image_tokens"]
    if decoupled:
        assert len(json.loads((tmp_path / "whole" / "routing.json").read_text())["layers"]) == 2
        assert json.loads((tmp_path / "whole" / "conflict.json").read_text())["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_are_one(kind: str, own: RunConfig, run: Run, tmp_path: Path) -> None:
    """The image tokenizer runs inside the forward pass, and so among sharded weights."""
    wanted = replace(own, structure=TaskAwareMoE(), stages=APART_THEN_JOINT, parallel=kind, max_steps=4, save_steps=0)
    assert run(wanted, tmp_path / "one")
    train_on_ranks(2, wanted, tmp_path / "two", tmp_path / "cache")
    for task in ("mmu", "t2i", "group"):
        assert losses(tmp_path / "two", task) == pytest.approx(losses(tmp_path / "one", task), rel=1e-5)
    assert_close_weights(weights(tmp_path / "two"), weights(tmp_path / "one"))


def test_an_adapter_makes_the_checkpoint_again(own: RunConfig, run: Run, tmp_path: Path) -> None:
    stage = Stage(train={"lora": 1}, lora=Lora(4, 8.0, ("attention", "mlp")))
    assert run(replace(own, stages=(stage,), max_steps=2), tmp_path / "run")
    assert main(["adapter", "save", str(tmp_path / "run"), "--output", str(tmp_path / "adapter")]) == OK
    base = str(own.model_name_or_path)
    assert main(["adapter", "load", base, str(tmp_path / "adapter"), "--output", str(tmp_path / "again")]) == OK
    trained, again = weights(tmp_path / "run"), load_file(tmp_path / "again" / "model.safetensors")
    assert trained.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) and tensor.dtype == again[name].dtype for name, tensor in trained.items())
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["auto_mapping"]
    assert said["base_model_class"] == "UniEmu3ForConditionalGeneration"


def test_divided_and_packed_steps_are_the_whole_one(own: RunConfig, run: Run, tmp_path: Path) -> None:
    short = replace(own, max_steps=3, structure=MoE())
    short = replace(short, stages=(replace(WHOLE[0], train={"attention": 1, "experts": 1, "text_head": 1}),))
    packed = replace(short, data=replace(own.data, pack=True))
    for name, config in (("whole", short), ("cut", replace(short, gradient_accumulation_steps=3)), ("packed", packed)):
        assert run(config, tmp_path / name)
    whole = weights(tmp_path / "whole")
    for name in ("cut", "packed"):
        for key, tensor in weights(tmp_path / name).items():
            torch.testing.assert_close(tensor, whole[key], atol=2e-5, rtol=1e-3)


def test_a_dry_run_tells_its_memory(own: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(configs.dump(replace(own, structure=TaskAwareMoE(), stages=APART_THEN_JOINT)))
    cache, output = ("--cache", str(tmp_path / "cache")), ("--output", str(tmp_path / "run"))
    assert main(["train", str(tmp_path / "run.yaml"), "--dry-run", *output, *cache]) == OK
    apart, joint = capsys.readouterr().out.splitlines()[-2:]
    assert apart.split()[0] == "apart"
    assert joint.split()[0] == "joint"
    assert "optimizer" in apart


def test_parts_that_it_lacks_are_refused(own: RunConfig, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'generation' matches no weight of this model"):
        run(replace(own, stages=(Stage(train={"generation": 1}),)), tmp_path / "run")
