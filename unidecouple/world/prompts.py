"""Text-to-image prompts in GenEval's six tags, with held-out combinations for validation and test.

A prompt's ``key`` is its content without its wording (with it for ``single_object``, whose 36 classes must all be
trained). Training never uses a key of the validation or test lists, in any wording.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from unidecouple.world.catalog import CLASSES, COLORS, MAX_OBJECTS, NUMBER_WORDS, RELATIONS, article, plural
from unidecouple.world.questions import caption
from unidecouple.world.scene import CENTRED, Scene, distinct_names, place, random_scene_of

TAGS: tuple[str, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
WORDINGS: tuple[str, ...] = ("a photo of", "a picture of", "a drawing of", "an image of", "a sketch of", "a painting of")
PROMPTS_PER_TAG = {"train": 0, "val": 24, "test": 102}
_SPLIT_SEED = 20260604
PromptKey = tuple[object, ...]


@dataclass(frozen=True)
class Clause:
    """One GenEval ``include`` clause; ``position`` is (relation, index of the clause it refers to)."""

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None

    def to_json(self) -> dict[str, object]:
        """The clause as GenEval's metadata spells it."""
        out: dict[str, object] = {"class": self.name, "count": self.count}
        if self.color:
            out["color"] = self.color
        if self.position:
            out["position"] = list(self.position)
        return out


@dataclass(frozen=True)
class Prompt:
    """A prompt: GenEval tag ("caption" for training captions), required and forbidden objects, and its text."""

    tag: str
    text: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    def to_json(self) -> dict[str, object]:
        """One line of GenEval's ``evaluation_metadata.jsonl``."""
        out: dict[str, object] = {"tag": self.tag, "include": [clause.to_json() for clause in self.include]}
        if self.exclude:
            out["exclude"] = [clause.to_json() for clause in self.exclude]
        return out | {"prompt": self.text}


def build(key: PromptKey, wording: str) -> Prompt:
    """The prompt of a key (see ``keys``) in one of ``WORDINGS``."""
    tag, *rest = key
    names = [str(value) for value in rest]
    match tag:
        case "single_object":
            return Prompt(tag, f"{wording} {_a(names[0])}", (Clause(names[0]),))
        case "two_object":
            return Prompt(tag, f"{wording} {_a(names[0])} and {_a(names[1])}", (Clause(names[0]), Clause(names[1])))
        case "counting":
            count = int(names[1])
            text = f"{wording} {NUMBER_WORDS[count]} {plural(names[0])}"
            return Prompt(tag, text, (Clause(names[0], count),), (Clause(names[0], count + 1),))
        case "colors":
            return Prompt(tag, f"{wording} {_a(names[1], names[0])}", (Clause(names[0], color=names[1]),))
        case "position":
            subject, relation, other = names
            text = f"{wording} {_a(subject)} {relation} {_a(other)}"
            return Prompt(tag, text, (Clause(other), Clause(subject, position=(relation, 0))))
        case "color_attr":
            first, tone, second, shade = names
            text = f"{wording} {_a(tone, first)} and {_a(shade, second)}"
            return Prompt(tag, text, (Clause(first, color=tone), Clause(second, color=shade)))
    raise ValueError(f"unknown GenEval tag {tag!r}; known: {', '.join(TAGS)}")


