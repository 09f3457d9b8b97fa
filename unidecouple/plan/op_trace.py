"""A symbolic forward pass: each operation records its FLOPs, the bytes it moves, and what it keeps for the backward pass.

The rules are autograd's. A product y = x W costs 2 · rows · |W| FLOPs forward, as much again for the gradient of x if one flows
there, and as much again for the gradient of W if W trains; x is kept for the latter only. So frozen weights need no gradient,
and where nothing below trains there is no backward at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from unidecouple.methods.selection import part_of

Shape = tuple[int, ...]
INDEX = 8
"""Bytes of an int64."""


class TracedTensor:
    """A tensor of the pass: elements, bytes each, whether a gradient flows to it; kept for backward at most once."""

    def __init__(self, elements: int, width: int, grad: bool) -> None:
        self.elements, self.width, self.grad, self.kept = elements, width, grad, False

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.elements * self.width


class Op(NamedTuple):
    """One operation of the forward or backward pass: part of the model, whether backward, FLOPs, bytes moved, block or -1."""

    part: str
    backward: bool
    flops: int
    moved: int
    block: int


@dataclass
class Block:
    """A layer that can be checkpointed, and is a unit of sharding.

    Attributes:
        name: prefix of its parameters.
        entry: bytes of its input, which is all that a checkpoint keeps.
        kept: bytes it keeps otherwise; 0 where no gradient passes.
    """

    name: str
    entry: int
    kept: int = 0


@dataclass
class OpTrace:
    """Operations and memory of a pass over weights of ``shapes``, of which ``trains`` train.

    Attributes:
        shapes: of every parameter, by name.
        trains: names of those that train.
        width: bytes per activation.
        ops: in order of execution.
        kept: bytes kept for the backward pass, without the heads' ``logits``.
        logits: bytes of the heads' log-probabilities kept, always float32.
        head: additional bytes that the largest head needs while it runs.
        largest: bytes of the largest activation, the heads' aside.
        encoding: peak bytes of the image tokenizer if it runs in the forward pass; none of them are kept.
        again: of the backward FLOPs, those that a checkpointed head computes a second time.
        reference: of the forward FLOPs, those that only a comparison with the model without its updates needs.
        used: parameters that take part.
        blocks: layers, in the order they ran.
        passed: (name, block) of the matrices that a gradient passes, each time that it does, and whose copy in the compute type is
            then kept: frozen and stacked ones. Of other trained ones autocast keeps one copy for the whole pass.
    """

    shapes: Mapping[str, Shape]
    trains: Collection[str]
    width: int
    ops: list[Op] = field(default_factory=list)
    kept: int = 0
    logits: int = 0
    head: int = 0
    largest: int = 0
    encoding: int = 0
    again: int = 0
    reference: int = 0
    used: set[str] = field(default_factory=set)
    blocks: list[Block] = field(default_factory=list)
    passed: list[tuple[str, int]] = field(default_factory=list)
    _block: int = -1

    def flops(self, backward: bool) -> int:
        """FLOPs of the forward, or of the backward pass."""
        return sum(op.flops for op in self.ops if op.backward == backward)

    def kept_by_checkpoints(self) -> int:
        """Bytes kept, the heads' logits aside, if every layer keeps its input alone and one at a time is computed again."""
        moving = [block for block in self.blocks if block.kept]
        saved = sum(block.kept - block.entry for block in moving)
        return self.kept - saved + max((block.kept for block in moving), default=0)

    def kept_casts(self, compressed: Container[str], checkpointing: bool) -> int:
        """Bytes of the copies of ``passed`` matrices, where float32 ones are cast for a product.

        Args:
            compressed: names of matrices of which no copy is kept.
            checkpointing: whether each layer's copies are made once more when its backward pass comes.
        """
        if self.width == 4:
            return 0
        sizes: Counter[int] = Counter()
        for name, block in self.passed:
            sizes[block] += 0 if name in compressed else math.prod(self.shapes[name]) * self.width
        outside = sizes.pop(-1, 0)
        return outside + (max(sizes.values(), default=0) if checkpointing else sizes.total())

    @contextmanager
    def block(self, name: str, entry: TracedTensor) -> Iterator[None]:
        """Note what follows as the layer ``name`` with input ``entry``."""
        before, self._block = self.kept, len(self.blocks)
        self.blocks.append(Block(name, entry.bytes))
        yield
        self.blocks[-1].kept, self._block = self.kept - before, -1

    def use(self, name: str) -> bool:
        """Note that parameter ``name`` takes part; whether it trains. A parameter that does not exist (a bias) does not."""
        if name not in self.shapes:
            return False
        self.used.add(name)
        return name in self.trains

    def new(self, elements: int, grad: bool, width: int | None = None) -> TracedTensor:
        """A tensor that some operation made."""
        made = TracedTensor(elements, width or self.width, grad)
        self.largest = max(self.largest, made.bytes)
        return made

    def keep(self, value: TracedTensor) -> None:
        """Keep ``value`` for the backward pass."""
        if not value.kept:
            value.kept = True
            self.kept += value.bytes

    def note(self, part: str, flops: int, moved: int, backward: bool) -> None:
        """Add an operation."""
        self.ops.append(Op(part, backward, flops, moved, self._block))

    def note_product(self, part: str, flops: int, moved: int, gradients: tuple[bool, bool]) -> None:
        """Add a product, and one more in the backward pass for each operand that has a gradient."""
        for backward in (False, *[True] * sum(gradients)):
            self.note(part, flops, moved, backward)

    def pointwise(self, part: str, inputs: tuple[TracedTensor, ...], elements: int, grad: bool) -> TracedTensor:
        """An operation that is all memory traffic: reads ``inputs``, writes ``elements``; backward moves twice as much."""
        out = self.new(elements, grad)
        moved = sum(value.bytes for value in inputs) + out.bytes
        self.note(part, 0, moved, False)
        if grad:
            self.note(part, 0, 2 * moved, True)
        return out

    def product(self, name: str, rows: int, x: TracedTensor, stacked: bool = False, updated: bool = False) -> TracedTensor:
        """``rows`` times the matrix ``name`` (out, in); or, stacked (E, out, in), each row times one of E matrices.

        With ``updated`` a trained update was added to the matrix.
        """
        shape = self.shapes[name]
        active = math.prod(shape[1:] if stacked else shape)
        outer = shape[1] if stacked else shape[0]
        flops, part, trains = 2 * rows * active, part_of(name), self.use(name) or updated
        out = self.new(rows * outer, x.grad or trains)
        self.note_product(part, flops, math.prod(shape) * self.width + x.bytes + out.bytes, (x.grad, trains))
        if x.grad and (stacked or not trains):
            self.passed.append((name, self._block))
        if trains:
            self.keep(x)
        return out

    def linear(self, name: str, rows: int, x: TracedTensor) -> TracedTensor:
        """A linear layer with or without a bias."""
        out = self.product(f"{name}.weight", rows, x)
        out.grad |= self.use(f"{name}.bias")
        return out

    def attention(
        self, batch: int, heads: int, length: int, width: int, projected: tuple[TracedTensor, TracedTensor, TracedTensor]
    ) -> TracedTensor:
        """Scaled dot-product attention by a fused kernel, which keeps its operands and no scores.

        Counted over the full square, as torch's counter does; a causal kernel computes half of it.
        """
        query, key, value = projected
        product = 2 * batch * heads * length * length * width
        grad = query.grad or key.grad or value.grad
        out = self.new(batch * heads * length * width, grad)
        moved = sum(v.bytes for v in projected) + out.bytes
        self.note("attention scores", 2 * product, moved, False)
        backward = query.grad + key.grad + value.grad + (query.grad or key.grad)
        if grad:
            self.note("attention scores", backward * product, 2 * moved, True)
            for kept in (*projected, out):
                self.keep(kept)
            self.kept += batch * heads * length * 4  # float32 log of each row's sum
        return out

    def rms_norm(self, name: str, rows: int, x: TracedTensor, others_train: bool = False) -> TracedTensor:
        """Llama's norm, written out: it computes on a float32 copy. Scales of a group each (G, H) are laid out by token first.

        With ``others_train``, scales in place of its own train.
        """
        trains = self.use(f"{name}.weight") or others_train
        if len(self.shapes[f"{name}.weight"]) == 2 and x.grad:
            self.keep(self.new(x.elements, trains))
        wide = x if x.width == 4 else self.new(x.elements, x.grad, 4)
        if x.grad:
            self.keep(wide)
            self.kept += rows * 4
        scaled = self.pointwise("norms", (x, wide), x.elements, x.grad)
        if trains:
            self.keep(scaled)
        return self.pointwise("norms", (scaled,), x.elements, x.grad or trains)

    def layer_norm(self, name: str, rows: int, x: TracedTensor, part: str) -> TracedTensor:
        """The library's fused norm."""
        trains = [self.use(f"{name}.{tensor}") for tensor in ("weight", "bias")]
        if x.grad or any(trains):
            self.keep(x)
            self.kept += rows * 8
        return self.pointwise(part, (x,), x.elements, x.grad or any(trains))

    def activation(self, x: TracedTensor, part: str) -> TracedTensor:
        """GELU or SiLU: keeps its input."""
        if x.grad:
            self.keep(x)
        return self.pointwise(part, (x,), x.elements, x.grad)

    def times(self, a: TracedTensor, b: TracedTensor, part: str) -> TracedTensor:
        """Elementwise product: each side's gradient needs the other."""
        if a.grad:
            self.keep(b)
        if b.grad:
            self.keep(a)
        return self.pointwise(part, (a, b), a.elements, a.grad or b.grad)
