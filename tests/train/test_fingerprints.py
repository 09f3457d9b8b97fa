"""What a run was trained on is held against what is there when it resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from own_data import asked, flat, png, write_jsonl, write_pictures
from small_runs import Run
from unidecouple.data.settings import Files, Source
from unidecouple.files import sha256_file
from unidecouple.run import RunConfig
from unidecouple.train import fingerprints
from unidecouple.train.fingerprints import FINGERPRINTS, check_fingerprints, take_fingerprints


@pytest.fixture
def own(small_run: RunConfig, tmp_path: Path) -> RunConfig:
    write_pictures(tmp_path, "a.png", "b.png")
    train = write_jsonl(tmp_path / "train.jsonl", [asked("a.png"), flat("b.png")])
    held = write_jsonl(tmp_path / "held.jsonl", [asked("a.png", answer="no"), flat("b.png")])
    files = Files((Source(train),), (Source(held),), mmu_batch_size=1, t2i_batch_size=1)
    return replace(small_run, data=files, max_steps=4, evaluation=replace(small_run.evaluation, eval_batches=1))


def test_every_file_that_a_run_reads_has_its_hash(own: RunConfig, tmp_path: Path) -> None:
    found = take_fingerprints(own, tmp_path / "cache")
    read = [tmp_path / name for name in ("a.png", "b.png", "held.jsonl", "train.jsonl")]
    assert {name: digest for name, digest in found.items() if not name.startswith("base/")} == {
        str(path): sha256_file(path) for path in read
    }
    assert {"base/config.json", "base/model.safetensors", "base/tokenizer.json"} <= found.keys()


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["train.jsonl", "held.jsonl", "a.png", "b.png"])
def test_resume_on_other_data_is_refused(changed: str, own: RunConfig, run: Run, tmp_path: Path) -> None:
    """Of the same length, too: size and time would not tell."""
    assert not run(own, tmp_path / "run", stop_after=2)
    path = tmp_path / changed
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"cow", b"cup") if path.suffix == ".jsonl" else png(7))
    with pytest.raises(ValueError, match=rf"has changed since it began: \S*{changed}\. Bring"):
        run(own, tmp_path / "run")
    path.write_bytes(whole)
    assert run(own, tmp_path / "run")


def test_a_start_that_trained_nothing_holds_no_data(own: RunConfig, run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FINGERPRINTS).write_text('{"old.jsonl": "0"}')
    assert run(own, tmp_path / "run")
    assert "old.jsonl" not in json.loads((tmp_path / "run" / FINGERPRINTS).read_text())


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"a": '])
def test_broken_fingerprints_are_named(content: bytes, tmp_path: Path) -> None:
    check_fingerprints(tmp_path, {"a": "0"})  # a run of an earlier version has none
    (tmp_path / FINGERPRINTS).write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        check_fingerprints(tmp_path, {"a": "0"})


def test_a_large_file_is_hashed_by_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """First, last and size always; a change between blocks is not seen."""
    for name, value in (("_WHOLE", 100), ("_BLOCKS", 3), ("_BLOCK", 10)):
        monkeypatch.setattr(fingerprints, name, value)
    content = np.arange(200, dtype=np.uint8)
    seen = {}
    for place in (None, 0, 50, 100, 199):
        changed = content.copy()
        if place is not None:
            changed[place] += 1
        (tmp_path / "large").write_bytes(changed.tobytes())
        seen[place] = fingerprints._digest(tmp_path / "large")
    assert seen[50] == seen[None]
    assert len({seen[place] for place in (None, 0, 100, 199)}) == 4
