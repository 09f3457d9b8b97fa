"""The heads' part of a forward pass on paper: logits and losses of text and of image tokens."""

from __future__ import annotations

from unidecouple.batch import Task
from unidecouple.models.base import LOGITS_AT_ONCE
from unidecouple.models.emu3 import UniEmu3Config
from unidecouple.models.families import UnifiedConfig
from unidecouple.plan.batch_shapes import BatchShape
from unidecouple.plan.op_trace import INDEX, OpTrace, TracedTensor

_GENERATION = ("model.generation_head.proj_out", "model.generation_head.vision_head")


def head(trace: OpTrace, task: Task, part: BatchShape, hidden: TracedTensor, config: UnifiedConfig) -> None:
    """Logits and cross-entropy of ``task`` at the positions of ``part`` that have a target, from the decoder's states ``hidden``.

    Many targets over the whole vocabulary are computed a piece at a time, and once more for the backward pass.
    """
    targets = part.answers if task is Task.MMU else part.drawn
    layers = ("lm_head",) if task is Task.MMU or isinstance(config, UniEmu3Config) else _GENERATION
    pieces = [targets]
    if again := targets > LOGITS_AT_ONCE and layers == ("lm_head",):
        pieces = [min(LOGITS_AT_ONCE, targets - start) for start in range(0, targets, LOGITS_AT_ONCE)]
    for rows in pieces:
        states = logits = trace.new(rows * config.text_config.hidden_size, hidden.grad)
        for index, layer in enumerate(layers):
            logits = trace.linear(layer, rows, trace.activation(logits, "generation") if index else states)
        if not logits.grad:
            continue
        trace.head = max(trace.head, logits.elements * (8 if again else 4) + (logits.bytes if logits.width < 4 else 0))
        if again:
            trace.keep(states)
            flops = trace.ops[-1].flops
            trace.note("text_head", flops, states.bytes + logits.bytes, True)
            trace.again += flops
        else:
            trace.logits += logits.elements * 4
    trace.kept += 2 * targets * INDEX * hidden.grad
