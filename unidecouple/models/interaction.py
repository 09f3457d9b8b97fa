"""Attention between modalities: of generated image tokens to their prompt, and of answer tokens to images.

Interaction intensity of AIA (arXiv 2511.22663, section 3.1, eq. 1), for one sample in layer l:

    ``I_l = 1 / (H Q) sum_h sum_q sum_k Attn_l(h, q, k)``, after the softmax,

over the heads, the sample's queries q and the keys k of the other modality. Attention is never kept as a map: what a query gives
to a set of keys is attention applied to *values that are one on the set and zero elsewhere*, so the sets ride along as further
channels of the values, through whatever attention the model uses, fused kernels included.
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
"""Channels that are added to heads: kernels want their width to be a multiple of 8, and every width of one kind."""


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
        """(tasks,) int64, how many samples of each task count."""
        return torch.bincount(self.task, minlength=len(Task))


class Interaction(NamedTuple):
    """Measured in one batch: ``intensity`` (layers, N) float32 from 0 to 1, and ``task`` (N,) int64 of each sample."""

    intensity: Tensor
    task: Tensor


def cross_modal_mask(batch: Batch, seen: Tensor) -> CrossModalMask:
    """Find queries and keys in ``batch``; ``seen`` (B, T) bool marks the tokens of images to be understood.

    A query is the row *of the token itself*, as in the paper's figure 2, where the rows averaged over are the image tokens', and
    as in its plots of generation; not the row before, which predicts the token. So of an image all tokens count, the last one too,
    which predicts nothing, and the prompt's last token does not, which predicts the first. (The public code means the same, but
    its spans are off: it leaves out the last image token and the prompt's last, and takes a padding or start token in instead.)

    - Generation: queries are tokens to be drawn; keys all real tokens of the sequence that are no image, the BOS and the
      template's words included. A sample whose prompt was dropped is left out, since it has nothing to look at.
    - Understanding: queries are answer tokens, the EOS included; keys the images' tokens, without their start and end tokens.
    - A query without a key before it (an answer in a text, or before the first image) does not count (ours), nor does padding.

    Packed sequences are samples of their own; attention keeps them apart.
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

    One call for both: the values get the sets' indicators as further channels, queries and keys get zeros there, which leave the
    scores as they are (the scale is a setting). A second call would take twice the time, and one whose values are narrower than
    its keys loses the fused kernel. Attention dropout, where a model has any, also drops from what is measured.

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
        ValueError: there are keys of a cache, which ``key_sets`` does not cover.
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
    """Mean over each sample's queries of ``key_set_shares``, (B, T, tasks) per layer, to the keys of its task."""
    with torch.autocast(spans.keys.device.type, enabled=False):  # a mean of many, in full precision
        means = spans.queries @ torch.stack([*key_set_shares]).flatten(1, 2)  # (layers, N, tasks)
    return Interaction(means.gather(-1, spans.task.view(1, -1, 1).expand(len(means), -1, 1)).squeeze(-1), spans.task)


def _any_before(keys: Tensor, starts: Tensor) -> Tensor:
    """(B, T, S) bool: whether a sequence has a key of the set up to each of its tokens; ``starts`` (B, T) marks first tokens."""
    count = keys.long().cumsum(1)
    until_start = torch.where(starts.unsqueeze(-1), count - keys.long(), 0).cummax(1).values
    return count > until_start
