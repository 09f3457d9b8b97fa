"""POPE, VQA and GenEval over generated scenes: the sets and rules of training's own scores, in the usual art or another."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from unidecouple.eval.benchmark import Answers, Query, Quiz, Report
from unidecouple.eval.gallery import Gallery
from unidecouple.eval.pope import PARSERS, known_parser, settle
from unidecouple.eval.statistics import Share
from unidecouple.eval.suite import Options
from unidecouple.eval.vqa_rules import EXACT, normalize
from unidecouple.world import pope, vqa
from unidecouple.world.art import Art
from unidecouple.world.geneval import judge_bounds
from unidecouple.world.judge import TemplateJudge
from unidecouple.world.prompts import spread
from unidecouple.world.scene import Sprites, render
from unidecouple.world.sprites import sprite

_BOUND_IMAGES = 1


def open_pope(options: Options) -> Quiz:
    """``pope_quiz`` of the size, seed, parser and art of ``options``."""
    parser = options.parser(PARSERS, "official")
    return pope_quiz(options.limited(options.sizes.pope_images), options.seed, parser, _drawing(options))


def open_vqa(options: Options) -> Quiz:
    """``vqa_quiz`` of the size, seed and art of ``options``."""
    return vqa_quiz(options.limited(options.sizes.vqa_questions), options.seed, _drawing(options))


def open_geneval(options: Options) -> Gallery:
    """``geneval_gallery`` of the size and seed of ``options``."""
    return geneval_gallery(options.limited(options.sizes.prompts_per_tag), options.sizes.num_images, options.seed)


def pope_quiz(num_images: int, seed: int, parser: str, drawing: Sprites = sprite) -> Quiz:
    """``pope.pope_set`` of ``num_images`` scenes; each different question is asked once, since splits share their positives.

    Raises:
        ValueError: unknown parser, or too few images (see ``pope.sample``).
    """
    known_parser(parser)
    asked = pope.pope_set(num_images, seed)
    images = [render(scene, drawing) for scene in asked.scenes]
    queries = {
        _id(item): Query(_id(item), item.text, images[item.scene]) for split in pope.SPLITS for item in asked.questions[split]
    }
    return Quiz("pope", tuple(queries.values()), functools.partial(_pope_report, asked, parser), parser)


def vqa_quiz(questions_per_kind: int, seed: int, drawing: Sprites = sprite) -> Quiz:
    """``vqa.vqa_set``.

    Raises:
        ValueError: ``questions_per_kind`` is below 1.
    """
    asked = vqa.vqa_set(questions_per_kind, seed)
    images = [render(scene, drawing) for scene in asked.scenes]
    queries = [Query(str(number), item.question.text, images[item.scene]) for number, item in enumerate(asked.items)]
    return Quiz("vqa", tuple(queries), functools.partial(_vqa_report, asked.items), EXACT)


def geneval_gallery(per_tag: int, num_images: int, seed: int) -> Gallery:
    """Test prompts, as runs are scored on; ``seed`` is of the ground truth that gives the judge its ceiling and floor."""
    judge, prompts = TemplateJudge(), tuple(spread("test", per_tag))
    bounds = functools.partial(judge_bounds, judge, prompts, seed, _BOUND_IMAGES)
    return Gallery("geneval", [prompt.to_json() for prompt in prompts], num_images, judge, bounds)


def _drawing(options: Options) -> Sprites:
    return sprite if options.art is None else Art(options.art)


def _id(item: pope.PopeQuestion) -> str:
    return f"{item.scene:06d}/{item.name}"


def _pope_report(asked: pope.PopeSet, parser: str, answers: Answers) -> Report:
    items = [item for split in pope.SPLITS for item in asked.questions[split]]
    scores = pope.score(asked, {(item.scene, item.name): answers[_id(item)] for item in items}, parser)
    rules = PARSERS[parser]
    right = {_id(item): float(settle(answers[_id(item)], rules) == item.label) for item in items}
    groups = {"accuracy": items} | {f"accuracy/{split}": list(asked.questions[split]) for split in pope.SPLITS}
    shares = {metric: Share.of((item.scene, right[_id(item)]) for item in group) for metric, group in groups.items()}
    return Report(tuple(scores), shares, {"unparsed": sum(rules.read(answer) == "unknown" for answer in answers.values())})


def _vqa_report(items: Sequence[vqa.VqaItem], answers: Answers) -> Report:
    given = [answers[str(number)] for number in range(len(items))]
    right = [(item, float(normalize(answer) == item.question.answer)) for item, answer in zip(items, given, strict=True)]
    shares = {
        f"accuracy/{kind}": Share.of((item.scene, value) for item, value in right if item.question.kind == kind)
        for kind in vqa.KINDS
    }
    shares["accuracy"] = Share.of((item.scene, value) for item, value in right)  # of each kind there are equally many
    return Report(tuple(vqa.score(items, given)), shares)
