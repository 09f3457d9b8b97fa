"""Several sequences per row, which do not attend to each other: less padding, the same losses and gradients.

Rows need no mask: ``position_ids`` restart at 0 with each sequence, and attention takes the sequences in padded blocks of similar
lengths (``models/attention.py``); eager attention gets a causal, block-diagonal mask. A test compares both with unpacked losses and
gradients.
A sequence's first token is never a target, so no loss reaches across a boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from unidecouple.batch import IGNORE, Batch, Task
from unidecouple.data.sequences import Sample, collate


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of numbers of sequences: the longest first, each into the first row that has room (at most 11/9 of the best, plus 1).

    Raises:
        ValueError: a sequence is longer than a row.
    """
    if max(lengths, default=0) > capacity:
        raise ValueError(f"a sequence of {max(lengths)} tokens does not fit a row of {capacity}: raise max_length")
    rows: list[list[int]] = []
    room: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        row = next((r for r, left in enumerate(room) if left >= lengths[number]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(number)
        room[row] -= lengths[number]
    return rows


def fewest_shortest(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows as ``first_fit_decreasing`` makes them, then the least capacity that still needs no more rows.

    All rows are as long as the longest, so evening them out is what keeps the last one from being half padding.
    """
    rows = first_fit_decreasing(lengths, capacity)
    low = max(*lengths, -(-sum(lengths) // len(rows)))
    high = max(sum(lengths[n] for n in row) for row in rows)
    while low < high:
        tried = first_fit_decreasing(lengths, (low + high) // 2)
        if len(tried) <= len(rows):
            rows, high = tried, (low + high) // 2
        else:
            low = (low + high) // 2 + 1
    return rows


def pack(samples: Sequence[Sample], max_length: int, pad_token_id: int) -> Batch:
    """One batch of rows of at most ``max_length`` tokens that hold all ``samples``.

    Raises:
        ValueError: a sample is longer than that.
    """
    rows = fewest_shortest([len(sample.input_ids) for sample in samples], max_length)
    joined = [_join([samples[number] for number in row]) for row in rows]
    batch = collate(joined, pad_token_id)
    positions = torch.zeros_like(batch.input_ids)  # each token of padding is a sequence of its own
    for number, row in enumerate(rows):
        place = 0
        for sample in (samples[n] for n in row):
            positions[number, place : place + len(sample.input_ids)] = torch.arange(len(sample.input_ids))
            place += len(sample.input_ids)
    return replace(batch, position_ids=positions)


def _join(samples: Sequence[Sample]) -> Sample:
    for sample in samples:
        if sample.labels[0] != IGNORE or sample.image_mask[0] or sample.task_ids[0] != Task.MMU:
            raise ValueError("a sequence whose first token is a target cannot be packed: the one before it would predict it")
    names = [one.name for one in fields(Sample)]
    joined: dict[str, Any] = {name: [entry for sample in samples for entry in getattr(sample, name)] for name in names}
    return Sample(**joined | {name: tuple(joined[name]) for name in ("pictures", "images", "sources")})