@functools.cache
def held_out(split: str) -> tuple[tuple[Prompt, ...], frozenset[PromptKey]]:
    """Prompts of "val" or "test" and their keys, disjoint by key from each other and from training."""
    if split not in ("val", "test"):
        raise ValueError(f"unknown split {split!r}; known: val, test")
    prompts: list[Prompt] = []
    used: set[PromptKey] = set()
    for number, tag in enumerate(TAGS):
        rng = np.random.default_rng([_SPLIT_SEED, number])
        order = rng.permutation(np.array(_keys(tag), dtype=object), axis=0).tolist()
        repeat = {"counting": 3, "colors": 3}.get(tag, 1)
        test, val = (-(-PROMPTS_PER_TAG[s] // repeat) for s in ("test", "val"))
        mine = order[:test] if split == "test" else order[test : test + val]
        for raw in mine:
            key: PromptKey = (tag, *raw)
            used.add(_canonical(key))
            words = [str(raw[-1])] if tag == "single_object" else rng.permutation(WORDINGS)[:repeat].tolist()
            prompts.extend(build(key, word) for word in words)
    return tuple(prompts), frozenset(used)


def spread(split: str, per_tag: int) -> list[Prompt]:
    """``per_tag`` held-out prompts of each tag, evenly spread over its list (whose neighbours may be wordings of one)."""
    chosen = []
    for tag in TAGS:
        mine = [prompt for prompt in held_out(split)[0] if prompt.tag == tag]
        wanted = min(per_tag, len(mine))
        chosen += [mine[index * len(mine) // wanted] for index in range(wanted)]
    return chosen


def training_pair(rng: np.random.Generator) -> tuple[Prompt, Scene]:
    """A training prompt (one of the six tags, or a full caption) that is not held out, and a scene that it describes.

    The scene holds what the prompt names and nothing else, so its likelihood covers all of the prompt.
    """
    while True:
        tag = str(rng.choice([*TAGS, "caption"]))
        wording = str(rng.choice(WORDINGS))
        if tag == "caption":
            scene = random_scene_of(rng, distinct_names(rng, int(rng.integers(1, MAX_OBJECTS + 1))), CENTRED)
            clauses = tuple(Clause(obj.name, color=obj.color) for obj in scene.objects)
            if not _is_held_out(_caption_key(clauses)):
                return Prompt(tag, f"{wording} {caption(scene)}", clauses), scene
        elif not _is_held_out(key := _random_key(rng, tag, wording)):
            prompt = build(key, wording)
            return prompt, scene_of(prompt, rng)


def scene_of(prompt: Prompt, rng: np.random.Generator) -> Scene:
    """A scene that satisfies ``prompt``: unnamed colours and places are random (one colour for counted objects)."""
    items: list[tuple[str, str]] = []
    for clause in prompt.include:
        color = clause.color or str(rng.choice(COLORS))
        items += [(clause.name, color)] * clause.count
    cells = None
    relation = next((clause.position for clause in prompt.include if clause.position), None)
    if relation:
        line = int(rng.integers(2))  # row of left and right, column of above and below
        other, subject = (2 * line + 1, 2 * line) if relation[0] in ("left of", "right of") else (2 + line, line)
        cells = [other, subject] if relation[0] in ("left of", "above") else [subject, other]
    return place(rng, items, cells, CENTRED)


def _keys(tag: str) -> list[tuple[object, ...]]:
    """All keys of a tag without the tag itself (for color_attr a fixed large sample, since there are 22,680)."""
    pairs: list[tuple[object, ...]] = list(itertools.combinations(CLASSES, 2))
    match tag:
        case "single_object":
            return list(itertools.product(CLASSES, WORDINGS))
        case "two_object":
            return pairs
        case "counting":
            return list(itertools.product(CLASSES, ("2", "3", "4")))
        case "colors":
            return list(itertools.product(CLASSES, COLORS))
        case "position":
            return [(a, relation, b) for a, b in pairs for relation in RELATIONS]
    rng = np.random.default_rng(_SPLIT_SEED)
    return [(a, str(rng.choice(COLORS)), b, str(rng.choice(COLORS))) for a, b in pairs]


def _random_key(rng: np.random.Generator, tag: str, wording: str) -> PromptKey:
    first, second = (str(name) for name in rng.choice(CLASSES, 2, replace=False))
    color, shade = str(rng.choice(COLORS)), str(rng.choice(COLORS))
    options: dict[str, PromptKey] = {
        "single_object": (first, wording),
        "two_object": (first, second),
        "counting": (first, str(rng.integers(2, MAX_OBJECTS + 1))),
        "colors": (first, color),
        "position": (first, str(rng.choice(RELATIONS)), second),
        "color_attr": (first, color, second, shade),
    }
    return (tag, *options[tag])


def _caption_key(clauses: tuple[Clause, ...]) -> PromptKey:
    """PromptKey of a caption: of one object it is a "colors" prompt, of two a "color_attr" prompt."""
    asked = [word for clause in clauses for word in (clause.name, clause.color)]
    return ({1: "colors", 2: "color_attr"}.get(len(clauses), "caption"), *asked)


def _is_held_out(key: PromptKey) -> bool:
    return any(_canonical(key) in held_out(split)[1] for split in ("val", "test"))


def _canonical(key: PromptKey) -> PromptKey:
    """Keys that ask for the same image are one: order of a pair, and "a left of b" = "b right of a"."""
    tag, *rest = key
    if tag == "two_object":
        return (tag, *sorted(rest, key=str))
    if tag == "position" and rest[1] in ("right of", "below"):
        return (tag, rest[2], "left of" if rest[1] == "right of" else "above", rest[0])
    if tag == "color_attr" and str(rest[0]) > str(rest[2]):
        return (tag, *rest[2:], *rest[:2])
    return key


def _a(word: str, noun: str = "") -> str:
    return f"{article(word)} {word} {noun}".rstrip()
