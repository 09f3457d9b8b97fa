"""A part of a grid, as the command line names it: ``--only variant=moe,seed=0``. The rest may follow, into the same folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unidecouple.compare.plan import START, Job, ancestors

KEYS = ("scenario", "variant", "rate", "seed")

Only = Mapping[str, frozenset[str]]
"""Key -> the values asked for; a key that is absent asks for all."""


def parse(texts: Sequence[str], planned: Sequence[Job]) -> Only:
    """What ``texts`` ask for. Values of one key are alternatives, keys must all hold.

    Args:
        texts: each "key=value" or several with commas between; "rate=" is a variant's own rate.
        planned: all jobs of the grid, whose values are the known ones.

    Raises:
        ValueError: a key or a value that the grid has not.
    """
    known: dict[str, list[str]] = {key: list(dict.fromkeys(_value(job, key) for job in planned)) for key in KEYS}
    asked: dict[str, set[str]] = {}
    for entry in (part.strip() for text in texts for part in text.split(",")):
        key, equals, value = entry.partition("=")
        if not equals or key not in KEYS:
            raise ValueError(f"--only {entry!r} must be key=value, with a key of {', '.join(KEYS)}")
        if value not in known[key]:
            raise ValueError(f"--only {entry!r}: this grid has no such {key}; it has {', '.join(map(repr, known[key]))}")
        asked.setdefault(key, set()).add(value)
    return {key: frozenset(values) for key, values in asked.items()}


def chosen(only: Only, planned: Sequence[Job]) -> list[Job]:
    """The jobs that ``only`` asks for, the runs that they need, and the starts of their scenarios, which every figure needs.

    Raises:
        ValueError: there is no such job.
    """

    def asked(job: Job) -> bool:
        return all(_value(job, key) in values for key, values in only.items())

    scenarios = {job.scenario for job in planned if asked(job)}
    if not scenarios:
        asked_for = ", ".join(f"{key}={value}" for key, values in only.items() for value in sorted(values))
        raise ValueError(f"--only {asked_for} asks for no run of this grid: no variant has all of it")
    parents = {(job.scenario, folder) for job in planned if asked(job) for folder in ancestors(job, planned)}

    def needed(job: Job) -> bool:
        return (job.name == START and job.scenario in scenarios) or (job.scenario, job.folder) in parents

    return [job for job in planned if asked(job) or needed(job)]


def _value(job: Job, key: str) -> str:
    return str(job.name if key == "variant" else getattr(job, key))
