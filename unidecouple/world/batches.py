"""Joint batches of synthetic data, as a function of (seed, step): a resumed run continues without reading earlier data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from unidecouple.batch import JointBatch, Task
from unidecouple.data.sequences import QAPair, Sample, SequenceBuilder, TurnPart, collate, pixels
from unidecouple.files import write_array_atomic
from unidecouple.models.base import UnifiedModel
from unidecouple.models.vq import encode_image_tokens, tokenizer_hash
from unidecouple.source import Progress
from unidecouple.world.dataset import World, WorldData, load_world
from unidecouple.world.edit_questions import training_question
from unidecouple.world.edits import EDITS_VERSION, Edit, training_edit
from unidecouple.world.new_words import WordSamples
from unidecouple.world.questions import conversation, distinguishable, presence_question
from unidecouple.world.scene import CELL_NAMES, render
from unidecouple.world.settings import CurriculumPhase, SyntheticData
from unidecouple.world.text import check_text, passage_sample, training_passages

CONVERSATION: Final = "conversation"
POINTING: Final = ("pointing", "describing", "asking", "placing")


@dataclass(frozen=True)
class WorldBatches:
    """Makes joint batches of synthetic data.

    Attributes:
        data: batch sizes and mixture.
        world: training data.
        tokens: int64 (pairs, tokens of an image) image tokens of the pairs; empty if the run has no generation.
        builder: makes sequences.
        seed: of the order.
        edits: training edits; empty if the run has none.
        edit_tokens: int64 (edits, 2, tokens of an image) image tokens of their sources and targets.
    """

    data: SyntheticData
    world: World
    tokens: np.ndarray
    builder: SequenceBuilder
    seed: int
    edits: Sequence[Edit] = ()
    edit_tokens: np.ndarray | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks that this run has data of."""
        return tuple(task for task in Task if self.data.batch_size(task))

    @property
    def measurable(self) -> tuple[Task, ...]:
        """Tasks that ``task_batch`` makes batches of: understanding always, whether or not the run trains on it."""
        return tuple(task for task in Task if task is Task.MMU or len(self.tokens))

    def batch(self, step: int, part: int = 0, of: int = 1, tasks: Sequence[Task] = tuple(Task)) -> JointBatch:
        """The joint batch of ``step``, or one ``part`` ``of`` several: one micro-batch per task, plus router samples if any.

        Each task has its own random stream, so variants with other mixtures get the same samples of the task they share. With one
        of ``tasks``, the other's are left out; router samples belong to understanding.
        """
        pad = self.builder.tokenizer.pad_token_id
        return tuple(collate(samples[part::of], pad) for samples in self._samples(step, tuple(tasks)))

    @functools.cached_property
    def _samples(self) -> Callable[[int, tuple[Task, ...]], list[list[Sample]]]:
        """``_sample`` with the last step cached: a process takes several parts of it."""
        return functools.lru_cache(maxsize=1)(self._sample)

    def _sample(self, step: int, tasks: Sequence[Task]) -> list[list[Sample]]:
        """All samples of ``tasks`` in ``step``, one list per micro-batch."""
        found: list[list[Sample]] = []
        if self.data.mmu_batch_size and Task.MMU in tasks:
            rng = np.random.default_rng([self.seed, step, Task.MMU])
            phase = self._phase(step)
            found.append([self._training_sample(rng, phase.kind) for _ in range(phase.batch_size)])
        if self.data.t2i_batch_size and Task.T2I in tasks:
            rng = np.random.default_rng([self.seed, step, Task.T2I])
            chosen = self.world.single_object_pairs if step < self.data.single_object_steps else None
            found.append([self._pair(rng, chosen) for _ in range(self.data.t2i_batch_size)])
        if self.data.router_aux_samples and Task.MMU in tasks:
            rng = np.random.default_rng([self.seed, step, len(Task)])
            found.append([self._router_sample(rng) for _ in range(self.data.router_aux_samples)])
        return found

    def task_batch(self, task: Task, size: int, key: int) -> JointBatch:
        """A batch of one task for measurements, from a random stream that training does not use."""
        rng = np.random.default_rng([self.seed, key, 97, task])
        samples = [self._understanding(rng, CONVERSATION) if task is Task.MMU else self._pair(rng) for _ in range(size)]
        return (collate(samples, self.builder.tokenizer.pad_token_id),)

    def distinct_samples(self, task: Task, most: int) -> int:
        """Number of samples of ``distinct_batch``, up to ``most``, before a scene or a pair is repeated."""
        return min(most, len(self.world.scenes) if task is Task.MMU else len(self.tokens))

    def distinct_batch(self, task: Task, size: int, key: int) -> JointBatch:
        """``task_batch`` without replacement: there, two batches may have the same scene or pair."""
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

    def _training_sample(self, rng: np.random.Generator, kind: str) -> Sample:
        """A passage of text, else a sample of the phase."""
        if self.data.text_share and rng.random() < self.data.text_share:
            return passage_sample(self.builder, str(rng.choice(training_passages())))
        return self._understanding(rng, kind)

    def _understanding(self, rng: np.random.Generator, kind: str) -> Sample:
        if kind in POINTING:
            index = self._distinguishable[int(rng.integers(len(self._distinguishable)))]
            objects = distinguishable(self.world.scenes[index])
            obj = objects[int(rng.integers(len(objects)))]
            row_and_column = CELL_NAMES[obj.cell].split()
            answer = {
                "placing": " ".join(row_and_column),
                "describing": " ".join([obj.color, *rng.permutation(row_and_column)]),
            }.get(kind, obj.color)
            return self.builder.pointing(self.world.scene_images[index], obj.name, answer, kind in ("asking", "placing"))
        if kind == CONVERSATION and self.data.edit_question_fraction and rng.random() < self.data.edit_question_fraction:
            return self._edit_question(rng)
        if kind == CONVERSATION and self._uses_new_word(rng) and self._words.scenes:
            index, turns = self._words.conversation(rng, self.data.turns)
            return self.builder.understanding(self.world.scene_images[index], turns)
        index = int(rng.integers(len(self.world.scenes)))
        if kind != "presence":
            return self._conversation(rng, index, 0 if kind == "caption" else self.data.turns)
        turns = [presence_question(self.world.scenes[index], rng) for _ in range(self.data.turns)]
        return self.builder.understanding(self.world.scene_images[index], turns)

    def _conversation(self, rng: np.random.Generator, index: int, turns: int) -> Sample:
        """Questions about one scene, or its caption where ``turns`` is 0."""
        return self.builder.understanding(self.world.scene_images[index], conversation(self.world.scenes[index], rng, turns))

    @functools.cached_property
    def _words(self) -> WordSamples:
        """Samples that can use a new word."""
        return WordSamples.of(self.world, self.data.new_words, self.data.rare_samples)

    def _uses_new_word(self, rng: np.random.Generator) -> bool:
        return self.data.new_words > 0 and bool(rng.random() < self.data.new_word_share)

    @functools.cached_property
    def _distinguishable(self) -> list[int]:
        """Scenes with distinguishable objects."""
        found = [index for index, scene in enumerate(self.world.scenes) if distinguishable(scene)]
        if not found:
            raise ValueError(
                f"no scene of {len(self.world.scenes)} has distinguishable objects: raise data.scenes, or leave out the curriculum"
            )
        return found

    def _pair(self, rng: np.random.Generator, among: np.ndarray | None = None) -> Sample:
        if among is None and self.edits and rng.random() < self.data.edit_fraction:
            return self._edit(rng)
        if among is None and self._uses_new_word(rng) and self._words.pairs:
            index, prompt = self._words.pair(rng)
        else:
            index = int(rng.integers(len(self.world.prompts)) if among is None else rng.choice(among))
            prompt = self.world.prompts[index]
        dropped = bool(rng.random() < self.data.cond_dropout_prob)
        return self.builder.generation(prompt, self.tokens[index].tolist(), dropped)

    def _edit(self, rng: np.random.Generator) -> Sample:
        assert self.edit_tokens is not None
        number = int(rng.integers(len(self.edits)))
        source, target = (tuple(codes) for codes in self.edit_tokens[number].tolist())
        dropped = bool(rng.random() < self.data.cond_dropout_prob)
        turns: list[tuple[str, list[TurnPart]]] = [
            ("user", [render(self.edits[number].source), self.edits[number].text]),
            ("assistant", [target]),
        ]
        return replace(self.builder.conversation(turns, Task.T2I, dropped), sources=() if dropped else (source,))

    def _edit_question(self, rng: np.random.Generator) -> Sample:
        """A question after an edit about its source image, half of the time with the edited image after it."""
        one = training_question(rng)
        shown = [render(scene) for scene in (one.edit.source, one.edit.target)[: int(rng.integers(1, 3))]]
        return self.builder.conversation([("user", [*shown, one.question.text]), ("assistant", [one.question.answer])], Task.MMU)

    def _router_sample(self, rng: np.random.Generator) -> Sample:
        """An image and one to three turns without targets: its own prompt, or random words of the vocabulary.

        Only the context separates these words from a prompt's, so the router must learn to use the context. Otherwise it would
        assign words to generation that it has only seen in prompts, or never.
        """
        index = int(rng.integers(len(self.world.prompts)))
        prompt = self.world.prompts[index]

        def text(most: int) -> str:
            return " ".join(rng.choice(self._vocabulary, int(rng.integers(1, most + 1)))) if rng.random() < 0.75 else prompt

        turns = [QAPair("router", text(10), text(4)) for _ in range(int(rng.integers(1, 4)))]
        return self.builder.understanding(self.world.pair_images[index], turns, answered=False)

    @functools.cached_property
    def _vocabulary(self) -> list[str]:
        special = set(self.builder.tokenizer.all_special_tokens)
        return sorted(set(self.builder.tokenizer.get_vocab()) - special)


