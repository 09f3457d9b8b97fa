"""The install check finds what it looks for: a failing step, a library's warning, CUDA, wrong output."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from big.install_check import CheckError, disc, drew, readme_commands, refuse_cuda, run, scored


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_failing_step_shows_its_command_and_standard_error(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"(?s)sys\.exit\('no such model'\): exit status 1.*no such model"):
        run(python("import sys; sys.exit('no such model')"), tmp_path)


def test_a_warning_fails_a_step(tmp_path: Path) -> None:
    code = "import warnings; warnings.warn('use cache', FutureWarning); print('yes')"
    with pytest.raises(CheckError, match=r"(?s)printed a warning.*FutureWarning: use cache"):
        run(python(code), tmp_path)
    assert run(python(code), tmp_path, warnings=True) == "yes\n"


def test_the_source_tree_is_not_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    assert run(python("import os; print('PYTHONPATH' in os.environ)"), tmp_path) == "False\n"


@pytest.mark.parametrize(("name", "taken"), [("nvidia-cublas", False), ("sympy", True)])
def test_cuda_is_refused(tmp_path: Path, name: str, taken: bool) -> None:
    report = json.dumps({"install": [{"metadata": {"name": "torch"}}, {"metadata": {"name": name}}]})
    pip = python(f"open('torch.json', 'w').write({report!r})")
    if taken:
        refuse_cuda(pip, tmp_path)
    else:
        with pytest.raises(CheckError, match=r"CUDA build of torch.*set TORCH_INDEX"):
            refuse_cuda(pip, tmp_path)


def test_the_quick_start_is_the_readme_s() -> None:
    """Five commands, the last of which names the folder that transformers opens."""
    found = readme_commands((Path(__file__).parents[2] / "README.md").read_text())
    assert [words[0] for words in found] == ["data", "train", "chat", "generate", "convert"]
    assert found[-1][-2:] == ["--output", "out/mine"]


def test_the_picture_is_a_disc_on_white() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(disc((220, 40, 40)))))
    assert pixels.shape == (64, 64, 3)
    assert pixels[32, 32].tolist() == [220, 40, 40]
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert ((pixels == (220, 40, 40)).all(-1).mean()) == pytest.approx(np.pi / 8, abs=0.01)  # radius: side / sqrt(8)


def test_wrong_output_is_found(tmp_path: Path) -> None:
    (tmp_path / "out" / "cat").mkdir(parents=True)
    (tmp_path / "out" / "cat" / "grid.png").write_bytes(disc((0, 0, 0)))
    assert not drew("", tmp_path)
    (tmp_path / "out" / "eval").mkdir(parents=True)
    for value, right in ((0.75, True), (0.7, False), (1.25, False)):
        (tmp_path / "out" / "eval" / "card.json").write_text(json.dumps({"scores": [{"metric": "accuracy", "value": value}]}))
        assert scored("", tmp_path) is right
