"""Sequences that are decoded together: each joins when it comes and leaves when it is done, while the others go on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from transformers import Cache

from unidecouple.generate.fixed import FixedDecoder, KVCache, bucketed
from unidecouple.generate.replay import GraphedStep, Recorder, fill


class BatchSlots:
    """Rows of a ``KVCache`` and the sequences in them. The first ``count`` rows are used; later ones fill gaps.

    Where steps are recorded, unused rows are computed too, up to a power of two: they stand at column 0, and the next sequence
    that takes a row overwrites what was written there.

    Args:
        fixed: the decoder.
        max_rows: sequences at a time.
        max_length: most tokens of one sequence; the model's own limit where that is less.
        embed: n to the next inputs (n, H) of the first n rows, from tensors that stay in their places.
        head: states (n, H) to logits (n, V).
        width: V.
        recorder: of steps; None launches every operator anew.

    Attributes:
        logits: (max_rows, V) float32, of the used rows' next tokens.
    """

    def __init__(
        self,
        fixed: FixedDecoder,
        max_rows: int,
        max_length: int,
        embed: Callable[[int], Tensor],
        head: Callable[[Tensor], Tensor],
        width: int,
        recorder: Recorder | None = None,
    ) -> None:
        self.fixed, self.max_rows, self.embed, self.head = fixed, max_rows, embed, head
        self.max_length = min(max_length, fixed.config.max_position_embeddings)
        self.cache = KVCache(fixed.config, max_rows, self.max_length, fixed.norm)
        self.logits = torch.zeros(max_rows, width, device=fixed.norm.device)
        self.lengths: list[int] = []
        self._position = torch.zeros(max_rows, dtype=torch.long, device=fixed.norm.device)
        self._carry = GraphedStep(self._step, recorder)

    @property
    def count(self) -> int:
        """Rows in use."""
        return len(self.lengths)

    def grow(self, length: int) -> None:
        """Have room for ``length`` tokens per sequence, or the model's own limit; sequences in progress stay."""
        length = min(length, self.fixed.config.max_position_embeddings)
        if length <= self.max_length:
            return
        before, self.max_length = self.cache, length
        self.cache = KVCache(self.fixed.config, self.max_rows, length, self.fixed.norm)
        for old, new in zip((*before.keys, *before.values), (*self.cache.keys, *self.cache.values), strict=True):
            new[:, :, : old.shape[2]] = old
        self._carry = GraphedStep(self._step, self._carry.recorder)  # recorded steps write to the old buffers

    def check(self, lengths: Sequence[int]) -> None:
        """Refuse sequences of ``lengths``, all tokens to come among them, for which there is no room.

        Raises:
            ValueError: there are too many of them, or one is too long.
        """
        if self.count + len(lengths) > self.max_rows or max(lengths) > self.max_length:
            raise ValueError(
                f"{len(lengths)} sequences of up to {max(lengths)} tokens do not fit: {self.max_rows - self.count} of "
                f"{self.max_rows} rows are free, for {self.max_length} tokens each; shorten the prompt, or wait"
            )

    def admit(self, cache: Cache, mask: Tensor, logits: Tensor) -> list[int]:
        """Take over prompts from a left-padded forward pass: its cache, mask (B, T), last logits (B, V). Returns their rows."""
        lengths: list[int] = mask.sum(-1).tolist()
        first, longest = self.count, mask.shape[1]
        self.lengths += lengths
        rows = slice(first, self.count)
        column = None
        if min(lengths) < longest:  # the first column of each row is that of its first token; behind its last one nothing is read
            column = torch.arange(longest, device=mask.device) + (longest - mask.sum(-1, keepdim=True))
            column = column.clamp_max(longest - 1)[:, None, :, None]
        for layer, kept in enumerate(cache.layers[: self.fixed.config.num_hidden_layers]):
            for buffer, prompt in ((self.cache.keys[layer], kept.keys), (self.cache.values[layer], kept.values)):
                buffer[rows, :, :longest] = prompt if column is None else prompt.gather(2, column.expand_as(prompt))
        self.logits[rows] = logits
        fill(self._position, self.lengths)
        return list(range(first, self.count))

    def step(self) -> None:
        """Decode one more token of every row: what ``embed`` gives for them, to ``logits``."""
        reach = max(self.lengths) + 1
        if self._carry.recorder is not None:
            reach = bucketed(reach, self.cache)
        self._carry(self._carry.padded(self.count, self.max_rows), reach)
        self._position[: self.count] += 1
        self.lengths = [length + 1 for length in self.lengths]

    def leave(self, rows: Collection[int]) -> dict[int, int]:
        """Free ``rows``; sequences from the end move into the gaps. Returns each moved sequence's old row and its new one."""
        count = self.count - len(rows)
        gaps = [row for row in rows if row < count]
        moved = dict(zip((row for row in range(count, self.count) if row not in rows), gaps, strict=True))
        if moved:
            device, reach = self.logits.device, max(self.lengths[row] for row in moved)
            old, new = torch.tensor([*moved.keys()], device=device), torch.tensor([*moved.values()], device=device)
            for kept in (*self.cache.keys, *self.cache.values):
                kept[new, :, :reach] = kept[old, :, :reach]
            self.logits[new] = self.logits[old]
            for last, gap in moved.items():
                self.lengths[gap] = self.lengths[last]
        del self.lengths[count:]
        fill(self._position, self.lengths)
        return moved

    def _step(self, rows: int, reach: int) -> None:
        hidden = self.fixed.step(self.embed(rows), self.cache, self._position[:rows], reach)
        self.logits[:rows] = self.head(hidden)
