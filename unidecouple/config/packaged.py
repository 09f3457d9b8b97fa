"""The recipes that come with the package: their names, and which file a name stands for.

A recipe's name is its path below ``recipes/`` without the ending: "janus_pro/unidecouple". ``recipes/janus_pro/unidecouple.yaml``
names the same one, so commands quoted from the documents work outside a clone, too.
"""

from __future__ import annotations

import itertools
import re
from importlib.resources import files
from pathlib import Path
from typing import Final

SUFFIX: Final = ".yaml"
_FOLDER: Final = "recipes"


def recipes_folder() -> Path:
    """Folder of the recipes: inside the package, or beside it in a clone whose file system has no symbolic links."""
    inside = Path(str(files("unidecouple") / _FOLDER))
    return inside if inside.is_dir() else inside.parents[1] / _FOLDER


def recipe_names() -> list[str]:
    """Names of all packaged recipes, sorted."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.glob(f"**/*{SUFFIX}"))


def packaged_recipe(name: str) -> Path | None:
    """The packaged recipe that ``name`` stands for, or None."""
    plain = name.removeprefix(f"{_FOLDER}/").removesuffix(SUFFIX)
    return recipes_folder() / f"{plain}{SUFFIX}" if plain in recipe_names() else None


def recipe_path(path: Path) -> Path:
    """``path`` if it is a file, else the packaged recipe that it names, else ``path`` again, whose opening gives the error."""
    try:
        there = path.exists() and not path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return path
    return path if there else packaged_recipe(path.as_posix()) or path


def describe_recipe(path: Path) -> str:
    """The first sentence of the comment that a recipe begins with; "" where it has none."""
    lines = itertools.takewhile(lambda line: line.startswith("# "), path.read_text(encoding="utf-8").splitlines())
    comment = " ".join(line.removeprefix("#").strip() for line in lines)
    return re.split(r"(?<=\.)\s", comment, maxsplit=1)[0]
