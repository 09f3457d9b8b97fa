"""The Python API, which the command line calls. ``import unidecouple as ud`` offers all of it, and imports torch at first use."""

from unidecouple.api.checkpoints import DiagnoseOptions, InferOptions, convert, diagnose, infer, load
from unidecouple.api.scoring import EvalOptions, evaluate
from unidecouple.api.training import GridOptions, MergeOptions, TrainOptions, compare, merge, train
from unidecouple.convert.steps import Conversion
from unidecouple.delta.guard import GuardOptions, guard
from unidecouple.generate.engine import Engine

__all__ = [
    "Conversion",
    "DiagnoseOptions",
    "Engine",
    "EvalOptions",
    "GridOptions",
    "GuardOptions",
    "InferOptions",
    "MergeOptions",
    "TrainOptions",
    "compare",
    "convert",
    "diagnose",
    "evaluate",
    "guard",
    "infer",
    "load",
    "merge",
    "train",
]
