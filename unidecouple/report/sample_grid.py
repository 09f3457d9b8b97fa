"""Images of several variants for the same prompts, as the benchmark's first ones come: nothing is picked by hand."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from unidecouple.report import logs
from unidecouple.report.results import START, Results


@dataclass(frozen=True)
class SampleImage:
    """One image: ``source`` is a data URI, ``reason`` what the judge missed ("" if it is correct)."""

    label: str
    source: str
    correct: bool
    reason: str


@dataclass(frozen=True)
class PromptSamples:
    """A prompt and each variant's image for it."""

    prompt: str
    tag: str
    pictures: tuple[SampleImage, ...]


@dataclass(frozen=True)
class SampleGrid:
    """Images of a scenario, ``tallies`` of what is shown, and sentences on what is missing."""

    prompts: tuple[PromptSamples, ...]
    tallies: tuple[str, ...]
    missing: tuple[str, ...]


def sample_grid(results: Results, scenario: str) -> SampleGrid:
    """Start, control and focus side by side, each from the first seed that kept samples, for prompts that all have."""
    wanted = [name for name in (START, results.reference(scenario), results.focus) if name in results.variants(scenario)]
    found = {name: samples for name in wanted if name and (samples := _samples(results, scenario, name))}
    absent = [results.title(name) for name in wanted if name and name not in found]
    missing = tuple(f"No images of {name}: {logs.SAMPLES} is missing." for name in absent)
    if not found:
        return SampleGrid((), (), missing or (f"No images: no run of {scenario} is shown here.",))
    first = next(iter(found.values()))
    shared = [prompt for prompt in first if all(prompt in samples for samples in found.values())]
    drawn = {prompt: tuple(_shown(results.title(name), samples[prompt]) for name, samples in found.items()) for prompt in shared}
    right = {name: sum(samples[prompt].correct for prompt in shared) for name, samples in found.items()}
    tallies = tuple(f"{results.title(name)}: {number} of {len(shared)} right" for name, number in right.items())
    return SampleGrid(tuple(PromptSamples(prompt, first[prompt].tag, drawn[prompt]) for prompt in shared), tallies, missing)


def _samples(results: Results, scenario: str, variant: str) -> Mapping[str, logs.JudgedSample] | None:
    """Prompt -> its first image."""
    for run in results.runs:
        if (run.scenario, run.variant) == (scenario, variant):
            samples = logs.read_samples(run.folder / logs.SAMPLES)
            if samples:
                first: dict[str, logs.JudgedSample] = {}
                for sample in samples:
                    first.setdefault(sample.prompt, sample)
                return first
    return None


def _shown(label: str, sample: logs.JudgedSample) -> SampleImage:
    source = "data:image/png;base64," + base64.b64encode(sample.png).decode("ascii")
    return SampleImage(label, source, sample.correct, sample.reason)
