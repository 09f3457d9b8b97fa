"""How the page says things: names of scenarios, numbers, and lists in prose."""

from __future__ import annotations

from collections.abc import Sequence

from unidecouple.batch import LANGUAGE, Task
from unidecouple.eval.benchmark import Metric, Unit
from unidecouple.eval.suite import headlines
from unidecouple.figures.estimates import SeedEstimate

MINUS, DASH = "\u2212", "\u2013"
"""Signs as printed; by code point, since in source they are easily taken for -."""

TASK_NAMES = {Task.MMU.key: "understanding", Task.T2I.key: "generation", LANGUAGE: "language"}

_FORMATS: dict[Unit, tuple[float, int]] = {"share": (100.0, 1), "points": (1.0, 1), "nats": (1.0, 3), "number": (1.0, 3)}
"""Unit -> factor and decimals of what is printed."""
_UNITS: dict[Unit, str] = {"share": "points", "points": "points", "nats": "nats per token", "number": "units"}


_MEASURED: dict[str, Unit] = {"loss": "nats", "interaction": "number", "conflict": "number", "routing": "number"}
"""Names in place of a benchmark's in rows of what runs measured beside their scores; see ``compare.readings``."""


def unit_of(benchmark: str) -> Unit:
    """Unit of a benchmark's metrics, or of what a run measured: losses and log-probabilities in nats, cosines as they are."""
    known: Unit = next((metric.unit for metric in headlines() if metric.benchmark == benchmark), "share")
    return _MEASURED.get(benchmark, known)


def scale_of(unit: Unit) -> float:
    """Factor from a value to what is printed: 100 of a share, which is printed in per cent."""
    return _FORMATS[unit][0]


def axis_name(metric: Metric) -> str:
    """A metric as it heads a panel: "POPE accuracy, %"."""
    ending = {"share": ", %", "nats": f", {_UNITS['nats']}"}.get(metric.unit, "")
    return column_name(metric) + ending


def column_name(metric: Metric) -> str:
    """A metric as it heads a column: "POPE accuracy"; its title alone where that ends in the metric's name."""
    words = metric.metric.replace("_", " ")
    return metric.title if metric.title.endswith(words) else f"{metric.title} {words}"


def unit_words(unit: Unit) -> str:
    """What differences are counted in: "points" of shares."""
    return _UNITS[unit]


def size(value: float, unit: Unit = "share") -> str:
    """A value without its sign: a share of .312 is "31.2"."""
    factor, places = _FORMATS[unit]
    return f"{abs(factor * value):.{places}f}"


def level(value: float, unit: Unit = "share") -> str:
    """A value with a minus sign where it is below zero: a share of .312 is "31.2", a log-probability "−2.125"."""
    text = size(value, unit)
    return MINUS + text if value < 0 and float(text) else text


def signed(value: float, unit: Unit = "share") -> str:
    """A difference with its sign: -.0312 of shares is "−3.1"; what rounds to zero has no sign."""
    text = size(value, unit)
    return text if not float(text) else ("+" if value > 0 else MINUS) + text


def decimal(value: float, places: int, plus: bool = False) -> str:
    """A number with a true minus sign, and a plus sign if asked for."""
    text = f"{value:{'+' if plus else ''}z.{places}f}"
    return text.replace("-", MINUS)


def spread(value: SeedEstimate, unit: Unit = "share") -> str:
    """As " ± 2.0", or nothing where there is no interval."""
    return "" if value.half_width is None else f" ± {size(value.half_width, unit)}"


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
