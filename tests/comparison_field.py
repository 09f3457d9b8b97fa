"""A field of 20 variants x 5 seeds x 3 rates in two scenarios, made up: what the page must stay readable with.

python tests/comparison_field.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unidecouple.report import write_report

BY_AXIS = {
    "structure": ("moe", "mot", "unifork", "symbiotic", "bagel", "unidecouple"),
    "objective": ("aia", "unidecouple_aia", "balance"),
    "gradient": ("pcgrad", "mgda", "cagrad", "maop"),
    "schedule": ("shielding", "group_rates", "one_stage"),
    "merging": ("task_arithmetic", "adamerging"),
}
AXIS_OF = {name: axis for axis, names in BY_AXIS.items() for name in names}
VARIANTS = ["dense_joint", "dense_mmu", *AXIS_OF]
RATES = ("", "lr=0.3", "und=0.1")
METRICS = {"pope": ("accuracy", "official", 0.5), "vqa": ("accuracy", "exact", 0.35), "geneval": ("overall", "template", 0.02)}
STEPS = 400


def budget(mmu: int, t2i: int, router: int = 0) -> dict[str, Any]:
    samples = {"mmu": mmu * STEPS, "t2i": t2i * STEPS}
    steps = {task: STEPS if count else 0 for task, count in samples.items()}
    tokens = {task: 60 * count for task, count in samples.items()}
    return {"steps": steps, "samples": samples, "tokens": tokens, "router_pictures": router * STEPS, "rates": list(RATES)}


def costs(number: int) -> dict[str, Any]:
    trainable = [["apart", 1_900_000], ["joint", 870_000]] if number % 3 == 0 else [["joint", 1_300_000 + 9000 * number]]
    active = {"mmu": 1_290_000 + 40_000 * number, "t2i": 980_000 + 40_000 * number}
    flops = {"train_flops": 5.2e6 + 4e5 * number, "generated_flops": 2.9e6 + 2e5 * number}
    return {"parameters": 4_000_000 + 180_000 * number, "active": active, "trainable": trainable} | flops


def scores(number: int, rate: int, scenario: int, rng: np.random.Generator) -> dict[str, float]:
    """Methods later in the list keep more; lower rates keep more and draw less."""
    kept = 0.55 + 0.016 * number + 0.07 * rate - 0.03 * scenario
    drawn = 0.62 - 0.05 * rate + 0.02 * np.sin(number) + 0.1 * scenario
    noise = rng.normal(0, 0.012, 3)
    return {"pope": kept + noise[0], "vqa": 0.8 * kept + noise[1], "geneval": drawn + noise[2]}


def logs(folder: Path, last: dict[str, float]) -> None:
    """Curves from the start's scores to ``last``."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = range(0, STEPS + 1, 50)
    lines = [
        {"step": step, "benchmark": name, "metric": METRICS[name][0], "value": begin + (last[name] - begin) * (step / STEPS) ** 0.5}
        for step in steps
        for name, begin in (("pope", 0.95), ("vqa", 0.8), ("geneval", 0.02))
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    losses = [
        {"step": s, "stage": "joint", "loss/mmu": 2 - last["pope"], "loss/t2i": 5 - 3 * last["geneval"] * s / STEPS}
        for s in steps[1:]
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in losses))


def write_field(folder: Path, scenarios: Sequence[str] = ("S1-r16", "S2")) -> Path:
    """``results.json`` and the logs of all runs; returns ``folder``."""
    rng, rows, runs = np.random.default_rng(0), [], []
    for place, scenario in enumerate(scenarios):
        cells = [("start", "", 0)] + [(name, rate, seed) for name in VARIANTS for rate in RATES for seed in range(5)]
        for name, rate, seed in cells:
            number, variant = VARIANTS.index(name) if name != "start" else 0, f"{name}@{rate}" if rate else name
            found = (
                {"pope": 0.95, "vqa": 0.8, "geneval": 0.02} if name == "start" else scores(number, RATES.index(rate), place, rng)
            )
            run = {"scenario": scenario, "variant": variant, "seed": seed}
            for benchmark, (metric, judge, floor) in METRICS.items():
                row = {"step": STEPS, "benchmark": benchmark, "metric": metric, "judge": judge, "ceiling": 1.0, "floor": floor}
                rows.append(run | row | {"value": float(found[benchmark])})
            spent = {"cpu_seconds": 300.0 + 25 * number, "peak_memory_bytes": 900_000_000 + 10_000_000 * number}
            runs.append(run | spent | {"folder": f"{scenario}/{variant}/seed{seed}"})
            if name != "start" and not rate:
                logs(folder / scenario / variant / f"seed{seed}", found)
    budgets = {
        name: budget(2 if name != "dense_t2i" else 0, 0 if name == "dense_mmu" else 32, 6 * (name == "unidecouple"))
        for name in VARIANTS
    }
    meta: dict[str, Any] = {
        "name": "field", "created": "2026-01-02T03:04:05", "command": "unidecouple compare field.yaml", "control": "dense_joint",
        "focus": "unidecouple",
        "axes": AXIS_OF, "tasks": {"dense_mmu": "mmu"}, "other_budgets": {"adamerging": "its two parents are trained apart"},
        "scenarios": {"S1-r16": "One understanding sample for 16 of generation.", "S2": "Joint fine-tuning."},
        "variants": {name: f"What {name} does, in one sentence that fills about a line." for name in VARIANTS},
        "budgets": dict.fromkeys(("S1-r16", "S2"), budgets),
        "costs": {scenario: {name: costs(number) for number, name in enumerate(VARIANTS)} for scenario in scenarios},
        "missing": [{"scenario": "S2", "variant": "late", "seed": seed} for seed in (3, 4)], "runs": runs,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps({"meta": meta, "rows": rows}))
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    print(write_report(write_field(target)))
