"""What a run measured beside its test scores, as tidy rows. Claims are held against them as against scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unidecouple.batch import TASK_KEYS
from unidecouple.diagnose.attention_interaction import interaction_of
from unidecouple.diagnose.gradient_conflict import conflict_of
from unidecouple.diagnose.routing import RoutingLayer, routing_of
from unidecouple.report import logs

VALIDATION = "/val"
"""Ends the metric of a validation score."""

FROM_ONE_TASK = "from_one_task"
"""The metric that is made of several runs' rows."""


def readings(folder: Path) -> list[dict[str, Any]]:
    """Rows (step, benchmark, metric, value) of the run in ``folder``; those of which it kept no log are left out.

    - every validation score, as metric "accuracy/val" and the like, at each step but 0, and at these steps "loss", nats per
      token of each task in training ("mmu"), mean since the step logged before;
    - "interaction": intensity of each task and layer ("mmu/0", eq. 1 of AIA, arXiv 2511.22663), and the curves' "correlation";
    - "routing": mean over the layers of each token's entropy over the experts of its group, 1 where it could go to any
      ("token_entropy/mmu"), and that of the experts' load, at the first and the last step logged;
    - "conflict": the gradients' cosine between the tasks, that between two batches of one task (the noise floor), and by how much
      the first lies above the second, means over the weight matrices that both tasks use.
    """
    made = (_validation(folder), _losses(folder), _interaction(folder), _routing(folder), _conflict(folder))
    return [
        {"step": step, "benchmark": benchmark, "metric": metric, "value": value, "judge": None, "ceiling": None, "floor": None}
        for rows in made
        for step, benchmark, metric, value in rows
    ]


def from_one_task(rows: Sequence[Mapping[str, Any]], controls: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows "interaction/from_one_task": how far a run's curves lie from those of models of one task (AIA, section 3).

    That is the mean over layers and tasks of the absolute difference of intensities, to the runs of the same scenario and seed at
    their own rates.

    Args:
        rows: of all runs, with those of ``readings``.
        controls: task -> variant that is trained on it alone; runs without both beside them get no row.
    """
    curves: dict[tuple[str, int, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["benchmark"] == "interaction" and row["metric"].partition("/")[0] in TASK_KEYS:
            curves.setdefault((row["scenario"], row["seed"], row["variant"]), {})[row["metric"]] = row
    found: list[dict[str, Any]] = []
    for (scenario, seed, variant), points in curves.items():
        alone = {task: curves.get((scenario, seed, name), {}) for task, name in controls.items()}
        gaps = [
            abs(row["value"] - alone[task][metric]["value"])
            for metric, row in points.items()
            if (task := metric.partition("/")[0]) in alone and metric in alone[task]
        ]
        if len(gaps) == len(points) and variant not in controls.values():
            found.append({**next(iter(points.values())), "metric": FROM_ONE_TASK, "value": sum(gaps) / len(gaps)})
    return found


def _validation(folder: Path) -> Iterator[tuple[int, str, str, float]]:
    for line in logs.read_lines(folder / logs.SCORES) or ():
        if line["step"]:  # the start's are every run's
            yield line["step"], line["benchmark"], line["metric"] + VALIDATION, line["value"]


def _losses(folder: Path) -> Iterator[tuple[int, str, str, float]]:
    scored = {line["step"] for line in logs.read_lines(folder / logs.SCORES) or ()}
    for line in logs.read_lines(folder / logs.METRICS) or ():
        if line["step"] in scored:
            yield from ((line["step"], "loss", task, line[f"loss/{task}"]) for task in TASK_KEYS if f"loss/{task}" in line)


def _interaction(folder: Path) -> Iterator[tuple[int, str, str, float]]:
    found = logs.read_measured(folder / logs.INTERACTION, interaction_of)
    if found is None:
        return
    for task, points in found.curves.items():
        for point in points:
            yield found.step, "interaction", f"{task}/{point.layer}", point.intensity
    if found.correlation is not None:
        yield found.step, "interaction", "correlation", found.correlation


def _routing(folder: Path) -> Iterator[tuple[int, str, str, float]]:
    records = logs.read_lines(folder / logs.ROUTING_LOG) or []
    for record in records[:1] + records[1:][-1:]:
        layers = routing_of(record)
        for task in TASK_KEYS:
            for name in ("token_entropy", "load_entropy"):
                value = _mean([of[task] for layer in layers if (of := _entropies(layer, name)).get(task) is not None])
                if value is not None:
                    yield record["step"], "routing", f"{name}/{task}", value


def _entropies(layer: RoutingLayer, name: str) -> Mapping[str, Any]:
    return layer.token_entropy if name == "token_entropy" else layer.load_entropy


def _conflict(folder: Path) -> Iterator[tuple[int, str, str, float]]:
    found = logs.read_measured(folder / logs.CONFLICT, conflict_of)
    if found is None or found.step is None or not found.matrices:
        return
    for metric, values in {
        "cosine": [matrix.cosine for matrix in found.matrices],
        "floor": [matrix.floor for matrix in found.matrices],
        "above_floor": [matrix.cosine - matrix.floor for matrix in found.matrices],
    }.items():
        yield found.step, "conflict", metric, sum(values) / len(values)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
