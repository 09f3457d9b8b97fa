"""Texts that travel with weights: licences, notices and, where the weights stay the same model, readmes."""

from __future__ import annotations

import shutil
from pathlib import Path

_BEGINNINGS = ("notice", "copying", "copyright", "use_policy", "use-policy")
_ANYWHERE = ("license", "licence")  # LICENSE-MODEL and LICENSE-CODE (deepseek-ai), MODEL_LICENSE, Apache-LICENSE.txt


def licence_files(folder: Path, readme: bool = False) -> list[str]:
    """Names of the licences and notices in ``folder``, with ``readme`` of readmes too."""
    beginnings = (*_BEGINNINGS, "readme") if readme else _BEGINNINGS
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    return [name for name in names if name.lower().startswith(beginnings) or any(part in name.lower() for part in _ANYWHERE)]


def carry_licences(source: Path, target: Path, readme: bool = False) -> list[str]:
    """Copy licences and notices, with ``readme`` readmes too, from one checkpoint's folder to another; their names."""
    texts = licence_files(source, readme)
    for name in texts:
        shutil.copyfile(source / name, target / name)
    return texts
