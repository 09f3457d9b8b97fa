"""Two checkpoints of one model, before and after fine-tuning; what cannot be compared is refused with the figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unidecouple.convert.merging import flat_config
from unidecouple.delta.checkpoint import Checkpoint, open_checkpoint
from unidecouple.inputs import quoted
from unidecouple.models.deltas import DELTAS

ChooseWeight = Callable[[str, Tensor, Tensor], Tensor]
"""Returns a weight of the result from its name, its value in the base and its value in the tuned model."""

LARGEST_CHANGE = 0.9
"""Change of the matrices relative to their norm from which on two models do not share a base. Two independent models have at
least 1 (their difference is orthogonal to either), fine-tuned ones some hundredths."""

_MERGED = ("text_config.lora_alpha",)
"""Fields that mean nothing once low-rank updates are merged."""

_PER_TOKEN = ("embed_tokens.weight", "lm_head.weight")
_ADDED = "add the same tokens to the base (`unidecouple train --model ... 'add_tokens=[...]' max_steps=0`), and name that as BASE"
_REMEDY = "name the checkpoint that fine-tuning started from as BASE"


@dataclass(frozen=True)
class Pair:
    """A base, and a model fine-tuned from it; names, shapes, configurations and tokenizers are equal."""

    base: Checkpoint
    tuned: Checkpoint

    def tensors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, weight before and weight after, layer by layer; at most one layer of each is in memory."""
        for names in self.base:
            before, after = self.base.read(names), self.tuned.read(names)
            yield from ((name, before[name], after[name]) for name in names)


def open_pair(base: str, tuned: str) -> Pair:
    """Open two checkpoints and compare all but their weights' data.

    Raises:
        ValueError: one cannot be read; or names, shapes, configurations or tokenizers differ.
    """
    before, after = open_checkpoint(base), open_checkpoint(tuned)
    _check_structures(before, after)
    _check_names(before, after)
    _check_configs(before, after)
    _check_tokenizers(before, after)
    return Pair(before, after)


def check_changed(pair: Pair) -> None:
    """Refuse a tuned model with the weights of its base. Reads both up to the first weight that differs.

    Raises:
        ValueError: no weight differs.
    """
    if all(torch.equal(before, after) for _, before, after in pair.tensors()):
        raise ValueError(
            f"{pair.tuned.name} has the weights of {pair.base.name}: no weight changed, so there is nothing to separate. Name the "
            "fine-tuned model as TUNED"
        )


def check_same_base(pair: Pair, relative: float) -> None:
    """Refuse a tuned model whose matrices changed by ``relative`` (norm of the change over norm of the weights).

    Raises:
        ValueError: it is ``LARGEST_CHANGE`` or more.
    """
    if relative >= LARGEST_CHANGE or not math.isfinite(relative):
        raise ValueError(
            f"{pair.tuned.name} was not fine-tuned from {pair.base.name}: its matrices differ by {relative:.2f} of their norm "
            f"(fine-tuning changes a small share, unrelated weights 1 or more): {_REMEDY}"
        )


def is_shared_matrix(name: str, weight: Tensor, known: bool) -> bool:
    """Whether ``name`` is a matrix that a base and its tuned model share: of the decoder, or any of an unknown family.

    Modules of generation alone may be trained from random numbers.
    """
    return weight.ndim >= 2 and weight.is_floating_point() and (not known or ".language_model.layers." in name)


def relative_change(pair: Pair) -> float:
    """Norm of the change of all shared matrices over their norm in the base; reads both checkpoints once."""
    changed, whole = 0.0, 0.0
    for name, before, after in pair.tensors():
        if is_shared_matrix(name, before, pair.base.config is not None):
            changed += squared_norm(difference(before, after))
            whole += squared_norm(before)
    return math.sqrt(changed / whole) if whole else 0.0


def difference(before: Tensor, after: Tensor) -> Tensor:
    """``after - before``, in float32 or wider."""
    wide = torch.promote_types(torch.promote_types(before.dtype, after.dtype), torch.float32)
    return after.to(wide) - before.to(wide)


def squared_norm(tensor: Tensor) -> float:
    """Sum of squares, in float64."""
    return float(torch.linalg.vector_norm(tensor.float() if tensor.dtype.itemsize < 4 else tensor, dtype=torch.float64)) ** 2


def _check_structures(base: Checkpoint, tuned: Checkpoint) -> None:
    if base.config is None or tuned.config is None:
        return
    for field in ("ffn", "per_group_layers"):
        before, after = getattr(base.config.text_config, field), getattr(tuned.config.text_config, field)
        if before != after:
            raise ValueError(
                f"{tuned.name} has another structure than {base.name} ({field}={quoted(after)}, not {quoted(before)}), so its "
                "weights have no counterparts: compare scores by `unidecouple eval`, and measure conflict by `unidecouple diagnose`"
            )


def _check_names(base: Checkpoint, tuned: Checkpoint) -> None:
    lone = sorted(base.shapes.keys() ^ tuned.shapes.keys())
    if lone and (base.config is None) != (tuned.config is None):
        bare, other = (base, tuned) if base.config is None else (tuned, base)
        raise ValueError(
            f"{bare.name} has no config.json of a known model, so its weights were not converted, and their names are not those of "
            f"{other.name} ({len(lone)} differ): copy config.json beside the weights"
        )
    for name in lone[:1]:
        who, other = (base, tuned) if name in base.shapes else (tuned, base)
        if f".{DELTAS}." in name:
            raise ValueError(
                f"{who.name} has weights per task ({name}), and {other.name} has not: give the checkpoints that it was made of, or "
                "take one task out of it first (unidecouple convert --task)"
            )
        raise ValueError(f"{who.name} has {name}, and {other.name} has not ({len(lone)} names differ): {_REMEDY}")
    shapes = [(name, before.shape, tuned.shapes[name].shape) for name, before in base.shapes.items()]
    differ = [one for one in shapes if one[1] != one[2]]
    for name, before, after in differ[:1]:
        added = after[0] > before[0] and all(one[0].endswith(_PER_TOKEN) for one in differ)
        raise ValueError(
            f"{name} is of shape {tuple(after)} in {tuned.name} and {tuple(before)} in {base.name} ({len(differ)} shapes differ): "
            f"{_ADDED if added else _REMEDY}"
        )


def _check_configs(base: Checkpoint, tuned: Checkpoint) -> None:
    if base.config is None or tuned.config is None:
        return
    before, after = flat_config(base.config), flat_config(tuned.config)
    for key, value in after.items():
        if before.get(key) != value and key not in _MERGED:
            raise ValueError(f"config.json of {tuned.name} has {key}={value!r}, of {base.name} {before.get(key)!r}: {_REMEDY}")


def _check_tokenizers(base: Checkpoint, tuned: Checkpoint) -> None:
    before, after = base.vocabulary, tuned.vocabulary
    if not before or not after:
        return
    differ = sorted(token for token in before.keys() | after.keys() if before.get(token) != after.get(token))
    for token in differ[:1]:
        raise ValueError(
            f"the tokenizers of {base.name} and {tuned.name} number {len(differ)} of {len(before.keys() | after.keys())} tokens "
            f"differently (first {token!r}: {before.get(token)} and {after.get(token)}), so rows of the word embeddings mean other "
            f"tokens: {_REMEDY}"
        )
