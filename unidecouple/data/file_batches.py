"""Joint batches from users' own files, as a function of (seed, step)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from unidecouple.batch import JointBatch, Task
from unidecouple.data.bad_records import BadDataError, BadRecordCounter
from unidecouple.data.build_sample import build
from unidecouple.data.formats import BAD, BadRecordError, Kind, Reader, Record, RecordIndex, open_source
from unidecouple.data.mixture import SourcePool, Stream
from unidecouple.data.packing import pack
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.sequences import EncodedImage, Sample, SequenceBuilder, collate, pixels
from unidecouple.data.settings import Files, Source
from unidecouple.data.split import in_part
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.models.vq import ImageTokenizer, encode_image_tokens, tokenizer_hash

KINDS_OF: Final[dict[Task, tuple[Kind, ...]]] = {Task.MMU: ("mmu", "text"), Task.T2I: ("t2i",)}
"""Which kinds of records serve a task."""
_TRIES: Final = 100
_ASIDE: Final = 97


def indices_of(
    files: Files, opened: Sequence[Sequence[Reader]], task: Task, cache: Path | None = None
) -> list[tuple[Source, RecordIndex]]:
    """Return the records of ``task`` that each source of ``files`` has in its part, from its readers in ``opened``."""
    pairs = list(zip(files.sources, opened, strict=True))
    masks: Sequence[list[np.ndarray] | None] = [None] * len(pairs)
    if files.split != (0.0, 1.0):
        masks = in_part(pairs, files.split, cache)
    return [
        (source, RecordIndex(readers, KINDS_OF[task], source.fraction, chosen).only(files.kinds))
        for (source, readers), chosen in zip(pairs, masks, strict=True)
    ]


class FileBatches:
    """Makes joint batches from files.

    A record that cannot be used is logged, counted, and replaced by the next of its source in that epoch's order.
    """

    def __init__(
        self,
        files: Files,
        processor: UnifiedProcessor,
        builder: SequenceBuilder,
        seed: int,
        vq: ImageTokenizer | None = None,
        cache: Path | None = None,
    ) -> None:
        """Open the sources, and index those that ``cache`` does not know.

        Args:
            files: what to read.
            processor: the model's; it sets the size of images.
            builder: makes sequences.
            seed: of order and prompt dropout.
            vq: the model's image tokenizer; without it, images to be generated must come from a cache of image tokens, and
                whether the right tokenizer made that cache is not checked.
            cache: folder for indices.

        Raises:
            ValueError: a source is missing, of no known format, or of another tokenizer; a task has no data.
            BadDataError: too many records of a source cannot be parsed.
        """
        self.files, self.builder, self.seed, self._vq = files, builder, seed, vq
        self._preprocessor = ImagePreprocessor(processor)
        digest = None if vq is None else tokenizer_hash(vq)
        opened = [tuple(open_source(source, cache, digest)) for source in files.sources]
        for readers in opened:
            self._refuse_broken(readers)
        self._indices = {task: self._pools(task, opened, cache) for task in self.tasks}
        self.bad_records = BadRecordCounter(
            files.max_bad_ratio, sum(pool.used for pools, _ in self._indices.values() for pool in pools)
        )
        self._training = {task: Stream(pools, (seed, int(task))) for task, (pools, _) in self._indices.items()}
        self._aside = {task: Stream(pools, (seed, _ASIDE, int(task))) for task, (pools, _) in self._indices.items()}

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that this run has data of."""
        return tuple(task for task in Task if self.files.batch_size(task))

    @property
    def measurable(self) -> tuple[Task, ...]:
        """Tasks that ``task_batch`` makes batches of."""
        return self.tasks

    def batch(self, step: int, part: int = 0, of: int = 1, tasks: Sequence[Task] = tuple(Task)) -> JointBatch:
        """The joint batch of ``step``, or one ``part`` ``of`` several: one micro-batch per task, or one of packed rows.

        A process reads the records of its own parts and of ``tasks`` only.

        Raises:
            BadDataError: too many of the records read so far are bad.
        """
        pad = self.builder.tokenizer.pad_token_id
        drawn = {
            task: range(step * size + part, (step + 1) * size, of)
            for task in self.tasks
            if task in tasks
            for size in [self.files.batch_size(task)]
        }
        parts = [self._samples(self._training[task], task, numbers) for task, numbers in drawn.items()]
        if self.files.pack:
            return (pack([sample for part in parts for sample in part], self.files.max_length, pad),)
        return tuple(collate(part, pad) for part in parts)

    def task_batch(self, task: Task, size: int, key: int) -> JointBatch:
        """A batch of one task for measurements, in an order that training does not use; raises as ``batch``."""
        numbers = range(key * size, (key + 1) * size)
        return (collate(self._samples(self._aside[task], task, numbers), self.builder.tokenizer.pad_token_id),)

    def distinct_samples(self, task: Task, most: int) -> int:
        """Number of samples of ``distinct_batch``, up to ``most``, before a record is repeated."""
        seen: set[tuple[int, int]] = set()
        for number in range(most):
            draw = self._aside[task].draw(number)
            if draw in seen:
                return number
            seen.add(draw)
        return most

    def distinct_batch(self, task: Task, size: int, key: int) -> JointBatch:
        """``task_batch``, which repeats no record before all were used, except where sources have weights."""
        return self.task_batch(task, size, key)

    def records(self, task: Task, count: int) -> list[Record]:
        """Return the first ``count`` different records of ``task`` that can be parsed, in an order that training does not use."""
        found: dict[tuple[int, int], Record] = {}
        for number in range(self.distinct_samples(task, _TRIES * count)):
            pool, position = self._aside[task].draw(number)
            with contextlib.suppress(BadRecordError):
                found[pool, position] = self._indices[task][1][pool].record(position)
            if len(found) == count:
                break
        return list(found.values())

    def is_text(self, task: Task, number: int) -> bool:
        """Whether sample ``number`` of measurements is of a record without images, unless that record is bad."""
        pool, position = self._aside[task].draw(number)
        return self._indices[task][1][pool].kind(position) == "text"

    def lengths(self, task: Task, count: int) -> list[int]:
        """Tokens of the first ``count`` training samples of ``task``, images included; no image is encoded."""
        return [len(self._sample(self._training[task], task, number, False).input_ids) for number in range(count)]

    def _pools(
        self, task: Task, opened: list[tuple[Reader, ...]], cache: Path | None
    ) -> tuple[list[SourcePool], list[RecordIndex]]:
        pools, indices = [], []
        for number, (source, index) in enumerate(indices_of(self.files, opened, task, cache)):
            if size := len(index):
                used = min(size, source.max_samples or size)
                share = used * source.repeats if source.weight is None else source.weight
                pools.append(SourcePool(number, size, used, share))
                indices.append(index)
        if not pools:
            name = "mmu_batch_size" if task is Task.MMU else "t2i_batch_size"
            raise ValueError(
                f"{name}={self.files.batch_size(task)}, but no source has {' or '.join(KINDS_OF[task])} records: set it to 0, "
                "or see with `unidecouple data check` what the sources contain"
            )
        return pools, indices

    def _samples(self, stream: Stream, task: Task, numbers: Sequence[int]) -> list[Sample]:
        """The draws ``numbers`` of ``stream``; whether a draw's prompt is dropped depends on its number alone."""
        share = self.files.cond_dropout_prob if task is Task.T2I else 0.0
        dropped = [np.random.default_rng([self.seed, number, int(task)]).random() < share for number in numbers]
        return self._encoded([self._sample(stream, task, n, bool(drop)) for n, drop in zip(numbers, dropped, strict=True)])

    def _sample(self, stream: Stream, task: Task, number: int, dropped: bool) -> Sample:
        indices = self._indices[task][1]
        for skip in range(_TRIES):
            pool, position = stream.draw(number, skip)
            try:
                record = indices[pool].record(position)
                sample = build(record, self._preprocessor, self.builder, dropped, self.files.max_length)
            except BadRecordError as error:
                self.bad_records.skip(error)
            else:
                self.bad_records.good()
                return sample
        raise BadDataError(f"{_TRIES} records in a row are bad, as logged above: run `unidecouple data check`")

    def _encoded(self, samples: list[Sample]) -> list[Sample]:
        """``samples`` with tokens in place of pixels, all images encoded together."""
        every = [image for sample in samples for image in (*sample.images, *sample.sources)]
        pixel_images = [image for image in every if isinstance(image, np.ndarray)]
        if not pixel_images:
            return samples
        if self._vq is None:
            raise ValueError("images to be generated have no tokens: run `unidecouple data encode` on them, or give the tokenizer")
        encoded = encode_image_tokens(self._vq, pixels(pixel_images).to(self._vq.quantize.embedding.weight))
        if encoded.shape[1] != self.builder.num_image_tokens:
            raise ValueError(
                f"the tokenizer makes {encoded.shape[1]} tokens of an image, "
                f"but the processor has {self.builder.num_image_tokens}: they are of different models"
            )
        tokens = map(tuple, encoded.tolist())

        def of(images: tuple[EncodedImage | np.ndarray, ...]) -> tuple[EncodedImage, ...]:
            return tuple(next(tokens) if isinstance(one, np.ndarray) else one for one in images)

        return [replace(sample, images=of(sample.images), sources=of(sample.sources)) for sample in samples]

    def _refuse_broken(self, readers: tuple[Reader, ...]) -> None:
        """Log every record of a source that cannot be parsed; refuse the source if they are too many."""
        total = sum(len(reader.kinds) for reader in readers)
        counter = BadRecordCounter(self.files.max_bad_ratio, total)
        for reader in readers:
            for number in np.flatnonzero(reader.kinds == BAD):
                try:
                    reader.record(int(number))
                except BadRecordError as error:
                    counter.skip(error)
