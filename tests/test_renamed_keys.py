"""Recipe keys of version 0.1: read under their new names, with a line that names both; the later of two layers wins."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from unidecouple import config
from unidecouple.methods.objective import AttentionAlignment, GroupRouterLoss, LoadBalance, Objective
from unidecouple.methods.stage import GradientShielding, Stage
from unidecouple.methods.structure import MoE, MoT, Rosetta, TaskAwareMoE
from unidecouple.run import RunConfig


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
    path.write_text(old)
    with caplog.at_level(logging.WARNING, "unidecouple"):
        assert config.load(RunConfig, [path]) == new
    named = sorted(record.getMessage().split("'")[1] for record in caplog.records)
    assert named == (said or ["structure.experts_per_task"])


def test_an_old_override_changes_a_new_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("objective: {auxiliary: [{kind: load_balance, coeff: 0.5}]}")
    found = config.load(RunConfig, [path], ["objective.balance_coeff=0.1"]).objective
    assert found == Objective(auxiliary=(LoadBalance(coeff=0.1),))
