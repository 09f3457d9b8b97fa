"""Plans of whole recipes, and the command that prints them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from unidecouple import config
from unidecouple.cli import main
from unidecouple.convert.load import load
from unidecouple.methods.selection import select
from unidecouple.methods.stage import Lora, Stage
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.plan.devices import DEVICES
from unidecouple.plan.stages import PlanRequest, plan
from unidecouple.run import RunConfig
from unidecouple.train.parallel import Parallel
from unidecouple.train.stages import Trainer
from unidecouple.world.settings import SyntheticData

RECIPES = Path(__file__).parents[2] / "recipes"
SCALE = RECIPES / "scale" / "janus_pro.yaml"
RUN = config.load(RunConfig, [SCALE])


def test_stages_as_the_recipe_says() -> None:
    apart, joint = plan(replace(RUN, gradient_accumulation_steps=256), PlanRequest(gpus=(1, 8)))
    assert apart.config.text_config.lora_rank == 0
    assert joint.config.text_config.lora_rank == 16
    assert (apart.samples, joint.samples) == (3_072_000, 27_648_000)
    assert {part for part, (_, moving) in apart.load.weights.parts.items() if moving} == set(RUN.stages[0].train)
    assert {part for part, (_, moving) in joint.load.weights.parts.items() if moving} == set(RUN.stages[1].train)
    assert [(one.gpus, one.way) for one in apart.estimates] == [
        (1, "ddp"), (1, "fsdp2"), (8, "ddp"), (8, "fsdp2"), (8, "tasks")
    ]  # fmt: skip
    assert joint.load.weights.trainable < 0.05 * apart.load.weights.trainable


def test_days_and_costs_by_hand() -> None:
    stage = plan(RUN, PlanRequest(gpus=(8,), samples=1_000_000, batch_size=128))[0]
    found = stage.estimates[0]
    steps = -(-100_000 // 128)  # a tenth of the samples, rounded up
    assert stage.days(found) == pytest.approx(steps * found.seconds / 86400)
    assert stage.cost(found, 2.5) == pytest.approx(steps * found.seconds / 3600 * 8 * 2.5)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "device"), [("janus-pro-1b", "4090"), ("janus-pro-7b", "h100")])
def test_the_recipe_of_small_gpus_fits_one(model: str, device: str) -> None:
    """docs/small-gpus.md: 24 GB for 1B, 80 GB for 7B."""
    run = config.load(RunConfig, [RECIPES / "janus_pro" / "unidecouple_small_gpu.yaml"], [f"model_name_or_path={model}"])
    stages = plan(run, PlanRequest(gpus=(1,), device=device))
    assert [stage.stage.tasks for stage in stages] == ["mmu", "t2i", "both"]
    for stage in stages:
        (found,) = stage.estimates
        assert (found.way, found.fits_checkpointed) == ("ddp", True)
    page = (RECIPES.parent / "docs" / "small-gpus.md").read_text(encoding="utf-8")
    experts, lora = (f"{number / 1e9:.1f} GB" for number in (
        max(stage.estimates[0].checkpointed.total for stage in stages[:2]), stages[2].estimates[0].checkpointed.total
    ))  # fmt: skip
    assert experts in page
    assert lora in page


@pytest.mark.slow
def test_task_homogeneous_ranks_send_half_of_the_experts_gradients() -> None:
    stage = plan(RUN, PlanRequest(gpus=(8, 64, 1024)))[0]
    by_way = {(one.way, one.gpus): sum(c.sent for c in one.collectives) for one in stage.estimates}
    for gpus in (8, 64, 1024):
        rest = 2 * (gpus - 1) / gpus * 4 * (stage.load.weights.trainable - stage.load.weights.private)
        assert by_way["tasks", gpus] - rest <= 0.52 * (by_way["ddp", gpus] - rest)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_step_means_what_it_means_to_training(accumulation: int) -> None:
    """The batch size is the step's; more devices or parts cut it smaller, as the trainer does, and are refused as it refuses."""
    run = replace(RUN, data=SyntheticData(mmu_batch_size=16, t2i_batch_size=48), gradient_accumulation_steps=accumulation)
    stage = plan(run, PlanRequest(gpus=(2, 4)))[0]
    for found in stage.estimates:
        assert found.samples == 64
        assert found.tokens == 16 * 706 + 48 * 640
        if found.way != "tasks":
            assert [micro.samples for micro in found.parts["both"]] == [n / found.gpus / accumulation for n in (16, 48)]
    gpus = 16 // accumulation + 1
    with pytest.raises(ValueError, match="leaves some without a sample") as mine:
        plan(run, PlanRequest(gpus=(gpus,)))
    with pytest.raises(ValueError, match="leaves some without a sample") as trainers:
        Trainer(run, None, None, None, Path(), print, parallel=Parallel(0, gpus))  # type: ignore[arg-type]
    assert str(mine.value) == str(trainers.value)


