"""``unidecouple eval`` as a user meets it: the world and files, stop and go on, several processes, scoring apart."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from published_sets import write_art, write_llava_pope, write_mme, write_pope
from ranks import exit_codes, fork_ranks
from unidecouple.cli import main
from unidecouple.eval.answering import read_answers
from unidecouple.files import sha256_tree

QUICK = ["--limit", "4", "--num-images", "1", "--batch-size", "8", "--device", "cpu"]


def world(base: Path, output: Path, *more: str) -> list[str]:
    return ["eval", str(base), "--benchmarks", "pope,vqa,geneval", "--output", str(output), *QUICK, *more]


@pytest.fixture(scope="module")
def scored(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scored")
    assert main(world(small_base, output)) == 0
    return output


def test_the_world_is_scored_and_every_score_has_its_card(scored: Path, small_base: Path) -> None:
    for name in ("pope", "vqa", "geneval"):
        card = json.loads((scored / name / "card.json").read_text())
        assert set(card["weights"]) >= {"model.safetensors", "config.json", "tokenizer.json"}
        assert card["settings"]["seed"] == 71
        assert any(row["low"] is not None for row in card["scores"])
    assert len(list((scored / "geneval" / "images").iterdir())) == 24
    rows = json.loads((scored / "scores.json").read_text())["scores"]
    assert list(dict.fromkeys(row["benchmark"] for row in rows)) == ["geneval", "pope", "vqa"]


@pytest.mark.slow
def test_two_processes_make_the_same_answers_and_pictures(scored: Path, small_base: Path, tmp_path: Path) -> None:
    command = world(small_base, tmp_path)
    assert exit_codes(fork_ranks(2, [partial(main, command)] * 2)) == [0, 0]
    assert sorted(path.name for path in (tmp_path / "pope").glob("answers.*")) == ["answers.0.jsonl", "answers.1.jsonl"]
    for name in ("pope", "vqa"):
        assert read_answers(tmp_path / name) == read_answers(scored / name)
    assert sha256_tree(tmp_path / "geneval" / "images") == sha256_tree(scored / "geneval" / "images")
    one, two = (json.loads((folder / "geneval" / "card.json").read_text()) for folder in (scored, tmp_path))
    assert one["scores"] == two["scores"]
    assert one["settings"] == two["settings"]


def test_tasks_of_an_array_make_the_same_scores(
    scored: Path, small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", str(small_base), "--benchmarks", "pope,vqa", "--output", str(tmp_path), *QUICK]
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    for rank in (1, 0):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(rank))
        assert main(command) == 0
        assert (tmp_path / "scores.json").exists() == (rank == 0)  # the last scores
    assert "pope: share 2 of 2 is done" in capsys.readouterr().out
    for name in ("pope", "vqa"):
        assert sorted(path.name for path in (tmp_path / name).glob("answers.*")) == ["answers.0.jsonl", "answers.1.jsonl"]
        assert read_answers(tmp_path / name) == read_answers(scored / name)
        one, two = (json.loads((folder / name / "card.json").read_text())["scores"] for folder in (scored, tmp_path))
        assert one == two


def test_what_a_kill_left_out_is_made_up_for(
    scored: Path, small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scored, tmp_path / "cut")
    answers = tmp_path / "cut" / "pope" / "answers.0.jsonl"
    answers.write_bytes(answers.read_bytes()[:-150])
    shutil.rmtree(tmp_path / "cut" / "geneval" / "images" / "00003")
    command = world(small_base, tmp_path / "cut")
    assert main([*command, "--score-only"]) == 1
    assert "run the same command without --score-only" in capsys.readouterr().err
    assert main(command) == 0
    assert "vqa: answers" not in capsys.readouterr().out
    assert read_answers(tmp_path / "cut" / "pope") == read_answers(scored / "pope")
    assert sha256_tree(tmp_path / "cut" / "geneval" / "images") == sha256_tree(scored / "geneval" / "images")
    assert main([*command, "--score-only", "--parser", "exact"]) == 0
    assert json.loads((tmp_path / "cut" / "pope" / "card.json").read_text())["judge"] == "exact"


def test_published_files(small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_llava_pope(write_pope(tmp_path / "data" / "pope"))
    write_mme(tmp_path / "data" / "mme")
    assert main(["geneval-prompts", "--output", str(tmp_path / "data" / "geneval")]) == 0
    command = ["eval", str(small_base), "--benchmarks", "pope,mme,geneval", "--data", str(tmp_path / "data")]
    assert (
        main([*command, "--output", str(tmp_path / "out"), "--limit", "1", "--num-images", "1", "--blind", "--parser", "llava"])
        == 0
    )
    said = capsys.readouterr().out
    for benchmark, metric in (("pope", "accuracy"), ("mme", "accuracy/artwork")):
        page = (tmp_path / "out" / benchmark / "card.md").read_text()
        assert f"| {metric} (grey image) |" in page
        assert f"| {metric} (no image) |" in page
    assert "score with --score-only --detections FILE" in said
    assert (tmp_path / "out" / "geneval" / "images" / "00005" / "samples" / "0000.png").is_file()
    assert (tmp_path / "out" / "mme" / "official" / "artwork.txt").is_file()


def test_another_art(small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", str(small_base), "--output", str(tmp_path / "out"), *QUICK, "--art", str(write_art(tmp_path))]
    assert main([*command, "--benchmarks", "vqa"]) == 0
    assert main([*command, "--benchmarks", "vqa,geneval"]) == 1
    assert "--art draws the synthetic questions only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--benchmarks", "mmmu"], "mmmu has no synthetic form"),
        (["--benchmarks", "popes"], "unknown benchmark 'popes'"),
        (["--benchmarks", "pope", "--score-only", "--blind"], "leave one out"),
        (["--benchmarks", "pope", "--parser", "loose"], "unknown parser 'loose'"),
    ],
)
def test_mistakes_are_one_line(
    small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(["eval", str(small_base), "--output", str(tmp_path / "out"), *more]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
