"""One training step on several processes through DDP, each with both tasks or each with one, and what its hook all-reduces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.timing import SidesDifferError, one_thread
from benchmarks.tiny import SIZE as FULL_PICTURES
from benchmarks.tiny import model_of, processor_of, samples
from unidecouple.batch import JointBatch, Task
from unidecouple.data.sequences import SequenceBuilder, collate
from unidecouple.methods.selection import select
from unidecouple.methods.stage import Stage
from unidecouple.models.janus import UniJanusForConditionalGeneration

SIZE = replace(FULL_PICTURES, image_size=16, vq_channel_multiplier=(1, 1, 1), vq_encode_window=0)
APART = Stage("apart", train={"generation": 1, "experts": 1, "expert_router": 1}, routing="label")
"""UniDecouple's first stage, without the task router: only the group loss trains that, which is no matter here."""


def is_private(name: str) -> bool:
    """Whether each half of a weight serves one task: the experts' stacks and their routers, group-major."""
    return ".mlp.experts." in name or name.endswith(".mlp.gate.weight")


@dataclass
class Sent:
    """What one process's hook all-reduced in a step, in bytes: of private weights, and of those both tasks share."""

    private: int = 0
    shared: int = 0


@dataclass
class Hook:
    """DDP's gradients averaged, and counted.

    Attributes:
        names: of parameters, by their identity.
        task: the only one this process has data of; None if it has both.
        group: the processes that share ``task``.
        sent: so far.
    """

    names: dict[int, str]
    task: Task | None = None
    group: dist.ProcessGroup | None = None
    sent: Sent = field(default_factory=Sent)

    def __call__(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Average a bucket over processes: of private weights only the task's half, among processes that have it.

        ``bucket`` is a torch.distributed.GradBucket, a name that torch's types do not export.
        """
        for weight, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            private = is_private(self.names[id(weight)])
            part = gradient if self.task is None or not private else gradient.chunk(2)[self.task]
            dist.all_reduce(part, group=self.group if private else None)
            if private:
                self.sent.private += part.nbytes
            else:
                self.sent.shared += part.nbytes
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer().div_(dist.get_world_size()))
        return done


def step(
    model: UniJanusForConditionalGeneration, joint: JointBatch, task: Task | None, group: dist.ProcessGroup | None
) -> tuple[Sent, dict[str, Tensor]]:
    """Forward and backward of this process's share of a step; what was sent, and the gradients after it."""
    model.zero_grad(set_to_none=True)
    wrapped = DistributedDataParallel(model)
    hook = Hook({id(weight): name for name, weight in model.named_parameters()}, task, group)
    wrapped.register_comm_hook(None, lambda state, bucket: hook(bucket))  # torch refuses annotations that are text
    output = wrapped(batch=joint, routing=APART.routing)
    (output.mmu.total + output.t2i.total).backward()
    return hook.sent, {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def batches(processes: int) -> dict[Task, list[JointBatch]]:
    """One batch of each task for each process, of two samples."""
    builder = SequenceBuilder(processor_of(SIZE))
    pad = builder.tokenizer.pad_token_id
    made: dict[Task, list[JointBatch]] = {task: [] for task in Task}
    for number in range(processes):
        for task, counts in ((Task.MMU, (2, 0, 0)), (Task.T2I, (0, 0, 2))):
            batch = collate(samples(builder, SIZE, counts, seed=number, words=(8, 24)), pad)
            made[task].append((replace(batch, task_ids=torch.full_like(batch.task_ids, task)),))
    return made


def make_model() -> UniJanusForConditionalGeneration:
    """A tiny model with task groups, of which the stage's weights train."""
    model = model_of(processor_of(SIZE), SIZE, ffn="ta_moe")
    chosen = select([name for name, _ in model.named_parameters()], APART.train)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in chosen)
    return model


def shares(rank: int, processes: int) -> tuple[JointBatch, JointBatch, Task]:
    """What process ``rank`` sees when each has both tasks, when each keeps to one, and that one. Both steps are the same."""
    made = batches(processes)
    task = Task(rank * 2 // processes)
    first = 2 * (rank % (processes // 2))
    alone = made[task][first] + made[task][first + 1]
    return made[Task.MMU][rank] + made[Task.T2I][rank], alone, task


def measure(rank: int, processes: int, groups: Sequence[dist.ProcessGroup | None]) -> tuple[Sent, Sent]:
    """Take the step in both ways, and return what each sent.

    Raises:
        SidesDifferError: the gradients that this process uses differ.
    """
    model = make_model()
    both, alone, task = shares(rank, processes)
    plain, wanted = step(model, both, None, None)
    apart, found = step(model, alone, task, groups[task])
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        off = (found[name] - gradient).abs()
        if not float((off.chunk(2)[task] if is_private(name) else off).max()) <= 1e-5 * largest:
            raise SidesDifferError(f"the gradient of {name} differs where processes keep to one task")
    return plain, apart


def worker(rank: int, processes: int, folder: str) -> None:
    """One gloo process; the first writes what it sent to ``folder``."""
    one_thread()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    ranks = list(range(processes))
    groups = [dist.new_group(ranks[: processes // 2]), dist.new_group(ranks[processes // 2 :])]
    plain, apart = measure(rank, processes, groups)
    if rank == 0:
        torch.save([vars(plain), vars(apart)], Path(folder) / "sent.pt")
    dist.destroy_process_group()
