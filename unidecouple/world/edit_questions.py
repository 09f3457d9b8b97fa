"""Questions about the scene that an edit leads to, while the source image is shown: what an image of the result makes easier.

The question names the edit first: "the cow is red. How many are red?" Its answer follows from the target scene. Only words that the
synthetic benchmark has anyway are used, so that its bases need no new ones.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from unidecouple.data.sequences import QAPair
from unidecouple.world.catalog import COLORS, NUMBER_WORDS
from unidecouple.world.edits import KINDS, Edit, EditKind, edit, in_split
from unidecouple.world.scene import Scene, SceneObject

ANSWERS: dict[EditKind, tuple[str, ...]] = {
    "recolor": ("one", "two", "three"),
    "move": ("yes", "no"),
    "remove": ("zero", "one", "two"),
    "add": ("one", "two", "three"),
}
"""Answers of each kind, equally many of each, so that the most frequent one is as good as another."""
_STREAM = 6


@dataclass(frozen=True)
class EditQuestion:
    """An edit and a question about its target; ``question.text`` starts with the edit's instruction."""

    edit: Edit
    question: QAPair


def edit_question(kind: EditKind, answer: str, split: str, rng: np.random.Generator) -> EditQuestion:
    """A random question of ``kind`` with ``answer``, about an edit of "train", "val" or "test".

    Colours are counted in scenes of two colours. Of a moved object only the relations are asked that its new cell allows, so that
    the instruction alone reveals no answer.
    """
    for _ in itertools.count():
        colors = rng.choice(COLORS, 2, replace=False).tolist()
        one = edit(kind, rng, COLORS if kind == "move" else colors)
        if in_split(one, split) and (kind != "move" or len(one.target.objects) > 1):
            asked = _relation(one, rng) if kind == "move" else _count(one, rng)
            if asked.answer == answer:
                return EditQuestion(one, QAPair(kind, f"{one.text}. {asked.text}", answer))
    raise AssertionError("unreachable")


def training_question(rng: np.random.Generator) -> EditQuestion:
    """A random question about an edit that is not held out, all kinds equally likely, and all answers of a kind."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    return edit_question(kind, str(rng.choice(ANSWERS[kind])), "train", rng)


def question_set(split: str, per_kind: int, seed: int) -> tuple[EditQuestion, ...]:
    """``per_kind`` questions of each kind about edits of ``split``, with the kind's answers in turn; a function of ``seed``."""
    found: list[EditQuestion] = []
    for number, kind in enumerate(KINDS):
        rng = np.random.default_rng([_STREAM, seed, number])
        answers = itertools.islice(itertools.cycle(ANSWERS[kind]), per_kind)
        found += [edit_question(kind, answer, split, rng) for answer in answers]
    return tuple(found)


def _count(one: Edit, rng: np.random.Generator) -> QAPair:
    """How many objects have the colour that the edited object has after the edit, or that it had before; "none" has none."""
    ends = [_edited(scene, one) for scene in (one.source, one.target)]
    color = str(rng.choice([obj.color for obj in ends if obj is not None]))
    count = sum(obj.color == color for obj in one.target.objects)
    return QAPair("count", f"How many are {color}?", NUMBER_WORDS[count])


def _relation(one: Edit, rng: np.random.Generator) -> QAPair:
    """Whether the moved object is on the side of another that its new cell is on: of one column or row, it is not."""
    moved = _edited(one.target, one)
    assert moved is not None
    others = [obj for obj in one.target.objects if obj is not moved]
    other = others[int(rng.integers(len(others)))]
    (row, column), (its_row, its_column) = divmod(moved.cell, 2), divmod(other.cell, 2)
    if rng.random() < 0.5:
        relation, holds = ("left of", "right of")[column], column != its_column
    else:
        relation, holds = ("above", "below")[row], row != its_row
    return QAPair("relation", f"Is the {moved.name} {relation} the {other.name}?", "yes" if holds else "no")


def _edited(scene: Scene, one: Edit) -> SceneObject | None:
    return next((obj for obj in scene.objects if obj.name == one.key[1]), None)
