"""Routing over steps: one record every ``logging_steps`` in ``routing.jsonl``, and warnings about them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unidecouple.batch import TASK_KEYS
from unidecouple.diagnose.routing import routing_rows
from unidecouple.diagnose.routing_alarm import RoutingAlarm
from unidecouple.files import append_jsonl
from unidecouple.source import PrintLine
from unidecouple.train.run_logs import ROUTING, read_log

if TYPE_CHECKING:
    from unidecouple.models.configuration import UniLlamaConfig


class RoutingLog:
    """Writes ``folder``/routing.jsonl and prints warnings; continues from the records of an earlier attempt at the run.

    Warnings start anew where the structure changes, since layers and experts are others then.
    """

    def __init__(self, folder: Path, say: PrintLine, changes: Sequence[int] = ()) -> None:
        """``changes``: the steps after which a stage changes the structure."""
        self._path, self._say, self._changes = folder / ROUTING, say, changes
        self._alarm, self._last = RoutingAlarm(), 0
        try:
            for record in read_routing_log(folder):
                self._observe(record["step"], record["layers"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self._path} holds other records than a run writes ({error!r}): delete it and run again") from error

    def write(self, step: int, stage: str, config: UniLlamaConfig, counts: Tensor) -> dict[str, float]:
        """Log ``counts`` (of ``count_routing``) at ``step``.

        Returns:
            Entropies by task, means over layers, for trackers.
        """
        rows = routing_rows(counts, config.mixture_layers, config.expert_groups)
        append_jsonl(self._path, {"step": step, "stage": stage, "layers": rows})
        warning = self._observe(step, rows)
        if warning:
            self._say(f"step {step}: {warning}")
        means: dict[str, float] = {}
        for kind in ("load_entropy", "token_entropy"):
            for task in TASK_KEYS:
                values = [row[kind][task] for row in rows if row[kind].get(task) is not None]
                means |= {f"{kind}/{task}": statistics.fmean(values)} if values else {}
        return means

    def _observe(self, step: int, rows: Sequence[Mapping[str, Any]]) -> str | None:
        if any(self._last <= change < step for change in self._changes):
            self._alarm = RoutingAlarm()
        self._last = step
        return self._alarm.observe(rows)


def read_routing_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's ``routing.jsonl``, see ``read_log``."""
    return read_log(folder / ROUTING)
