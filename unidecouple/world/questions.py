"""What is said and asked about a scene: captions, POPE and VQA questions with exact answers."""

from __future__ import annotations

import numpy as np

from unidecouple.data.sequences import Question
from unidecouple.world.catalog import CLASSES, NUMBER_WORDS, THEME_OF, THEMES, article, plural
from unidecouple.world.scene import CELL_NAMES, Scene, Thing

CAPTION_REQUEST = "Describe the image."


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


def tell_apart(scene: Scene) -> list[Thing]:
    """The objects of ``scene`` if each is of another class and they are not all of one colour, else none.

    Asked for the colour of one of them, nobody can answer without finding it.
    """
    different = len(scene.names) == len(scene.things) and len({thing.color for thing in scene.things}) > 1
    return list(scene.things) if different else []


def conversation(scene: Scene, rng: np.random.Generator, turns: int) -> list[Question]:
    """A training conversation: one to ``turns`` questions (none if 0), every kind as likely, and the caption after them.

    The caption comes last: where it came first in half of the conversations, questions were answered from the caption and
    never from the picture. The number of questions varies, since it otherwise tells a model where the caption starts and
    single questions, as in benchmarks, are too rare.
    """
    asked: list[Question] = []
    pools: dict[str, list[Question]] = {"pope": []}
    for question in vqa(scene):
        pools.setdefault(question.kind, []).append(question)
    kinds = sorted(pools)
    for _ in range(int(rng.integers(1, turns + 1)) if turns else 0):
        kind = kinds[int(rng.integers(len(kinds)))]
        if kind == "pope":
            asked.append(poll(scene, rng))
        else:
            asked.append(pools[kind][int(rng.integers(len(pools[kind])))])
    return [*asked, Question("caption", CAPTION_REQUEST, caption(scene))]


def poll(scene: Scene, rng: np.random.Generator) -> Question:
    """A POPE question about ``scene``, as often of a class that is there as of one that is not."""
    present = bool(rng.random() < 0.5)
    return pope(str(rng.choice(scene.names)) if present else absent(scene, rng), present)


def absent(scene: Scene, rng: np.random.Generator) -> str:
    """A class that ``scene`` lacks: half of the time one that usually comes with those it has."""
    theme = tuple(THEMES[THEME_OF[scene.names[0]]])
    pool = [name for name in (theme if rng.random() < 0.5 else CLASSES) if name not in scene.names]
    return str(rng.choice(pool or [name for name in CLASSES if name not in scene.names]))
