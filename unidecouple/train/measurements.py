"""Diagnoses of a subject, as JSON objects: what a run's end writes and what ``unidecouple diagnose`` shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from unidecouple.batch import Task
from unidecouple.diagnose.ablation import ablations
from unidecouple.diagnose.alignment import LEAST_PAIRS, TooFewPairsError, alignment, chance
from unidecouple.diagnose.attention_interaction import attention_interaction, depth_correlation
from unidecouple.diagnose.gradient_conflict import gradient_conflict
from unidecouple.diagnose.routing import routing_map
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.train.routing_log import read_routing_log
from unidecouple.train.run_logs import ROUTING
from unidecouple.train.subject import Subject

BATCH = 16
"""Samples a batch."""
LEAST_BATCH = 8
"""Of conflict where there are few records; gradients of fewer samples are mostly noise."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Skipped:
    """Why something was not measured."""

    reason: str


Measured = dict[str, Any] | Skipped


def measure_conflict(subject: Subject, progress: Progress) -> Measured:
    """``gradient_conflict``: {"step", "pairs", "rows"}; each cosine is a mean over that many pairs of batches.

    No two batches of a task share a record, else the floor would be the cosine of a gradient with itself. With fewer records than
    ``subject.batches`` asks for there are fewer pairs, and below 2 x ``BATCH`` records smaller batches.
    """
    if len(subject.tasks) < len(Task):
        return Skipped(f"there is data of {_named(subject.tasks)} only, and a conflict needs two")
    wanted = 2 * subject.batches
    records = {task: subject.source.distinct_samples(task, wanted * BATCH) for task in Task}
    fewest = min(Task, key=lambda task: records[task])
    size = min(BATCH, records[fewest] // 2)
    if size < LEAST_BATCH:
        return Skipped(
            f"{2 * LEAST_BATCH} different records of each task are needed, and there are {records[fewest]} of {fewest.key}"
        )
    total = min(wanted, records[fewest] // size // 2 * 2)
    model = subject.model

    def batch_of(task: Task, number: int) -> Any:
        if task is Task.MMU:
            progress("gradients", number, total)
        return subject.distinct_batch(task, size, number)

    rows = gradient_conflict(model, batch_of, total // 2)
    if not rows:
        return Skipped("the tasks share no weight matrix of the decoder")
    return {"step": subject.step, "pairs": total, "rows": [row.to_json() for row in rows]}


def measure_routing(subject: Subject, progress: Progress) -> Measured:
    """``routing_map``: {"layers"}."""
    both = tuple(batch for task in subject.tasks for n in range(subject.batches) for batch in subject.batch(task, BATCH, n))
    layers = routing_map(subject.model, both)
    return {"layers": layers} if layers else Skipped(_no_router(subject.model.config.text_config))


def measure_routing_history(subject: Subject, progress: Progress) -> Measured:
    """What training logged: {"records"}."""
    records = read_routing_log(subject.folder) if subject.folder else []
    return {"records": records} if records else Skipped(f"there is no {ROUTING} beside it: only runs of mixtures write one")


def measure_interaction(subject: Subject, progress: Progress) -> Measured:
    """``attention_interaction``: {"step", "correlation", "rows"}."""
    rows = attention_interaction(
        subject.model, lambda task, number: subject.batch(task, BATCH, number), subject.tasks, 2 * subject.batches
    )
    if not rows:
        return Skipped("no sample shows both a picture and words about it")
    return {"step": subject.step, "correlation": depth_correlation(rows), "rows": [row.to_json() for row in rows]}


def measure_alignment(subject: Subject, progress: Progress) -> Measured:
    """``alignment``: {"tasks": task key -> {"pairs", "neighbours", "chance", "depths"}}."""
    found = {}
    for task in subject.tasks:
        joint = [subject.batch(task, BATCH, number, described=True) for number in range(2 * subject.batches)]
        try:
            depths, pairs, k = alignment(subject.model, task, [batch for part in joint for batch in part])
        except TooFewPairsError:
            continue
        found[task.key] = {
            "pairs": pairs,
            "neighbours": k,
            "chance": chance(pairs, k),
            "depths": [depth.to_json() for depth in depths],
        }
    return {"tasks": found} if found else Skipped(f"fewer than {LEAST_PAIRS} pictures with words of their own were drawn")


def measure_ablations(subject: Subject, progress: Progress) -> Measured:
    """``ablations``: {"batches", "intact", "costs", "not_measured"}; the last says which parts of the model were not taken away."""
    held = {task: [subject.batch(task, BATCH, number) for number in range(subject.batches)] for task in subject.tasks}
    intact, costs = ablations(subject.model, held, progress)
    if not costs:
        return Skipped("the model is dense and no layer is untied: it has no experts and no sets of weights to take away")
    absent = _not_taken_away(subject.model.config.text_config)
    return {"batches": subject.batches, "intact": intact, "costs": [cost.to_json() for cost in costs], "not_measured": absent}


def _no_router(text: UniLlamaConfig) -> str:
    if text.untied_layers is None:
        return "the model is dense: it has no router"
    return f"no router: {text.described}, and each token is told which set of weights serves it"


def _not_taken_away(text: UniLlamaConfig) -> list[str]:
    """What ``ablations`` passes over in a model in which it finds parts, and why."""
    routed = [target for target in text.lora_targets if text.lora_groups(target) > 1]
    absent = ["groups of experts (there is one, which serves both tasks)"] if text.mixture_layers and text.num_groups == 1 else []
    return absent + ([f"low-rank updates routed by task ({', '.join(routed)})"] if routed else [])


def _named(tasks: tuple[Task, ...]) -> str:
    return " and ".join(task.key for task in tasks) or "no task"
