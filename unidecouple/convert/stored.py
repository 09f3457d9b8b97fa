"""Where checkpoints lie; imports no model class, so that commands which only look for a checkpoint start fast."""

from __future__ import annotations

import re
from pathlib import Path

from unidecouple.convert.hub import download, is_hub_id
from unidecouple.convert.json_files import read_json
from unidecouple.convert.weights import WEIGHTS
from unidecouple.models.shipped import SHIPPED, located

_ADAPTER = "adapter_config.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


def all_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints in ``folder``, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def source_folder(name_or_path: str, weights: bool = True) -> Path:
    """Folder of a checkpoint in any layout, as it is stored.

    Args:
        name_or_path: a shipped base by name, a path, a run's folder, which stands for its newest checkpoint, or an id on the
            Hugging Face Hub ("deepseek-ai/Janus-Pro-1B"), which is downloaded.
        weights: False asks for the configuration and the tokenizer alone.

    Raises:
        ValueError: no checkpoint is found, or only an adapter; the message says what a checkpoint folder needs.
    """
    folder = download(name_or_path, weights) if is_hub_id(name_or_path) else located(name_or_path)
    if (folder / _ADAPTER).is_file() and not (folder / "config.json").is_file():
        base = read_json(folder / _ADAPTER).get("base_model_name_or_path") or "BASE"
        raise ValueError(
            f"{folder} is an adapter, not a whole checkpoint: rebuild one with `unidecouple adapter load {base} {folder} "
            "--output FOLDER`, and give that folder"
        )
    if not (folder / "config.json").is_file():
        folder = next(reversed(all_checkpoints(folder)), folder)
    if (folder / _ADAPTER).is_file() and (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds a whole checkpoint (config.json) and an adapter ({_ADAPTER}): move one of them to another folder"
        )
    found = next((name for name in WEIGHTS if (folder / name).is_file()), WEIGHTS[1])
    for needed in ("config.json", found) if weights else ("config.json",):
        if not (folder / needed).is_file():
            raise ValueError(
                f"no checkpoint at {name_or_path!r}: {needed} is missing. Give a folder of save_pretrained, a run's folder, "
                f"an id on the Hugging Face Hub, or a shipped base: {', '.join(SHIPPED)}"
            )
    return folder
