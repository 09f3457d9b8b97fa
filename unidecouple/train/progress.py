"""A progress bar over a run's steps on a terminal; elsewhere lines alone, as in a log file or a notebook."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from unidecouple.source import PrintLine


@dataclass(frozen=True)
class StepProgress:
    """A bar, or nothing.

    Attributes:
        bar: of tqdm; disabled where there is no terminal.
        say: prints a line.
    """

    bar: Any
    say: PrintLine

    def print_line(self, line: str) -> None:
        """Print ``line`` above the bar."""
        if self.bar.disable:
            self.say(line)
            return
        with tqdm.external_write_mode():
            self.say(line)

    def show(self, step: int, losses: Mapping[str, float]) -> None:
        """Move the bar to ``step``."""
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)
        self.bar.update(step - self.bar.n)


@contextmanager
def progress_bar(steps: int, done: int, say: PrintLine, shown: bool) -> Iterator[StepProgress]:
    """Show a bar of ``steps``, ``done`` of them before, for the block, if ``shown`` and standard error is a terminal."""
    with tqdm(total=steps, initial=done, unit=" steps", disable=not (shown and sys.stderr.isatty()), dynamic_ncols=True) as bar:
        yield StepProgress(bar, say)
