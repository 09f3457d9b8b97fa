"""Diagnoses one checkpoint: every probe that applies to it, as ``diagnosis.json`` and as one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from unidecouple import __version__
from unidecouple.diagnose.probe import Probe, Skipped
from unidecouple.diagnose.probes import PROBES
from unidecouple.figures.style import GRID, INK, MUTED, PAPER, Plot
from unidecouple.files import write_json_atomic, write_text_atomic
from unidecouple.ownership import check_file
from unidecouple.source import PrintLine
from unidecouple.train.probe_input import OpenedCheckpoint

DIAGNOSIS, PAGE = "diagnosis.json", "diagnosis.html"
_TEMPLATE = "diagnosis.html.j2"


@dataclass(frozen=True)
class ProbeSection:
    """What the page shows of one probe: its figures with headings, and what is missing; or why it was left out."""

    probe: Probe
    plots: tuple[tuple[str, Plot], ...]
    missing: tuple[str, ...]


def write_diagnosis(opened: OpenedCheckpoint, output: Path, say: PrintLine) -> Path:
    """Run all probes on ``opened`` and write both files into ``output``.

    Returns:
        The page. It needs no other file, no network and no script.

    Raises:
        ValueError: a file of one of these names is there that this package did not write.
        StorageError: a file could not be written.
        BadDataError: too many records of the data are bad.
    """
    for name in (DIAGNOSIS, PAGE):
        check_file(output / name)
    measured: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for number, probe in enumerate(PROBES, start=1):
        say(f"{number}/{len(PROBES)} {probe.name}: {probe.title}")
        found = probe.measure(opened.probe_input, _progress(say))
        if isinstance(found, Skipped):
            say(f"  left out: {found.reason}")
            left_out[probe.name] = found.reason
        else:
            measured[probe.name] = found
    content = {"generator": "unidecouple"} | _about(opened) | {"measured": measured, "left_out": left_out}
    output.mkdir(parents=True, exist_ok=True)
    write_json_atomic(output / DIAGNOSIS, content)
    write_text_atomic(output / PAGE, render(content))
    return output / PAGE


def render(content: dict[str, Any]) -> str:
    """The page from what ``diagnosis.json`` holds."""
    here = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = Markup
    return environment.get_template(_TEMPLATE).render(
        title=f"Diagnosis of {content['name']}",
        facts=_facts(content),
        sections=[_section(probe, content) for probe in PROBES],
        theme={"ink": INK, "muted": MUTED, "grid": GRID, "paper": PAPER},
        made=f"unidecouple {content['versions']['unidecouple']}, torch {content['versions']['torch']}",
    )


def _section(probe: Probe, content: dict[str, Any]) -> ProbeSection:
    if probe.name in content["left_out"]:
        reason = content["left_out"][probe.name]
        return ProbeSection(probe, (), (f"{reason[:1].upper()}{reason[1:]}.",))
    measured = content["measured"][probe.name]
    plots = tuple((heading, plot) for heading, plot in probe.draw(measured) if plot)
    if not plots:
        return ProbeSection(probe, (), ("Too little was measured to draw it.",))
    few = (f"{measured['few']}.",) if "few" in measured else ()
    return ProbeSection(probe, plots, (*few, *(f"Not measured: {what}." for what in measured.get("not_measured", ()))))


def _about(opened: OpenedCheckpoint) -> dict[str, Any]:
    probe_input, text = opened.probe_input, opened.probe_input.model.config.text_config
    folder = opened.checkpoint
    return {
        "name": f"{folder.parent.name}/{folder.name}" if folder.name.startswith("checkpoint-") else folder.name,
        "checkpoint": str(folder),
        "step": probe_input.step,
        "structure": text.described,
        "layers": text.num_hidden_layers,
        "parameters": sum(weight.numel() for weight in probe_input.model.parameters()),
        "data": opened.data,
        "tasks": [task.key for task in probe_input.tasks],
        "batches": probe_input.batches,
        "versions": {"unidecouple": __version__, "torch": str(torch.__version__)},
    }


def _facts(content: dict[str, Any]) -> Sequence[str]:
    """The line under the title."""
    size = content["parameters"]
    facts = [content["structure"], f"{content['layers']} layers, {size / 1e6:,.1f} M parameters"]
    facts += [f"step {content['step']}"] if content["step"] is not None else []
    return [*facts, f"{content['batches']} batches per task", f"data: {content['data']}"]


def _progress(say: PrintLine) -> Callable[[str, int, int], None]:
    """Says how far a long measurement is, about every fifth of it."""

    def show(what: str, done: int, of: int) -> None:
        if done and done * 5 // of > (done - 1) * 5 // of:
            say(f"  {what}: {done} of {of}")

    return show
