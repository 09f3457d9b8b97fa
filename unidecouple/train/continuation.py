"""Continue a finished run with a higher ``max_steps``: what may change, and what becomes of its scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

from unidecouple import config as configs
from unidecouple.convert.stored import all_checkpoints
from unidecouple.methods.stage import Stage
from unidecouple.run import RunConfig
from unidecouple.source import PrintLine
from unidecouple.train import checkpoint as checkpoints
from unidecouple.train.selection import LATER

MAY_CHANGE: Final = (
    "max_steps",
    "num_train_epochs",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "report_to",
    "early_stopping_patience",
    "evaluation.eval_steps",
)
"""Keys that no past step depends on."""


def as_saved(saved: RunConfig, run: RunConfig) -> RunConfig:
    """``run`` with what earlier continuations in its folder decided, whose run is ``saved``."""
    if not saved.extended_from or run.extended_from or len(run.stages) != len(saved.stages):
        return run
    return replace(run, extended_from=saved.extended_from, stages=_with_warmup(saved, run))


def continues(saved: RunConfig, run: RunConfig) -> RunConfig | None:
    """``run`` as it continues the finished run ``saved``, whose stages keep their lengths but for the last; None if it does not.

    The last stage's learning rate follows the schedule of its new length from the step where the run continues. Warm-up is over.
    """
    if run.max_steps <= saved.max_steps or len(run.stages) != len(saved.stages):
        return None
    longer = replace(run, stages=_with_warmup(saved, run), extended_from=saved.extended_from or saved.max_steps)
    changed = [line.partition(":")[0] for line in configs.differences(saved, longer)]
    if any(not key.startswith((*MAY_CHANGE, "extended_from")) for key in changed):
        return None
    return longer


def _with_warmup(saved: RunConfig, run: RunConfig) -> tuple[Stage, ...]:
    return tuple(replace(new, warmup_steps=old.warmup_steps) for new, old in zip(run.stages, saved.stages, strict=True))


def open_again(folder: Path, saved: RunConfig, result: str, say: PrintLine) -> None:
    """Set the scores of the finished run ``saved`` in ``folder`` aside, as ``scores-<step>.json`` and ``eval-<step>``.

    Raises:
        ValueError: the run kept no optimizer state at its end.
    """
    there = all_checkpoints(folder / LATER) or all_checkpoints(folder)
    if not there or not (there[-1] / checkpoints.OPTIMIZER).is_file():
        raise ValueError(
            f"{folder} kept no {checkpoints.OPTIMIZER} at its end (save_only_model, or an earlier version), so its training cannot "
            f"continue exactly: start a new run from its weights, with --model {folder} and another output folder"
        )
    step = saved.max_steps
    if (folder / result).is_file():
        step = int(json.loads((folder / result).read_bytes())["step"])
        (folder / result).rename(folder / f"{Path(result).stem}-{step}.json")
    if (folder / "eval").is_dir() and not (folder / f"eval-{step}").exists():
        (folder / "eval").rename(folder / f"eval-{step}")
    say(
        f"{folder} was finished; its training continues after step {checkpoints.read_state(there[-1]).step}, and the learning rate "
        f"follows the longer schedule from there. Scores so far: {Path(result).stem}-{step}.json"
    )
