"""Small files of users' data in every format, written by hand."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def png(seed: int = 0, width: int = 24, height: int = 16, mode: str = "RGB") -> bytes:
    """An image of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(noise, mode if len(mode) > 1 else None).save(content, "PNG")
    return content.getvalue()


def write_pictures(folder: Path, *names: str) -> None:
    """Different images under ``names``."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        (folder / name).write_bytes(png(seed))


def write_jsonl(path: Path, entries: Sequence[Mapping[str, Any] | str]) -> Path:
    """One entry a line; texts as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False) for entry in entries]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar of ``members`` in their order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def asked(picture: str | None = "a.png", question: str = "Is there a cow in the image?", answer: str = "yes") -> dict[str, Any]:
    """Messages of one question about one image, or about none."""
    tag = "<image>" if picture else ""
    entry: dict[str, Any] = {"messages": [{"role": "user", "content": tag + question}, {"role": "assistant", "content": answer}]}
    return {**entry, "images": [picture]} if picture else entry


def write_questions_and_prompts(place: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Twenty questions and twenty prompts, each about its own image in ``place``; also ``both.jsonl`` and ``t2i.jsonl`` of them."""
    names = [f"{number}.png" for number in range(40)]
    write_pictures(place, *names)
    understood = [asked(name, f"Is there a cow in image {number}?") for number, name in enumerate(names[:20])]
    generated = [flat(name, f"a photo of cow {number}") for number, name in enumerate(names[20:])]
    write_jsonl(place / "both.jsonl", [*understood, *generated])
    write_jsonl(place / "t2i.jsonl", generated)
    return understood, generated


def flat(picture: str = "a.png", prompt: str = "a photo of a cow") -> dict[str, Any]:
    """A prompt and the image generated for it."""
    return {"prompt": prompt, "image": picture}
