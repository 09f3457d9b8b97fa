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
    """The loss of ``task`` over ``part``, from the decoder's states ``hidden``."""
    if task is Task.MMU:
        _head_in_pieces(trace, part.answers, hidden, config)
    elif isinstance(config, UniEmu3Config):
        _head_in_pieces(trace, part.drawn, hidden, config)
    else:
        _head(trace, part.drawn, hidden, config, _GENERATION)


def _head(trace: OpTrace, targets: int, hidden: TracedTensor, config: UnifiedConfig, layers: tuple[str, ...]) -> None:
    """Logits and cross-entropy at the positions that have a target."""
    x = trace.new(targets * config.text_config.hidden_size, hidden.grad)
    for index, layer in enumerate(layers):
        x = trace.linear(layer, targets, trace.activation(x, "generation") if index else x)
    if x.grad:
        trace.kept += 2 * targets * INDEX * hidden.grad
        trace.logits += x.elements * 4
        trace.head = max(trace.head, x.elements * (4 + (x.width if x.width < 4 else 0)))


def _head_in_pieces(trace: OpTrace, targets: int, hidden: TracedTensor, config: UnifiedConfig) -> None:
    """``_head`` over the whole vocabulary; where targets are many, a piece at a time, and once more for the backward."""
    if targets <= LOGITS_AT_ONCE:
        _head(trace, targets, hidden, config, ("lm_head",))
        return
    for start in range(0, targets, LOGITS_AT_ONCE):
        rows = min(LOGITS_AT_ONCE, targets - start)
        x = trace.new(rows * config.text_config.hidden_size, hidden.grad)
        logits = trace.linear("lm_head", rows, x)
        if logits.grad:
            trace.keep(x)
            again = trace.ops[-1].flops
            trace.note("text_head", again, x.bytes + logits.bytes, True)
            trace.again += again
            trace.head = max(trace.head, logits.elements * (8 + (logits.width if logits.width < 4 else 0)))
    trace.kept += 2 * targets * INDEX * hidden.grad
