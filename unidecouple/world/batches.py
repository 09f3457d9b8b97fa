"""The joint batch of a step, as a function of (seed, step): a resumed run needs no data position and no re-reading."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from unidecouple.batch import JointBatch, Task
from unidecouple.data.sequences import Question, Sample, SequenceBuilder, collate, pixels
from unidecouple.files import write_array_atomic
from unidecouple.models.base import UnifiedModel
from unidecouple.models.vq import encode_image_tokens, tokenizer_hash
from unidecouple.source import Progress
from unidecouple.world.dataset import World, WorldData, load_world
from unidecouple.world.questions import conversation, poll, tell_apart
from unidecouple.world.scene import CELL_NAMES
from unidecouple.world.settings import CurriculumPhase, SyntheticData

CONVERSATION: Final = "conversation"
POINTING: Final = ("pointing", "describing", "asking", "placing")


@dataclass(frozen=True)
class WorldBatches:
    """Draws joint batches from the world.

    Attributes:
        data: batch sizes and mixture.
        world: training data.
        tokens: int64 (pairs, tokens of an image) image tokens of the pairs' pictures; empty if the run has no generation.
        builder: makes sequences.
        seed: of the order.
    """

    data: SyntheticData
    world: World
    tokens: np.ndarray
    builder: SequenceBuilder
    seed: int

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that this run has data of."""
        sizes = {Task.MMU: self.data.mmu_batch_size, Task.T2I: self.data.t2i_batch_size}
        return tuple(task for task, size in sizes.items() if size)

    @property
    def measurable(self) -> tuple[Task, ...]:
        """Tasks that ``task_batch`` draws: the world has conversations, whether or not the run trains on them."""
        return tuple(task for task in Task if task is Task.MMU or len(self.tokens))

    def batch(self, step: int, part: int = 0, of: int = 1, tasks: Sequence[Task] = tuple(Task)) -> JointBatch:
        """The joint batch of ``step``, or one ``part`` ``of`` several: one micro-batch a task, plus router samples if any.

        Each task draws from its own stream, so that variants with other mixtures see the same samples of the task they share.
        With one of ``tasks`` alone, the other's are left out; router samples are understanding's.
        """
        pad = self.builder.tokenizer.pad_token_id
        return tuple(collate(samples[part::of], pad) for samples in self._drawn(step, tuple(tasks)))

    @functools.cached_property
    def _drawn(self) -> Callable[[int, tuple[Task, ...]], list[list[Sample]]]:
        """``_draw`` of the last step asked for is kept: a process takes several parts of it."""
        return functools.lru_cache(maxsize=1)(self._draw)

    def _draw(self, step: int, tasks: Sequence[Task]) -> list[list[Sample]]:
        """All samples of ``step`` that are of ``tasks``, a list for each micro-batch."""
        drawn: list[list[Sample]] = []
        if self.data.mmu_batch_size and Task.MMU in tasks:
            rng = np.random.default_rng([self.seed, step, Task.MMU])
            phase = self._phase(step)
            drawn.append([self._understanding(rng, phase.kind) for _ in range(phase.batch_size)])
        if self.data.t2i_batch_size and Task.T2I in tasks:
            rng = np.random.default_rng([self.seed, step, Task.T2I])
            chosen = self.world.single_object_pairs if step < self.data.single_object_steps else None
            drawn.append([self._pair(rng, chosen) for _ in range(self.data.t2i_batch_size)])
        if self.data.router_aux_samples and Task.MMU in tasks:
            rng = np.random.default_rng([self.seed, step, len(Task)])
            drawn.append([self._router_sample(rng) for _ in range(self.data.router_aux_samples)])
        return drawn

    def task_batch(self, task: Task, size: int, key: int) -> JointBatch:
        """A batch of one task for measurements, from a stream that training does not use."""
        rng = np.random.default_rng([self.seed, key, 97, task])
        samples = [self._understanding(rng, CONVERSATION) if task is Task.MMU else self._pair(rng) for _ in range(size)]
        return (collate(samples, self.builder.tokenizer.pad_token_id),)

    def distinct_samples(self, task: Task, most: int) -> int:
        """How many samples of ``distinct_batch`` come, up to ``most``, before a scene or a pair comes again."""
        return min(most, len(self.world.scenes) if task is Task.MMU else len(self.tokens))

    def distinct_batch(self, task: Task, size: int, key: int) -> JointBatch:
        """As ``task_batch``, without replacement: ``task_batch`` may show one scene or pair in two batches."""
        order = np.random.default_rng([self.seed, 98, task]).permutation(self.distinct_samples(task, 1 << 62))
        rng = np.random.default_rng([self.seed, key, 97, task])
        samples = [
            self._conversation(rng, int(index), self.data.turns) if task is Task.MMU else self._pair(rng, np.array([index]))
            for index in order[key * size : (key + 1) * size]
        ]
        return (collate(samples, self.builder.tokenizer.pad_token_id),)

    def _phase(self, step: int) -> CurriculumPhase:
        for phase in self.data.curriculum:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return CurriculumPhase(CONVERSATION, 0, self.data.mmu_batch_size)

    def _understanding(self, rng: np.random.Generator, kind: str) -> Sample:
        if kind in POINTING:
            index = self._telling[int(rng.integers(len(self._telling)))]
            things = tell_apart(self.world.scenes[index])
            thing = things[int(rng.integers(len(things)))]
            row_and_column = CELL_NAMES[thing.cell].split()
            answer = {
                "placing": " ".join(row_and_column),
                "describing": " ".join([thing.color, *rng.permutation(row_and_column)]),
            }.get(kind, thing.color)
            return self.builder.pointing(self.world.scene_images[index], thing.name, answer, kind in ("asking", "placing"))
        index = int(rng.integers(len(self.world.scenes)))
        if kind != "presence":
            return self._conversation(rng, index, 0 if kind == "caption" else self.data.turns)
        turns = [poll(self.world.scenes[index], rng) for _ in range(self.data.turns)]
        return self.builder.understanding(self.world.scene_images[index], turns)

    def _conversation(self, rng: np.random.Generator, index: int, turns: int) -> Sample:
        """Questions about one scene, or its caption where ``turns`` is 0."""
        return self.builder.understanding(self.world.scene_images[index], conversation(self.world.scenes[index], rng, turns))

    @functools.cached_property
    def _telling(self) -> list[int]:
        """Scenes whose objects can be told apart."""
        found = [index for index, scene in enumerate(self.world.scenes) if tell_apart(scene)]
        if not found:
            raise ValueError(
                f"none of {len(self.world.scenes)} scenes can be pointed at: raise data.scenes, or leave out data.curriculum"
            )
        return found

    def _pair(self, rng: np.random.Generator, among: np.ndarray | None = None) -> Sample:
        index = int(rng.integers(len(self.world.prompts)) if among is None else rng.choice(among))
        dropped = bool(rng.random() < self.data.cond_dropout_prob)
        return self.builder.generation(self.world.prompts[index], self.tokens[index].tolist(), dropped)

    def _router_sample(self, rng: np.random.Generator) -> Sample:
        """A picture and one to three turns about it without targets: its own prompt, or words of the vocabulary at random.

        Only the context tells such words from a prompt's, so the router must learn to go by that. Questions and their answers
        are not known to it: it would otherwise take words that it has only seen in prompts, or never, for generation.
        """
        index = int(rng.integers(len(self.world.prompts)))
        prompt = self.world.prompts[index]

        def text(most: int) -> str:
            return " ".join(rng.choice(self._words, int(rng.integers(1, most + 1)))) if rng.random() < 0.75 else prompt

        turns = [Question("router", text(10), text(4)) for _ in range(int(rng.integers(1, 4)))]
        return self.builder.understanding(self.world.pair_images[index], turns, answered=False)

    @functools.cached_property
    def _words(self) -> list[str]:
        special = set(self.builder.tokenizer.all_special_tokens)
        return sorted(set(self.builder.tokenizer.get_vocab()) - special)


