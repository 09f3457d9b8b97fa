"""C7: bytes of the experts' gradients that DDP all-reduces when processes keep to one task, against every process having both.

Counted by a communication hook of torch's DDP over gloo, and compared with what the plan (``unidecouple plan``) says. Gradients
of both ways are held equal first. For that the BOS of a generation sample is given that sample's task: it usually counts as
understanding (see ``Task``), so that generation reaches understanding's experts through it, which a process that keeps to
generation does not send.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch.multiprocessing.spawn import start_processes

from benchmarks.hooked_step import APART, Sent, batches, make_model, worker
from benchmarks.record import Result, Row
from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Task
from unidecouple.plan.batch_shapes import BatchShape
from unidecouple.plan.devices import DEVICES, Hardware
from unidecouple.plan.stages import stage_load
from unidecouple.plan.strategies import ParallelStrategy, Placement, communication

GOAL = 0.52
STRATEGIES: tuple[ParallelStrategy, ...] = ("ddp", "tasks")


def planned(processes: int) -> dict[str, float]:
    """What the plan says each of ``processes`` sends, in bytes, by way and collective."""
    made = batches(processes)
    parts = [
        BatchShape(
            task,
            samples=batch.input_ids.shape[0],
            length=batch.input_ids.shape[1],
            answers=int((batch.labels[:, 1:] != IGNORE).sum()),
            drawn=int((batch.image_tokens[:, 1:] != NO_IMAGE_TOKEN).sum()),
            pictures=0 if batch.pixel_values is None else len(batch.pixel_values),
        )
        for task in Task
        for batch in made[task][0]
    ]
    load = stage_load(make_model(), APART, parts, 4)
    trace = load.trace("both", 1)
    found = {}
    for way in STRATEGIES:
        split = {task.key: processes // 2 for task in Task} if way == "tasks" else {"both": processes}
        for one in communication(Placement(way, processes, split), load.weights, trace, Hardware(DEVICES["h100"])):
            found[f"{way}: {one.name}"] = one.sent
    return found


def result(plain: Sent, apart: Sent, processes: int) -> Result:
    """The table. A ring's process sends 2 (N - 1) / N of what is all-reduced: N is all processes, or those of the task."""

    def ring(size: int, among: int) -> float:
        return 2 * size * (among - 1) / among

    counted = {
        "ddp: all-reduce": ring(plain.private + plain.shared, processes),
        "tasks: all-reduce": ring(apart.shared, processes),
        "tasks: all-reduce inside the task": ring(apart.private, processes // 2),
    }
    plan = planned(processes)
    share = apart.private / plain.private
    rows = [
        Row("experts' gradients all-reduced, each process has both tasks", plain.private, "bytes"),
        Row("experts' gradients all-reduced, each process keeps to one", apart.private, "bytes"),
        Row("the latter / the former", share, "x", goal=f"at most {GOAL}", met=share <= GOAL),
        *(Row(f"plan / counted, {name}", plan[name] / counted[name], "x") for name in counted),
    ]
    title = "C7: all-reduced gradients of experts with task-homogeneous processes (less is better)"
    return Result("allreduce", title, {"processes": processes, "backend": "gloo"}, rows, {"counted": counted, "planned": plan})


def run(processes: int = 4) -> Result:
    """Start ``processes`` and count.

    Raises:
        ValueError: their number is odd or below four: a task's processes must have something to reduce.
    """
    if processes < 4 or processes % 2:
        raise ValueError(f"processes={processes} must be even and at least 4, two a task")
    with tempfile.TemporaryDirectory() as folder:
        start_processes(worker, (processes, folder), nprocs=processes, start_method="fork")  # torch is loaded already
        plain, apart = (Sent(**each) for each in torch.load(Path(folder) / "sent.pt"))
    return result(plain, apart, processes)


def command() -> None:
    """What ``python -m benchmarks.allreduce`` does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.allreduce", description="C7: all-reduced gradients of experts.")
    parser.add_argument("--processes", type=int, default=4, help="even, at least 4 (default: 4)")
    made = run(parser.parse_args().processes)
    print(f"{made.table()}\n{made.write()}")


if __name__ == "__main__":
    command()
