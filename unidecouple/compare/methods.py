"""Methods by name for each base family: the variants of ``recipes/<family>/methods.yaml``, for one run or a comparison.

Adding a method is adding a variant to those files; the tests train each of them for a step.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from unidecouple import config as configs
from unidecouple.compare.grid import Variant
from unidecouple.compare.merge import Decoupling
from unidecouple.config.layers import Layers
from unidecouple.config.packaged import recipes_folder
from unidecouple.convert.layouts import read_config
from unidecouple.convert.stored import source_folder

Family = Literal["janus", "emu3"]
FOLDERS: Final[Mapping[Family, str]] = {"janus": "janus_pro", "emu3": "emu3"}
"""Folder of a family's recipes: ``methods.yaml``, and in ``data.yaml`` what all its runs share."""

ALIASES: Final = {"dense": "dense_joint", "per_task_lora": "lora_task"}


class _Methods(Mapping[str, Variant]):
    """Variants that are built when they are asked for: some need a solver that is not installed."""

    def __init__(self, path: Path) -> None:
        layers = Layers()
        layers.add_file(path)
        self._path, self.raw = path, layers.values["variants"]

    def __getitem__(self, name: str) -> Variant:
        return configs.restore(Variant, self.raw[name], f"{self._path}: {name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)


def family_of(name_or_path: str) -> Family:
    """Family of a checkpoint, by its config.json; a Hub id's is downloaded.

    Raises:
        ValueError: there is no such checkpoint, or it is of another model.
    """
    return "emu3" if read_config(source_folder(name_or_path, weights=False)).is_emu3 else "janus"


def family_recipe(family: Family, name: str) -> Path:
    """Path of the family's recipe ``name``."""
    return recipes_folder() / FOLDERS[family] / f"{name}.yaml"


@functools.cache
def methods(family: Family) -> _Methods:
    """All methods of ``family``, by name."""
    return _Methods(family_recipe(family, "methods"))


def find_method(family: Family, name: str) -> tuple[str, Variant]:
    """The method's own name, and how it trains.

    Raises:
        ValueError: no method has that name; the message has the nearest, or all.
    """
    known = methods(family)
    plain = ALIASES.get(name, name)
    if plain not in known:
        near = difflib.get_close_matches(plain, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"method {name!r} is unknown ({hint})")
    return plain, known[plain]


def run_values(name: str, variant: Variant) -> dict[str, Any]:
    """Keys of a run's configuration that the method sets.

    Raises:
        ValueError: the method merges models that were trained, which is no run, or starts from the model of another method.
    """
    if variant.start_from:
        raise ValueError(
            f"method {name!r} starts from the model of {variant.start_from!r}: `unidecouple compare --methods` makes both"
        )
    if variant.merge is not None:
        tool = "decouple" if isinstance(variant.merge.method, Decoupling) else "merge"
        of = " and ".join(dict.fromkeys(variant.merge.of))
        raise ValueError(f"method {name!r} {tool}s trained models: train {of}, then `unidecouple {tool}`")
    other = {"mmu": "t2i", "t2i": "mmu"}.get(variant.tasks)
    data = {**variant.data, **({f"{other}_batch_size": 0} if other else {})}
    parts = ("structure", "objective", "stages")
    return {**{part: configs.plain(variant)[part] for part in parts}, **({"data": data} if data else {})}
