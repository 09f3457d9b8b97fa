"""The best checkpoint and early stopping, as functions of a run's validation scores: a resumed run decides as an unbroken one.

The rules are transformers': ``metric_for_best_model``, ``greater_is_better``, and ``EarlyStoppingCallback`` for patience.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unidecouple.convert.stored import all_checkpoints
from unidecouple.run import RunConfig
from unidecouple.train.run_logs import SCORES, read_log
from unidecouple.train.validation_loss import TEXT

LOSS: Final = "loss"
"""Name of the mean over tasks of the held-out loss, nats per token."""
LATER: Final = "later"
"""Folder in a run's that checkpoints after the best one are moved to, so that the run's folder stands for the best."""


@dataclass(frozen=True)
class Selection:
    """What is best among the validation scores of a run.

    Attributes:
        metric: ``LOSS``, or a benchmark in ``scores.jsonl``.
        greater_is_better: its direction.
        patience: scores without an improvement that end the run; None for no end.
        threshold: an improvement must be larger to reset the count.
        after: step that the last stage begins at; earlier scores are of another stage's model and do not count.
    """

    metric: str
    greater_is_better: bool
    patience: int | None = None
    threshold: float = 0.0
    after: int = 0

    @classmethod
    def of(cls, run: RunConfig, after: int) -> Selection | None:
        """Return what ``run`` asks for; None where it asks for neither."""
        if run.early_stopping_patience is None and not run.load_best_model_at_end:
            return None
        metric = run.metric_for_best_model.removeprefix("eval_")
        greater = not metric.endswith(LOSS) if run.greater_is_better is None else run.greater_is_better
        return cls(metric, greater, run.early_stopping_patience, run.early_stopping_threshold, after)

    def check(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Refuse a metric that ``records``, the scores before training, do not have.

        Raises:
            ValueError: with the metrics that they have.
        """
        known = list(dict.fromkeys(record["benchmark"] for record in records))
        known += [LOSS] if any(record["metric"] == "log_probability" for record in records) else []
        if self.metric not in known:
            there = ", ".join(known) or "none"
            raise ValueError(f"metric_for_best_model={self.metric!r} is no validation score of this run, which has {there}")

    def best(self, records: Sequence[Mapping[str, Any]]) -> int | None:
        """Step of the best score, the first of equals; None before the first score of the last stage."""
        return self._history(records)[0]

    def exhausted(self, records: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the last ``patience`` scores brought no improvement."""
        return self.patience is not None and self._history(records)[1] >= self.patience

    def _history(self, records: Sequence[Mapping[str, Any]]) -> tuple[int | None, int]:
        """The best step, and the number of scores since the last improvement above the threshold."""
        best: tuple[int, float] | None = None
        waited = 0
        for step, value in self._values(records).items():
            gain = None if best is None else (value - best[1] if self.greater_is_better else best[1] - value)
            waited = 0 if gain is None or gain > self.threshold else waited + 1
            if gain is None or gain > 0:
                best = step, value
        return best[0] if best else None, waited

    def _values(self, records: Sequence[Mapping[str, Any]]) -> dict[int, float]:
        """Step -> score; records of text alone count in the loss of "answers" already."""
        found: dict[int, list[float]] = {}
        for record in records:
            counts = record["metric"] == "log_probability" and record["benchmark"] != TEXT
            if record["step"] > self.after and self.metric == LOSS and counts:
                found.setdefault(record["step"], []).append(-record["value"])
            elif record["step"] > self.after and record["benchmark"] == self.metric:
                found.setdefault(record["step"], []).append(record["value"])
        return {step: sum(values) / len(values) for step, values in sorted(found.items())}


def scores_of(folder: Path) -> list[dict[str, Any]]:
    """Validation scores of the run in ``folder``."""
    return read_log(folder / SCORES)


def set_later_aside(folder: Path, best: int) -> None:
    """Move checkpoints after step ``best`` to ``folder/later``; ``bring_back`` undoes it."""
    for path in all_checkpoints(folder):
        if int(path.name.removeprefix("checkpoint-")) > best:
            (folder / LATER).mkdir(exist_ok=True)
            path.rename(folder / LATER / path.name)


def bring_back(folder: Path) -> None:
    """Move the checkpoints that ``set_later_aside`` moved back, so that the run continues from its last."""
    for path in all_checkpoints(folder / LATER):
        path.rename(folder / path.name)
    if (folder / LATER).is_dir():
        (folder / LATER).rmdir()
