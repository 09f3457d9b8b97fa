"""The world: every answer right by looking at the scene, prompts held out by what they ask, images as the scene says."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from unidecouple.data.sequences import QAPair
from unidecouple.world import dataset
from unidecouple.world.catalog import CLASSES, COLORS, NUMBER_WORDS, RELATIONS, THEMES, article, plural
from unidecouple.world.dataset import WorldData, load_world, tokenizer_pictures
from unidecouple.world.prompts import TAGS, WORDINGS, Prompt, build, held_out, scene_of, training_pair
from unidecouple.world.questions import absent, caption, conversation, distinguishable, pope, vqa
from unidecouple.world.scene import (
    CELL_NAMES,
    IMAGE_SIZE,
    SIZES,
    Scene,
    SceneObject,
    distinct_names,
    random_distinct_scene,
    random_scene,
    render,
)
from unidecouple.world.sprites import sprite

SINGULAR = {plural(name): name for name in CLASSES}


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng) for _ in range(count)]


def looked_up(scene: Scene, question: str) -> str:
    """The answer by reading the question and looking at the scene, knowing nothing of how questions are made."""
    if found := re.fullmatch(r"Is there an? (\w+) in the image\?", question):
        return "yes" if any(obj.name == found[1] for obj in scene.objects) else "no"
    if found := re.fullmatch(r"How many (\w+) are there\?", question):
        return NUMBER_WORDS[len([obj for obj in scene.objects if obj.name == SINGULAR[found[1]]])]
    if question == "Describe the image.":
        spots = sorted(scene.objects, key=lambda obj: (obj.cell // 2, obj.cell % 2))
        return " and ".join(f"{article(obj.color)} {obj.color} {obj.name}" for obj in spots)
    found = re.fullmatch(r"(What color|Where) is the (\w+)\?", question)
    assert found, question
    (obj,) = (obj for obj in scene.objects if obj.name == found[2])
    where = f"{'bottom' if obj.cell >= 2 else 'top'} {'right' if obj.cell % 2 else 'left'}"
    return obj.color if found[1] == "What color" else where


def asks(prompt: Prompt) -> tuple[object, ...]:
    """What a prompt asks for, from its clauses: equal for all wordings, orders and mirrored relations."""
    objects = [(clause.name, clause.count, clause.color) for clause in prompt.include]
    place_of = next(((clause.name, *clause.position) for clause in prompt.include if clause.position), None)
    if place_of is None:
        return ("all of", frozenset(objects), len(objects))
    subject, relation, index = place_of
    other = prompt.include[index].name
    mirrored = {"right of": "left of", "below": "above"}
    return (other, mirrored[relation], subject) if relation in mirrored else (subject, relation, other)


def satisfies(scene: Scene, prompt: Prompt) -> bool:
    """GenEval's rules on the scene itself."""
    for clause in prompt.include:
        mine = [obj for obj in scene.objects if obj.name == clause.name and clause.color in (None, obj.color)]
        if len(mine) < clause.count:
            return False
        if clause.position:
            other = next(obj for obj in scene.objects if obj.name == prompt.include[clause.position[1]].name)
            dx, dy = mine[0].cell % 2 - other.cell % 2, mine[0].cell // 2 - other.cell // 2
            if {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[clause.position[0]] != (dx, dy):
                return False
    return all(scene.count(clause.name) < clause.count for clause in prompt.exclude)


def test_catalog() -> None:
    assert len(THEMES) == 6
    assert len(set(CLASSES)) == len(CLASSES) >= 30
    assert sum(map(len, THEMES.values())) == len(CLASSES)
    assert len(SINGULAR) == len(CLASSES)
    assert {"sheep", "buses", "butterflies", "cows"} <= SINGULAR.keys()


def test_equal_seeds_give_equal_worlds() -> None:
    for draw in (random_scene, training_pair, lambda rng: conversation(random_scene(rng), rng, 6)):
        first, same, other = ([draw(rng) for _ in range(20)] for rng in map(np.random.default_rng, (3, 3, 4)))
        assert first == same
        assert first != other
    assert np.array_equal(tokenizer_pictures(12, 3), tokenizer_pictures(12, 3))
    assert not np.array_equal(tokenizer_pictures(12, 3), tokenizer_pictures(12, 4))


def test_scenes_have_what_they_may_have() -> None:
    drawn = scenes(400)
    assert {len(scene.objects) for scene in drawn} == {1, 2, 3, 4}
    assert {obj.cell for scene in drawn for obj in scene.objects} == {0, 1, 2, 3}
    for scene in drawn:
        cells = [obj.cell for obj in scene.objects]
        assert cells == sorted(set(cells))
    assert any(scene.count(name) == 3 for scene in drawn for name in scene.names)
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 4):
        names = random_distinct_scene(rng, count).names
        assert len(names) == len(set(distinct_names(rng, count))) == count


