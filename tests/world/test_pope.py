"""POPE: the official sampler, and the metrics of its questions, by hand; an oracle, a coin and a model that never looks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from answering_model import Answering
from unidecouple.eval.benchmark import Score, evaluate
from unidecouple.eval.pope import PopeQuestion
from unidecouple.world.catalog import THEME_OF
from unidecouple.world.pope import (
    SPLITS,
    PopeSet,
    blind_answers,
    pope_benchmark,
    pope_set,
    sample,
    score,
)
from unidecouple.world.scene import Scene, SceneObject, render

OBJECTS = [["cow", "pig", "sheep"], ["cow", "pig", "duck"], ["apple", "cup", "egg", "cow"]]
"""Frequencies: cow 3, pig 2, then sheep, duck, apple, cup and egg once each, in this order."""


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def values(scores: Sequence[Score]) -> dict[str, float]:
    return {row.metric: row.value for row in scores}


def negatives(items: Sequence[PopeQuestion], scene: int) -> list[str]:
    return [named(item) for item in items if int(item.image) == scene and item.label == "no"]


def test_popular_negatives_by_hand() -> None:
    items = sample(OBJECTS, "popular", rng())
    assert [negatives(items, scene) for scene in range(3)] == [
        ["duck", "apple", "cup"],
        ["sheep", "apple", "cup"],
        ["pig", "sheep", "duck"],
    ]


def test_adversarial_negatives_by_hand() -> None:
    items = sample(OBJECTS, "adversarial", rng())
    first = negatives(items, 0)
    assert first[0] == "duck"  # of those that come with a cow, pig and sheep are in the image
    assert set(first[1:]) < {"apple", "cup", "egg"}  # nothing absent is left that comes with a pig or a sheep: random
    # nothing comes with an apple, a cup or an egg but what the third image has: all random
    assert set(negatives(items, 2)) == {"pig", "sheep", "duck"}


def test_each_positive_is_followed_by_its_negative_in_list_order() -> None:
    items = sample(OBJECTS, "random", rng())
    assert [item.label for item in items] == ["yes", "no"] * 9
    assert [named(item) for item in items[::2]] == ["cow", "pig", "sheep", "cow", "pig", "duck", "apple", "cup", "egg"]


def test_ids_article_and_the_word_image() -> None:
    apple = next(item for item in sample(OBJECTS, "random", rng()) if item.id == "000002/apple")
    assert (apple.image, apple.text, apple.label) == ("000002", "Is there an apple in the image?", "yes")


def test_sampler_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="unknown POPE split 'hard'"):
        sample(OBJECTS, "hard", rng())
    with pytest.raises(ValueError, match="image 0 has 2 objects"):
        sample([["cow", "pig"]], "random", rng())
    with pytest.raises(ValueError, match="no class is left to ask image 0"):
        sample([["cow", "pig", "sheep"]], "popular", rng())


def named(item: PopeQuestion) -> str:
    return item.id.split("/")[1]


def of_split(asked: PopeSet, split: str) -> list[PopeQuestion]:
    return [item for item in asked.questions if item.split == split]


def test_set_is_balanced_absent_and_shares_its_positives() -> None:
    asked = pope_set(60, seed=1)
    assert {len(scene.names) for scene in asked.scenes} == {3, 4}
    for split in SPLITS:
        items = of_split(asked, split)
        assert len(items) == len({item.id for item in items}) == 360
        assert all((named(item) in asked.scenes[int(item.image)].names) == (item.label == "yes") for item in items)
    positives = [[item.id for item in of_split(asked, split) if item.label == "yes"] for split in SPLITS]
    assert positives[0] == positives[1] == positives[2]


def test_set_follows_its_seed() -> None:
    assert pope_set(20, seed=3) == pope_set(20, seed=3)
    assert pope_set(20, seed=3) != pope_set(20, seed=4)


def test_adversarial_negatives_come_from_the_theme_of_the_image() -> None:
    asked = pope_set(100, seed=0)

    def themed(split: str) -> float:
        pairs = zip(of_split(asked, split)[::2], of_split(asked, split)[1::2], strict=True)
        return float(np.mean([THEME_OF[named(yes)] == THEME_OF[named(no)] for yes, no in pairs]))

    assert themed("adversarial") > themed("random") + 0.3


def test_oracle_scores_one_and_is_asked_once() -> None:
    asked = pope_set(30, seed=5)
    by_picture: dict[bytes, Scene] = {render(scene).tobytes(): scene for scene in asked.scenes}
    seen: list[tuple[bytes, str]] = []

    def oracle(image: np.ndarray, text: str) -> str:
        seen.append((image.tobytes(), text))
        name = text.removeprefix("Is there ").split(" ", 1)[1].removesuffix(" in the image?")
        return "Yes" if name in by_picture[image.tobytes()].names else "No"

    scores = evaluate(pope_benchmark(30, 5, "lmms-eval"), Answering(oracle)).scores
    got = values(scores)
    for suffix in ("", *(f"/{split}" for split in SPLITS)):
        assert all(got[metric + suffix] == 1.0 for metric in ("accuracy", "precision", "recall", "f1"))
        assert (got["yes_ratio" + suffix], got["unparsed" + suffix]) == (0.5, 0.0)
    assert len(seen) == len(set(seen)) <= 30 * 3 + 3 * 30 * 3
    accuracy = scores[0]
    assert (accuracy.judge, accuracy.ceiling, accuracy.floor) == ("lmms-eval", 1.0, 0.5)
    assert next(row for row in scores if row.metric == "yes_ratio").ceiling is None


def test_constant_yes_and_a_coin_are_at_chance() -> None:
    coin = np.random.default_rng(0)
    yes = values(evaluate(pope_benchmark(40, 0), Answering(lambda image, text: "yes")).scores)
    assert (yes["accuracy"], yes["precision"], yes["recall"], yes["yes_ratio"]) == (0.5, 0.5, 1.0, 1.0)
    assert yes["f1/popular"] == pytest.approx(2 / 3)
    random = values(evaluate(pope_benchmark(300, 0), Answering(lambda image, text: str(coin.choice(["yes", "no"])))).scores)
    assert random["accuracy"] == pytest.approx(0.5, abs=0.03)


def test_blind_baseline_by_hand() -> None:
    scenes = tuple(Scene(tuple(SceneObject(name, "red", cell) for cell, name in enumerate(names))) for names in OBJECTS)
    asked = PopeSet(scenes, sample(OBJECTS, "popular", rng()))
    answers = dict(zip([item.id for item in asked.questions], blind_answers(asked), strict=True))
    assert {name.split("/")[1] for name, answer in answers.items() if answer == "yes"} == {"cow", "pig", "sheep"}
    # right on cow, pig, sheep, cow and pig of nine positives, and on duck, apple, cup, apple, cup and duck of nine negatives
    assert values(score(asked, "official", answers).scores)["accuracy/blind"] == pytest.approx(11 / 18)


def test_unknown_parser_is_named() -> None:
    with pytest.raises(ValueError, match="unknown POPE parser 'strict'; known: official"):
        pope_benchmark(20, 0, "strict")


def test_accuracy_has_its_interval_by_scene_and_unread_answers_are_counted() -> None:
    benchmark = pope_benchmark(12, 5)
    words = ["yes", "no", "red", "maybe"]
    result = evaluate(benchmark, Answering(lambda image, text: words[(len(text) + int(image.sum())) % 4]))
    rows = values(result.scores)
    assert {metric: one.mean for metric, one in result.proportions.items()} == {
        metric: pytest.approx(rows[metric]) for metric in ("accuracy", *(f"accuracy/{split}" for split in SPLITS))
    }
    assert len(result.proportions["accuracy"].clusters) == 12  # type: ignore[union-attr]
    unread = sum((len(q.text) + int(q.picture.sum())) % 4 > 1 for q in benchmark.queries if isinstance(q.picture, np.ndarray))
    assert result.failures == {"unparsed": unread}
    assert 0 < unread < len(benchmark.queries)


def test_another_art_changes_pictures_alone() -> None:
    def blank(name: str, color: str, size: int) -> np.ndarray:
        return np.zeros((size, size, 4), np.uint8)

    usual, other = pope_benchmark(12, 5), pope_benchmark(12, 5, drawing=blank)
    assert [query.text for query in usual.queries] == [query.text for query in other.queries]
    assert all(isinstance(query.picture, np.ndarray) and (query.picture == 255).all() for query in other.queries)
