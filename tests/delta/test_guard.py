"""``unidecouple guard`` from end to end: exit codes, what is written, and that the same call writes the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moved_weights import MakeTuned
from own_data import asked, flat, write_jsonl, write_pictures
from unidecouple.batch import Task
from unidecouple.cli import main
from unidecouple.delta.blend import Blend
from unidecouple.delta.guard import GuardOptions, guard
from unidecouple.delta.held_out import open_held_out
from unidecouple.delta.pair import open_pair
from unidecouple.delta.revert import module_groups, revert_greedily

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four records of each task."""
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, *(f"{n}.png" for n in range(4)))
    lines = [asked(f"{n}.png", "Is there a cow in the image?", "yes") for n in range(4)]
    lines += [flat(f"{n}.png", words) for n, words in enumerate(("a red cow", "a blue pig", "two cups", "a dog"))]
    write_jsonl(folder / "held_out.jsonl", lines)
    return folder / "held_out.jsonl"


def test_weights_alone_say_so(base: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["guard", str(base), str(tuned), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 0
    assert "weights alone" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "guard.json").read_text())
    assert not content["tests"]
    assert "weights alone" in content["not_measured"][0]
    page = (tmp_path / "out" / "guard.html").read_text()
    assert page.count("<svg") == 2
    assert main(words) == 0
    assert json.loads((tmp_path / "out" / "guard.json").read_text()) == content
    assert (tmp_path / "out" / "guard.html").read_text() == page


def test_a_broken_task_fails(base: Path, make_tuned: MakeTuned, data: Path, tmp_path: Path) -> None:
    """Only the text head and one layer's attention changed: understanding breaks, and reverting the head mends it."""
    start = load_file(base / "model.safetensors")

    def change(state: dict[str, torch.Tensor]) -> None:
        state.update(start)
        state["lm_head.weight"] = start["lm_head.weight"] + 5 * torch.randn(
            start["lm_head.weight"].shape, generator=torch.Generator().manual_seed(0)
        )

    other = make_tuned(tmp_path / "other", change=change)
    words = ["guard", str(base), str(other), "--data", str(data), "--output", str(tmp_path / "out"), "--device", "cpu"]
    words += ["--cache", str(tmp_path / "cache")]
    assert main(words) == 1
    content = json.loads((tmp_path / "out" / "guard.json").read_text())
    assert content["worse"] == ["mmu"]
    tests = {row["task"]: row for row in content["tests"]}
    assert tests["mmu"]["verdict"] == "worse"
    assert tests["t2i"]["gain"] == 0
    assert tests["mmu"]["samples"] == tests["t2i"]["samples"] == 4
    (revert,) = content["reverts"]
    assert revert["groups"] == ["text_head"]
    assert revert["mmu"] == pytest.approx(tests["mmu"]["before"], abs=1e-6)
    assert (tmp_path / "out" / "guard.html").read_text().count("<svg") >= 2
    assert main([*words, "--tolerance", "1000"]) == 0