@pytest.mark.slow
def test_accumulation_saves_activations_and_costs_gathers() -> None:
    run = replace(RUN, data=SyntheticData(mmu_batch_size=64, t2i_batch_size=64))
    whole, cut = (
        {one.way: one for one in plan(replace(run, gradient_accumulation_steps=n), PlanRequest())[0].estimates} for n in (1, 4)
    )
    for way in ("ddp", "fsdp2"):
        assert cut[way].memory.activations == pytest.approx(whole[way].memory.activations / 4, rel=0.01)
        assert cut[way].flops == whole[way].flops
        factor = 1 if way == "ddp" else 4
        assert sum(c.sent for c in cut[way].collectives) == factor * sum(c.sent for c in whole[way].collectives)


@pytest.mark.slow
def test_averages_are_one_more_copy_of_what_any_stage_trained() -> None:
    stages = tuple(Stage(part, train={part: 1}) for part in ("experts", "generation"))
    run = replace(RUN, stages=stages, ema_decay=0.999)
    first, second = plan(run, PlanRequest(gpus=(64,)))
    trained = [first.load.weights.parts["experts"][0], second.load.weights.parts["generation"][0]]
    for stage, floats in ((first, trained[0]), (second, sum(trained))):
        averages = {one.way: one.memory.averages for one in stage.estimates}
        assert averages == {"ddp": 4 * floats, "fsdp2": 4 * floats // 64, "tasks": 4 * floats}
    assert all(not one.memory.averages for one in plan(replace(run, ema_decay=None), PlanRequest())[0].estimates)


def test_lora_twice_is_refused() -> None:
    stages = tuple(Stage(name, train={"lora": 1}, lora=Lora(r=4)) for name in ("one", "two"))
    with pytest.raises(ValueError, match="stage 'two' adds LoRA to a model that has some"):
        plan(RunConfig(structure=TaskAwareMoE(), stages=stages, data=SyntheticData()), PlanRequest())


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"gpus": (0,)}, "gpus 0"), ({"device": "h1000"}, "'h1000' is not known"), ({"batch_size": 0}, "batch size 0")],
)
def test_impossible_questions_are_named(asked: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PlanRequest(**asked)  # type: ignore[arg-type]


def test_the_command_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(RECIPES / "base" / "unified.yaml"), "--gpus", "1", "2", "--device", "a100", "--price", "2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "smallest number of devices that fits: ddp 1, fsdp2 1, tasks 2" in printed
    assert "text tokens a conversation" not in printed  # a base with a tokenizer: lengths are sampled
    assert main([*command, "--json"]) == 0
    as_json = json.loads(capsys.readouterr().out)
    (stage,) = as_json["stages"]
    assert stage["parameters"]["total"] == sum(part["total"] for part in stage["parameters"]["parts"].values())
    assert [(one["way"], one["gpus"], one["cost"] is None) for one in stage["estimates"]] == [
        ("ddp", 1, False), ("fsdp2", 1, False), ("ddp", 2, False), ("fsdp2", 2, False), ("tasks", 2, False)
    ]  # fmt: skip
    assert all(one["memory"]["total"] == sum(v for k, v in one["memory"].items() if k != "total") for one in stage["estimates"])


def test_mistakes_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["model_name_or_path=janus-pro-8b"], "janus-pro-7b"),
        (["--device", "h1000"], "h1000"),
        (["--batch-size", "1"], "leaves no sample"),
        (["--batch-size", "14", "--gpus", "8"], "a step in 8 parts (8 processes x gradient_accumulation_steps=1) leaves some"),
        (["--mmu-length", "100"], "must be more than"),
    ):
        assert main(["plan", str(SCALE), *arguments]) == 1
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plan", str(SCALE), "--gpus", "0"])
    assert "argument --gpus: 0 must be at least 1" in capsys.readouterr().err


def test_help_names_every_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in DEVICES)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [RECIPES / "base" / "understanding.yaml", SCALE], ids=lambda path: path.stem)
def test_recipes_can_be_planned(recipe: Path) -> None:
    run = config.load(RunConfig, [recipe])
    start = "scratch" if run.model_name_or_path.startswith("runs/") else run.model_name_or_path
    for stage in plan(replace(run, model_name_or_path=start), PlanRequest(gpus=(1, 4))):
        assert all(one.seconds > 0 for one in stage.estimates)


def test_a_base_made_from_a_language_model(language_base: Path) -> None:
    """Grouped key/value heads and a byte-pair vocabulary: as many parameters as the checkpoint holds."""
    model, _ = load(str(language_base))
    data = SyntheticData(t2i_batch_size=1, mmu_batch_size=1)
    train = (Stage(train={"attention": 1.0, "generation": 1.0}),)
    run = RunConfig(model_name_or_path=str(language_base), data=data, stages=train, max_steps=2)
    [found] = plan(run, PlanRequest(gpus=(1,)))
    real = {name: weight.numel() for name, weight in model.named_parameters()}
    assert found.load.weights.total == sum(real.values())
    assert found.load.weights.trainable == sum(real[name] for name in select(real, {"attention": 1.0, "generation": 1.0}))
    text = replace(run, data=replace(data, text_share=1.0))
    [longer] = plan(text, PlanRequest(gpus=(1,)))
    assert longer.load.weights == found.load.weights
    assert not text.data.planning_note
