"""What is in a source of data, and all that is wrong with it: every record is parsed, built, and its pictures are decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from unidecouple.data.building import build
from unidecouple.data.formats import BadRecordError, Reader
from unidecouple.data.pictures import Shaper
from unidecouple.data.sequences import SequenceBuilder

QUANTILES: Final = {"min": 0.0, "median": 0.5, "95%": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Findings:
    """What one source holds.

    Attributes:
        path: as it was given.
        formats: format -> files of it.
        samples: kind -> good records.
        understood, drawn: pictures of either use.
        lengths: tokens of each good record.
        problems: file, line and reason of each bad one.
    """

    path: Path
    formats: dict[str, int]
    samples: dict[str, int]
    understood: int
    drawn: int
    lengths: list[int]
    problems: list[str]

    @property
    def bad_ratio(self) -> float:
        """Share of bad records."""
        return len(self.problems) / max(1, len(self.problems) + sum(self.samples.values()))

    def lines(self) -> Iterator[str]:
        """The findings as text."""
        yield f"{self.path}: " + ", ".join(f"{name} ({count} file{'s' * (count > 1)})" for name, count in self.formats.items())
        yield "  samples   " + (", ".join(f"{kind} {count:,}" for kind, count in sorted(self.samples.items())) or "none")
        yield f"  pictures  {self.understood:,} to be understood, {self.drawn:,} to be drawn"
        if self.lengths:
            values = np.quantile(self.lengths, list(QUANTILES.values()), method="nearest").astype(int)
            yield "  tokens    " + ", ".join(f"{name} {value:,}" for name, value in zip(QUANTILES, values, strict=True))
        yield f"  problems  {len(self.problems):,} ({self.bad_ratio:.2%} of the records)"
        yield from (f"    {problem}" for problem in self.problems)


def check(
    path: Path,
    readers: Sequence[Reader],
    shaper: Shaper,
    builder: SequenceBuilder,
    max_length: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Findings:
    """Look at every record of ``readers``, which are those of ``path``.

    Args:
        path: to name the source.
        readers: from ``open_readers``.
        shaper, builder: of the model that the data shall train.
        max_length: tokens above which a record is a problem.
        progress: called as progress(records done, of).
    """
    findings = Findings(path, dict(Counter(reader.format for reader in readers)), {}, 0, 0, [], [])
    understood = drawn = done = 0
    total = sum(len(reader.kinds) for reader in readers)
    for reader in readers:
        for number in range(len(reader.kinds)):
            done += 1
            progress(done, total)
            try:
                record = reader.record(number)
                sample = build(record, shaper, builder, max_length=max_length).sample
            except BadRecordError as error:
                findings.problems.append(str(error))
                continue
            findings.samples[record.kind] = findings.samples.get(record.kind, 0) + 1
            findings.lengths.append(len(sample.input_ids))
            drawn += len(record.drawn)
            understood += len(sample.pictures)
    return Findings(path, findings.formats, findings.samples, understood, drawn, findings.lengths, findings.problems)
