"""Sequences that are decoded together: each joins when it comes and leaves when it is done, while the others go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import Cache

from unidecouple.generate.fixed import FixedDecoder, KVCache, bucketed
from unidecouple.generate.replay import GraphedStep, Recorder, fill


class BatchSlots:
    """The sequences in a ``FixedDecoder``'s places. The first ``count`` rows are taken; a gap is closed by the last one.

    Where steps are recorded, rows beyond them are computed too, up to a power of two: they are free, stand at column 0, and what
    they write there is overwritten by the next sequence that takes them.

    Args:
        fixed: the decoder.
        most: rows at a time.
        length: most tokens of one sequence; the model's own limit where that is less.
        embed: the embeddings (n, H) of what the first n rows are fed, from tensors that stay in their places.
        head: states (n, H) to logits (n, V).
        width: V.
        recorder: of steps; None computes every one anew.

    Attributes:
        logits: (most, V) float32, of the taken rows' next tokens.
    """

    def __init__(
        self,
        fixed: FixedDecoder,
        most: int,
        length: int,
        embed: Callable[[int], Tensor],
        head: Callable[[Tensor], Tensor],
        width: int,
        recorder: Recorder | None = None,
    ) -> None:
        length = min(length, fixed.config.max_position_embeddings)
        self.fixed, self.most, self.length, self.embed, self.head = fixed, most, length, embed, head
        self.places = KVCache(fixed.config, most, length, fixed.norm)
        self.logits = torch.zeros(most, width, device=fixed.norm.device)
        self.lengths: list[int] = []
        self._position = torch.zeros(most, dtype=torch.long, device=fixed.norm.device)
        self._carry = GraphedStep(self._step, recorder)

    @property
    def count(self) -> int:
        """Rows taken."""
        return len(self.lengths)

    def check(self, lengths: Sequence[int]) -> None:
        """Whether sequences of ``lengths``, with all tokens to come, can be taken.

        Raises:
            ValueError: there are too many of them, or one is too long.
        """
        if self.count + len(lengths) > self.most or max(lengths) > self.length:
            raise ValueError(
                f"{len(lengths)} sequences of up to {max(lengths)} tokens do not fit: {self.most - self.count} of {self.most} rows "
                f"are free, for {self.length} tokens each; shorten the prompt, wait, or make room for more"
            )

    def admit(self, cache: Cache, mask: Tensor, logits: Tensor) -> list[int]:
        """Take over prompts from a left-padded forward pass: its cache, mask (B, T), last logits (B, V). Returns their rows."""
        lengths = [int(n) for n in mask.sum(-1)]
        first = self.count
        for row, length in enumerate(lengths, first):
            for layer, kept in enumerate(cache.layers[: self.fixed.config.num_hidden_layers]):
                self.places.put(row, layer, kept.keys[row - first, :, -length:], kept.values[row - first, :, -length:])
        self.lengths += lengths
        self.logits[first : self.count] = logits
        fill(self._position, self.lengths)
        return list(range(first, self.count))

    def step(self) -> None:
        """One more token of every row: what ``embed`` gives for them, to ``logits``."""
        reach = max(self.lengths) + 1
        if self._carry.recorder is not None:
            reach = bucketed(reach, self.places)
        self._carry(self._carry.padded(self.count, self.most), reach)
        self._position[: self.count] += 1
        self.lengths = [length + 1 for length in self.lengths]

    def leave(self, row: int) -> int | None:
        """Free ``row``. Returns the row (the last) whose sequence moved into it, if one had to."""
        last = self.count - 1
        if row != last:
            reach = self.lengths[last]
            for kept in (*self.places.keys, *self.places.values):
                kept[row, :, :reach] = kept[last, :, :reach]
            self.lengths[row] = self.lengths[last]
            self.logits[row] = self.logits[last]
        self.lengths.pop()
        fill(self._position, self.lengths)
        return None if row == last else last

    def _step(self, rows: int, reach: int) -> None:
        hidden = self.fixed.step(self.embed(rows), self.places, self._position[:rows], reach)
        self.logits[:rows] = self.head(hidden)