def test_every_answer_is_right() -> None:
    rng = np.random.default_rng(1)
    kinds: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for scene in scenes(300):
        for question in [*vqa(scene), *conversation(scene, rng, 6), pope(absent(scene, rng), False)]:
            assert question.answer == looked_up(scene, question.text), (scene, question)
            kinds[question.kind] += 1
            answers[question.answer] += 1
    assert set(kinds) == {"count", "color", "position", "caption", "pope"}
    assert {"yes", "no", "one", "two", "three", *COLORS, *CELL_NAMES} <= answers.keys()


def test_vqa_asks_all_that_has_one_answer() -> None:
    scene = Scene((SceneObject("cow", "red", 0), SceneObject("cow", "blue", 1), SceneObject("egg", "green", 3)))
    assert vqa(scene) == [
        QAPair("count", "How many cows are there?", "two"),
        QAPair("count", "How many eggs are there?", "one"),
        QAPair("color", "What color is the egg?", "green"),
        QAPair("position", "Where is the egg?", "bottom right"),
    ]
    assert pope("egg", True).text == "Is there an egg in the image?"
    assert caption(scene) == "a red cow and a blue cow and a green egg"


def test_conversations_end_with_the_caption_and_give_nothing_away() -> None:
    """A caption before the questions would answer them; POPE's answers are as often yes as no."""
    rng = np.random.default_rng(0)
    said: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    for scene in scenes(300):
        turns = conversation(scene, rng, turns=6)
        assert [turn.kind == "caption" for turn in turns] == [False] * (len(turns) - 1) + [True]
        lengths[len(turns) - 1] += 1
        said.update(turn.answer for turn in turns if turn.kind == "pope")
        assert [turn.kind for turn in conversation(scene, rng, turns=0)] == ["caption"]
    assert set(lengths) == {1, 2, 3, 4, 5, 6}
    assert said.keys() == {"yes", "no"}
    assert abs(said["yes"] - said["no"]) < 3 * sum(said.values()) ** 0.5  # three standard deviations of fair coins


def test_objects_to_point_at_cannot_be_answered_from_the_bag() -> None:
    red_cow, blue_egg = SceneObject("cow", "red", 0), SceneObject("egg", "blue", 3)
    assert distinguishable(Scene((red_cow, blue_egg))) == [red_cow, blue_egg]
    assert distinguishable(Scene((red_cow, SceneObject("egg", "red", 3)))) == []
    assert distinguishable(Scene((red_cow, SceneObject("cow", "blue", 3)))) == []
    assert distinguishable(Scene((red_cow,))) == []


def test_pictures_to_be_drawn_are_centred_and_those_to_be_understood_are_not() -> None:
    rng = np.random.default_rng(0)
    drawn = [obj for _ in range(100) for obj in training_pair(rng)[1].objects]
    seen = [obj for scene in scenes(100) for obj in scene.objects]
    assert {(obj.dx, obj.dy) for obj in drawn} == {(0, 0)}
    assert {(obj.dx, obj.dy) for obj in seen} == {(-1, -1), (-1, 1), (1, -1), (1, 1)}
    assert {obj.size for obj in drawn} == {obj.size for obj in seen} == set(SIZES)


@pytest.mark.parametrize("split", ["val", "test"])
def test_held_out_prompts(split: str) -> None:
    prompts = held_out(split)[0]
    tags = Counter(prompt.tag for prompt in prompts)
    assert set(tags) == set(TAGS)
    assert min(tags.values()) >= (100 if split == "test" else 24)
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    rng = np.random.default_rng(0)
    for prompt in prompts:
        scene = scene_of(prompt, rng)
        assert satisfies(scene, prompt), (prompt, scene)
        assert len(scene.objects) == sum(clause.count for clause in prompt.include)  # and nothing else is there
        for clause in prompt.include:
            assert re.search(rf"\b(?:{clause.name}|{plural(clause.name)})\b", prompt.text)
            assert clause.color is None or f"{clause.color} {clause.name}" in prompt.text
            assert clause.count == 1 or f"{NUMBER_WORDS[clause.count]} {plural(clause.name)}" in prompt.text
            if clause.position:
                assert (
                    f" {clause.name} {clause.position[0]} {article(prompt.include[0].name)} {prompt.include[0].name}" in prompt.text
                )