def world_batches(
    data: SyntheticData, model: UnifiedModel, builder: SequenceBuilder, seed: int, cache: Path, progress: Progress
) -> WorldBatches:
    """The world's data for ``model``: drawn if need be, and encoded by its tokenizer once (2 bytes a token, kept by its hash)."""
    world = load_world(WorldData(data.pairs, data.scenes, data.seed), cache, progress)
    if not data.t2i_batch_size:
        return WorldBatches(data, world, np.zeros((0, 0), np.int64), builder, seed)
    path = world.folder / f"image-tokens-{tokenizer_hash(model.model.vqmodel)[:12]}.npy"
    if not path.is_file():
        write_array_atomic(path, _encode(model, world.pair_images, progress))
    return WorldBatches(data, world, np.load(path).astype(np.int64), builder, seed)


def _encode(model: UnifiedModel, images: np.ndarray, progress: Progress, batch_size: int = 64) -> np.ndarray:
    parts = []
    for start in range(0, len(images), batch_size):
        chunk = pixels(images[start : start + batch_size]).contiguous(memory_format=torch.channels_last).to(model.device)
        parts.append(encode_image_tokens(model.model.vqmodel, chunk).cpu().numpy().astype(np.uint16))
        progress("encoding pictures as image tokens", start, len(images))
    return np.concatenate(parts)
