"""Installs the wheel as a user does, in a fresh environment outside the clone, and uses what came: no pins, no source tree.

    python tests/big/install_check.py [FOLDER]

Needs Python's standard library, pip and a package index. torch comes first, in the version that results are made with; all else is
the newest that pip resolves under the constraints that its own settings name. ``TORCH_INDEX`` names an index of torch's CPU builds.
Every step must exit 0, print no warning of a library, and give the right kind of output.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import venv
import zlib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCH = "torch==2.13.0"
SOURCES = ("unidecouple", "recipes", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
WARNING = re.compile(r"warning|deprecat|traceback|\[transformers\]", re.IGNORECASE)
QUESTIONS = (("red.png", "cow", "no"), ("red.png", "car", "no"), ("blue.png", "cow", "no"), ("blue.png", "pig", "yes"))


def main() -> int:
    """Build, install, run the steps; the exit status is 1 at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of the environment and the files (default: a temporary one)")
    folder = parser.parse_args().folder
    started = time.monotonic()
    try:
        if folder is None:
            with tempfile.TemporaryDirectory(prefix="unidecouple-install-") as made:
                check(Path(made))
        else:
            folder.mkdir(parents=True)
            check(folder.resolve())
    except CheckError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"install check: passed in {time.monotonic() - started:.0f} s")
    return 0


class CheckError(Exception):
    """A step failed: which, and what it printed."""


def check(folder: Path) -> None:
    """The whole check in an empty ``folder``."""
    binaries = install(folder)
    user = folder / "user"
    write_files(user)
    command = str(binaries / "unidecouple")
    steps: list[tuple[list[str], Callable[[str, Path], bool]]] = [
        (["infer", "unified", "data/requests.jsonl", "--output", "out/answers.jsonl"], answered_and_drew),
        (["eval", "unified", "--benchmarks", "pope", "--data", "data/pope", "--output", "out/eval"], scored),
    ]
    for arguments, right in steps:
        out = run([command, *arguments], user)
        if not right(out, user):
            raise CheckError(f"unidecouple {' '.join(arguments)}: exited 0 with the wrong output:\n{out}")
        print(f"  unidecouple {' '.join(arguments)}: ok", flush=True)
    quick_start(binaries, folder / "quick")