def world_batches(
    data: SyntheticData, model: UnifiedModel, builder: SequenceBuilder, seed: int, cache: Path, progress: Progress
) -> WorldBatches:
    """Synthetic data for ``model``: rendered on first use, and encoded once per tokenizer (2 bytes per token)."""
    if data.text_share:
        check_text(builder, model.config.text_config.max_position_embeddings)
    world = load_world(WorldData(data.pairs, data.scenes, data.seed), cache, progress)
    if not data.t2i_batch_size:
        return WorldBatches(data, world, np.zeros((0, 0), np.int64), builder, seed)
    path = world.folder / f"image-tokens-{tokenizer_hash(model.model.vqmodel)[:12]}.npy"
    if not path.is_file():
        write_array_atomic(path, _encode(model, world.pair_images, progress))
    batches = WorldBatches(data, world, np.load(path).astype(np.int64), builder, seed)
    if not data.edit_fraction:
        return batches
    rng = np.random.default_rng([data.seed, 3])
    edits = [training_edit(rng) for _ in range(data.pairs)]
    path = path.with_name(f"edit-tokens-{EDITS_VERSION}-{tokenizer_hash(model.model.vqmodel)[:12]}.npy")
    if not path.is_file():
        images = np.stack([render(scene) for one in edits for scene in (one.source, one.target)])
        write_array_atomic(path, _encode(model, images, progress))
    tokens = np.load(path).astype(np.int64)
    return replace(batches, edits=edits, edit_tokens=tokens.reshape(len(edits), 2, -1))


def _encode(model: UnifiedModel, images: np.ndarray, progress: Progress, batch_size: int = 64) -> np.ndarray:
    parts = []
    for start in range(0, len(images), batch_size):
        chunk = pixels(images[start : start + batch_size]).contiguous(memory_format=torch.channels_last).to(model.device)
        parts.append(encode_image_tokens(model.model.vqmodel, chunk).cpu().numpy().astype(np.uint16))
        progress("encoding images as image tokens", start, len(images))
    return np.concatenate(parts)
