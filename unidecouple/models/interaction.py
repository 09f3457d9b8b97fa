"""Attention between modalities: of generated image tokens to their prompt, and of answer tokens to images.

Interaction intensity of AIA (arXiv 2511.22663, section 3.1, eq. 1), for one sample in layer l:

    ``I_l = 1 / (H Q) sum_h sum_q sum_k Attn_l(h, q, k)``, after the softmax,

over the heads, the sample's queries q and the keys k of the other modality. No attention map is stored: the attention of a query
to a set of keys equals attention applied to *values that are one on the set and zero elsewhere*. The sets therefore become
further channels of the values, in every attention function, fused kernels included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Batch, Task

CHANNELS = 8
"""Channels added to each head; fused kernels need head widths that are multiples of 8."""


@dataclass(frozen=True)
class CrossModalMask:
    """Query and key tokens of attention between modalities, in a batch of B rows of T tokens and N samples.

    Attributes:
        keys: (B, T, tasks) bool, per task the key tokens: images for understanding, words for generation.
        queries: (N, B T) float32, for each sample 1 / Q at its Q queries and zero elsewhere.
        task: (N,) int64 of each sample.
    """

    keys: Tensor
    queries: Tensor
    task: Tensor

    @property
    def samples(self) -> Tensor:
        """(tasks,) int64, the number of counted samples per task."""
        return torch.bincount(self.task, minlength=len(Task))


class Interaction(NamedTuple):
    """Interaction of the N samples of a batch: ``intensity`` (layers, N) float32 from 0 to 1, and ``task`` (N,) int64."""

    intensity: Tensor
    task: Tensor


def cross_modal_mask(batch: Batch, seen: Tensor) -> CrossModalMask:
    """Find queries and keys in ``batch``; ``seen`` (B, T) bool marks the tokens of images to be understood.

    A query is the row *of the token itself*, as in the paper's figure 2 and its plots of generation, and not the row before, which
    predicts the token. So all tokens of an image count, including the last one, which predicts nothing. The last token of the
    prompt, which predicts the first image token, does not count. The public code intends the same, but its spans are off by one:
    it omits the last image token and the last token of the prompt, and includes a padding or start token.

    - Generation: queries are image tokens to be generated; keys are all tokens of the sequence that are neither image nor padding,
      BOS and template included. A sample with a dropped prompt is skipped, since it has no keys.
    - Understanding: queries are answer tokens, EOS included; keys are the images' tokens, without their start and end tokens.
    - A query without an earlier key (an answer in a text, or before the first image) does not count (ours); nor does padding.

    Each packed sequence is a separate sample.
    """
    drawn = batch.image_tokens != NO_IMAGE_TOKEN
    words = batch.attention_mask & ~drawn & ~seen
    keys = torch.stack([seen & batch.attention_mask, words], -1)
    places = torch.arange(seen.shape[1], device=seen.device).expand_as(seen) if batch.position_ids is None else batch.position_ids
    starts = places == 0
    asks = torch.stack([batch.labels != IGNORE, drawn], -1) & batch.attention_mask.unsqueeze(-1) & _any_before(keys, starts)
    sequence = starts.flatten().cumsum(0)
    if batch.prompt_dropped is not None:  # a template starts with words, so the second token shows whether the prompt is there
        dropped = sequence[(batch.prompt_dropped & (places == 1)).flatten()]
        asks = asks & ~torch.isin(sequence, dropped).view_as(seen).unsqueeze(-1)
    picked, tasks = [], []
    for task in Task:
        mine = asks[..., task].flatten()
        rows = mine & (sequence == sequence[mine].unique().unsqueeze(-1))
        picked.append(rows)
        tasks.append(torch.full((len(rows),), int(task), device=seen.device))
    queries = torch.cat(picked).float()
    return CrossModalMask(keys, queries / queries.sum(1, keepdim=True), torch.cat(tasks))


def attend_and_measure(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    key_sets: Tensor,
    **settings: Any,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Call ``attend``, and measure the share of its attention that each token gives to each set of keys.

    One call does both: the values get the sets' indicators as further channels, and queries and keys get zeros there, which do not
    change the scores (the scale is a setting). A second call would take twice as long, and a call whose values are narrower than
    its keys does not use the fused kernel. Attention dropout also affects the measured shares.

    Args:
        attend: one of transformers' attention functions.
        module: passed to it.
        query, key, value: (B, heads, T, D); keys and values may have fewer heads.
        mask: passed to ``attend``.
        key_sets: (B, T, S) bool, at most 8 sets.
        settings: passed to ``attend``; the scale must be among them.

    Returns:
        What ``attend`` returns, and (B, T, S) float32, mean over heads.

    Raises:
        ValueError: the cache contains keys, which ``key_sets`` does not cover.
    """
    sets, width = key_sets.shape[-1], value.shape[-1]
    if key.shape[2] != key_sets.shape[1]:
        raise ValueError(
            f"attention to sets among {key_sets.shape[1]} keys cannot be measured over {key.shape[2]}: "
            "decode whole sequences, without a cache"
        )
    marks = F.pad(key_sets.to(value.dtype), (0, CHANNELS - sets)).unsqueeze(1).expand(-1, value.shape[1], -1, -1)
    query, key = (F.pad(part, (0, CHANNELS)) for part in (query, key))
    mixed, weights = attend(module, query, key, torch.cat([value, marks], -1), mask, **settings)
    return mixed[..., :width], weights, mixed[..., width : width + sets].float().mean(2)


def intensities(key_set_shares: Sequence[Tensor], spans: CrossModalMask) -> Interaction:
    """Return the mean over each sample's queries of ``key_set_shares``, (B, T, tasks) per layer, to the keys of its task."""
    with torch.autocast(spans.keys.device.type, enabled=False):  # a mean of many, in full precision
        means = spans.queries @ torch.stack([*key_set_shares]).flatten(1, 2)  # (layers, N, tasks)
    return Interaction(means.gather(-1, spans.task.view(1, -1, 1).expand(len(means), -1, 1)).squeeze(-1), spans.task)


def _any_before(keys: Tensor, starts: Tensor) -> Tensor:
    """(B, T, S) bool: whether a sequence has a key of the set up to each of its tokens; ``starts`` (B, T) marks first tokens."""
    count = keys.long().cumsum(1)
    until_start = torch.where(starts.unsqueeze(-1), count - keys.long(), 0).cummax(1).values
    return count > until_start
