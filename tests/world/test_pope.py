"""POPE: the official sampler, and the metrics of its questions, by hand; an oracle, a coin and a model that never looks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from unidecouple.eval.benchmark import Score
from unidecouple.eval.pope import PARSERS
from unidecouple.world.catalog import THEME_OF
from unidecouple.world.pope import (
    SPLITS,
    PopeQuestion,
    PopeSet,
    blind_answers,
    evaluate,
    measure,
    pope_set,
    sample,
    score,
    write_jsonl,
)
from unidecouple.world.scene import Scene, Thing, render

OBJECTS = [["cow", "pig", "sheep"], ["cow", "pig", "duck"], ["apple", "cup", "egg", "cow"]]
"""Frequencies: cow 3, pig 2, then sheep, duck, apple, cup and egg once each, in this order."""


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def values(scores: Sequence[Score]) -> dict[str, float]:
    return {row.metric: row.value for row in scores}


def negatives(items: Sequence[PopeQuestion], scene: int) -> list[str]:
    return [item.name for item in items if item.scene == scene and item.label == "no"]


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
    assert [item.question_id for item in items] == list(range(1, 19))
    assert [item.label for item in items] == ["yes", "no"] * 9
    assert [item.name for item in items[::2]] == ["cow", "pig", "sheep", "cow", "pig", "duck", "apple", "cup", "egg"]


def test_schema_article_and_the_word_image(tmp_path: Path) -> None:
    items = [PopeQuestion(1, 12, "apple", "yes"), PopeQuestion(2, 12, "cow", "no")]
    write_jsonl(items, tmp_path / "pope.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "pope.jsonl").read_text().splitlines()]
    assert lines == [
        {"question_id": 1, "image": "000012.png", "text": "Is there an apple in the image?", "label": "yes"},
        {"question_id": 2, "image": "000012.png", "text": "Is there a cow in the image?", "label": "no"},
    ]


def test_sampler_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="unknown POPE split 'hard'"):
        sample(OBJECTS, "hard", rng())
    with pytest.raises(ValueError, match="image 0 has 2 objects"):
        sample([["cow", "pig"]], "random", rng())
    with pytest.raises(ValueError, match="no class is left to ask image 0"):
        sample([["cow", "pig", "sheep"]], "popular", rng())


def test_set_is_balanced_absent_and_shares_its_positives() -> None:
    asked = pope_set(60, seed=1)
    assert {len(scene.names) for scene in asked.scenes} == {3, 4}
    for split in SPLITS:
        items = asked.questions[split]
        assert len(items) == 360
        assert len({(item.scene, item.name) for item in items}) == 360
        assert all((item.name in asked.scenes[item.scene].names) == (item.label == "yes") for item in items)
    positives = [[(item.scene, item.name) for item in asked.questions[split] if item.label == "yes"] for split in SPLITS]
    assert positives[0] == positives[1] == positives[2]


def test_set_follows_its_seed() -> None:
    assert pope_set(20, seed=3) == pope_set(20, seed=3)
    assert pope_set(20, seed=3) != pope_set(20, seed=4)


def test_adversarial_negatives_come_from_the_theme_of_the_image() -> None:
    asked = pope_set(100, seed=0)

    def themed(split: str) -> float:
        pairs = zip(asked.questions[split][::2], asked.questions[split][1::2], strict=True)
        return float(np.mean([THEME_OF[yes.name] == THEME_OF[no.name] for yes, no in pairs]))

    assert themed("adversarial") > themed("random") + 0.3


def test_answers_are_matched_to_their_questions() -> None:
    items = [PopeQuestion(1, 0, "cow", "yes"), PopeQuestion(2, 1, "cow", "yes"), PopeQuestion(3, 1, "pig", "no")]
    metrics = measure(items, {(1, "pig"): "no", (1, "cow"): "yes", (0, "cow"): "no"}, PARSERS["official"])
    assert (metrics["accuracy"], metrics["recall"], metrics["precision"]) == (pytest.approx(2 / 3), 0.5, 1.0)


def test_oracle_scores_one_and_is_asked_once() -> None:
    asked = pope_set(30, seed=5)
    by_picture: dict[bytes, Scene] = {render(scene).tobytes(): scene for scene in asked.scenes}
    seen: list[tuple[bytes, str]] = []

    def oracle(images: Sequence[np.ndarray], texts: Sequence[str]) -> list[str]:
        seen.extend((image.tobytes(), text) for image, text in zip(images, texts, strict=True))
        names = [text.removeprefix("Is there ").split(" ", 1)[1].removesuffix(" in the image?") for text in texts]
        return ["Yes" if name in by_picture[image.tobytes()].names else "No" for image, name in zip(images, names, strict=True)]

    scores = evaluate(oracle, 30, 5, "lmms-eval")
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
    yes = values(evaluate(lambda images, texts: ["yes"] * len(texts), 40, 0))
    assert (yes["accuracy"], yes["precision"], yes["recall"], yes["yes_ratio"]) == (0.5, 0.5, 1.0, 1.0)
    assert yes["f1/popular"] == pytest.approx(2 / 3)
    random = values(evaluate(lambda images, texts: coin.choice(["yes", "no"], len(texts)).tolist(), 300, 0))
    assert random["accuracy"] == pytest.approx(0.5, abs=0.03)


def test_blind_baseline_by_hand() -> None:
    scenes = tuple(Scene(tuple(Thing(name, "red", cell) for cell, name in enumerate(names))) for names in OBJECTS)
    asked = PopeSet(scenes, {split: sample(OBJECTS, "popular", rng()) for split in SPLITS})
    answers = blind_answers(asked)
    assert {name for (_, name), answer in answers.items() if answer == "yes"} == {"cow", "pig", "sheep"}
    # right on cow, pig, sheep, cow and pig of nine positives, and on duck, apple, cup, apple, cup and duck of nine negatives
    assert values(score(asked, answers))["accuracy/blind"] == pytest.approx(11 / 18)


def test_unknown_parser_is_named() -> None:
    with pytest.raises(ValueError, match="unknown POPE parser 'strict'; known: official"):
        score(pope_set(20, 0), {}, "strict")
