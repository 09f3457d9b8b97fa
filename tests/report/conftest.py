"""A small experiment whose every number is written here, in the format that experiments are stored in."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Scores = Mapping[str, tuple[float, ...]]
"""Benchmark -> main score of seeds 0, 1, 2."""

WORLD = {"pope": "accuracy", "vqa": "accuracy", "geneval": "overall"}
METRICS = WORLD | dict.fromkeys(("answers", "image_tokens", "language"), "log_probability")
BOUNDS = {"pope": ("official", 1.0, 0.5), "vqa": ("exact", 1.0, 0.35), "geneval": ("template", 0.96, 0.02)}
STEPS = 400
META = {
    "name": "A <small> experiment",
    "created": "2026-01-02T03:04:05",
    "control": "dense_joint",
    "focus": "unidecouple",
    "tasks": {"dense_t2i": "t2i", "dense_mmu": "mmu"},
    "titles": {
        "dense_t2i": "dense, generation only",
        "dense_mmu": "dense, understanding only",
        "moe": "plain MoE",
        "unidecouple": "UniDecouple",
    },
    "config": {"scenarios": {"S1-r0": {"t2i_batch_size": 32, "mmu_batch_size": 0}}},
}
"""What a grid says of its variants, and that one scenario has generation data only."""


@dataclass
class Experiment:
    """Collects runs; ``write`` puts ``results.json`` down."""

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=lambda: deepcopy(META))

    def row(
        self, scenario: str, variant: str, seed: int, benchmark: str, metric: str, value: float | None, step: int = STEPS
    ) -> None:
        judge, ceiling, floor = BOUNDS.get(benchmark, (None, None, None))
        place = {"scenario": scenario, "variant": variant, "seed": seed, "step": step, "benchmark": benchmark, "metric": metric}
        self.rows.append(place | {"value": value, "judge": judge, "ceiling": ceiling, "floor": floor})

    def add(self, scenario: str, variant: str, scores: Scores, logs: bool = False) -> None:
        """Runs of ``variant``, one a seed, with their main scores and, if asked for, all their logs."""
        for benchmark, values in scores.items():
            for seed, value in enumerate(values):
                self.row(scenario, variant, seed, benchmark, METRICS[benchmark], value, 0 if variant == "start" else STEPS)
        for seed in range(len(next(iter(scores.values())))):
            name = f"{scenario}/{variant}/seed-{seed}"
            self.runs.append({"scenario": scenario, "variant": variant, "seed": seed, "folder": name})
            if logs:
                write_logs(self.folder / name, variant, seed)

    def write(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "results.json").write_text(json.dumps({"meta": self.meta | {"runs": self.runs}, "rows": self.rows}))
        return self.folder


def write_logs(folder: Path, variant: str, seed: int) -> None:
    """Every file that a run leaves for the report."""
    folder.mkdir(parents=True)
    picture = np.full((4, 4, 3), 60 * seed, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    (folder / "0.png").write_bytes(buffer.getvalue())
    samples = [
        {
            "prompt": "a photo of a cow",
            "tag": "single_object",
            "file": "0.png",
            "correct": variant != "start",
            "reason": 'no "cow" & so on',
        },
        {"prompt": f"only {variant}", "tag": "colors", "file": "0.png", "correct": False, "reason": ""},
    ]
    (folder / "samples.json").write_text(json.dumps(samples))
    if variant == "start":
        return
    metrics = [
        {"step": step, "stage": "apart" if step < 200 else "joint", "lr": 1e-3, "loss/t2i": 3 - step / 200 + seed}
        | ({"loss/mmu": 0.5, "router_accuracy/mmu": 0.9, "router_accuracy/t2i": 1.0} if variant == "unidecouple" else {})
        for step in (100, 200, 300, 400)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    scores = [
        {"step": step, "benchmark": benchmark, "metric": metric, "value": 0.9 - step / 1000}
        for step in (0, 200, 400)
        for benchmark, metric in WORLD.items()
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scores))
    cells = [
        {"layer": layer, "part": part, "cosine": -0.2, "cosine_std": 0.01, "floor": 0.3, "floor_std": 0.01, "norm_ratio": 1.5}
        for layer in (0, 1)
        for part in ("q_proj", "down")
    ]
    (folder / "conflict.json").write_text(json.dumps({"step": STEPS, "rows": cells}))
    if variant == "unidecouple":
        share = {
            "group_share": {"mmu": [0.9, 0.1], "t2i": [0.0, 1.0]},
            "expert_share": {"mmu": [0.5, 0.4, 0.1, 0.0], "t2i": [0, 0, 0.5, 0.5]},
        }
        (folder / "routing.json").write_text(json.dumps({"layers": [{"layer": layer, "alpha": 0.5} | share for layer in (0, 1)]}))


@pytest.fixture
def new_experiment(tmp_path: Path) -> Callable[[], Experiment]:
    return lambda: Experiment(tmp_path / "runs" / "small")


@pytest.fixture
def experiment(new_experiment: Callable[[], Experiment]) -> Experiment:
    """Generation data only, three seeds. The dense model forgets, UniDecouple does not and draws a little less."""
    made = new_experiment()
    made.add("S1-r0", "start", {"pope": (0.94,), "vqa": (0.80,), "geneval": (0.02,)}, logs=True)
    made.add(
        "S1-r0", "dense_t2i", {"pope": (0.60, 0.64, 0.62), "vqa": (0.30, 0.30, 0.30), "geneval": (0.50, 0.50, 0.50)}, logs=True
    )
    made.add(
        "S1-r0", "unidecouple", {"pope": (0.93, 0.94, 0.95), "vqa": (0.80, 0.79, 0.81), "geneval": (0.48, 0.46, 0.47)}, logs=True
    )
    return made
