"""Samples of several variants for the same prompts and questions, the first ones of each kind: nothing is picked by hand."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from unidecouple.report import logs
from unidecouple.report.results import START, Results


@dataclass(frozen=True)
class SampleImage:
    """A variant's image or answer.

    Attributes:
        label: the variant.
        source: data URI of the image; "" for an answer.
        correct: None where nothing judged it.
        reason: what the judge missed, "" if it is correct.
        answer: its words; None for an image.
    """

    label: str
    source: str
    correct: bool | None
    reason: str
    answer: str | None = None


@dataclass(frozen=True)
class PromptSamples:
    """A prompt or question, and what each variant made of it.

    Attributes:
        prompt: or question.
        tag: its kind.
        pictures: of the variants.
        shown: data URI of the data's own image; "" where there is none.
        reference: the data's own answer.
    """

    prompt: str
    tag: str
    pictures: tuple[SampleImage, ...]
    shown: str = ""
    reference: str = ""


@dataclass(frozen=True)
class SampleGrid:
    """Samples of a scenario, ``tallies`` of verdicts on what is shown, and sentences on what is missing."""

    prompts: tuple[PromptSamples, ...]
    tallies: tuple[str, ...]
    missing: tuple[str, ...]


_Key = tuple[str, bytes]
"""A prompt; or a question and its image."""


def sample_grid(results: Results, scenario: str) -> SampleGrid:
    """Return samples side by side, each variant's from the first seed that kept some, for prompts that all have.

    On the synthetic benchmark of the start, the control and the focus; on users' files of every variant at its own rate.
    """
    variants = results.variants(scenario)
    wanted = [name for name in (START, results.reference(scenario), results.focus) if name in variants]
    if results.meta.get("data", "world") != "world":
        wanted = [*dict.fromkeys([*wanted, *(name for name in variants if "@" not in name)])]
    found = {name: samples for name in wanted if name and (samples := _samples(results, scenario, name))}
    absent = [results.title(name) for name in wanted if name and name not in found]
    missing = tuple(f"No images of {name}: {logs.SAMPLES} is missing." for name in absent)
    if not found:
        return SampleGrid((), (), missing or (f"No images: no run of {scenario} is shown here.",))
    first = next(iter(found.values()))
    shared = [key for key in first if all(key in samples for samples in found.values())]
    judged = [key for key in shared if all(samples[key].correct is not None for samples in found.values())]
    right = {name: sum(bool(samples[key].correct) for key in judged) for name, samples in found.items()}
    tallies = tuple(f"{results.title(name)}: {number} of {len(judged)} right" for name, number in right.items() if judged)
    return SampleGrid(tuple(_side_by_side(results, key, found) for key in shared), tallies, missing)


def _side_by_side(results: Results, key: _Key, found: Mapping[str, Mapping[_Key, logs.KeptSample]]) -> PromptSamples:
    one = next(iter(found.values()))[key]
    own = one.png if one.answer is not None else one.shown
    cells = tuple(_cell(results.title(name), samples[key]) for name, samples in found.items())
    return PromptSamples(one.prompt, one.tag, cells, _uri(own) if own else "", one.reference)


def _samples(results: Results, scenario: str, variant: str) -> Mapping[_Key, logs.KeptSample] | None:
    """Prompt -> its first sample."""
    for run in results.runs:
        if (run.scenario, run.variant) == (scenario, variant):
            samples = logs.read_samples(run.folder / logs.SAMPLES)
            if samples:
                first: dict[_Key, logs.KeptSample] = {}
                for sample in samples:
                    first.setdefault((sample.prompt, b"" if sample.answer is None else sample.png), sample)
                return first
    return None


def _cell(label: str, sample: logs.KeptSample) -> SampleImage:
    source = "" if sample.answer is not None else _uri(sample.png)
    return SampleImage(label, source, sample.correct, sample.reason, sample.answer)


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
