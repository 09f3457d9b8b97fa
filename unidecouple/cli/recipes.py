"""Commands on the recipes that come with the package, and the demo."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from unidecouple.cli.command import OK, add, add_cache, add_group, whole

if TYPE_CHECKING:
    from unidecouple.cli.command import Commands


def list_recipes(arguments: argparse.Namespace) -> int:
    """List the packaged recipes and their purpose."""
    from unidecouple.config.packaged import describe_recipe, packaged_recipe, recipe_names

    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        path = packaged_recipe(name)
        assert path is not None
        print(f"{name:{width}}  {describe_recipe(path)}".rstrip())
    return OK


def list_methods(arguments: argparse.Namespace) -> int:
    """List the methods of `train --method` and how each trains."""
    from unidecouple.compare.methods import methods

    known = methods(arguments.family)
    width = max(map(len, known))
    for name, values in known.raw.items():
        print(f"{name:{width}}  {values['description']}")
    return OK


def show(arguments: argparse.Namespace) -> int:
    """Print a packaged recipe."""
    print(_found(arguments.name).read_text(encoding="utf-8"), end="")
    return OK


def copy(arguments: argparse.Namespace) -> int:
    """Copy packaged recipes, and the recipes that they are based on, into a folder where you can edit them."""
    from unidecouple.config.layers import BASE_KEY
    from unidecouple.config.packaged import recipes_folder
    from unidecouple.config.yaml12 import parse
    from unidecouple.files import write_text_atomic
    from unidecouple.ownership import check_file

    root, texts = recipes_folder(), dict[Path, str]()
    waiting = [_found(name) for name in arguments.name]
    while waiting:
        path = Path(os.path.normpath(waiting.pop()))
        if path in texts:
            continue
        texts[path] = path.read_text(encoding="utf-8")
        bases = (parse(texts[path], str(path)) or {}).get(BASE_KEY, [])
        waiting += [path.parent / name for name in ([bases] if isinstance(bases, str) else bases)]
    places = {path: arguments.output / path.relative_to(root) for path in texts}
    for path, place in places.items():
        check_file(place, content=texts[path].encode())  # a copy that was edited is the user's
    for path, place in sorted(places.items()):
        write_text_atomic(place, texts[path])
        print(place)
    return OK


def demo(arguments: argparse.Namespace) -> int:
    """Compare dense training with UniDecouple on a tiny model; takes about 10 minutes on two CPU cores."""
    from unidecouple.cli import _parser

    given = {"--output": arguments.output, "--workers": arguments.workers, "--cache": arguments.cache}
    options = [str(word) for option in given.items() for word in option if option[1] is not None]
    start = argparse.Namespace(stop=arguments.stop)
    comparison = _parser().parse_args(["compare", "demo", *options], start)
    code: int = comparison.command(comparison)
    return code


def _found(name: str) -> Path:
    from difflib import get_close_matches

    from unidecouple.config.packaged import packaged_recipe, recipe_names

    path = packaged_recipe(name)
    if path is None:
        near = get_close_matches(name, recipe_names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"no packaged recipe is named {name!r}: {hint}`unidecouple recipes list` prints all names")
    return path


def add_commands(commands: Commands) -> None:
    """``unidecouple recipes list|methods|show|copy`` and ``unidecouple demo``."""
    group = add_group(commands, "recipes", "List, print and copy the recipes and methods that come with the package.")
    add(group, list_recipes, "list")
    ways = add(group, list_methods, "methods")
    ways.add_argument("--family", choices=("janus", "emu3"), default="janus", help="family of the model (default: janus)")
    add(group, show, "show").add_argument("name", help="name of a recipe, as `unidecouple recipes list` prints it")
    copied = add(group, copy, "copy")
    copied.add_argument("name", nargs="+", help="names of recipes, as `unidecouple recipes list` prints them")
    copied.add_argument("--output", type=Path, required=True, help="folder to write the recipes to; subfolders are kept")
    small = add(commands, demo, "demo")
    small.add_argument("--output", type=Path, help="folder to write runs and report to (default: runs/demo)")
    small.add_argument("--workers", type=whole(1), help="runs in parallel, one CPU thread each (default: number of cores)")
    add_cache(small)
