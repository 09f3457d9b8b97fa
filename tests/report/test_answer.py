"""The answers hold the numbers worked out by hand, with their signs, their doubts, and what to do about them."""

from __future__ import annotations

from typing import Any

import pytest

from unidecouple.files import write_json_atomic
from unidecouple.report.answer import answer
from unidecouple.report.fronts import front_axes
from unidecouple.report.results import load_results
from unidecouple.report.sample_grid import sample_grid


def answers(made: Any, scenario: str) -> dict[str, str]:
    """Question -> its sentences."""
    found: dict[str, str] = {}
    for question, sentence in answer(load_results(made.write()), scenario):
        found[question] = f"{found[question]} {sentence}" if question in found else sentence
    return found


def test_generation_only(experiment: Any) -> None:
    found = answers(experiment, "S1-r0")
    assert list(found) == ["Compared", "Understanding", "Generation", "Significant?", "Next"]
    assert found["Compared"] == "UniDecouple against dense, generation only, 3 seeds."
    # UniDecouple: -.01, 0, .01 against .94: 0.0 ± 2.5. GenEval: .47 of .50.
    assert (
        found["Understanding"] == "From the start, dense, generation only lost 32.0 ± 5.0 points of POPE and UniDecouple 0.0 ± 2.5."
    )
    assert found["Generation"] == "UniDecouple reached 94% of the GenEval score of dense, generation only (47.0 of 50.0)."
    # VQA .50, .49, .51: ± 2.5; GenEval -.02, -.04, -.03: ± 2.5
    assert found["Significant?"] == (
        "UniDecouple minus dense, generation only, in points, paired by seed: "
        "POPE +32.0 ± 4.3, VQA +50.0 ± 2.5 and GenEval \u22123.0 ± 2.5"
        " (95% intervals, 3 seeds): ahead in POPE and VQA; behind in GenEval."
    )
    assert found["Next"].startswith("UniDecouple is behind in generation: see the losses")


def test_gains_are_called_gains_and_doubt_is_said(new_experiment: Any) -> None:
    made = new_experiment()
    made.add("S2", "start", {"pope": (0.80,)})
    made.add("S2", "dense_joint", {"pope": (0.78, 0.80), "geneval": (0.0, 0.0)})
    made.add("S2", "unidecouple", {"pope": (0.81, 0.83), "geneval": (0.1, 0.3)})
    made.add("S2", "moe", {"pope": (0.81, 0.83)})
    found = answers(made, "S2")
    # two seeds: t(.975, 1) = 12.7062, deviation .0141421, half width .01 * 12.7062
    assert "dense joint lost 1.0 ± 12.7 points of POPE and UniDecouple gained 2.0 ± 12.7 points of POPE" in found["Understanding"]
    assert found["Generation"] == "dense joint scored 0.0 and UniDecouple 20.0 in GenEval."
    assert "ahead in POPE; no significant difference in GenEval" in found["Significant?"]  # POPE: +3.0 in both seeds
    assert found["Compared"] == "UniDecouple against dense joint, beside 1 other variant, 2 seeds."
    assert found["Next"] == "Run at least 3 seeds: fewer give no verdict."


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        # differences .02, .03, .01: mean .02, deviation .01, half width .01 * 4.30265 / sqrt(3) = .0248;
        # of four seeds .01 * 3.18245 / 2 = .0159
        ((0.52, 0.53, 0.51), "Run about 4 seeds: the difference in POPE would then be shown"),
        ((0.70, 0.71, 0.69), "Repeat it at several learning rates"),
    ],
)
def test_what_next(new_experiment: Any, ours: tuple[float, ...], said: str) -> None:
    made = new_experiment()
    made.add("S2", "dense_joint", {"pope": (0.50, 0.50, 0.50)})
    made.add("S2", "unidecouple", {"pope": ours})
    assert answers(made, "S2")["Next"].startswith(said)
    made.meta["missing"] = [{"scenario": "S2", "variant": "moe", "seed": 0}]
    assert answers(made, "S2")["Next"].startswith("Run the same command again")


def test_scores_near_zero_make_no_ratio(new_experiment: Any) -> None:
    made = new_experiment()
    made.add("S1-r0", "start", {"pope": (0.9,)})
    made.add("S1-r0", "dense_joint", {"pope": (0.5,), "geneval": (0.005,)})
    made.add("S1-r0", "unidecouple", {"pope": (0.9,), "geneval": (0.007,)})
    kept = answers(made, "S1-r0")["Generation"]
    assert kept == "dense joint scored 0.5 and UniDecouple 0.7 in GenEval; neither follows prompts yet."


