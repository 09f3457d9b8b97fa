"""New words: invented names of classes that the bases know by other names, often in one task's data and rarely in the other's.

A base has the images and not the words. So a word that only conversations use can reach generation through shared weights alone,
and the other way round: what a run scores on a task's rare words, beyond what the task's own data teach, is transfer between the
tasks. Ours; the names are those of studies of word learning (Berko 1958, Carey and Bartlett 1978).

Half of a run's words are plentiful in conversations and rare in prompts, the other half the reverse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unidecouple.batch import Task
from unidecouple.data.sequences import QAPair
from unidecouple.eval.benchmark import Answers, BenchmarkResult, QABenchmark, Query, Score, evaluate
from unidecouple.eval.geneval_files import geneval_benchmark
from unidecouple.eval.model import EvalModel
from unidecouple.eval.vqa_rules import EXACT, normalize
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.world.catalog import CLASSES, NEW_WORDS
from unidecouple.world.dataset import World
from unidecouple.world.judge import TemplateJudge
from unidecouple.world.prompts import Prompt, held_out
from unidecouple.world.questions import CAPTION_REQUEST, caption, pope, vqa
from unidecouple.world.scene import Scene, random_scene_of, render

KINDS: tuple[str, ...] = ("pope", "color", "position")
PLENTIFUL, RARE = "plentiful_words", "rare_words"
"""Metrics: scores on the words that the metric's task sees often, and rarely or never."""
_TEST_STREAM = 5


