"""The GPU's benchmark, gone through at a tiny size: every side runs and agrees, and a step that is not repeated is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import gpu
from benchmarks.timing import SidesDifferError
from published import PRO_1B, PRO_7B

CPU = torch.device("cpu")


@pytest.mark.slow
def test_a_mixture_beside_the_librarys(capsys: pytest.CaptureFixture[str]) -> None:
    """Greedy tokens of all sides are compared on the way, dense and mixture."""
    gpu.main(["--tiny", "--only", "G4 1B"])
    table = capsys.readouterr().out
    assert [line.split("  ")[0] for line in table.splitlines()[4:]] == [
        "G4 1B: a picture",
        "G4 1B: engine, from Python / engine, replayed",
        "G4 1B: transformers generate / engine, replayed",
        "G4 1B: deepseek's loop / engine, replayed",
    ]
    assert "met" not in table
    assert ".json" not in table


def test_the_other_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures a second."""
    monkeypatch.setattr(gpu, "agree", lambda machine: None)
    machine = gpu.Machine(CPU, tiny=True)
    whole = gpu.run(machine, "G6")
    assert [row.unit for row in whole.rows] == ["pictures/s", "x", "x"]
    assert set(whole.details["G6 1B"]["seconds"]) == {gpu.REPLAYED, gpu.EAGER, gpu.DEEPSEEK}
    with pytest.raises(ValueError, match=r"'G9' is none of G3 1B"):
        gpu.run(machine, "G9")


def test_a_step_that_is_not_repeated_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(step: Callable[[], None]) -> Callable[[], None]:
        step()
        return lambda: None

    monkeypatch.setattr(gpu, "again", once)
    machine = gpu.Machine(CPU, tiny=True)
    with pytest.raises(SidesDifferError, match="engine, from Python draws other tokens than engine, replayed"):
        gpu.agree(machine)
    with pytest.raises(SidesDifferError, match="draw different tokens: nothing was timed"):
        gpu.timed(gpu.CASES[0], machine, 7)


def test_goals() -> None:
    assert gpu.row("a", 0.78, 0.7, 0.9, 0.78, "s", less=True).met
    assert not gpu.row("a", 0.79, 0.7, 0.9, 0.78, "s", less=True).met
    assert gpu.row("a", 10.0, 9.0, 11.0, 10.0, "x").goal == "at least 10"
    assert not gpu.row("a", 9.9, 9.0, 11.0, 10.0, "x").met
    assert gpu.row("a", 9.9, 9.0, 11.0, None, "x").met is None


@pytest.mark.parametrize(("name", "published"), [("1B", PRO_1B), ("7B", PRO_7B)])
def test_the_sizes_are_janus_pros(name: str, published: object) -> None:
    size = gpu.SIZES[name]
    mine = (size.hidden_size, size.intermediate_size, size.num_hidden_layers, size.num_attention_heads, size.codes, size.image_size)
    assert mine == tuple(getattr(published, key) for key in ("hidden", "inner", "layers", "heads", "codes", "image"))
    assert size.num_image_tokens == 576


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match=r"no CUDA device.*nothing was run"):
        gpu.main([])