def quick_start(binaries: Path, folder: Path) -> None:
    """Run the README's commands on 40 images and a tiny Janus in deepseek-ai's layout; the result opens in transformers.

    They train, answer and draw; ``check`` has what they leave out, on a base that comes with the wheel.
    """
    (folder / "data").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "published.py", folder)
    made = "from pathlib import Path; from published import write_published; write_published(Path('deepseek-ai/Janus-Pro-1B'))"
    run([str(binaries / "python"), "-c", made], folder, warnings=True)
    rows = []
    for number in range(40):
        name = "cat.png" if number == 0 else f"{number}.png"
        (folder / "data" / name).write_bytes(disc((6 * number, 120, 255 - 6 * number)))
        answer = [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A disc."}]
        rows.append({"prompt": "a disc", "image": name} if number % 2 else {"messages": answer, "images": [name]})
    (folder / "data" / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    commands = readme_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    for words in commands:
        small = ["max_steps=2", "diagnose=false"] if words[0] == "train" else []
        out = run([str(binaries / "unidecouple"), *words, *small], folder)
        right = {"train": trained, "generate": drew}.get(words[0])
        if right is not None and not right(out, folder):
            raise CheckError(f"unidecouple {' '.join(words)}: exited 0 with the wrong output:\n{out}")
        print(f"  unidecouple {' '.join(words)}: ok", flush=True)
    opened = f"from transformers import JanusForConditionalGeneration as J; J.from_pretrained({commands[-1][-1]!r})"
    run([str(binaries / "python"), "-c", opened], folder, warnings=True)


def readme_commands(text: str) -> list[list[str]]:
    """Return the words of the commands of the quick start, without the first."""
    section = text.partition("## Quick start")[2].partition("\n## ")[0]
    return [shlex.split(line)[1:] for line in re.findall(r"^    (unidecouple .*)$", section, re.MULTILINE)]


def install(folder: Path) -> Path:
    """Build the wheel from a copy of the sources and install it; the folder of the environment's commands."""
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    venv.create(folder / "env", with_pip=True)
    binaries = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(binaries / "python"), "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "build"], folder, warnings=True)
    run([pip[0], "-m", "build", "--outdir", str(folder / "wheel"), str(copy)], folder, warnings=True)  # the wheel from the sdist
    (wheel,) = (folder / "wheel").glob("*.whl")
    shutil.rmtree(copy)
    index = ["--extra-index-url", os.environ["TORCH_INDEX"]] if os.environ.get("TORCH_INDEX") else []
    refuse_cuda([*pip, "install", *index, TORCH], folder)
    take = [*pip, "install", "--no-compile"]  # few of the files are imported, and those are compiled then
    run([*take, *index, TORCH], folder, warnings=True)
    run([*take, str(wheel)], folder, warnings=True)
    run([*pip, "check"], folder)
    found = run([*pip, "list", "--format", "json"], folder, warnings=True)
    versions = {row["name"].lower(): row["version"] for row in json.loads(found.splitlines()[0])}
    if not versions["torch"].startswith(TORCH.partition("==")[2]):
        raise CheckError(f"pip replaced {TORCH} by torch {versions['torch']}: a dependency asks for another")
    print(f"  installed with torch {versions['torch']}, transformers {versions['transformers']}", flush=True)
    return binaries


def refuse_cuda(command: list[str], folder: Path) -> None:
    """See what pip would take for torch, before it takes gigabytes."""
    run([*command, "--dry-run", "--report", "torch.json"], folder, warnings=True)
    names = [item["metadata"]["name"] for item in json.loads((folder / "torch.json").read_text())["install"]]
    if any(name.lower().startswith("nvidia") for name in names):
        raise CheckError(f"pip would take the CUDA build of {TORCH}: set TORCH_INDEX=https://download.pytorch.org/whl/cpu")


def run(command: list[str], folder: Path, warnings: bool = False) -> str:
    """What ``command`` prints to standard output.

    Raises:
        CheckError: it failed, or, unless ``warnings``, printed something like a warning.
    """
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    own = {"HF_HUB_OFFLINE": "1", "UNIDECOUPLE_CACHE": str(folder / "cache")}
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | own
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    if not warnings and WARNING.search(done.stdout + done.stderr):
        raise CheckError(f"{' '.join(command)}: printed a warning\n{done.stdout}\n{done.stderr}")
    return done.stdout


def write_files(folder: Path) -> None:
    """Two images, requests, and POPE's questions on them, each as a user would write it."""
    pictures, benchmark = folder / "data", folder / "data" / "pope"
    (benchmark / "val2014").mkdir(parents=True)
    for name, colour in (("red.png", (220, 40, 40)), ("blue.png", (40, 40, 220))):
        for place in (pictures, benchmark / "val2014"):
            (place / name).write_bytes(disc(colour))
    asked = [(name, f"Is there a {thing} in the image?", label) for name, thing, label in QUESTIONS]
    talk = [
        {
            "messages": [{"role": "user", "content": f"<image>{text}"}, {"role": "assistant", "content": label}],
            "images": [name],
        }
        for name, text, label in asked
    ]
    requests = [{**entry, "messages": entry["messages"][:1]} for entry in talk] + [{"prompt": "a photo of a red ball"}]
    pope = [{"image": name, "text": text, "label": label} for name, text, label in asked]
    for path, rows in (
        (pictures / "requests.jsonl", requests),
        (benchmark / "coco_pope_random.json", pope),
    ):
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def disc(colour: tuple[int, int, int], side: int = 64) -> bytes:
    """A PNG of a disc on white."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def row(y: int) -> bytes:
        inside = ((x - side / 2) ** 2 + (y - side / 2) ** 2 < side**2 / 8 for x in range(side))
        return b"\0" + b"".join(bytes(colour if inked else (255, 255, 255)) for inked in inside)

    rows = b"".join(row(y) for y in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def drew(out: str, folder: Path) -> bool:
    """One image, and the grid."""
    found = [path for path in (folder / "out" / "cat").rglob("*.png") if path.read_bytes().startswith(b"\x89PNG")]
    return len(found) == 2 and any(path.name == "grid.png" for path in found)


def answered_and_drew(out: str, folder: Path) -> bool:
    """A line per request, and an image beside them."""
    lines = (folder / "out" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return len([json.loads(line) for line in lines]) == len(QUESTIONS) + 1 and len(list((folder / "out").rglob("*.png"))) == 1


def scored(out: str, folder: Path) -> bool:
    """An accuracy of four answers: a multiple of a quarter."""
    (card,) = (folder / "out" / "eval").rglob("card.json")
    rows = json.loads(card.read_text(encoding="utf-8"))["scores"]
    accuracy = [row["value"] for row in rows if row["metric"] == "accuracy"]
    return len(accuracy) == 1 and accuracy[0] * len(QUESTIONS) in range(len(QUESTIONS) + 1)


def trained(out: str, folder: Path) -> bool:
    """A checkpoint of the second step."""
    return any((folder / "runs" / "mine").rglob("model.safetensors"))


if __name__ == "__main__":
    sys.exit(main())
