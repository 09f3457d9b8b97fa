"""Decouple understanding from generation in unified multimodal models (arXiv 2506.03591), and measure what it buys.

``import unidecouple as ud`` imports nothing else; a function's first use imports torch:

    model = ud.load("unified")
    model.understand([image], ["What is this?"])
    model.generate_images(["a red cow"], seed=0)
    ud.train("runs/mine", model="deepseek-ai/Janus-Pro-1B", data="data/train.jsonl")

Four functions (``train``, ``compare``, ``convert``, ``diagnose``) share their name with a subpackage, so ``ud.train`` is that
subpackage, which can be called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

__version__ = "0.2.0"

if TYPE_CHECKING:
    from unidecouple.api import *  # noqa: F403 - its __all__

_PACKAGES: Final = ("compare", "convert", "diagnose", "train")
"""Subpackages that can be called: each calls the function of its name in ``unidecouple.api``."""
_NAMES: Final = (
    *(
        "Conversion",
        "DataOptions",
        "DecoupleOptions",
        "DiagnoseOptions",
        "Distillation",
        "Engine",
        "EvalOptions",
        "Fidelity",
        "GridOptions",
        "GuardOptions",
        "InferOptions",
        "MergeOptions",
        "TrainOptions",
    ),
    *("decouple", "evaluate", "guard", "infer", "load", "merge", "push_to_hub"),  # the other functions of the API join here
)


class _CallablePackage(ModuleType):
    """A subpackage whose call is the function of its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(import_module("unidecouple.api"), self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """This package; importing a subpackage of ``_PACKAGES`` binds it here, and makes it callable."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _PACKAGES and isinstance(value, ModuleType):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(import_module(f"{__name__}.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES, *_NAMES})


sys.modules[__name__].__class__ = _Package