def test_one_seed_says_that_there_is_no_interval(new_experiment: Any) -> None:
    made = new_experiment()
    made.add("S1-r16", "start", {"pope": (0.9,)})
    made.add("S1-r16", "dense_joint", {"pope": (0.7,)})
    made.add("S1-r16", "unidecouple", {"pope": (0.85,)})
    found = answers(made, "S1-r16")
    kept, compared = found["Understanding"], found["Significant?"]
    assert kept.endswith("dense joint lost 20.0 points of POPE and UniDecouple 5.0.")
    assert "POPE +15.0. There is one seed only, so no interval exists" in compared
    assert "±" not in kept + compared


def test_what_is_missing_is_not_made_up(new_experiment: Any) -> None:
    made = new_experiment()
    made.add("S9", "unidecouple", {"pope": (0.85, 0.95)})
    made.add("S8", "moe", {"pope": (0.85,)})
    found = answers(made, "S9")
    assert found["Understanding"] == "UniDecouple scores 90.0 of POPE; the start was not measured."
    assert found["Next"].startswith("Add a control")
    assert answers(made, "S8") == {"Compared": "In S8: no run of UniDecouple or of dense joint has a score yet."}


def test_held_out_log_probabilities_are_in_nats(new_experiment: Any) -> None:
    """Higher is better: −2.5 after −2.0 is a loss of 0.5 nats, and no ratio is made of log-probabilities."""
    made = new_experiment()
    for variant, text, images in (("start", -2.0, -6.0), ("dense_joint", -2.5, -5.0), ("unidecouple", -2.1, -5.25)):
        made.add("own", variant, {"answers": (text,), "image_tokens": (images,)})
    found = answers(made, "own")
    assert (
        found["Understanding"] == "From the start, dense joint lost 0.500 nats per token of Held-out answers and UniDecouple 0.100."
    )
    assert found["Generation"] == (
        "dense joint scored \u22125.000 and UniDecouple \u22125.250 nats per token in Held-out image tokens."
    )
    assert found["Significant?"].startswith(
        "UniDecouple minus dense joint, in nats per token: Held-out answers +0.400 and Held-out image tokens \u22120.250."
    )


def test_language_is_answered_beside_understanding(new_experiment: Any) -> None:
    """It has a sentence of its own, no place in fronts, and is named where the focus is behind in it."""
    made = new_experiment()
    lost = {"start": (-3.0,) * 3, "dense_joint": (-3.5, -3.51, -3.49), "unidecouple": (-3.6, -3.61, -3.59)}
    for variant, scores in lost.items():
        made.add("own", variant, {"pope": (0.9, 0.91, 0.92), "language": scores, "geneval": (0.1, 0.11, 0.12)})
    found = answers(made, "own")
    assert list(found)[:4] == ["Compared", "Understanding", "Language", "Generation"]
    assert found["Language"].startswith("From the start, dense joint lost 0.500 \u00b1 0.025 nats per token of English text")
    assert found["Next"].startswith("UniDecouple is behind in language:")
    results = load_results(made.write())
    assert [metric.task for metric in results.metrics] == ["mmu", "language", "t2i"]
    assert [metric.benchmark for metric in front_axes(results)[1]] == ["pope"]


def test_answers_to_instructions_stand_side_by_side(new_experiment: Any) -> None:
    made = new_experiment()
    for variant, words in (("start", "Rome."), ("dense_joint", "a red cow"), ("unidecouple", "Rome")):
        made.add("S1", variant, {"pope": (0.9,)})
        rows = [{"prompt": "What is the capital of Italy?", "tag": "instruction", "correct": None, "reason": "", "answer": words}]
        write_json_atomic(made.folder / "S1" / variant / "seed-0" / "samples.json", rows)
    [shown] = sample_grid(load_results(made.write()), "S1").prompts
    assert [(one.label, one.answer, one.source) for one in shown.pictures] == [
        ("start", "Rome.", ""),
        ("dense joint", "a red cow", ""),
        ("UniDecouple", "Rome", ""),
    ]
    assert (shown.prompt, shown.tag, shown.shown) == ("What is the capital of Italy?", "instruction", "")
