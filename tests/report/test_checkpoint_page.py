"""`unidecouple diagnose` from the command line to its page, and the figures of a checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unidecouple.batch import Batch, Task
from unidecouple.cli import main
from unidecouple.convert.load import load
from unidecouple.diagnose import ablation
from unidecouple.diagnose.ablation import ablation_map
from unidecouple.diagnose.alignment import alignment_curves
from unidecouple.diagnose.gradient_conflict import Conflict, ConflictLog, mean_conflicts, ratio_map
from unidecouple.diagnose.probes import PROBES
from unidecouple.diagnose.routing_history import routing_history
from unidecouple.figures.grids import name_columns, name_room
from unidecouple.figures.style import canvas
from unidecouple.methods.structure import TaskAwareMoE, UniFork
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.report.checkpoint_page import DIAGNOSIS, PAGE, render
from unidecouple.train.build import restructure
from unidecouple.train.probe_input import ProbeInput
from unidecouple.world import source as worlds


@pytest.fixture(autouse=True)
def _small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "UNSEEN", replace(worlds.UNSEEN, pairs=24, scenes=24))


def diagnosed(checkpoint: str, output: Path, cache: Path) -> tuple[dict[str, Any], str]:
    words = ["diagnose", checkpoint, "--output", str(output), "--cache", str(cache), "--batches", "1", "--device", "cpu"]
    assert main(words) == 0
    return json.loads((output / DIAGNOSIS).read_text()), (output / PAGE).read_text()


def test_a_dense_base(small_base: Path, small_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, page = diagnosed(str(small_base), tmp_path / "out", small_cache)
    assert set(content["measured"]) == {"conflict", "interaction", "alignment"}
    assert set(content["left_out"]) == {"routing", "routing_history", "ablation"}
    assert "it has no router" in page
    assert "24 records of mmu are few, so the cosines are noisy: give 32 or more with --data." in page
    assert str(tmp_path / "out" / PAGE) in capsys.readouterr().out
    assert page.count("<svg") == 4
    assert not re.search(r"<script|src=\"http|<link", page), "one file, no network"


@pytest.mark.slow
def test_a_mixture_beside_its_log(small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    """A run's folder: everything applies."""
    base, processor = load(str(small_base))
    model = restructure(base, TaskAwareMoE(), 0)
    run = tmp_path / "run"
    for part in (model, processor):
        part.save_pretrained(run / "checkpoint-7")
    (run / "run.yaml").write_text("seed: 3\n")
    (run / "routing.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history()))
    content, page = diagnosed(str(run), tmp_path / "out", small_cache)
    assert [*content["measured"]] == [probe.name for probe in PROBES]
    assert content["left_out"] == {}
    assert content["name"] == "run/checkpoint-7"
    for probe in PROBES:
        assert f'id="{probe.name}"' in page
        assert probe.title in page
    assert "What was left out" not in page
    assert render(content) == page, "the page follows from the file"


def test_untied_layers_are_named_and_taken_away(small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    base, processor = load(str(small_base))
    for part in (restructure(base, UniFork(), 0), processor):
        part.save_pretrained(tmp_path / "fork")
    content, page = diagnosed(str(tmp_path / "fork"), tmp_path / "out", small_cache)
    assert content["structure"] == "1 of 2 layers with weights per task"
    assert content["left_out"]["routing"].startswith("no router: 1 of 2 layers with weights per task")
    assert {row["layer"] for row in content["measured"]["conflict"]["rows"]} == {0}, "nothing is shared after the fork"
    assert {cost["part"] for cost in content["measured"]["ablation"]["costs"]} == {"mmu group", "t2i group"}
    assert "the model is dense" not in page


@pytest.mark.parametrize(
    ("text", "absent"),
    [
        ({"ffn": "moe"}, ["groups of experts (there is one, which serves both tasks)"]),
        ({"ffn": "ta_moe"}, []),
        (
            {"ffn": "ta_moe", "lora_rank": 4, "lora_targets": ["experts", "attention"], "lora_per_task": ["attention"]},
            ["low-rank updates routed by task (attention)"],
        ),
    ],
    ids=str,
)
def test_what_was_not_taken_away_is_said(
    make_model: Callable[..., UniJanusForConditionalGeneration],
    joint_batch: tuple[Batch, Batch],
    text: dict[str, Any],
    absent: list[str],
) -> None:
    measured = ablation.measure(
        ProbeInput(make_model(**text), _Given(joint_batch), _Given(joint_batch), batches=1), lambda *_: None
    )
    assert isinstance(measured, dict)
    assert measured["not_measured"] == absent
    about = {"name": "m", "structure": "s", "layers": 2, "parameters": 1, "step": None, "batches": 1, "data": "d"}
    left_out = dict.fromkeys((probe.name for probe in PROBES if probe.name != "ablation"), "it was not asked for")
    versions = {"unidecouple": "0", "torch": "0"}
    page = render(about | {"versions": versions, "measured": {"ablation": measured}, "left_out": left_out})
    assert page.count("Not measured: ") == len(absent)
    assert all(f"Not measured: {what}." in page for what in absent)


class _Given:
    """One batch of each task, again and again."""

    tasks = measurable = tuple(Task)

    def __init__(self, joint: tuple[Batch, Batch]) -> None:
        self.joint = joint

    def task_batch(self, task: Task, size: int, number: int) -> tuple[Batch]:
        return (self.joint[task],)

    distinct_batch = task_batch

    def distinct_samples(self, task: Task, most: int) -> int:
        return most


def test_recipe_and_data_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "unified", "--recipe", "a.yaml", "--data", "b.jsonl"]) == 1
    assert "leave one out" in capsys.readouterr().err