def test_data_and_benchmarks_are_opened_before_the_weights_are_measured(
    base: Path, tuned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring a large model takes long, and a mistake in a file is known at once."""
    monkeypatch.setattr("unidecouple.delta.guard.measure_moved", lambda *_: pytest.fail("measured"))
    single = tmp_path / "one.jsonl"
    write_jsonl(single, [flat(str(data.parent / "0.png"), "a red cow")])
    with pytest.raises(ValueError, match=r"1 sample\(s\) of t2i"):
        guard(str(base), str(tuned), GuardOptions((str(single),), cache=tmp_path))
    with pytest.raises(ValueError, match="unknown benchmark 'popee'"):
        guard(str(base), str(tuned), GuardOptions(benchmarks=("popee",)))


def test_greedy_ends_at_the_base(base: Path, tuned: Path, data: Path, tmp_path: Path) -> None:
    pair = open_pair(str(base), str(tuned))
    blend = Blend(pair, CPU)
    held_out = open_held_out([str(data)], blend.base(), pair.base.processor, 2, tmp_path, lambda what, done, of: None)
    assert {task: len(some) for task, some in held_out.samples.items()} == {Task.MMU: 2, Task.T2I: 2}
    groups = module_groups(blend.names, 2, blocks=1)
    path = revert_greedily(blend, held_out, groups, lambda line: None)
    assert len(path) == len(groups) + 1
    wanted = held_out.losses(blend.base())
    assert all(path[-1].losses[task] == pytest.approx(sum(wanted[task]) / 2) for task in Task)
    assert {name.split(" ")[0] for name in groups} >= {"attention", "ffn", "norms", "embeddings", "generation", "vision"}
    assert sorted(name for names in groups.values() for name in names) == sorted(blend.names)
    first = path[1]
    for name, weights in groups.items():
        losses = held_out.losses(blend.tuned(weights))
        assert sum(sum(values) / 2 for values in losses.values()) >= sum(first.losses.values()) - 1e-6, name


def test_interpolation_ends(base: Path, tuned: Path) -> None:
    blend = Blend(open_pair(str(base), str(tuned)), CPU)
    states = [{name: weight.clone() for name, weight in blend.between(alpha).state_dict().items()} for alpha in (0.0, 0.5, 1.0)]
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    for name in before:
        assert torch.equal(states[0][name], before[name])
        assert torch.equal(states[2][name], after[name])
        if before[name].is_floating_point():
            torch.testing.assert_close(states[1][name], (before[name] + after[name]) / 2)


def test_other_families_have_the_weights_part(tmp_path: Path) -> None:
    for name, factor in (("a", 1.0), ("b", 1.1)):
        save_file({"model.layers.0.self_attn.q_proj.weight": factor * torch.eye(8)}, tmp_path / f"{name}.safetensors")
    pair = [str(tmp_path / f"{name}.safetensors") for name in ("a", "b")]
    content = guard(*pair, output=tmp_path / "out")
    assert content["weights"]["total"]["relative"] == pytest.approx(0.1, rel=1e-5)
    assert content["weights"]["weights"][0]["ranks"] == (4, 8, 8)  # of eight equal singular values
    with pytest.raises(ValueError, match="of a family that this package does not run: leave out --data"):
        guard(*pair, GuardOptions(data=("x.jsonl",)))


def test_language_has_a_verdict_of_its_own(base: Path, make_tuned: MakeTuned, data: Path, tmp_path: Path) -> None:
    """Only the adaptor of the vision tower changed: understanding breaks, text without images is as before."""
    start = load_file(base / "model.safetensors")

    def change(state: dict[str, torch.Tensor]) -> None:
        state.update(start)
        for name in [name for name in start if name.startswith("model.aligner.")]:
            state[name] = start[name] + 5 * torch.randn(start[name].shape, generator=torch.Generator().manual_seed(0))

    other = make_tuned(tmp_path / "other", change=change)
    texts = [asked(None, f"Is {word} a color?", "yes") for word in ("red", "blue", "green", "black", "white")]
    write_jsonl(data.parent / "text.jsonl", texts)
    options = GuardOptions((str(data), str(data.parent / "text.jsonl")), samples=3, reverts=False, cache=tmp_path / "cache")
    content = guard(str(base), str(other), options, tmp_path / "out")
    tests = {row["task"]: row for row in content["tests"]}
    assert {task: row["samples"] for task, row in tests.items()} == {"mmu": 3, "language": 3, "t2i": 3}
    assert content["samples"] == {"mmu": 6, "t2i": 3}
    assert tests["language"]["before"] == tests["language"]["after"]
    assert tests["language"]["verdict"] == "no significant change"
    assert tests["mmu"]["before"] != tests["mmu"]["after"]
    answers = content["answers"]
    assert len(answers) == 6
    assert all(row["before"] == row["after"] for row in answers)
    page = (tmp_path / "out" / "guard.html").read_text()
    assert "Answers before and after" in page
    assert "Language: held-out loss" in page
    text = GuardOptions((str(data.parent / "text.jsonl"),), reverts=False, cache=tmp_path / "cache")
    assert [row["task"] for row in guard(str(base), str(other), text)["tests"]] == ["language"]


def test_a_single_text_counts_as_understanding(base: Path, data: Path, tmp_path: Path) -> None:
    write_jsonl(data.parent / "one.jsonl", [asked(None, "Is red a color?", "yes")])
    pair = open_pair(str(base), str(base))
    files = (str(data), str(data.parent / "one.jsonl"))
    held_out = open_held_out(files, Blend(pair, CPU).base(), pair.base.processor, 8, tmp_path, lambda *_: None)
    assert held_out.by_key(Task.MMU, [1.0] * 5) == {"mmu": [1.0] * 5}
    first = held_out.samples[Task.MMU]
    pictures = [one for one in first if one[0].pixel_values is not None]
    texts = [one for one in first if one[0].pixel_values is None]
    mixed = replace(held_out, samples={Task.MMU: [*pictures[:1], *texts, *texts]})
    with pytest.raises(ValueError, match="1 sample about an image beside text alone"):
        mixed.by_key(Task.MMU, [1.0] * 3)