def words_of(count: int, task: Task) -> dict[str, tuple[str, ...]]:
    """The first ``count`` words by how often ``task`` sees them."""
    words = tuple(NEW_WORDS)[:count]
    first, second = words[: count // 2], words[count // 2 :]
    return {PLENTIFUL: first, RARE: second} if task is Task.MMU else {PLENTIFUL: second, RARE: first}


def renamed(text: str, word: str) -> str:
    """``text`` with ``word`` in place of its class; no class here needs another article."""
    return re.sub(rf"\b{NEW_WORDS[word]}\b", word, text)


def questions(scene: Scene, word: str, among: Sequence[str]) -> list[QAPair]:
    """Questions about the one object of ``scene`` that ``word`` names, and about those of ``among`` that are absent."""
    absent = [pope(other, False) for other in among if NEW_WORDS[other] not in scene.names]
    own = [replace(one, text=renamed(one.text, word)) for one in vqa(scene) if _names_once(one.text, word)]
    return [pope(word, True), *absent, *(one for one in own if one.kind in KINDS)]


def check_words(processor: UnifiedProcessor, count: int) -> None:
    """Refuse a tokenizer that lacks one of the first ``count`` words.

    Raises:
        ValueError: it does.
    """
    known = processor.tokenizer.get_vocab()
    if missing := [word for word in tuple(NEW_WORDS)[:count] if word not in known]:
        raise ValueError(f"data.new_words: the tokenizer has no {', '.join(missing)}: set add_tokens: [{', '.join(missing)}]")


@dataclass(frozen=True)
class WordSamples:
    """Which training samples can use which word.

    Attributes:
        world: training data.
        pairs, scenes: word -> indices of pairs that name its class once, and of scenes with one object of it.
    """

    world: World
    pairs: dict[str, list[int]]
    scenes: dict[str, list[int]]

    @classmethod
    def of(cls, world: World, count: int, rare_samples: int) -> WordSamples:
        """The samples of the first ``count`` words; of a rare one at most ``rare_samples``.

        Raises:
            ValueError: a plentiful word has none.
        """
        pairs: dict[str, list[int]] = {}
        scenes: dict[str, list[int]] = {}
        for task, found in ((Task.T2I, pairs), (Task.MMU, scenes)):
            for supply, words in words_of(count, task).items():
                for word in words:
                    every = _pairs(world, word) if task is Task.T2I else _scenes(world, word)
                    found[word] = every[:rare_samples] if supply == RARE else every
                    if supply == PLENTIFUL and not every:
                        raise ValueError(
                            f"no sample shows a {NEW_WORDS[word]}, which {word!r} names: raise data.pairs and data.scenes"
                        )
        return cls(world, _kept(pairs), _kept(scenes))

    def pair(self, rng: np.random.Generator) -> tuple[int, str]:
        """A pair's index, and its prompt with a new word."""
        word = _choice(rng, tuple(self.pairs))
        index = self.pairs[word][int(rng.integers(len(self.pairs[word])))]
        return index, renamed(self.world.prompts[index], word)

    def conversation(self, rng: np.random.Generator, turns: int) -> tuple[int, list[QAPair]]:
        """A scene's index, and up to ``turns`` questions about one of its objects by its new name, then the caption."""
        word = _choice(rng, tuple(self.scenes))
        index = self.scenes[word][int(rng.integers(len(self.scenes[word])))]
        scene = self.world.scenes[index]
        possible = questions(scene, word, [other for other in self.scenes if other != word])
        asked = []
        for _ in range(int(rng.integers(1, turns + 1)) if turns else 0):
            kind = _choice(rng, KINDS)
            mine = [one for one in possible if one.kind == kind]
            if kind == "pope":  # present and absent equally often
                answer = _choice(rng, ("yes", "no"))
                mine = [one for one in mine if one.answer == answer] or mine
            asked.append(mine[int(rng.integers(len(mine)))])
        return index, [*asked, QAPair("caption", CAPTION_REQUEST, renamed(caption(scene), word))]


def word_questions(words: Sequence[str], per_kind: int, seed: int) -> tuple[list[Scene], list[tuple[int, QAPair]]]:
    """Scenes, and (scene's number, question): ``per_kind`` of each kind about each word, present and absent equally often."""
    rng = np.random.default_rng([_TEST_STREAM, seed])
    scenes: list[Scene] = []
    asked: list[tuple[int, QAPair]] = []
    for word in words:
        for number in range(per_kind):
            others = [name for name in CLASSES if name not in NEW_WORDS.values()]
            names = [NEW_WORDS[word], *map(str, rng.choice(others, int(rng.integers(0, 4)), replace=False))]
            shown, without = random_scene_of(rng, names), random_scene_of(rng, [*names[1:], str(rng.choice(others))][:4])
            found = {one.kind: one for one in questions(shown, word, ())}
            asked += [(len(scenes), found[kind]) for kind in KINDS if kind != "pope" or number % 2]
            asked += [] if number % 2 else [(len(scenes) + 1, pope(word, False))]
            scenes += [shown, without]
    return scenes, asked


def word_prompts(words: Sequence[str], per_word: int, split: str) -> list[Prompt]:
    """Up to ``per_word`` held-out prompts of each word: those of its class that count nothing, with the word in its place."""
    found: list[Prompt] = []
    for word in words:
        mine = [one for one in held_out(split)[0] if one.tag != "counting" and _names_once(one.text, word)]
        wanted = min(per_word, len(mine))
        chosen = [mine[index * len(mine) // wanted] for index in range(wanted)]
        found += [replace(one, text=renamed(one.text, word)) for one in chosen]
    return found


def score_new_words(model: EvalModel, count: int, per_word: int, num_images: int, split: str, seed: int) -> list[Score]:
    """Rows "plentiful_words" and "rare_words" of understanding ("vqa", mean over kinds) and generation ("geneval", overall)."""
    rows: list[Score] = []
    for supply, words in words_of(count, Task.MMU).items():
        scenes, asked = word_questions(words, per_word, seed)
        images = [render(scene) for scene in scenes]
        queries = tuple(Query(str(n), question.text, images[at]) for n, (at, question) in enumerate(asked))

        def score(answers: Answers, supply: str = supply, asked: Sequence[tuple[int, QAPair]] = asked) -> BenchmarkResult:
            right = [(one.kind, normalize(answers[str(n)]) == one.answer) for n, (_, one) in enumerate(asked)]
            kinds = [float(np.mean([hit for kind, hit in right if kind == wanted])) for wanted in KINDS]
            return BenchmarkResult((Score("vqa", supply, float(np.mean(kinds)), EXACT, 1.0),))

        rows += evaluate(QABenchmark("vqa", queries, score), model).scores
    for supply, words in words_of(count, Task.T2I).items():
        metadata = [prompt.to_json() for prompt in word_prompts(words, per_word, split)]
        drawn = evaluate(geneval_benchmark(metadata, num_images, TemplateJudge()), model).scores
        rows += [replace(row, metric=supply) for row in drawn if row.metric == "overall"]
    return rows


def _choice(rng: np.random.Generator, among: Sequence[str]) -> str:
    return among[int(rng.integers(len(among)))]


def _kept(found: dict[str, list[int]]) -> dict[str, list[int]]:
    return {word: indices for word, indices in found.items() if indices}


def _pairs(world: World, word: str) -> list[int]:
    return [index for index, prompt in enumerate(world.prompts) if _names_once(prompt, word)]


def _names_once(text: str, word: str) -> bool:
    return len(re.findall(rf"\b{NEW_WORDS[word]}\b", text)) == 1


def _scenes(world: World, word: str) -> list[int]:
    return [index for index, scene in enumerate(world.scenes) if scene.count(NEW_WORDS[word]) == 1]