def history() -> list[dict[str, Any]]:
    rows = [
        {
            "layer": layer,
            "group_share": {"mmu": [0.75, 0.25], "t2i": [0.0, 1.0]},
            "expert_share": {"mmu": [0.75, 0.0, 0.25, 0.0], "t2i": [0.0, 0.0, 1.0, 0.0]},
            "load_entropy": {"mmu": 0.5, "t2i": 0.0},
            "token_entropy": {"mmu": 0.9, "t2i": None},
            "dead": [1, 3],
        }
        for layer in (0, 1)
    ]
    return [{"step": step, "stage": "joint", "layers": rows} for step in (10, 20)]


def test_routing_over_steps() -> None:
    plot = routing_history("h", "Training", history())
    assert plot is not None
    assert "at the end 4 dead experts" in plot.caption
    assert routing_history("h", "Training", history()[:1]) is None, "one point is no curve"


def cell(part: str, cosine: float, ratio: float) -> Conflict:
    return Conflict(0, part, cosine, 0.04, 0.0, 0.03, ratio)


def test_more_pairs_of_batches_tell_more_apart() -> None:
    """Standard errors 0.05 / sqrt(16) = .0125: a gap of .03 is shown, one of .02 is not; one pair shows neither."""
    cells = (cell("up", -0.03, 1.0), cell("down", -0.02, 1.0))
    assert [differs for _, differs in mean_conflicts([ConflictLog(0, cells, 16)])] == [True, False]
    assert [differs for _, differs in mean_conflicts([ConflictLog(0, cells)])] == [False, False]


def test_names_of_many_columns_stand_upright() -> None:
    dense = ["q_proj", "k_proj", "v_proj", "o_proj", "gate", "up", "down"]
    assert name_room(dense, 3) == 0.0
    assert name_room([*dense, "expert router", "experts in", "experts out"], 3) > 0.5, "inches"
    _, axes = canvas(4, 4)
    name_columns(axes[0], ["expert router", "up"], 1)
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["expert\nrouter", "up"]
    name_columns(axes[0], ["expert router"] * 20, 3)
    assert {label.get_rotation() for label in axes[0].get_xticklabels()} == {90.0}


@pytest.mark.parametrize(
    ("ratio", "caption"), [(4.0, "4.0 times as large from generation's"), (0.25, "4.0 times as large from unders")]
)
def test_whose_gradient_is_larger(ratio: float, caption: str) -> None:
    plot = ratio_map("r", "Gradients", ConflictLog(None, (cell("up", 0.0, ratio), cell("down", 0.0, ratio))))
    assert plot is not None
    assert caption in plot.caption
    assert ratio_map("r", "Gradients", ConflictLog(None, ())) is None


def test_ablations_name_what_is_dearest() -> None:
    costs = [
        {"part": part, "layer": layer, "task": task, "cost": cost, "error": 0.01}
        for part, layer, task, cost in (
            ("shared expert", None, "mmu", 0.3),
            ("mmu group", None, "mmu", 0.5),
            ("e0", 0, "mmu", 0.9),
            ("shared expert", None, "t2i", 0.2),
            ("mmu group", None, "t2i", -0.1),
        )
    ]
    caption = ablation_map("a", costs).caption
    assert "Understanding loses 0.50 ± 0.01 nats per token without the mmu group in all layers" in caption
    assert "generation loses 0.20 ± 0.01 nats per token without the shared expert in all layers" in caption
    lone = ablation_map("a", [cost | {"error": None} for cost in costs if cost["layer"] == 0]).caption
    assert "0.90 nats per token without the e0 in layer 0" in lone


def test_alignment_says_where_it_is_highest() -> None:
    depths = [{"task": "t2i", "layer": n, "apart": value, "together": 0.1} for n, value in enumerate((0.2, 0.6, 0.3))]
    plot = alignment_curves("a", {"t2i": {"pairs": 50, "neighbours": 5, "chance": 5 / 49, "depths": depths}})
    assert "0.20 at the input, 0.60 at its most (depth 1), 0.30 at the output; chance is 0.10" in plot.caption
