"""Answers to a few fixed instructions, greedy, without an image: shown before and after training, not scored."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from unidecouple.eval.benchmark import Query
from unidecouple.eval.model import EvalModel

INSTRUCTIONS: Final = (
    "What is the capital of Italy?",
    "Write one sentence about the sea.",
    "Name three fruits.",
    "Why is the sky blue? Answer in one sentence.",
    "Correct this sentence: He go to work every day.",
    "Translate to French: Good morning.",
)
MAX_NEW_TOKENS: Final = 32


def answer_instructions(model: EvalModel, count: int | None = None) -> list[tuple[str, str]]:
    """Return the first ``count`` instructions, by default all, each with the model's answer of at most ``MAX_NEW_TOKENS``."""
    asked = INSTRUCTIONS[:count]
    queries = [Query(str(number), text, None) for number, text in enumerate(asked)]
    return list(zip(asked, replace(model, max_new_tokens=MAX_NEW_TOKENS).ask_text(queries) if asked else [], strict=True))
