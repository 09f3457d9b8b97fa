"""Recipe keys of version 0.1: read under their new names, with a line that names both; the later of two layers wins."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from unidecouple import config
from unidecouple.compare.plan import Comparison
from unidecouple.data.settings import Files, Source
from unidecouple.generate.sampling import SamplingParams
from unidecouple.methods.objective import AttentionAlignment, GroupRouterLoss, LoadBalance, Objective
from unidecouple.methods.stage import GradientShielding, Stage
from unidecouple.methods.structure import MoE, MoT, Rosetta, TaskAwareMoE
from unidecouple.run import RunConfig
from unidecouple.world.settings import CurriculumPhase, SyntheticData, SyntheticEvaluation


@dataclass(frozen=True)
class Red:
    RENAMED_KEYS: ClassVar[dict[str, str]] = {"old_depth": "depth"}

    kind: Literal["red"] = "red"
    depth: int = 1


@dataclass(frozen=True)
class Blue:
    kind: Literal["blue"] = "blue"
    old_depth: int = 7


@dataclass(frozen=True)
class Outer:
    RENAMED_KEYS: ClassVar[dict[str, str]] = {"colour": "color"}

    color: Red | Blue = field(default_factory=Red)
    many: tuple[Red | Blue, ...] = ()
    named: dict[str, Red] = field(default_factory=dict)


def read(text: str, folder: Path, *overrides: str) -> Outer:
    path = folder / "a.yaml"
    path.write_text(text)
    return config.load(Outer, [path], overrides)


def test_keys_are_renamed_at_every_depth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "{colour: {kind: red, old_depth: 2}, many: [{kind: blue, old_depth: 3}, {kind: red, old_depth: 4}], "
    text += "named: {x: {old_depth: 5}}}"
    with caplog.at_level(logging.WARNING, "unidecouple"):
        found = read(text, tmp_path)
    assert found == Outer(Red(depth=2), (Blue(old_depth=3), Red(depth=4)), {"x": Red(depth=5)})
    said = sorted(record.getMessage().partition(": ")[2] for record in caplog.records)
    assert [line.split("'")[1::2] for line in said] == [
        ["color.old_depth", "depth"],
        ["colour", "color"],
        ["many.1.old_depth", "depth"],
        ["named.x.old_depth", "depth"],
    ]
    assert str(tmp_path / "a.yaml") in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    ("text", "override", "depth"),
    [("{color: {kind: red, old_depth: 2}}", "color.depth=9", 9), ("{color: {kind: red, depth: 2}}", "color.old_depth=9", 9)],
)
def test_the_later_name_wins(text: str, override: str, depth: int, tmp_path: Path) -> None:
    assert read(text, tmp_path, override).color == Red(depth=depth)


def test_an_unknown_key_stays_an_error(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="unknown key 'older_depth'"):
        read("{color: {kind: red, older_depth: 2}}", tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{group_coeff: 0}", Objective(auxiliary=())),
        ("{group_coeff: 0, balance_coeff: 0.02}", Objective(auxiliary=(LoadBalance(coeff=0.02),))),
        ("{balance_coeff: 0.02}", Objective(auxiliary=(GroupRouterLoss(), LoadBalance(coeff=0.02)))),
        ("{group_mmu_weight: 8}", Objective(auxiliary=(GroupRouterLoss(mmu_weight=8.0),))),
        ("{aia_targets: emu3}", Objective()),  # both coefficients were 0 by default
        (
            "{aia_t2i_coeff: 5, aia_targets: emu3}",
            Objective(auxiliary=(GroupRouterLoss(), AttentionAlignment(mmu_coeff=0.0, t2i_coeff=5.0, targets="emu3"))),
        ),
    ],
)
def test_flat_coefficients_are_read_as_auxiliary_losses(old: str, new: Objective, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"objective: {old}")
    assert config.load(RunConfig, [path]).objective == new


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("structure: {kind: mot, split: drawn}", RunConfig(structure=MoT(group_by="image_out")), ["structure.split"]),
        ("structure: {kind: ta_moe, experts_per_task: 3}", RunConfig(structure=TaskAwareMoE(experts_per_group=3)), None),
        ("structure: {kind: moe, experts_per_task: 3}", RunConfig(structure=MoE(num_experts=6)), ["structure.experts_per_task"]),
        (
            "structure: {kind: rosetta, seen_experts: 2, drawn_experts: 4}",
            RunConfig(structure=Rosetta(image_in_experts=2, image_out_experts=4)),
            ["structure.drawn_experts", "structure.seen_experts"],
        ),
        (
            "stages: [{shield: {tokens: drawn}, group_rates: {text: 1, seen: 0.5, drawn: 0}}]",
            RunConfig(stages=(Stage(shield=GradientShielding(), group_lr_scale={"text": 1, "image_in": 0.5, "image_out": 0}),)),
            ["stages.0.group_rates", "stages.0.shield.tokens"],
        ),
    ],
)
def test_structures_of_version_0_1(
    old: str, new: RunConfig, said: list[str] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"data: {{kind: world}}\n{old}")
    with caplog.at_level(logging.WARNING, "unidecouple"):
        assert config.load(RunConfig, [path]) == new
    named = sorted(record.getMessage().split("'")[1] for record in caplog.records)
    assert named == (said or ["structure.experts_per_task"])


def test_an_old_override_changes_a_new_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("objective: {auxiliary: [{kind: load_balance, coeff: 0.5}]}")
    found = config.load(RunConfig, [path], ["objective.balance_coeff=0.1"]).objective
    assert found == Objective(auxiliary=(LoadBalance(coeff=0.1),))


@pytest.mark.parametrize(
    ("text", "override", "temperature"),
    [
        ("{temperature: 0.5, guidance_scale: 2}", "evaluation.eval_steps=9", 0.5),
        ("{temperature: 0.5, guidance_scale: 2}", "evaluation.sampling.temperature=0.9", 0.9),
        ("{sampling: {temperature: 0.5, guidance_scale: 2}}", "evaluation.temperature=0.9", 0.9),
    ],
)
def test_flat_sampling_settings_are_read(
    text: str, override: str, temperature: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"evaluation: {text}")
    found = config.load(RunConfig, [path], [override]).evaluation.sampling
    assert found == SamplingParams(guidance_scale=2, temperature=temperature)
    assert "'evaluation.temperature' is now 'sampling.temperature'" in caplog.text


def test_sampling_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("evaluation: {sampling: 3, temperature: 0.5}")
    with pytest.raises(config.ConfigError, match="sampling"):
        config.load(RunConfig, [path])


WORLD = {"kind": "world", "mmu_batch_size": 4}
OLD_DATA = {"pairs": 12000, "scenes": 6000, "seed": 0, "t2i_batch_size": 32, "mmu_batch_size": 32, "turns": 6, "lessons": []}
OLD_DATA |= {"simple_steps": 0, "cond_dropout_prob": 0.1, "router_pairs": 0}


def renamed(record: logging.LogRecord) -> list[str]:
    """The old and the new name in a line."""
    return record.getMessage().rpartition(": key ")[2].split("'")[1::2]


def load_run(tmp_path: Path, *layers: object) -> RunConfig:
    """The run that ``layers`` describe: mappings become files, texts are overrides."""
    paths = []
    for number, layer in enumerate(one for one in layers if isinstance(one, dict)):
        paths.append(tmp_path / f"{number}.yaml")
        paths[-1].write_text(json.dumps(layer))
    return config.load(RunConfig, paths, [one for one in layers if isinstance(one, str)])


@pytest.mark.parametrize(
    ("layers", "new", "said"),
    [
        (({},), {}, ["data left out"]),
        (({"data": {"pairs": 96}},), {"pairs": 96}, ["data"]),
        (({}, "data.pairs=96"), {"pairs": 96}, ["data"]),
        (({"data": {"kind": "world", "simple_steps": 3}}, "data.router_pairs=2"),
            {"single_object_steps": 3, "router_aux_samples": 2}, ["data.router_pairs", "data.simple_steps"]),
        (({"data": {"kind": "world", "lessons": [{"kind": "caption", "steps": 2}]}},),
            {"curriculum": (CurriculumPhase("caption", 2),)}, ["data.lessons"]),
        (({"data": WORLD, "evaluation": {"pope_images": 7, "eval_steps": 1}},),
            {"mmu_batch_size": 4, "evaluation": SyntheticEvaluation(pope_images=7)}, ["evaluation.pope_images"]),
        (({"data": {**WORLD, "evaluation": {"pope_images": 7}}}, "evaluation.pope_images=8"),
            {"mmu_batch_size": 4, "evaluation": SyntheticEvaluation(pope_images=8)}, ["evaluation.pope_images"]),
        (({"data": WORLD, "evaluation": {"pope_images": 7}}, "data.evaluation.pope_images=8"),
            {"mmu_batch_size": 4, "evaluation": SyntheticEvaluation(pope_images=8)}, ["evaluation.pope_images"]),
        (({"data": WORLD}, "evaluation={pope_images: 8}"),
            {"mmu_batch_size": 4, "evaluation": SyntheticEvaluation(pope_images=8)}, ["evaluation.pope_images"]),
        (({"data": OLD_DATA, "files": None},), {}, ["data", "data.lessons", "data.router_pairs", "data.simple_steps"]),
    ],
)  # fmt: skip
def test_the_synthetic_data_of_0_1(
    layers: tuple[object, ...], new: dict[str, Any], said: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "unidecouple"):
        assert load_run(tmp_path, *layers).data == SyntheticData(**new)
    assert sorted(renamed(record)[0] for record in caplog.records) == said


NEW = {"kind": "files", "sources": [{"path": "b"}], "mmu_batch_size": 2}
OWN = Files((Source(Path("a.jsonl")),), mmu_batch_size=2)


@pytest.mark.parametrize(
    "layers",
    [
        ({"files": {"sources": [{"path": "a.jsonl"}], "mmu_batch_size": 2}},),
        ({"files": {"sources": [{"path": "a.jsonl"}]}}, "files.mmu_batch_size=2"),
        ({"data": {"kind": "files", "sources": [{"path": "a.jsonl"}]}}, "files.mmu_batch_size=2"),
        (
            {"data": {"kind": "files", "sources": [{"path": "b"}], "mmu_batch_size": 2}},
            {"files": {"sources": [{"path": "a.jsonl"}]}},
        ),
        ({"data": {"kind": "files", "sources": [{"path": "b"}], "mmu_batch_size": 2}}, "files.sources.0.path=a.jsonl"),
        ({"files": {"sources": [{"path": "a.jsonl"}]}}, {"data": {"mmu_batch_size": 2}}),
        ({"data": WORLD}, "files={sources: [{path: a.jsonl}], mmu_batch_size: 2}"),
        ({"data": WORLD}, "files.sources=[{path: a.jsonl}]", "files.mmu_batch_size=2"),
        ({"data": OLD_DATA, "files": {"sources": [{"path": "a.jsonl"}], "mmu_batch_size": 2}, "evaluation": {"pope_images": 100}},),
    ],
)
def test_the_files_of_0_1(layers: tuple[object, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "unidecouple"):
        assert load_run(tmp_path, *layers).data == OWN
    assert [renamed(record) for record in caplog.records] == [["files", "data"]]


def test_settings_of_two_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="key 'pairs' does not go with the other keys in data"):
        load_run(tmp_path, {"data": {"pairs": 7}, "files": {"sources": [{"path": "a"}]}})
    with pytest.raises(config.ConfigError, match=r"unknown data\.kind 'nosuch' "):
        load_run(tmp_path, {"data": {"kind": "nosuch"}})


def test_a_grid_of_0_1(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scenario = {"description": "x", "model_name_or_path": "unified", "simple_steps": 0}
    old = {"name": "g", "scenarios": {"s": scenario}, "variants": {"v": {"description": "x", "router_pairs": 6}}}
    old["run"] = {"data": {"pairs": 7}, "evaluation": {"num_images": 1}}
    old["variants"]["w"] = {"description": "x", "router_pairs": 0}  # as saved grids have it
    (tmp_path / "g.yaml").write_text(json.dumps(old))
    with caplog.at_level(logging.WARNING, "unidecouple"):
        found = config.load(Comparison, [tmp_path / "g.yaml"], ["variants.v.router_pairs=5"])
    assert found.run.data == SyntheticData(pairs=7, evaluation=SyntheticEvaluation(num_images=1))
    assert (found.scenarios["s"].data, found.variants["v"].data) == ({"single_object_steps": 0}, {"router_aux_samples": 5})
    assert found.variants["w"].data == {}
    assert sorted(renamed(record)[0] for record in caplog.records) == [
        "run.data",
        "run.evaluation.num_images",
        "scenarios.s.simple_steps",
        "variants.v.router_pairs",
    ]
