"""Shapes of a step: micro-batches by task, their lengths and targets, and their split over devices."""

from __future__ import annotations

import math
import pkgutil
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from unidecouple import plugins
from unidecouple.batch import Task
from unidecouple.convert.hub import is_hub_id
from unidecouple.convert.load import load_processor
from unidecouple.convert.stored import source_folder
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.settings import DataSettings
from unidecouple.models.emu3 import UniEmu3Config
from unidecouple.models.families import UnifiedConfig
from unidecouple.source import SampleLengths

MMU_TEXT, MMU_ANSWERS, T2I_TEXT = 128, 64, 64
"""Assumed where the recipe's data cannot be sampled: text tokens of a conversation, those of them that are answers, of a prompt."""


@dataclass(frozen=True)
class BatchShape:
    """The shape of one micro-batch of a joint batch.

    Attributes:
        task: of its samples.
        samples, length: rows, and padded tokens per row.
        answers: positions with a text target, over all rows: inputs of the text head.
        drawn: image tokens to be generated, over all rows: inputs of the generation head.
        pictures: images to be understood, source images among them.
        counted: False for router samples, which are no training samples.
    """

    task: Task
    samples: int
    length: int
    answers: int
    drawn: int
    pictures: int
    counted: bool = True

    @property
    def tokens(self) -> int:
        """Tokens that the decoder computes, with padding and placeholders."""
        return self.samples * self.length

    def cut(self, parts: int) -> BatchShape:
        """Return the largest of ``parts`` parts, as training splits samples."""
        samples = math.ceil(self.samples / parts)
        answers, drawn, pictures = (round(n * samples / self.samples) for n in (self.answers, self.drawn, self.pictures))
        return replace(self, samples=samples, answers=answers, drawn=drawn, pictures=pictures)


@dataclass(frozen=True)
class Lengths:
    """Of samples, in place of what is measured on the recipe's data, or of the assumed text (see above), where not None.

    Attributes:
        mmu, t2i: tokens per sample of each task, with images.
        source_images: source images per text-to-image sample.
    """

    mmu: int | None = None
    t2i: int | None = None
    source_images: int | None = None


class ImageTokenCounts(NamedTuple):
    """Tokens of one image.

    Attributes:
        seen: in a question, with delimiters.
        source: in a prompt for an image, with delimiters.
        drawn: in a text-to-image sample, without the prompt.
        learned: of ``drawn``, those with a target.
    """

    seen: int
    source: int
    drawn: int
    learned: int


def image_tokens_of(config: UnifiedConfig) -> ImageTokenCounts:
    """As ``data/sequences.py`` lays them out; rows of Emu3's have an end each, and its size stands before them."""
    if isinstance(config, UniEmu3Config):
        side = config.side
        rows = side * (side + 1)
        seen = rows + len(f"{side}*{side}") + 4
        return ImageTokenCounts(seen, seen, rows, side**2)
    tokens = config.vision_config.num_image_tokens
    return ImageTokenCounts(tokens + 2, 2 * (tokens + 2), tokens, tokens)


def joint(data: DataSettings, name_or_path: str, config: UnifiedConfig, lengths: Lengths) -> tuple[BatchShape, ...]:
    """Micro-batches of a whole step, over all devices and parts. Each is padded to its longest sample, its parts are no longer.

    Args:
        data: the recipe's.
        name_or_path: of the start; if its folder has a processor, lengths are measured on synthetic samples.
        config: of the model.
        lengths: in place of the recipe's.

    Raises:
        ValueError: a length is shorter than an image.
    """
    picture = image_tokens_of(config)
    found = SampleLengths(picture.seen + MMU_TEXT, float(MMU_ANSWERS), T2I_TEXT, 1.0, 0.0)
    if has_processor(name_or_path):
        found = _measured(name_or_path, data)
    if lengths.source_images is not None:
        text = found.prompt - math.ceil(found.sources) * picture.source
        found = found._replace(prompt=text + lengths.source_images * picture.source, sources=lengths.source_images)
    mmu, t2i = (found.conversation, found.answers), picture.drawn + found.prompt
    if lengths.mmu is not None:
        mmu = (lengths.mmu, mmu[1] * _ratio(lengths.mmu, mmu[0], picture.seen, "mmu"))
    if lengths.t2i is not None:
        _ratio(lengths.t2i, t2i, picture.drawn, "t2i")
        t2i = lengths.t2i
    b, g, r = data.mmu_batch_size, data.t2i_batch_size, data.router_aux_samples
    parts = (
        BatchShape(Task.MMU, b, mmu[0], round(b * mmu[1]), 0, round(b * found.shown)),
        BatchShape(Task.T2I, g, t2i, 0, g * picture.learned, round(g * found.sources)),
        BatchShape(Task.MMU, r, mmu[0], 0, 0, r, counted=False),
    )
    return tuple(part for part in parts if part.samples)


def has_processor(name_or_path: str) -> bool:
    """Whether the start has a tokenizer that samples' lengths can be taken with."""
    if is_hub_id(name_or_path):  # a plan must not need the network
        return False
    try:
        return (source_folder(name_or_path, weights=False) / "processor_config.json").is_file()
    except ValueError:
        return False


def resized(data: DataSettings, batch_size: int | None) -> DataSettings:
    """``data`` with a step of ``batch_size`` samples, both tasks together in the ratio they have; None changes nothing.

    Raises:
        ValueError: there are no samples, or too few for both tasks.
    """
    whole = data.mmu_batch_size + data.t2i_batch_size
    if not whole:
        raise ValueError("data.mmu_batch_size and data.t2i_batch_size are both 0: a step without samples cannot be planned")
    if batch_size is None:
        return data
    mmu = round(batch_size * data.mmu_batch_size / whole)
    others = {"router_aux_samples": round(batch_size * data.router_aux_samples / whole)} if data.router_aux_samples else {}
    changed = replace(data, mmu_batch_size=mmu, t2i_batch_size=batch_size - mmu, **others)
    for key in ("mmu_batch_size", "t2i_batch_size"):
        if getattr(data, key) and getattr(changed, key) < 1:
            raise ValueError(
                f"batch size {batch_size} leaves no sample for data.{key}: the recipe has {getattr(data, key)} of {whole}"
            )
    return changed


def _ratio(length: int, before: int, fixed: int, task: str) -> float:
    if length <= fixed:
        raise ValueError(f"{task} length {length} must be more than the {fixed} tokens that an image takes")
    return (length - fixed) / (before - fixed)


@lru_cache(maxsize=64)  # the variants of a grid see few kinds of batches
def _measured(name_or_path: str, data: DataSettings) -> SampleLengths:
    """What ``plugins.SAMPLE_LENGTHS`` finds with the processor of ``name_or_path``."""
    found: SampleLengths = pkgutil.resolve_name(plugins.SAMPLE_LENGTHS)(SequenceBuilder(load_processor(name_or_path)), data)
    return found
