"""Captions of scenes, and POPE and VQA questions about them with exact answers."""

from __future__ import annotations

import numpy as np

from unidecouple.data.sequences import QAPair
from unidecouple.world.catalog import CLASSES, NUMBER_WORDS, THEME_OF, THEMES, article, plural
from unidecouple.world.scene import CELL_NAMES, Scene, SceneObject

CAPTION_REQUEST = "Describe the image."


def caption(scene: Scene) -> str:
    """Every object with its colour, in reading order: "a red cow and a blue pig"."""
    return " and ".join(f"{article(obj.color)} {obj.color} {obj.name}" for obj in scene.objects)


def pope(name: str, present: bool) -> QAPair:
    """POPE's question, with the article that fits (the published sampler's replacement also changes "image")."""
    return QAPair("pope", f"Is there {article(name)} {name} in the image?", "yes" if present else "no")


def vqa(scene: Scene) -> list[QAPair]:
    """Every count, colour and position question that ``scene`` answers without ambiguity."""
    questions = [QAPair("count", f"How many {plural(n)} are there?", NUMBER_WORDS[scene.count(n)]) for n in scene.names]
    for obj in scene.objects:
        if scene.count(obj.name) == 1:
            questions.append(QAPair("color", f"What color is the {obj.name}?", obj.color))
            questions.append(QAPair("position", f"Where is the {obj.name}?", CELL_NAMES[obj.cell]))
    return questions


def distinguishable(scene: Scene) -> list[SceneObject]:
    """The objects of ``scene`` if each has another class and not all have one colour, else none.

    The colour of one of them cannot be answered without finding it in the image.
    """
    different = len(scene.names) == len(scene.objects) and len({obj.color for obj in scene.objects}) > 1
    return list(scene.objects) if different else []


def conversation(scene: Scene, rng: np.random.Generator, turns: int) -> list[QAPair]:
    """A training conversation: one to ``turns`` questions (none if 0), all kinds equally likely, then the caption.

    The caption comes last: where it came first in half of the conversations, the model answered from the caption and never from
    the image. The number of questions varies; otherwise it predicts where the caption starts, and single questions, as in
    benchmarks, are too rare.
    """
    asked: list[QAPair] = []
    pools: dict[str, list[QAPair]] = {"pope": []}
    for question in vqa(scene):
        pools.setdefault(question.kind, []).append(question)
    kinds = sorted(pools)
    for _ in range(int(rng.integers(1, turns + 1)) if turns else 0):
        kind = kinds[int(rng.integers(len(kinds)))]
        if kind == "pope":
            asked.append(presence_question(scene, rng))
        else:
            asked.append(pools[kind][int(rng.integers(len(pools[kind])))])
    return [*asked, QAPair("caption", CAPTION_REQUEST, caption(scene))]


def presence_question(scene: Scene, rng: np.random.Generator) -> QAPair:
    """A POPE question about ``scene``, equally often about a present and an absent class."""
    present = bool(rng.random() < 0.5)
    return pope(str(rng.choice(scene.names)) if present else absent(scene, rng), present)


def absent(scene: Scene, rng: np.random.Generator) -> str:
    """A class that ``scene`` lacks, half of the time of the same theme as its objects."""
    theme = tuple(THEMES[THEME_OF[scene.names[0]]])
    pool = [name for name in (theme if rng.random() < 0.5 else CLASSES) if name not in scene.names]
    return str(rng.choice(pool or [name for name in CLASSES if name not in scene.names]))
