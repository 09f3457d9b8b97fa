"""Folders of runs and evaluations on one page, against scores written here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unidecouple.cli import main
from unidecouple.compare.existing import gather
from unidecouple.eval.scores_file import write_scores
from unidecouple.eval.suite import metric_named
from unidecouple.report.results import load_results


def scored(folder: Path, pope: float, geneval: float) -> Path:
    """What a run, or an evaluation, leaves."""
    rows = [
        {"benchmark": name, "metric": metric, "value": value, "judge": None, "ceiling": 1.0, "floor": 0.5}
        for name, metric, value in (("pope", "accuracy", pope), ("geneval", "overall", geneval))
    ]
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps({"step": 5, "data": "world", "scores": rows}))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """A base, and two variants of two seeds: +1 and +3 points of POPE."""
    found = [scored(tmp_path / "start", 0.9, 0.1)]
    for seed, (theirs, ours) in enumerate(((0.50, 0.51), (0.60, 0.63))):
        found += [scored(tmp_path / "dense" / f"seed{seed}", theirs, 0.4), scored(tmp_path / "ours" / f"seed{seed}", ours, 0.5)]
    return found


def test_folders_become_variants_paired_by_seed(folders: list[Path], tmp_path: Path) -> None:
    assert main(["report", *map(str, folders), "--output", str(tmp_path / "page")]) == 0
    results = load_results(tmp_path / "page")
    (scenario,) = results.scenarios
    assert (results.control, results.focus) == ("dense", "ours")
    delta = results.delta(scenario, "ours", metric_named("pope"))
    assert delta is not None
    assert (delta.mean, delta.count, delta.half_width) == (pytest.approx(0.02), 2, pytest.approx(12.7062 * 0.01, rel=1e-4))
    page = (tmp_path / "page" / "report.html").read_text()
    assert "ours minus dense, in points, paired by seed: POPE <strong>+2.0 ± 12.7</strong>" in page
    assert [run.folder.resolve() for run in results.runs] == [folder.resolve() for folder in folders]


def test_another_control(folders: list[Path], tmp_path: Path) -> None:
    results = load_results(gather(folders, tmp_path / "page", "ours").parent)
    assert (results.control, results.focus) == ("ours", "dense")


@pytest.mark.parametrize(
    ("name", "control", "message"),
    [
        ("nothing", "", r"nothing/scores\.json does not exist: give folders of finished runs"),
        ("broken", "", r"broken/scores\.json is no JSON"),
        ("empty", "", r"empty/scores\.json lacks step or scores"),
        ("other/dense/seed0", "", r"are both variant 'dense', seed 0: rename one"),
        ("", "dnese", r"--control 'dnese' is none of the folders' variants: 'dense', 'ours'"),
    ],
)
def test_what_cannot_be_gathered_is_named(folders: list[Path], tmp_path: Path, name: str, control: str, message: str) -> None:
    for text, broken in (("broken", "{"), ("empty", "{}")):
        (tmp_path / text).mkdir()
        (tmp_path / text / "scores.json").write_text(broken)
    more = [tmp_path / name] if name else []
    with pytest.raises(ValueError, match=message):
        gather([*folders, *more], tmp_path / "page", control)
    assert not (tmp_path / "page").exists()


def test_several_folders_need_an_output(folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *map(str, folders)]) == 1
    assert "name its folder with --output" in capsys.readouterr().err


def test_scores_of_an_evaluation_are_those_of_its_cards(tmp_path: Path) -> None:
    """Of the checkpoint that was asked for; a card of another one in the same folder stays out."""
    assert write_scores(tmp_path, "base") is None
    row = {"benchmark": "pope", "metric": "accuracy", "value": 0.75, "judge": "exact", "ceiling": 1.0, "floor": 0.5}
    for name, checkpoint, value in (("pope", "runs/a/checkpoint-7", 0.75), ("vqa", "runs/b", 0.5)):
        (tmp_path / name).mkdir()
        card = {"checkpoint": checkpoint, "files": {}, "scores": [row | {"value": value, "low": 0.6, "high": 0.8, "count": 20}]}
        (tmp_path / name / "card.json").write_text(json.dumps(card))
    path = write_scores(tmp_path, "runs/a/checkpoint-7")
    assert path is not None
    content = json.loads(path.read_text())
    assert content == {"step": 7, "checkpoint": "runs/a/checkpoint-7", "data": "world", "scores": [row]}


def test_results_of_a_comparison_are_not_replaced(folders: list[Path], tmp_path: Path) -> None:
    first = gather(folders, tmp_path / "page")
    assert gather(folders, tmp_path / "page") == first, "its own earlier results are"
    grid = json.loads(first.read_text())
    grid["meta"]["command"] = "unidecouple compare demo.yaml"
    first.write_text(json.dumps(grid, indent=1))
    with pytest.raises(ValueError, match=r"results\.json was not written by `unidecouple report`: choose another --output"):
        gather(folders, tmp_path / "page")
