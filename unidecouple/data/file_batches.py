"""Joint batches from users' own files: what ``train`` needs of a source of data, as a function of (seed, step)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from transformers.models.janus.modeling_janus import JanusVQVAE

from unidecouple.batch import NO_IMAGE_TOKEN, JointBatch, Task
from unidecouple.data.formats import KINDS, BadRecordError, Reader, Record, open_readers
from unidecouple.data.formats.record import ImageTokens, Picture
from unidecouple.data.mixture import Files, Pool, Stream
from unidecouple.data.packing import pack
from unidecouple.data.pictures import Shaper, picture_name
from unidecouple.data.sequences import Part, Sample, SequenceBuilder, collate, pixels
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.models.vq import encode_image_tokens, tokenizer_hash

_KINDS_OF: Final = {Task.MMU: ("mmu", "text"), Task.T2I: ("t2i",)}
_TRIES: Final = 100
_SOON: Final = 1000
"""Draws from which on the share of bad records is taken of what was seen, not of what could still come."""

_log = logging.getLogger(__name__)


class BadDataError(ValueError):
    """More records are bad than ``max_bad_ratio`` allows."""


@dataclass(frozen=True)
class _Shelf:
    """The records of one source that one task draws from, by number over the source's files."""

    readers: tuple[Reader, ...]
    numbers: np.ndarray
    starts: np.ndarray

    def record(self, position: int) -> Record:
        number = int(self.numbers[position])
        reader = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.readers[reader].record(number - int(self.starts[reader]))


