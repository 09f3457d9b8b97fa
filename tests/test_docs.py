"""Every command in docs/ runs, in the order of its page, on a tiny model in the published layout."""

from __future__ import annotations

import json
import multiprocessing
import re
import shlex
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from own_data import asked, flat, write_jsonl, write_pictures
from published import write_published
from published_sets import write_art, write_llava_pope, write_mme, write_pope, write_unig2u, write_vqav2
from ranks import exit_codes, fork_ranks
from tiny_emu3 import write_emu3
from tiny_language import write_language
from unidecouple.cli import _parser, main
from unidecouple.cli.command import OK
from unidecouple.convert.load import load
from unidecouple.eval.geneval_prompts import official_metadata
from unidecouple.world import source

ROOT = Path(__file__).parents[1]
ELSEWHERE = (
    "scale",
    "web",
    "share",
    "own-method",
    "own-benchmark",
    "own-data-format",
    "own-data-source",
    "small-gpus",
    "results-json",
    "http",
    "concepts",
    "python",
)
"""Pages whose commands have their own tests, or run on another page."""
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem not in ELSEWHERE)
SMALL = ["data.mmu_batch_size=2", "data.t2i_batch_size=2", "data.max_length=256", "gradient_accumulation_steps=1"]
WORLD = ["data.pairs=8", "data.scenes=8", "data.single_object_steps=0", "max_steps=2", "evaluation.eval_steps=0", "diagnose=false"]
WORLD += [f"data.evaluation.{name}=2" for name in ("pope_images", "vqa_questions", "prompts_per_tag")] + [
    "data.evaluation.num_images=1"
]
SIZES = ["t2i_batch_size=2", "mmu_batch_size=2"]
SYNTHETIC = {
    "recipes/base/unified.yaml": [f"data.{entry}" for entry in SIZES],
    "recipes/language/understanding.yaml": [
        f"data.evaluation.{name}=2" for name in ("passages", "multiple_choice", "instructions")
    ],
}
"""Recipes on the synthetic benchmark that pages train -> what makes their runs small, beside ``WORLD``."""
SMALL += ["max_steps=2", "evaluation.eval_steps=0", "evaluation.eval_batches=1", "diagnose=false", "device=cpu"]
OWN = [entry for entry in SMALL if "batch_size" not in entry] + ["evaluation.eval_batch_size=2"]


def commands(page: Path) -> list[list[str]]:
    return [shlex.split(line) for line in re.findall(r"^    ((?:unidecouple|torchrun) .*)$", page.read_text(), re.MULTILINE)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: what was downloaded, data, and our recipes."""
    place = tmp_path_factory.mktemp("user")
    write_published(place / "deepseek-ai" / "Janus-Pro-1B")
    write_emu3(place / "Emu3-community" / "Emu3-Gen-hf")
    write_pictures(place / "data", "a.png", "b.png", "cat.png")
    more = [asked("b.png", "What is this?", "A dog."), flat("a.png", "a blue dog")]
    records = [asked("a.png", "What is this?", "A cat."), flat("b.png", "a red cat"), *more]
    for name in ("train", "held_out"):  # two records of each task: a comparison needs them, and one may be held out
        write_jsonl(place / "data" / f"{name}.jsonl", records)
    write_jsonl(place / "data" / "more.jsonl", more)
    edit = flat("b.png", "a red cat") | {"source_image": "a.png"}
    write_jsonl(place / "data" / "edits.jsonl", [edit, edit | {"prompt": "a blue cat"}, flat("cat.png", "a cat")])
    (place / "data" / "prompts.txt").write_text("a red cat\n")
    write_jsonl(place / "data" / "questions.jsonl", [{"q": "What is this?", "a": "A cat.", "path": "a.png"}])
    (place / "recipes").symlink_to(ROOT / "recipes")
    write_benchmarks(place)
    write_language(place / "smollm2")  # a folder of that name is preferred to the package
    return place


def write_benchmarks(place: Path) -> None:
    """Published sets in small, other emoji, and what a detector saw in one image of each tag's first prompt."""
    write_llava_pope(write_pope(place / "data" / "benchmarks" / "pope"))
    write_mme(place / "data" / "benchmarks" / "mme")
    write_vqav2(place / "data" / "benchmarks" / "vqa")
    write_unig2u(place / "data" / "benchmarks" / "unig2u")
    (place / "emoji/img/google/64").mkdir(parents=True)
    write_art(place / "emoji/img/google/64")
    first = {line["tag"]: line for line in reversed(official_metadata())}
    lines = [line for line in official_metadata() if line in first.values()]
    rows = [{"filename": f"{n:05d}/samples/0000.png", "prompt": line["prompt"], "correct": n < 3} for n, line in enumerate(lines)]
    write_jsonl(place / "results.jsonl", rows)


def write_peft_adapter(folder: Path, base: str) -> None:
    """What PEFT writes after ``get_peft_model`` on ``base``."""
    model, _ = load(base)
    adapted = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)")
    get_peft_model(model, adapted).save_pretrained(folder)


