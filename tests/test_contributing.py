"""The worked examples of CONTRIBUTING.md, carried out in a copy of the package: files written, lines added, and what is new run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
STEP = """
import sys
from pathlib import Path
from test_recipes import step_of_each_stage
from unidecouple import config
from unidecouple.compare.budget import cells, check
from unidecouple.compare.plan import Comparison, jobs
grid = config.load(Comparison, [Path("recipes/tail.yaml")], ["scenarios.own.model_name_or_path=unified"])
planned = [job for job in jobs(grid) if (job.name, job.rate, job.seed) in (("dense_joint", "", 0), ("tail", "", 0))]
check(grid, cells(planned))
base, cache, out = map(Path, sys.argv[1:])
assert step_of_each_stage(planned[-1].config, base, cache, out) == 1
"""


def blocks() -> dict[str, str]:
    """The example's blocks of code, by the file that each names in its first line."""
    return dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text()))


LETTERS = """
import json
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from unidecouple.eval.suite import BenchmarkOptions, metric_named, open_benchmarks
folder = Path(sys.argv[1])
Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
rows = [{"image": "a.png", "letter": letter} for letter in "ABCD"]
(folder / "letters.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
(benchmark,) = open_benchmarks(["letters"], BenchmarkOptions(folder))
report = benchmark.score(dict(zip([query.id for query in benchmark.queries], ["A", "b.", "D", ""], strict=True)))
print([(row.metric, row.value, row.floor) for row in report.scores], metric_named("letters").title)
(benchmark,) = open_benchmarks(["letters"], BenchmarkOptions(folder, limit=2))
assert len(benchmark.queries) == 2
"""


def added_to(source: str, lines: str) -> str:
    """``source`` with ``lines`` added.

    An import is put before the first. What follows … is put at the end of what stands on the same left side. Any other line
    stands there, or is put after the line before it.
    """
    before = ""
    for line in lines.splitlines():
        if "…" not in line and not line.startswith("from "):
            if line not in source.splitlines():
                assert source.splitlines().count(before) == 1, before
                source = source.replace(f"{before}\n", f"{before}\n{line}\n")
            before = line
            continue
        if line.startswith("from "):
            source = source.replace("from unidecouple", f"{line}\nfrom unidecouple", 1)
            continue
        left, last = line.split("…")
        matches = [found for found in source.splitlines() if found.startswith(left)]
        assert len(matches) == 1, left
        kept = matches[0].removesuffix(")") if last.endswith(")") else matches[0]
        source = source.replace(matches[0], kept + last)
    return source


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with its tests and recipes, and the example's changes made."""
    place = tmp_path_factory.mktemp("copy")
    skipped = shutil.ignore_patterns("__pycache__", "assets")
    for name in ("unidecouple", "tests", "recipes"):
        shutil.copytree(ROOT / name, place / name, ignore=skipped)
    (place / "unidecouple" / "assets").symlink_to(ROOT / "unidecouple" / "assets")
    shutil.copyfile(ROOT / "pyproject.toml", place / "pyproject.toml")
    for name, text in blocks().items():
        path = place / name
        path.write_text(added_to(path.read_text(), text) if path.exists() else text)
    return place


def call(copy: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": f"{copy}{os.pathsep}{copy / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_examples_are_a_file_and_its_lines_and_a_recipe() -> None:
    kinds = [name.rsplit("/", 1)[-1] for name in blocks()]
    assert kinds == ["tail.py", "__init__.py", "tail.yaml", "letters.py", "plugins.py"]
    assert added_to('A = {\n    "a": 1,\n}\n', '    "a": 1,\n    "b": 2,\n') == 'A = {\n    "a": 1,\n    "b": 2,\n}\n'
    assert added_to(
        "from unidecouple.a import A\n\nB = A | C\nT: x = (A, C)\n", "from unidecouple.t import T\nB = … | T\nT: x = (…, T)"
    ) == ("from unidecouple.t import T\nfrom unidecouple.a import A\n\nB = A | C | T\nT: x = (A, C, T)\n")


@pytest.mark.slow
def test_the_example_passes_the_property_tests_of_the_union(copy: Path) -> None:
    """The whole file of them, since those that name no member must pass with one more; of the runs, those of the new one."""
    tests = ("-m", "pytest", "-v", "-n0", "-p", "no:cacheprovider")
    told = call(copy, *tests, "tests/methods/test_structures.py")
    told += call(copy, *tests, "tests/train/test_members.py", "-k", "(tail or no_member) and not two")
    passed = set(re.findall(r"::(test_\w+)\[[^\]]*\b[Tt]ail\b[^\]]*\] PASSED", told))
    assert passed == {
        "test_upcycling_is_exact",
        "test_upcycling_twice_is_an_error",
        "test_saved_and_loaded",
        "test_the_tasks_names_do_not_matter",
        "test_a_task_s_loss_leaves_the_other_s_weights_alone",
        "test_resumed_equals_unbroken",
        "test_what_is_an_absent_task_s_rests",
    }


@pytest.mark.slow
def test_the_example_s_recipe_takes_a_step(copy: Path, small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    (copy / "step.py").write_text(STEP)
    call(copy, "step.py", str(small_base), str(small_cache), str(tmp_path / "run"))


def test_the_example_of_a_benchmark_is_scored_and_known_to_reports(copy: Path, tmp_path: Path) -> None:
    (copy / "letters.py").write_text(LETTERS)
    told = call(copy, "letters.py", str(tmp_path))
    assert told.strip() == f"[('accuracy', 0.5, {1 / 26})] Letters"
    assert "letters" in call(copy, "-m", "unidecouple", "eval", "--help")


@pytest.mark.parametrize("name", ["methods/structure/tail.py", "eval/letters.py"])
def test_the_examples_are_as_the_house_wants_them(copy: Path, name: str) -> None:
    """In the standard form, and no longer than they say."""
    path = copy / "unidecouple" / name
    for words in (["format", "--check"], ["check"]):
        call(copy, "-m", "ruff", *words, "--no-cache", str(path))
    assert len(path.read_text().splitlines()) < 50
