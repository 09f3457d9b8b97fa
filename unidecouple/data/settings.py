"""Settings of training data: what every kind has, and those of users' own files. Other kinds are plug-ins with a subclass."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from unidecouple.batch import Task
from unidecouple.bounds import at_least, between
from unidecouple.data.columns import check_columns


@dataclass(frozen=True)
class Source:
    """One source of data.

    Attributes:
        path: a file, a folder, or a pattern with ``*`` (see ``formats/detect.py``).
        weight: its share of the samples, among all sources that have the task; None (for all or for none) makes the share its
            number of samples times ``repeats``.
        max_samples: use at most this many, chosen by the seed; the same ones every epoch.
        repeats: how often it comes in one pass over all sources.
        data_type: forces a format.
        root: where relative names of images start; by default the file's own folder.
        columns: our name of a key or column -> its name in the records, as in ``{question: q, answer: a, image: path}``.
        fraction: the part of its records that is used, from and to, per task and in a fixed shuffled order: [0, 0.95] and [0.95, 1]
            share no record, so one file serves training and validation.
    """

    path: Path
    weight: float | None = None
    max_samples: int | None = None
    repeats: float = 1.0
    data_type: str | None = None
    root: Path | None = None
    columns: dict[str, str] = field(default_factory=dict, hash=False)
    fraction: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_columns(self.columns)
        start, end = self.fraction
        if not 0 <= start < end <= 1:
            raise ValueError(f"fraction={[start, end]} of {self.path} must be two rising numbers from 0 to 1, such as [0, 0.95]")
        for name, value in (("weight", self.weight), ("max_samples", self.max_samples), ("repeats", self.repeats)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value} of {self.path} must be above 0 and finite; leave the source out instead")
        if self.weight is not None and self.repeats != 1.0:
            raise ValueError(f"{self.path} has weight={self.weight} and repeats={self.repeats}: give one of them")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What training, planning and comparison need of any kind of data.

    Attributes:
        mmu_batch_size: image understanding samples per step; 0: generation only.
        t2i_batch_size: text-to-image samples per step; 0: understanding only.
    """

    mmu_batch_size: int = 32
    t2i_batch_size: int = 32

    SCORED_BY_LOSS: ClassVar[bool] = False
    """Whether runs are scored by the loss on held-out samples."""
    GENERATED: ClassVar[bool] = False
    """Whether samples are generated into the cache when they are first opened."""
    TEST_SETTINGS: ClassVar[tuple[str, ...]] = ()
    """Dotted keys that only the final test depends on: a trained run may be tested with others."""

    @property
    def kind(self) -> str:
        """Name in ``plugins.DATA_SOURCES``; a subclass has a field of this name."""
        raise NotImplementedError

    @property
    def router_aux_samples(self) -> int:
        """Samples per step that train a task router only."""
        return 0

    @property
    def read_sources(self) -> tuple[Source, ...]:
        """Users' files that are read: a run does not resume when they have changed."""
        return ()

    @property
    def planning_note(self) -> str:
        """What ``plan`` leaves out, as a sentence; "" for nothing."""
        return ""

    @property
    def max_parts(self) -> int:
        """Into how many parts a step can be cut such that each holds every task; 0 for a step without samples."""
        return min((size for size in self._sizes() if size), default=0)

    def batch_size(self, task: Task) -> int:
        """Samples of ``task`` per step."""
        return self.mmu_batch_size if task is Task.MMU else self.t2i_batch_size

    def samples(self, task: Task, steps: range) -> int:
        """Samples of ``task`` in ``steps``."""
        return len(steps) * self.batch_size(task)

    def check_comparable(self) -> None:
        """Refuse data that variants cannot be compared on.

        Raises:
            ValueError: there are no samples to score on, say.
        """

    def _sizes(self) -> tuple[int, ...]:
        return self.mmu_batch_size, self.t2i_batch_size, self.router_aux_samples


@dataclass(frozen=True)
class Files(DataSettings):
    """Users' own files.

    Attributes:
        sources: files or folders to train on.
        validation: held-out sources that a run is scored on.
        split: the part of the records of all sources together that is trained on, from and to, in a fixed shuffled order. Records
            that share an image, in whatever source and task, are in one part. Without ``validation`` the part after it is held
            out: [0, 0.95] holds out a twentieth of each task.
        mmu_batch_size: image understanding and text samples per step; 0: generation only.
        t2i_batch_size: text-to-image samples per step; 0: understanding only.
        max_length: most tokens of a sequence, or of a row with ``pack``. Longer samples count as bad, and so do samples above the
            model's context length without ``pack``. Nothing is truncated.
        pack: several sequences per row, all tasks together, instead of one padded batch per task.
        cond_dropout_prob: fraction of prompts dropped, for classifier-free guidance.
        columns: column map of every source that has none.
        max_bad_ratio: fraction of bad records (unreadable, missing, too long) above which the run fails.
        kinds: which records are used: "mmu" (about images), "t2i", "text" (no image, understanding samples). Fractions and splits
            do not depend on it.
    """

    sources: tuple[Source, ...]
    validation: tuple[Source, ...] = ()
    max_length: int = 2048
    pack: bool = False
    cond_dropout_prob: float = 0.1
    max_bad_ratio: float = 0.01
    columns: dict[str, str] = field(default_factory=dict, hash=False)
    split: tuple[float, float] = (0.0, 1.0)
    kinds: tuple[Literal["mmu", "t2i", "text"], ...] = ("mmu", "t2i", "text")
    kind: Literal["files"] = field(default="files", kw_only=True)

    SCORED_BY_LOSS: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_columns(self.columns)
        for name in ("sources", "validation") if self.columns else ():
            mapped = tuple(replace(source, columns=source.columns or self.columns) for source in getattr(self, name))
            object.__setattr__(self, name, mapped)
        if not self.sources:
            raise ValueError("sources is empty: name at least one path")
        if self.mmu_batch_size < 0 or self.t2i_batch_size < 0 or not self.mmu_batch_size + self.t2i_batch_size:
            raise ValueError(f"mmu_batch_size={self.mmu_batch_size}, t2i_batch_size={self.t2i_batch_size}: one must be above 0")
        at_least(1, self, "max_length")
        if not 0 <= self.split[0] < self.split[1] <= 1:
            raise ValueError(f"split={list(self.split)} must rise within 0 and 1, as [0, 0.95] does")
        between(0, 1, self, "cond_dropout_prob", "max_bad_ratio")
        given = [source.weight is not None for source in self.sources]
        if any(given) and not all(given):
            missing = next(source.path for source in self.sources if source.weight is None)
            raise ValueError(f"{missing} has no weight, but other sources have: give all of them one, or none")

    @property
    def read_sources(self) -> tuple[Source, ...]:
        """See ``DataSettings``."""
        return (*self.sources, *self.validation)

    @property
    def held_out(self) -> Files | None:
        """What a run is scored on, without prompt dropout and packing; None where nothing is held out."""
        if not self.validation and self.split[1] == 1:
            return None
        split = (0.0, 1.0) if self.validation else (self.split[1], 1.0)
        return replace(self, sources=self.validation or self.sources, validation=(), split=split, cond_dropout_prob=0.0, pack=False)

    def check_comparable(self) -> None:
        """See ``DataSettings``."""
        if self.held_out is None:
            raise ValueError("run.data.validation is empty: name held-out sources, so that runs are not scored on training data")
