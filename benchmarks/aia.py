"""A training step with the alignment loss: ours against the public way, which keeps the attention maps of all layers.

The public way (arXiv 2511.22663's own code): eager attention, the maps of all layers kept until the loss, sums over spans. Here
both have the same spans, targets and weights, so that intensities, loss and gradients must agree before anything is measured.
Beside them stands the step without the loss, in fused attention: what the loss costs at all.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from benchmarks.record import Result, Row
from benchmarks.timing import Ratio, SidesDifferError, interleave, one_thread
from benchmarks.tiny import SIZE, model_of, processor_of
from unidecouple.batch import JointBatch, Task
from unidecouple.data.sequences import QAPair, SequenceBuilder, collate
from unidecouple.methods.objective.aia import PRESETS, aia_loss
from unidecouple.models.attention import UniLlamaAttention
from unidecouple.models.interaction import Interaction, intensities
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.tiny import TinySize
from unidecouple.world.dataset import vocabulary

COEFFICIENTS = {Task.MMU: 10.0, Task.T2I: 5.0}
TARGETS = PRESETS["janus_pro"]
OURS, PUBLIC, WITHOUT = "ours", "eager maps", "without the loss"


@dataclass(frozen=True)
class Case:
    """A model and its batch: images of ``image`` x ``image`` tokens in rows of ``length``, ``rows`` of each task.

    Head size is 64; vision tower and image tokenizer are as small as can be.
    """

    length: int
    image: int
    hidden: int = 256
    layers: int = 4
    rows: int = 1

    @property
    def size(self) -> TinySize:
        """Shape of the model."""
        return replace(
            SIZE,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.hidden // 64),
            intermediate_size=2 * self.hidden,
            image_size=16 * self.image,
        )

    def batch(self, builder: SequenceBuilder) -> JointBatch:
        """Rows of exactly ``length`` tokens: questions with one-word answers, and drawings."""
        rng = np.random.default_rng(0)
        words = [word for word in vocabulary() if word.isalpha()]

        def text(count: int) -> str:
            return " ".join(rng.choice(words, count))

        picture = np.zeros((16 * self.image, 16 * self.image, 3), np.uint8)
        drawing = rng.integers(0, self.size.codes, self.image**2).tolist()
        asked = len(builder.understanding(picture, [QAPair("q", "x", "x")]).input_ids) - 2
        prompted = len(builder.generation("x", drawing).input_ids) - 1
        pad = builder.tokenizer.pad_token_id
        answers = [QAPair("q", text(self.length - asked - 8), text(8)) for _ in range(self.rows)]
        return (
            collate([builder.understanding(picture, [one]) for one in answers], pad),
            collate([builder.generation(text(self.length - prompted), drawing) for _ in range(self.rows)], pad),
        )


CASES = (Case(256, 15), Case(1024, 31))
Found = tuple[Tensor, Sequence[Interaction]]
"""A step's loss, and what was measured for it."""


def ours(model: UniJanusForConditionalGeneration, batch: JointBatch) -> Found:
    """As training computes it."""
    output = model(batch=batch, interaction=True)
    return output.mmu.mean + output.t2i.mean + _aligned(output.interaction), output.interaction


def without(model: UniJanusForConditionalGeneration, batch: JointBatch) -> Found:
    """Without alignment."""
    output = model(batch=batch)
    return output.mmu.mean + output.t2i.mean, ()


def public(model: UniJanusForConditionalGeneration, batch: JointBatch) -> Found:
    """The same as ours from attention maps; ``model`` must be in eager attention."""
    maps: list[Tensor] = []
    attentions = [part for part in model.decoder.layers.modules() if isinstance(part, UniLlamaAttention)]
    hooks = [part.register_forward_hook(lambda _, __, out: maps.append(out[1])) for part in attentions]
    output = model(batch=batch)
    for hook in hooks:
        hook.remove()
    found = []
    for number, part in enumerate(batch):
        spans, mine = model.spans(part), maps[number * len(hooks) : (number + 1) * len(hooks)]
        marks = spans.keys.float().unsqueeze(1)  # (B, 1, T, tasks): a product sums over a set of keys
        found.append(intensities([(one @ marks).mean(1) for one in mine], spans))
    return output.mmu.mean + output.t2i.mean + _aligned(found), found


def _aligned(found: Sequence[Interaction]) -> Tensor:
    return torch.stack([weight * aia_loss(found, TARGETS, task) for task, weight in COEFFICIENTS.items()]).sum()


