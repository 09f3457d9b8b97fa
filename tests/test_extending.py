"""The examples of docs/own-*.md, carried out in a copy of the package: files written, lines added, and what is new run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unidecouple.methods.structure import STRUCTURES

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```\w+\n# (\S+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLACES = """
import sys
from pathlib import Path
base, cache, out = map(Path, sys.argv[1:])
"""
STEP = """
from test_recipes import step_of_each_stage
from unidecouple import config
from unidecouple.compare.budget import cells, check
from unidecouple.compare.plan import Comparison, jobs
grid = config.load(Comparison, [Path("recipes/tail.yaml")], ["scenarios.own.model_name_or_path=unified"])
planned = [job for job in jobs(grid) if (job.name, job.rate, job.seed) in (("dense_joint", "", 0), ("tail", "", 0))]
check(grid, cells(planned))
assert step_of_each_stage(planned[-1].config, base, cache, out / "step") == 1
"""


PAGES = [ROOT / "docs" / f"own-{what}.md" for what in ("method", "benchmark", "data-format", "data-source")]
CAPTIONS = """
from unidecouple.data.formats import BadRecordError, open_readers
path = out / "captions.tsv"
path.write_bytes(b"a.png\\ta red cat\\nno tab here\\nb.png\\ttwo dogs\\n")
(reader,) = open_readers(path)
record = reader.record(2)
print(reader.format, reader.kinds.tolist(), record.kind, record.turns[0].parts, record.generated[0].path.name)
try:
    reader.record(1)
except BadRecordError as error:
    print(error)
"""


def blocks() -> list[tuple[str, str]]:
    """The examples' blocks of code, each with the file that it names in its first line."""
    return BLOCK.findall("".join(page.read_text() for page in PAGES))


LETTERS = """
import json
import numpy as np
from PIL import Image
from unidecouple.eval.suite import BenchmarkOptions, metric_named, open_benchmarks
Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(out / "a.png")
rows = [{"image": "a.png", "letter": letter} for letter in "ABCD"]
(out / "letters.jsonl").write_text("".join(json.dumps(row) + chr(10) for row in rows))
(benchmark,) = open_benchmarks(["letters"], BenchmarkOptions(out))
report = benchmark.score(dict(zip([query.id for query in benchmark.queries], ["A", "b.", "D", ""], strict=True)))
print([(row.metric, row.value, row.floor) for row in report.scores], metric_named("letters").title)
(benchmark,) = open_benchmarks(["letters"], BenchmarkOptions(out, limit=2))
assert len(benchmark.queries) == 2
"""


NOISE = """
import threading
import pytest
from docs.recipe_keys import refreshed
from unidecouple import config
from unidecouple.run import RunConfig
from unidecouple.train.train import train
recipe = out / "noise.yaml"
recipe.write_text("{data: {kind: noise, mmu_batch_size: 0}, stages: [{train: {generation: 1}}], diagnose: false}")
run = config.load(RunConfig, [recipe], [f"model_name_or_path={base}", "max_steps=2", "logging_steps=1", "data.t2i_batch_size=2"])
train(run, out / "run", out / "noise", lambda line: None, threading.Event())
print(len((out / "run" / "metrics.jsonl").read_text().splitlines()), run.data.kind)
with pytest.raises(config.ConfigError, match="did you mean 'caption'"):
    config.load(RunConfig, [recipe], ["data.captions=a cow"])
assert "### kind: noise" in refreshed(Path("docs/recipes.md").read_text())
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
    for name in ("unidecouple", "tests", "recipes", "docs"):
        shutil.copytree(ROOT / name, place / name, ignore=skipped)
    (place / "unidecouple" / "assets").symlink_to(ROOT / "unidecouple" / "assets")
    shutil.copyfile(ROOT / "pyproject.toml", place / "pyproject.toml")
    for name, text in blocks():
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
    kinds = [name.rsplit("/", 1)[-1] for name, _ in blocks()]
    assert kinds == [
        *("tail.py", "__init__.py", "tail.yaml"),
        *("letters.py", "plugins.py"),
        *("captions.py", "detect.py"),
        *("noise.py", "plugins.py"),
    ]
    assert added_to('A = {\n    "a": 1,\n}\n', '    "a": 1,\n    "b": 2,\n') == 'A = {\n    "a": 1,\n    "b": 2,\n}\n'
    assert added_to(
        "from unidecouple.a import A\n\nB = A | C\nT: x = (A, C)\n", "from unidecouple.t import T\nB = … | T\nT: x = (…, T)"
    ) == ("from unidecouple.t import T\nfrom unidecouple.a import A\n\nB = A | C | T\nT: x = (A, C, T)\n")


@pytest.mark.slow
def test_the_example_passes_the_property_tests_of_the_union(copy: Path) -> None:
    """Those of the new member, and those that name no member."""
    tests = ("-m", "pytest", "-v", "-n0", "-p", "no:cacheprovider")
    others = " or ".join(kind().kind for kind in STRUCTURES)
    chosen = f"(tail or no_member or (test_structures and not ({others}))) and not two_processes"
    printed = call(copy, *tests, "tests/methods/test_structures.py", "tests/train/test_members.py", "-k", chosen)
    passed = set(re.findall(r"::(test_\w+)\[[^\]]*\b[Tt]ail\b[^\]]*\] PASSED", printed))
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
def test_the_examples_run(copy: Path, small_base: Path, small_cache: Path, tmp_path: Path) -> None:
    """The format reads, kinds being 1 for generation and 3 for a bad record; the benchmark scores, a step is made, a run trains."""
    (copy / "examples.py").write_text(PLACES + CAPTIONS + LETTERS + STEP + NOISE)
    printed = call(copy, "examples.py", str(small_base), str(small_cache), str(tmp_path)).splitlines()
    assert printed == [
        "captions [1, 3, 1] t2i ('two dogs',) b.png",
        f"{tmp_path / 'captions.tsv'}:2: no tab between the image's name and its caption",
        f"[('accuracy', 0.5, {1 / 26})] Letters",
        "2 noise",
    ]
    assert "letters" in call(copy, "-m", "unidecouple", "eval", "--help")


@pytest.mark.parametrize(
    ("name", "lines"),
    [("methods/structure/tail.py", 50), ("eval/letters.py", 50), ("data/formats/captions.py", 50), ("train/noise.py", 120)],
)
def test_the_examples_are_as_the_house_wants_them(copy: Path, name: str, lines: int) -> None:
    """In the standard form, and no longer than they say."""
    path = copy / "unidecouple" / name
    for words in (["format", "--check"], ["check"]):
        call(copy, "-m", "ruff", *words, "--no-cache", str(path))
    assert len(path.read_text().splitlines()) < lines
