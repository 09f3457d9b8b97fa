"""The plan as a table for the terminal, and as plain values for JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from unidecouple.plan.batch_shapes import MMU_ANSWERS, MMU_TEXT, T2I_TEXT, has_processor
from unidecouple.plan.devices import device
from unidecouple.plan.estimate import Estimate, by_part
from unidecouple.plan.stages import PlanRequest, StagePlan
from unidecouple.run import RunConfig

COLUMNS = ("GPUs", "way", "memory", "ckpt", "fits", "bottleneck", "s/step", "exposed", "tokens/s", "MFU", "sent", "part", "days")
LEGEND = (
    "way: parallel strategy; memory and ckpt: peak per device without and with gradient checkpointing; fits: ckpt if only with it, "
    "then times are with it; exposed: share of the step that waits for links; sent: bytes per device and step; part: samples of "
    "each task in a micro-batch"
)
WIDTH = 132
"""Columns that text is wrapped at; tables are wider where they must."""
SHOWN = 6
"""Parts of the model whose FLOPs the table names; the JSON has all."""


def lines(run: RunConfig, question: PlanRequest, plans: Sequence[StagePlan]) -> list[str]:
    """The plan as lines of text."""
    hardware = device(question.device)
    about = [
        f"{run.model_name_or_path} with {run.structure.kind}, planned on {question.device}: {hardware.memory / 1e9:g} GB, "
        f"{hardware.peak(question.dtype) / 1e12:g} TFLOP/s in {question.dtype}, {hardware.bandwidth / 1e12:g} TB/s, links "
        f"{hardware.link / 1e9:g} GB/s in a node of {hardware.node}, {hardware.network / 1e9:g} GB/s per device between nodes",
        f"assumed, not measured: {_assumed(run, question)}",
    ]
    if run.data.planning_note:
        about.append(run.data.planning_note)
    out = [part for line in about for part in textwrap.wrap(line, WIDTH)]
    for number, stage in enumerate(plans, 1):
        out += ["", f"stage {number}/{len(plans)} {stage.stage.name!r}"]
        for line in _head(stage):
            out += textwrap.wrap(line, WIDTH, subsequent_indent=" " * 14, initial_indent="  ")
        out += ["", *_table(stage, question.price), "", *_ends(stage)]
    return [*out, "", *textwrap.wrap(LEGEND, WIDTH)]


def _assumed(run: RunConfig, question: PlanRequest) -> str:
    a = question.assume
    assumed = (
        f"{a.compute:.0%} of peak FLOPs in matrix products, {a.bandwidth:.0%} of memory bandwidth elsewhere, {a.link:.0%} of "
        f"links, {a.overlap:.0%} of the computation hides communication, {a.memory:.0%} of memory holds tensors, a ring's step "
        f"takes {1e6 * a.hop:g} us in a node and {1e6 * a.far_hop:g} us between nodes"
    )
    if not has_processor(run.model_name_or_path):
        assumed += f"; {MMU_TEXT} text tokens per conversation, {MMU_ANSWERS} of them answers, and {T2I_TEXT} per prompt"
    return assumed if question.price is None else f"{assumed}; price {question.price:g} per device hour"


def memory_of_one(plans: Sequence[StagePlan], checkpointing: bool) -> list[str]:
    """One line per stage: peak memory of one device that holds everything, by use."""
    out = []
    for stage in plans:
        (alone,) = (found for found in stage.estimates if found.way == "ddp")
        peak = alone.checkpointed if checkpointing else alone.memory
        parts = ", ".join(f"{name} {_count(size)}B" for name, size in vars(peak).items() if size)
        out.append(f"  {stage.stage.name:14} {_count(peak.total)}B: {parts}")
    return out


def plain(run: RunConfig, question: PlanRequest, plans: Sequence[StagePlan]) -> dict[str, Any]:
    """The plan as JSON types: bytes, seconds and FLOPs of a step, unrounded."""
    return {
        "model": run.model_name_or_path,
        "question": asdict(question),
        "device": asdict(device(question.device)),
        "stages": [
            {
                "name": stage.stage.name,
                "samples": stage.samples,
                "parameters": {
                    "total": stage.load.weights.total,
                    "active": stage.load.weights.active,
                    "trainable": stage.load.weights.trainable,
                    "private": stage.load.weights.private,
                    "parts": {part: {"total": a, "trainable": t} for part, (a, t) in stage.load.weights.parts.items()},
                },
                "optimizer_bytes": stage.load.weights.optimizer_bytes,
                "micro_batches": [asdict(part) for part in stage.load.step],
                "flops": {
                    part: {"forward": forward, "backward": backward}
                    for part, (forward, backward) in by_part(stage.load.trace_ops(stage.load.step)).items()
                },
                "estimates": [_plain(stage, found, question.price) for found in stage.estimates],
                "smallest": stage.smallest,
                "breaks_first": stage.breaks,
            }
            for stage in plans
        ],
    }


def _plain(stage: StagePlan, found: Estimate, price: float | None) -> dict[str, Any]:
    return asdict(found) | {
        "memory": asdict(found.memory) | {"total": found.memory.total},
        "checkpointed": asdict(found.checkpointed) | {"total": found.checkpointed.total},
        "collectives": [one._asdict() for one in found.collectives],
        "bottleneck": found.bottleneck,
        "tokens_per_second": found.tokens_per_second,
        "days": stage.days(found),
        "cost": None if price is None else stage.cost(found, price),
    }


def _head(stage: StagePlan) -> list[str]:
    weights, load, gpus = stage.load.weights, stage.load, stage.estimates[0].gpus
    trace, part = load.trace_ops(load.step), load.trace("both", gpus)
    parts = [f"{p.samples} {p.task.key if p.counted else 'router'} of {p.length} tokens" for p in load.step]
    cut = f", each in {load.accumulation} parts" if load.accumulation > 1 else ""
    trained = ", ".join(f"{part} {_count(t)}" for part, (_, t) in weights.parts.items() if t)
    flops = ", ".join(f"{part} {_count(a)}+{_count(b)}".strip() for part, (a, b) in list(by_part(trace).items())[:SHOWN])
    return [
        f"parameters  {_count(weights.total)} in all, {_count(weights.active)} active per token, {_count(weights.trainable)} train "
        f"({trained}), {_count(weights.optimizer_bytes)}B of optimizer states",
        f"a step      {', '.join(parts)}, split over all devices{cut}; {_count(trace.flops(False))}FLOP forward + "
        f"{_count(trace.flops(True))}FLOP backward ({flops}, ...)",
        f"activations {_count(part.kept + part.logits)}B kept for the backward pass by each of {gpus}, "
        f"{_count(part.kept_by_checkpoints() + part.logits)}B with checkpointing; logits are {_count(part.logits)}B of them",
        f"the stage   {stage.samples:,} samples",
    ]


def _table(stage: StagePlan, price: float | None) -> list[str]:
    rows = [(*COLUMNS, *(["cost"] if price is not None else []))]
    for found in stage.estimates:
        fits = "yes" if found.fits else "ckpt" if found.fits_checkpointed else "no"
        done = found.fits_checkpointed
        row = [
            str(found.gpus),
            found.way + (f" {'+'.join(map(str, found.split.values()))}" if len(found.split) > 1 else ""),
            f"{_count(found.memory.total)}B",
            f"{_count(found.checkpointed.total)}B",
            fits,
            found.bottleneck,
            f"{found.seconds:.3f}" if done else "-",
            f"{100 * found.exposed / found.seconds:.0f}%" if done else "-",
            f"{found.tokens_per_second:,.0f}" if done else "-",
            f"{100 * found.utilization:.0f}%" if done else "-",
            f"{_count(sum(one.sent for one in found.collectives))}B",
            "/".join("+".join(str(micro.samples) for micro in part if micro.counted) for part in found.parts.values()),
            f"{stage.days(found):.{2 if stage.days(found) >= 1 else 4}f}" if done else "-",
        ]
        rows.append((*row, *([f"{stage.cost(found, price):,.0f}" if done else "-"] if price is not None else [])))
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    left = {COLUMNS.index("way"), COLUMNS.index("bottleneck")}
    return [
        "  " + "  ".join(f"{cell:{'<' if i in left else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip() for row in rows
    ]


def _ends(stage: StagePlan) -> list[str]:
    fits = ", ".join(f"{way} {'none' if least is None else least}" for way, least in stage.smallest.items())
    return [f"  smallest number of devices that fits: {fits}", *(f"  {way:6} {limit}" for way, limit in stage.breaks.items())]


def _count(number: float) -> str:
    """Three digits and the prefix of a unit: 5.4 G parameters, 82.3 GB, 49.6 TFLOP."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.{max(0, 2 - int(math.log10(number / size * 1.0005)))}f} {prefix}"
    return f"{number:.0f} "
