"""English text to train on beside images: entries of Ambrose Bierce's The Devil's Dictionary (1911, public domain).

``assets/text/training.txt`` holds 139 entries (29 KB) from Debian's ``dict-devil``, none of them in the benchmark ``language``.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from pathlib import Path

from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Task
from unidecouple.data.sequences import Sample, SequenceBuilder
from unidecouple.eval.language import read_passages

MAX_UNKNOWN = 0.1
"""Largest fraction of the text's tokens that the tokenizer may not know."""


@functools.cache
def training_passages() -> tuple[str, ...]:
    """Return the passages in the order of the file."""
    return tuple(read_passages(Path(str(files("unidecouple") / "assets" / "text" / "training.txt"))))


def passage_sample(builder: SequenceBuilder, text: str) -> Sample:
    """Return ``text`` as plain text after the BOS, without an image: a loss on every token but the BOS."""
    ids = builder.passage(text)
    return Sample.of_tokens(ids, [int(Task.MMU)] * len(ids), [IGNORE, *ids[1:]], [NO_IMAGE_TOKEN] * len(ids))


def check_text(builder: SequenceBuilder, longest: int) -> None:
    """Refuse a model that cannot learn from the passages.

    Args:
        builder: of the model.
        longest: tokens that the model takes.

    Raises:
        ValueError: its tokenizer knows too few of the words, or a passage is longer than ``longest``.
    """
    counts = [builder.unknown_words(text) for text in training_passages()]
    unknown, tokens = sum(len(words) for _, words in counts), sum(size for size, _ in counts)
    if unknown > MAX_UNKNOWN * tokens:
        raise ValueError(
            f"data.text_share is above 0, but the tokenizer does not know {unknown / tokens:.0%} of the words of English text: set "
            "it to 0, or start from a base that `unidecouple assemble --language` made"
        )
    if (most := max(size for size, _ in counts) + 1) > longest:
        raise ValueError(f"data.text_share is above 0, but a passage has {most} tokens and the model takes {longest}: set it to 0")
