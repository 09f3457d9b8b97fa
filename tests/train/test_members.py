"""Every structure and every gradient method in a run: it resumes bit for bit, two processes are one, an absent task rests.

Whom a property leaves out, and why, stands in ``members.py``. What one member has beyond that is tested in files of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import members
from conftest import MakeModel
from members import COMBINED, NOT_SHARDED, NOTHING_PRIVATE, STOP, STRUCTURED, UPDATES, runs, started, trained, weights
from ranks import assert_close_weights, exit_codes, fork_ranks
from step_settings import step_settings
from unidecouple.batch import Batch, Task
from unidecouple.methods.gradient import GRADIENTS, Sum
from unidecouple.methods.objective import Objective
from unidecouple.methods.structure import STRUCTURES
from unidecouple.models.sharing import weights_and_task_rows
from unidecouple.train.gradients import Gradients
from unidecouple.train.parallel import Parallel
from unidecouple.train.step import train_step
from unidecouple.train.trainable import make_param_groups

Joint = tuple[Batch, Batch]
NAMES = [*runs(Path())]
KINDS = [*STRUCTURED, UPDATES]


@pytest.fixture(scope="module")
def whole(small_base: Path, small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a member's unbroken run on one process; each is run once."""
    folder = tmp_path_factory.mktemp("whole")

    def of(name: str) -> Path:
        if not (folder / name).exists():
            assert trained(runs(small_base)[name], folder / name, small_cache)
        return folder / name

    return of


def test_no_member_is_left_out() -> None:
    assert {type(structure) for structure in STRUCTURED.values()} == set(STRUCTURES)
    assert {type(gradient) for gradient in COMBINED.values()} == set(GRADIENTS)
    planned = runs(Path()).values()
    assert {type(kind) for run in planned for kind in (run.structure, run.stages[-1].structure) if kind} == set(STRUCTURES)
    assert {type(run.stages[-1].gradient) for run in planned} == set(GRADIENTS)
    assert set(NOTHING_PRIVATE) | set(members.MISROUTED) <= set(STRUCTURED)
    assert NOT_SHARDED.keys() == {name for name, gradient in COMBINED.items() if gradient.by_task}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_resumed_equals_unbroken(
    name: str, whole: Callable[[str], Path], small_base: Path, small_cache: Path, tmp_path: Path
) -> None:
    run = runs(small_base)[name]
    assert not trained(run, tmp_path, small_cache, stop_after=STOP)
    stopped = weights(tmp_path)
    assert trained(run, tmp_path, small_cache)
    expected, found = weights(whole(name)), weights(tmp_path)
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    assert any(not torch.equal(expected[key], stopped[key]) for key in expected), "what follows the stop moved weights"


@pytest.mark.slow
def test_two_processes_equal_one(whole: Callable[[str], Path], small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    """The two are started once for all members."""
    work = partial(members.train_all, small_base, small_cache, tmp_path)
    assert exit_codes(fork_ranks(2, [work, work]), timeout=600) == [0, 0]
    for name in NAMES:
        assert_close_weights(weights(tmp_path / name), weights(whole(name)), learning_rate=1e-3, run=name)


@pytest.mark.slow
def test_gradient_methods_do_something(whole: Callable[[str], Path]) -> None:
    """The tasks are in conflict, so that no method above could pass for the sum."""
    plain = weights(whole("gradient sum"))
    for name in COMBINED.keys() - {"sum"}:
        assert any(not torch.allclose(weight, plain[key]) for key, weight in weights(whole(f"gradient {name}")).items()), name


@pytest.mark.slow
@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("name", KINDS)
def test_what_is_an_absent_task_s_rests(name: str, task: Task, make_model: MakeModel, joint_batch: Joint) -> None:
    """Two steps on one task leave every weight private to the other bit for bit, and move what is the task's own."""
    model = started(make_model(), name)
    optimizer = torch.optim.AdamW(make_param_groups(model, {"*": 1}, 1e-2), weight_decay=0.0)
    before = {id(weight): weight.detach().clone() for weight, _ in weights_and_task_rows(model)}
    for _ in range(2):
        result = train_step(
            model.train(), optimizer, [(joint_batch[task],)], step_settings(Objective(auxiliary=()), [task], "label", 1.0)
        )
    assert list(result.losses) == [task.key]

    def moved(of: Task) -> list[bool]:
        parts = ((before[id(w)], w, rows[of]) for w, rows in weights_and_task_rows(model) if of in rows)
        return [not torch.equal(old[rows.start : rows.stop], new[rows.start : rows.stop]) for old, new, rows in parts]

    assert not any(moved(Task(1 - task)))
    assert bool(moved(Task.T2I)) == (name not in NOTHING_PRIVATE)
    assert any(moved(task)) == bool(moved(task))


@pytest.mark.slow
@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("name", COMBINED)
def test_a_task_alone_gets_its_own_gradient(name: str, task: Task, make_model: MakeModel, joint_batch: Joint) -> None:
    """By any method, in a step of a run on both tasks that holds one, and in a run on that one."""

    def gradients(strategy: object, tasks: list[Task]) -> dict[str, Tensor]:
        model = started(make_model(), "ta_moe")
        optimizer = torch.optim.SGD(make_param_groups(model, {"*": 1}, 0.0))
        how = Gradients.of(model, strategy, Parallel())  # type: ignore[arg-type]
        train_step(model, optimizer, [(joint_batch[task],)], step_settings(Objective(auxiliary=()), tasks, "label", 1e9, how))
        return {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}

    for tasks in ([task], list(Task)):
        found, expected = gradients(COMBINED[name], tasks), gradients(Sum(), tasks)
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6, msg=lambda said, key=key: f"{key}: {said}")