@dataclass(frozen=True)
class Implementation:
    """A model and how it comes to its loss."""

    name: str
    model: UniJanusForConditionalGeneration
    loss: Callable[[UniJanusForConditionalGeneration, JointBatch], Found]

    def step(self, batch: JointBatch) -> dict[str, Tensor]:
        """Forward and backward; loss, intensities and gradients by name."""
        self.model.zero_grad(set_to_none=True)
        loss, found = self.loss(self.model, batch)
        loss.backward()
        gradients = {name: weight.grad for name, weight in self.model.named_parameters() if weight.grad is not None}
        measured = {f"intensity {number}": one.intensity.detach() for number, one in enumerate(found)}
        return {"loss": loss.detach(), **measured, **gradients}

    def kept(self, batch: JointBatch) -> int:
        """Bytes that autograd keeps between forward and backward, weights not counted."""
        own = {weight.untyped_storage().data_ptr() for weight in self.model.parameters()}
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.loss(self.model, batch)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def implementations(case: Case) -> tuple[list[Implementation], JointBatch]:
    """Ours, the public way and the step without the loss, of one set of weights; and their batch."""
    processor = processor_of(case.size)
    fused, eager = (model_of(processor, case.size) for _ in range(2))
    eager.set_attn_implementation({"text_config": "eager"})  # the vision tower's maps are no part of the loss
    batch = case.batch(SequenceBuilder(processor))
    return [
        Implementation(OURS, fused, ours),
        Implementation(PUBLIC, eager, public),
        Implementation(WITHOUT, fused, without),
    ], batch


def difference(one: Implementation, other: Implementation, batch: JointBatch, tolerance: float = 1e-5) -> float:
    """The largest difference: of intensities, of the loss relative to itself, of gradients relative to the largest of all.

    Raises:
        SidesDifferError: it is above ``tolerance``.
    """
    wanted, found = other.step(batch), one.step(batch)
    if wanted.keys() != found.keys():
        raise SidesDifferError(f"the ways reach different weights: {sorted(wanted.keys() ^ found.keys())[:3]}")
    largest = max(float(value.abs().max()) for name, value in wanted.items() if name in dict(other.model.named_parameters()))
    worst = 0.0
    for name, value in wanted.items():
        scale = 1.0 if name.startswith("intensity") else float(value) if name == "loss" else largest
        off = float((found[name] - value).abs().max()) / scale
        if not off <= tolerance:
            raise SidesDifferError(f"{name} of {one.name} is off {other.name}'s by {off:.1e}: nothing was timed")
        worst = max(worst, off)
    return worst


def run(cases: Sequence[Case] = CASES, repeats: int = 7) -> Result:
    """Compare, count and time.

    Raises:
        SidesDifferError: ours and the public way differ; nothing is measured then.
    """
    one_thread()
    rows: list[Row] = []
    details: dict[str, object] = {}
    for case in cases:
        made, batch = implementations(case)
        off = difference(made[0], made[1], batch)
        kept = {way.name: way.kept(batch) for way in made}
        times = interleave({way.name: functools.partial(way.step, batch) for way in made}, repeats, lambda: None)
        for first, second in ((PUBLIC, OURS), (OURS, WITHOUT)):
            ratio, what = Ratio.of(times[first], times[second]), f"{first} / {second}, {case.length} tokens"
            rows.append(Row(f"kept for backward, {what}", kept[first] / kept[second]))
            rows.append(Row(f"time of a step, {what}", ratio.median, low=ratio.low, high=ratio.high))
        details[f"{case.length} tokens"] = {"largest difference": off, "bytes kept": kept, "seconds": times}
    sizes = {"layers": cases[0].layers, "heads": max(1, cases[0].hidden // 64), "head size": 64, "rows a task": cases[0].rows}
    return Result(
        "aia",
        "AIA: a training step with its loss (more is worse for the first named)",
        {"repeats": repeats, **sizes},
        rows,
        details,
    )


def command() -> None:
    """What ``python -m benchmarks.aia`` does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aia", description="AIA's loss: ours and with whole attention maps.")
    parser.add_argument("--repeats", type=int, default=7, help="turns, at least 7 (default: 7)")
    result = run(repeats=parser.parse_args().repeats)
    print(f"{result.table()}\n{result.write()}")


if __name__ == "__main__":
    command()
