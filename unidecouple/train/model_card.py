"""The model card of a checkpoint: README.md with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from unidecouple import config as configs
from unidecouple.convert.json_files import read_json
from unidecouple.data.settings import Files
from unidecouple.eval.card import CARD, weights_of
from unidecouple.run import RunConfig
from unidecouple.train.fingerprints import FINGERPRINTS
from unidecouple.train.run_folder import RESULT, RUN

HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENCES: Final = (
    ("DEEPSEEK LICENSE AGREEMENT", {"license": "other", "license_name": "deepseek"}),
    ("Apache License", {"license": "apache-2.0"}),
    ("MIT License", {"license": "mit"}),
)
"""How a licence's text is recognised, and the Hub's names of it."""


def model_card(checkpoint: Path, title: str, licences: tuple[str, ...], base_model: str | None = None) -> str:
    """The card of ``checkpoint``: base, method, scores with intervals, hashes of data and weights, licences.

    Paths of the user's machine are left out: data are named by their files' names.

    Args:
        checkpoint: folder of the weights; what a run's folder above it says is used, too.
        title: heading.
        licences: names of the checkpoint's licence files.
        base_model: Hub id of what it was trained from; None: the run's ``model_name_or_path``, if that is one.

    Raises:
        ValueError: ``base_model`` is no Hub id.
    """
    if base_model is not None and not HUB_ID.fullmatch(base_model):
        raise ValueError(f"base model {base_model!r} is no id of the Hub: write it as owner/name")
    home = checkpoint.parent if (checkpoint.parent / RUN).is_file() else checkpoint
    run = configs.load(RunConfig, [home / RUN]) if (home / RUN).is_file() else None
    base = base_model or (_hub_id(run.model_name_or_path) if run else _adapters_base(checkpoint))
    body = [f"# {title}", "", "A unified model for image understanding and text-to-image generation, made with unidecouple:", ""]
    body += ["    unidecouple chat FOLDER", "    unidecouple generate FOLDER --prompt 'a red cat'", ""]
    body += [*_method(run, base), *_scores(home), *_data(run, home)]
    body += ["## Weights", "", "| file | SHA-256 |", "|---|---|"]
    body += [f"| {name} | `{digest}` |" for name, digest in weights_of(checkpoint).items() if name.endswith(".safetensors")]
    body += ["", "## Licence", ""]
    body += [f"- [{name}]({name})" for name in licences] or ["No licence file came with the base. Ask its authors before use."]
    front = yaml.safe_dump(_front_matter(checkpoint, run, base, licences), sort_keys=False, allow_unicode=True)
    return "\n".join([f"---\n{front}---", "", *body, ""])


def _front_matter(checkpoint: Path, run: RunConfig | None, base: str | None, licences: tuple[str, ...]) -> dict[str, Any]:
    adapter = not (checkpoint / "config.json").is_file()
    kind = "" if adapter else str(read_json(checkpoint / "config.json").get("model_type", ""))
    front: dict[str, Any] = {}
    if base:
        front |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    front |= {"library_name": "unidecouple" if adapter or kind.startswith("unidecouple") else "transformers"}
    front |= _licence(checkpoint, licences)
    methods = [] if run is None else [run.structure.kind, *(["lora"] if any(stage.lora for stage in run.stages) else [])]
    tags = ["unidecouple", "multimodal", "text-to-image", "visual-question-answering", *methods]
    return {**front, "pipeline_tag": "any-to-any", "tags": list(dict.fromkeys(tags))}


def _licence(checkpoint: Path, licences: tuple[str, ...]) -> dict[str, str]:
    """The Hub's keys; of several files the one of the model, and one that is not recognised is linked."""
    ordered = sorted(licences, key=lambda name: ("code" in name.lower(), "model" not in name.lower()))
    for name in (name for name in ordered if "licen" in name.lower() or "copying" in name.lower()):
        text = (checkpoint / name).read_text(encoding="utf-8", errors="replace")
        found = next((keys for mark, keys in _LICENCES if mark.lower() in text.lower()), {"license": "other", "license_name": name})
        return {**found, "license_link": name} if found["license"] == "other" else dict(found)
    return {}


def _method(run: RunConfig | None, base: str | None) -> list[str]:
    if run is None:
        return [f"Base model: {base}.", ""] if base else []
    rows = {
        "base model": base or Path(run.model_name_or_path).name,
        "structure": run.structure.kind,
        "stages": ", ".join(f"{stage.name} (learning rate {stage.learning_rate:g})" for stage in run.stages),
        "steps": run.max_steps,
        "samples per step": f"{run.data.mmu_batch_size} understanding, {run.data.t2i_batch_size} text-to-image",
        "seed": run.seed,
    }
    return ["## Method", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]


def _scores(home: Path) -> list[str]:
    lines = []
    if (home / RESULT).is_file():
        rows = read_json(home / RESULT).get("scores", [])
        lines += [f"| {row['benchmark']} | {row['metric']} | {row['value']:.3f} | |" for row in rows]
    for path in sorted(home.glob(f"eval/*/{CARD}")):
        card = json.loads(path.read_text(encoding="utf-8"))
        for row in card["scores"]:
            interval = "" if row.get("low") is None else f"{row['low']:.3f} to {row['high']:.3f}"
            lines.append(f"| {card['benchmark']} | {row['metric']} | {row['value']:.3f} | {interval} |")
    return ["## Scores", "", "| benchmark | metric | value | 95% interval |", "|---|---|---|---|", *lines, ""] if lines else []


def _data(run: RunConfig | None, home: Path) -> list[str]:
    """Hashes of the files that the run read; images that they name are counted."""
    if run is None or not (home / FINGERPRINTS).is_file():
        return []
    if not isinstance(run.data, Files):
        return ["## Data", "", f"Generated: `{run.data.kind}`.", ""]
    prints = {name: digest for name, digest in read_json(home / FINGERPRINTS).items() if not name.startswith("base/")}
    return ["## Data", "", *_named(run.data, prints), ""]


def _named(files: Files, prints: dict[str, str]) -> Iterator[str]:
    named = 0
    yield from ("| file | use | SHA-256 |", "|---|---|---|")
    divided = files.held_out is not None and not files.validation
    for use, sources in (("training and validation" if divided else "training", files.sources), ("validation", files.validation)):
        for source in sources:
            for name, digest in sorted(prints.items()):
                if name == str(source.path) or Path(name).parent == source.path or Path(name).match(str(source.path)):
                    named += 1
                    yield f"| {Path(name).name} | {use} | `{digest}` |"
    if len(prints) > named:
        yield f"\n{len(prints) - named:,} image files besides."


def _adapters_base(checkpoint: Path) -> str | None:
    file = checkpoint / "adapter_config.json"
    return _hub_id(str(read_json(file).get("base_model_name_or_path") or "")) if file.is_file() else None


def _hub_id(name: str) -> str | None:
    return name if HUB_ID.fullmatch(name) and not Path(name).exists() else None
