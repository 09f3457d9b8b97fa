"""How the page says things: names of scenarios, numbers, and lists in prose."""

from __future__ import annotations

from collections.abc import Sequence

from unidecouple.batch import Task
from unidecouple.report.results import Estimate

MINUS, DASH = "\u2212", "\u2013"
"""Signs as printed; by code point, since in source they are easily taken for -."""

TASK_NAMES = {Task.MMU.key: "understanding", Task.T2I.key: "generation"}

_OPENINGS = {
    "S1-r0": "Trained on generation data only",
    "S1-r16": "Trained with one understanding sample replayed for 16 of generation",
    "S1-r4": "Trained with one understanding sample replayed for 4 of generation",
    "S1-r1": "Trained with one understanding sample replayed for each of generation",
    "S2": "Trained on both tasks from a converged unified base",
}


def opening(scenario: str) -> str:
    """How a sentence on ``scenario`` begins."""
    return _OPENINGS.get(scenario, f"In {scenario}")


def points(share: float) -> str:
    """A share as per cent with one decimal and no sign: .312 is "31.2"."""
    return f"{abs(100 * share):.1f}"


def signed(share: float) -> str:
    """A difference of shares in points: -.0312 is "−3.1"; what rounds to zero has no sign."""
    text = points(share)
    return text if text == "0.0" else ("+" if share > 0 else MINUS) + text


def decimal(value: float, places: int, plus: bool = False) -> str:
    """A number with a true minus sign, and a plus sign if asked for."""
    text = f"{value:{'+' if plus else ''}z.{places}f}"
    return text.replace("-", MINUS)


def spread(value: Estimate) -> str:
    """As " ± 2.0" in points, or nothing where there is no interval."""
    return "" if value.half_width is None else f" ± {points(value.half_width)}"


def listed(words: Sequence[str]) -> str:
    """Words in prose: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def counted(number: int, noun: str) -> str:
    """A number of things: "1 seed", "3 seeds"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds for people: "42 s", "9 min 12 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def scaled(number: float) -> str:
    """Three digits and the prefix of a unit, as "5.59 M", "312 k" or "87 ", ready for the unit."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            whole = number / size
            return f"{whole:.{2 if whole < 9.995 else 1 if whole < 99.95 else 0}f} {prefix}"
    return f"{number:.0f} "
