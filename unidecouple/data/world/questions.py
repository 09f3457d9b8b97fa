"""What is said and asked about a scene: captions, POPE and VQA questions with exact answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unidecouple.data.world.catalog import CLASSES, NUMBER_WORDS, THEME_OF, THEMES, article, plural
from unidecouple.data.world.scene import CELL_NAMES, Scene

CAPTION_REQUEST = "Describe the image."


@dataclass(frozen=True)
class Question:
    """A question and its one right answer; ``kind`` is pope, count, color, position or caption."""

    kind: str
    text: str
    answer: str


def caption(scene: Scene) -> str:
    """Every object with its colour, in reading order: "a red cow and a blue pig"."""
    return " and ".join(f"{article(thing.color)} {thing.color} {thing.name}" for thing in scene.things)


def pope(name: str, present: bool) -> Question:
    """POPE's question, with the article that fits (the published sampler's replacement also changes "image")."""
    return Question("pope", f"Is there {article(name)} {name} in the image?", "yes" if present else "no")


def vqa(scene: Scene) -> list[Question]:
    """Every count, colour and position question that ``scene`` answers without ambiguity."""
    questions = [Question("count", f"How many {plural(n)} are there?", NUMBER_WORDS[scene.count(n)]) for n in scene.names]
    for thing in scene.things:
        if scene.count(thing.name) == 1:
            questions.append(Question("color", f"What color is the {thing.name}?", thing.color))
            questions.append(Question("position", f"Where is the {thing.name}?", CELL_NAMES[thing.cell]))
    return questions


def conversation(scene: Scene, rng: np.random.Generator, turns: int) -> list[Question]:
    """A training conversation: ``turns`` questions, a third of them POPE's, and a caption after them.

    The dense caption turn is what breaks the "bag of features" plateau of tiny understanding models. It comes last: where it
    came first in half of the conversations, questions were answered from the caption and never from the picture. Most
    questions ask for something of a named object, since finding it must be learned before its absence can be noticed.
    """
    asked: list[Question] = []
    pool = vqa(scene)
    for index in rng.permutation(turns):
        if index < turns // 3:
            present = bool(rng.random() < 0.5)
            asked.append(pope(str(rng.choice(scene.names)) if present else absent(scene, rng), present))
        else:
            asked.append(pool[int(rng.integers(len(pool)))])
    return [*asked, Question("caption", CAPTION_REQUEST, caption(scene))]


def absent(scene: Scene, rng: np.random.Generator) -> str:
    """A class that ``scene`` lacks: half of the time one that usually comes with those it has."""
    theme = tuple(THEMES[THEME_OF[scene.names[0]]])
    pool = [name for name in (theme if rng.random() < 0.5 else CLASSES) if name not in scene.names]
    return str(rng.choice(pool or [name for name in CLASSES if name not in scene.names]))