def run(words: list[str]) -> None:
    if "compare" in words and "--model" in words:  # one method's run and the start
        small = [f"run.{entry}" for entry in OWN if "eval_steps" not in entry]
        words = [*words, *small, "run.evaluation.num_samples=1", "--only", "seed=0,variant=lora_task", "--workers", "1"]
    elif "compare" in words:  # one seed and rate of the grid: its first command trains the control, its second the rest
        small = [f"run.{entry}" for entry in (OWN if "files.yaml" in words[2] else WORLD)] + [
            f"scenarios.own.{entry}" for entry in SIZES
        ]
        words = [*words[:3], *small, *words[3:], "--only", "seed=0,rate="]
    elif recipe := next((recipe for recipe in SYNTHETIC if recipe in words), None):
        words = [*words[:3], *WORLD, *SYNTHETIC[recipe], *words[3:]]
    elif "train" in words and "--dry-run" not in words:
        at = words.index("--output")
        given = " ".join(words)
        generation = "generation_lora" in given or "edits.jsonl" in given
        less = [word for word in SMALL if "mmu" not in word] if generation else SMALL
        less = [word for word in less if "early_stopping" not in given or "eval_steps" not in word]
        less += ["max_steps=3"] if " max_steps=" in given else []  # one step more than the page's run before
        less += ["evaluation.eval_steps=1"] if "early_stopping" in given else []
        words = [*words[:at], *less, *words[at:]]
    if "peft/adapter" in words:
        write_peft_adapter(Path("peft/adapter"), words[words.index("peft/adapter") - 1])
    if words[1] == "diagnose":
        words = [*words, "--batches", "1"]
    if "eval" in words:
        words = [*words, "--limit", "1" if "--data" in words else "4", "--num-images", "1", "--device", "cpu"]
    if words[1] == "serve":
        serve(words)
    elif words[0] == "torchrun":
        size = int(words[2])
        assert words[3:5] == ["-m", "unidecouple"]
        assert exit_codes(fork_ranks(size, [partial(main, words[5:])] * size)) == [0] * size, " ".join(words)
    else:
        assert main(words[1:]) == OK, " ".join(words)


def serve(words: list[str]) -> None:
    """Until it listens, then end it as a supervisor does; on a port that is free here.

    Forked, since tests/serve/ start the same command in a process of its own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = multiprocessing.get_context("fork").Process(target=_end_with, args=([*words[1:], "--port", str(port)],))
    child.start()
    try:
        for _ in range(600):
            assert child.is_alive(), " ".join(words)
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        child.terminate()
        child.join(60)
        assert child.exitcode == OK
    finally:
        child.kill()
        child.join()


def _end_with(words: list[str]) -> None:
    sys.exit(main(words))


def test_the_readme_s_commands_are_the_pages() -> None:
    """So they run below; at most five, as it promises."""
    readme = commands(ROOT / "README.md")
    assert 0 < len(readme) <= 5
    assert all(words in [found for page in PAGES for found in commands(page)] for words in readme)


def test_commands_of_the_other_pages_are_understood() -> None:
    """Without running them: an unknown command or option ends the parser."""
    for name in ELSEWHERE:
        for words in commands(ROOT / "docs" / f"{name}.md"):
            if "RECIPE" not in words and "letters" not in words:  # a synopsis; a benchmark that only its page adds
                assert callable(_parser().parse_args(words[1:]).command), words


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    tables = re.findall(r"^\|(?:[^\n]*\n\|)*[^\n]*$", text, re.MULTILINE)
    assert [len(table.splitlines()) - 2 for table in tables] == [8]
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_the_pages_commands_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one user's folder, since a page may use what another made."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(source, "UNSEEN", replace(source.UNSEEN, pairs=24, scenes=24))
    order = [
        "fine-tune",
        "data",
        "edit",
        "recipes",
        "resume",
        "add-generation",
        "decouple",
        "decouple-trained",
        "diagnose",
        "many-gpus",
        "export",
        "compare",
        "emu3",
        "eval",
        "serve",
        "language",
    ]
    assert sorted(order) == sorted(page.stem for page in PAGES)
    for name in order:
        found = commands(ROOT / "docs" / f"{name}.md")
        assert found
        for words in found:
            run(words)
    for made in (
        "preview.html",
        "runs/decoupled/scores.json",
        "out/decoupled/config.json",
        "guard/lora/guard.html",
        "out/front/front.html",
        "out/repaired-t2i/config.json",
        "out/repaired-adapter/adapter_config.json",
        "runs/pro2/scores.json",
        "out/deepseek/config.json",
        "data/image_tokens/manifest.json",
        "out/pro/diagnosis.html",
        "runs/emu3-apart/scores.json",
        "out/emu3/config.json",
        "out/eval-noto/vqa/card.md",
        "out/pro-eval/mme/official/artwork.txt",
        "out/images/grid.png",
        "runs/files/report.html",
        "runs/methods/report.html",
        "out/both/report.html",
        "out/answers.jsonl",
        "out/red-cat/grid.png",
        "guard/language/guard.html",
        "out/generation-eval/pope/card.md",
        "out/eval-cot/visual_cot/card.md",
        "out/edits-cot/visual_cot/card.md",
    ):
        assert (place / made).is_file()
    compared = json.loads((place / "runs/own/results.json").read_text())
    assert {row["variant"] for row in compared["rows"]} == {"start", "dense_joint", "unidecouple"}
    assert {run["seed"] for run in compared["meta"]["missing"]} == {0, 1, 2}
    assert json.loads((place / "out/pro-eval/geneval/card.json").read_text())["scores"][0]["value"] == 0.5
