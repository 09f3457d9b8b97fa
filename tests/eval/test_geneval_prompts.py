"""The official 553 prompts, byte for byte."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from unidecouple.eval.geneval_prompts import CLASSES, PUBLISHED_SHA256, read_metadata, write_official
from unidecouple.files import sha256_file


def test_the_published_lines(tmp_path: Path) -> None:
    path = write_official(tmp_path)
    assert sha256_file(path) == PUBLISHED_SHA256
    published = "55b6e3650e980c13daf30569eb666e000faf19bfc2b7b4cbe999fcdb7aa9d680"
    assert sha256_file(tmp_path / "generation_prompts.txt") == published
    lines = read_metadata(path)
    counts = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    assert Counter(line["tag"] for line in lines) == counts
    assert len(set(CLASSES)) == 80


def test_limit_is_by_tag_and_broken_lines_are_named(tmp_path: Path) -> None:
    path = write_official(tmp_path)
    assert set(Counter(line["tag"] for line in read_metadata(path, 3)).values()) == {3}
    path.write_text('{"tag": "colors"}\n')
    with pytest.raises(ValueError, match=r"jsonl:1: 'include' is missing"):
        read_metadata(path)