def test_a_scene_may_fail_a_prompt() -> None:
    """The checks above can tell right from wrong."""
    cow_left = Scene((SceneObject("cow", "red", 0), SceneObject("pig", "blue", 1)))
    assert satisfies(cow_left, build(("position", "cow", "left of", "pig"), "a photo of"))
    assert not satisfies(cow_left, build(("position", "cow", "right of", "pig"), "a photo of"))
    assert not satisfies(cow_left, build(("colors", "cow", "blue"), "a photo of"))
    assert not satisfies(cow_left, build(("counting", "cow", "2"), "a photo of"))
    two = Scene((SceneObject("cow", "red", 0), SceneObject("cow", "red", 1)))
    assert satisfies(two, build(("counting", "cow", "2"), "a photo of"))
    three = Scene((*two.objects, SceneObject("cow", "red", 2)))
    assert not satisfies(three, build(("counting", "cow", "2"), "a photo of"))


def test_nothing_held_out_is_ever_trained() -> None:
    """Not by text, nor (but for single objects, whose wording is what is held out) by what is asked, captions included."""
    rng = np.random.default_rng(0)
    seen = [training_pair(rng) for _ in range(3000)]
    assert {prompt.tag for prompt, _ in seen} == {*TAGS, "caption"}
    assert all(satisfies(scene, prompt) for prompt, scene in seen)
    texts = {prompt.text for prompt, _ in seen}
    requests = {asks(prompt) for prompt, _ in seen}
    assert len(requests) > 1000
    assert len({asks(prompt)[1] for prompt, _ in seen if prompt.tag == "position"}) == 2
    for split in ("val", "test"):
        assert not texts & {prompt.text for prompt in held_out(split)[0]}
        assert not requests & {asks(prompt) for prompt in held_out(split)[0] if prompt.tag != "single_object"}
    val, test = (held_out(split)[0] for split in ("val", "test"))
    assert not {p.text for p in val} & {p.text for p in test}
    assert not {asks(p) for p in val if p.tag != "single_object"} & {asks(p) for p in test if p.tag != "single_object"}


def test_every_class_colour_and_relation_is_trained() -> None:
    rng = np.random.default_rng(0)
    prompts = [training_pair(rng)[0] for _ in range(2000)]
    assert {clause.name for prompt in prompts for clause in prompt.include} == set(CLASSES)
    held = [prompt for split in ("val", "test") for prompt in held_out(split)[0] if prompt.tag == "single_object"]
    assert max(Counter(prompt.include[0].name for prompt in held).values()) < len(WORDINGS)  # of each class some wording is left
    assert {clause.color for prompt in prompts for clause in prompt.include} == {None, *COLORS}
    assert {clause.position[0] for prompt in prompts for clause in prompt.include if clause.position} == set(RELATIONS)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown class 'elefant': did you mean 'elephant'"):
        sprite("elefant", "red", 24)
    with pytest.raises(ValueError, match="unknown colour 'bleu': did you mean 'blue'"):
        sprite("cow", "bleu", 24)
    with pytest.raises(ValueError, match="unknown class 'xyzzy': known: cow, pig"):
        sprite("xyzzy", "red", 24)
    with pytest.raises(ValueError, match="unknown split 'train'"):
        held_out("train")
    with pytest.raises(ValueError, match="unknown GenEval tag 'shapes'"):
        build(("shapes", "cow"), "a photo of")


def test_the_world_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = WorldData(pairs=12, scenes=9, seed=5)
    said: list[tuple[str, int, int]] = []
    first = load_world(config, tmp_path / "a", lambda *args: said.append(args))
    assert said == [("rendering images with prompts", 0, 12), ("rendering images to ask about", 0, 9)]
    manifest = json.loads((first.folder / "manifest.json").read_text())
    assert manifest == {"format": dataset.FORMAT, "pairs": 12, "scenes": 9, "seed": 5}
    again = load_world(config, tmp_path / "b")
    assert not np.array_equal(load_world(WorldData(12, 9, 6), tmp_path / "b").pair_images, first.pair_images)
    monkeypatch.setattr(dataset, "_draw", lambda *args: pytest.fail("drew it again"))
    cached = load_world(config, tmp_path / "a")
    for world in (again, cached):
        assert (world.prompts, world.scenes) == (first.prompts, first.scenes)
        assert np.array_equal(world.pair_images, first.pair_images)
        assert np.array_equal(world.scene_images, first.scene_images)
    assert first.pair_images.shape == (12, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert (len(first.prompts), len(first.scenes)) == (12, 9)
    for scene, image in zip(first.scenes, first.scene_images, strict=True):
        assert np.array_equal(render(scene), image)  # scenes survive their packing


def test_a_world_half_drawn_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(what: str, done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_world(WorldData(4, 4), tmp_path, stop)
    assert list(tmp_path.iterdir()) == []