class FileBatches:
    """Draws joint batches from files.

    A record that cannot be used is logged, counted, and replaced by the next of its source in the order of that epoch.
    """

    def __init__(
        self,
        files: Files,
        processor: UniJanusProcessor,
        builder: SequenceBuilder,
        seed: int,
        vq: JanusVQVAE | None = None,
        cache: Path | None = None,
    ) -> None:
        """Open the sources, and index those that ``cache`` does not know.

        Args:
            files: what to read.
            processor: the model's; its image processor shapes pictures.
            builder: makes sequences.
            seed: of order and prompt dropout.
            vq: the model's image tokenizer; without it, pictures to be drawn must come from a cache of image tokens, and
                nothing can tell whether that was made by the right one.
            cache: folder for indices.

        Raises:
            ValueError: a source is missing, of no known format, or of another tokenizer; a task has no data.
            BadDataError: too many records of a source cannot be parsed.
        """
        self.files, self.builder, self.seed, self._vq = files, builder, seed, vq
        self._shaper = Shaper(processor)
        self.drawn, self.bad = 0, 0
        self._told: set[str] = set()
        digest = None if vq is None else tokenizer_hash(vq)
        opened = [tuple(open_readers(s.path, s.data_type, s.root, cache, digest)) for s in files.sources]
        for readers in opened:
            self._refuse_broken(readers)
        self._streams = {task: self._stream(task, opened) for task in self.tasks}

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that this run has data of."""
        return tuple(task for task in Task if self._batch_size(task))

    def batch(self, step: int) -> JointBatch:
        """The joint batch of ``step``: one micro-batch a task, or one of packed rows.

        Raises:
            BadDataError: too many of the records drawn so far are bad.
        """
        pad = self.builder.tokenizer.pad_token_id
        parts = [self._samples(task, step) for task in self.tasks]
        if self.files.pack:
            return (pack([sample for part in parts for sample in part], self.files.max_length, pad),)
        return tuple(collate(part, pad) for part in parts)

    def _batch_size(self, task: Task) -> int:
        return self.files.mmu_batch_size if task is Task.MMU else self.files.t2i_batch_size

    def _stream(self, task: Task, opened: list[tuple[Reader, ...]]) -> tuple[Stream, list[_Shelf]]:
        wanted = [KINDS.index(kind) for kind in _KINDS_OF[task]]
        pools, shelves = [], []
        for number, (source, readers) in enumerate(zip(self.files.sources, opened, strict=True)):
            kinds = np.concatenate([reader.kinds for reader in readers])
            shelf = _Shelf(readers, np.flatnonzero(np.isin(kinds, wanted)), np.cumsum([0, *(len(r.kinds) for r in readers)]))
            if size := len(shelf.numbers):
                used = min(size, source.max_samples or size)
                share = used * source.repeats if source.weight is None else source.weight
                pools.append(Pool(number, size, used, share))
                shelves.append(shelf)
        if not pools:
            name = "mmu_batch_size" if task is Task.MMU else "t2i_batch_size"
            raise ValueError(
                f"{name}={self._batch_size(task)}, but no source has {' or '.join(_KINDS_OF[task])} records: set it to 0, "
                "or see with `unidecouple data check` what the sources hold"
            )
        return Stream(pools, (self.seed, int(task))), shelves

    def _samples(self, task: Task, step: int) -> list[Sample]:
        size = self._batch_size(task)
        dropped = np.random.default_rng([self.seed, step, int(task)]).random(size) < self.files.cond_dropout_prob
        made = [self._drawn(task, step * size + n, bool(dropped[n]) and task is Task.T2I) for n in range(size)]
        return self._encoded(made)

    def _drawn(self, task: Task, number: int, dropped: bool) -> tuple[Sample, list[np.ndarray]]:
        """Draw ``number`` of ``task``, and the pictures whose tokens it still lacks."""
        stream, shelves = self._streams[task]
        self.drawn += 1
        for skip in range(_TRIES):
            pool, position = stream.draw(number, skip)
            try:
                return self._sample(shelves[pool].record(position), task, dropped)
            except BadRecordError as error:
                self._count(error, sum(p.used for p in stream.pools))
        raise BadDataError(f"{_TRIES} records in a row are bad, the last being told above: run `unidecouple data check`")

    def _sample(self, record: Record, task: Task, dropped: bool) -> tuple[Sample, list[np.ndarray]]:
        waiting: list[np.ndarray] = []
        try:
            turns = [(turn.role, [self._part(p, record, turn.role, waiting) for p in turn.parts]) for turn in record.turns]
            sample = self.builder.conversation(turns, task, dropped)
        except (ValueError, OSError) as error:
            raise BadRecordError(record.where, str(error)) from error
        if len(sample.input_ids) > self.files.max_length:
            raise BadRecordError(record.where, f"{len(sample.input_ids)} tokens are more than max_length={self.files.max_length}")
        return sample, waiting

    def _part(self, part: str | Picture, record: Record, role: str, waiting: list[np.ndarray]) -> Part:
        if isinstance(part, str):
            return part
        if record.kind != "t2i" or role != "assistant":
            return self._shaper.understood(part)
        if isinstance(part, ImageTokens):
            return self._cached(part)
        if self._vq is None:
            raise ValueError(f"picture {picture_name(part)} has no tokens: run `unidecouple data encode`, or give the tokenizer")
        waiting.append(self._shaper.drawn(part))
        return (0,) * self.builder.num_image_tokens

    def _cached(self, part: ImageTokens) -> tuple[int, ...]:
        tokens = tuple(part.read().tolist())
        if len(tokens) != self.builder.num_image_tokens:
            raise ValueError(f"{len(tokens)} tokens a picture where the model has {self.builder.num_image_tokens}: encode it again")
        return tokens

    def _encoded(self, made: Iterable[tuple[Sample, list[np.ndarray]]]) -> list[Sample]:
        """The samples with the tokens they lacked, all pictures encoded together."""
        pairs = list(made)
        waiting = [picture for _, pictures in pairs for picture in pictures]
        if not waiting or self._vq is None:
            return [sample for sample, _ in pairs]
        tokens = iter(encode_image_tokens(self._vq, pixels(waiting).to(self._vq.quantize.embedding.weight)).tolist())
        out = []
        for sample, pictures in pairs:
            values = iter([token for _ in pictures for token in next(tokens)])
            image = [next(values) if token != NO_IMAGE_TOKEN and pictures else token for token in sample.image_tokens]
            out.append(replace(sample, image_tokens=image))
        return out

    def _refuse_broken(self, readers: tuple[Reader, ...]) -> None:
        """Log every record of a source that cannot be parsed; refuse the source if they are too many."""
        broken, count = [], 0
        for reader in readers:
            count += len(reader.kinds)
            broken += [(reader, int(number)) for number in np.flatnonzero(reader.kinds == len(KINDS))]
        reasons = []
        for reader, number in broken:
            try:
                reader.record(number)
            except BadRecordError as error:
                _log.warning("skipped: %s", error)
                reasons.append(str(error))
        if len(broken) > self.files.max_bad_ratio * count:
            raise BadDataError(
                f"{len(broken)} of {count} records are bad, more than max_bad_ratio={self.files.max_bad_ratio}; the first: {reasons[0]}"
            )

    def _count(self, error: BadRecordError, size: int) -> None:
        self.bad += 1
        if error.where not in self._told:
            self._told.add(error.where)
            _log.warning("skipped: %s", error)
        if self.bad > self.files.max_bad_ratio * max(self.drawn, min(size, _SOON)):
            raise BadDataError(
                f"{self.bad} of {self.drawn} records drawn are bad, more than max_bad_ratio={self.files.max_bad_ratio}; "
                f"the last: {error}. `unidecouple data check` lists them all"
            )
