"""The Python API, which the command line calls. ``import unidecouple as ud`` offers all of it, and imports torch at first use."""

from unidecouple.api.checkpoints import DiagnoseOptions, InferOptions, convert, diagnose, infer, load
from unidecouple.api.delta import decouple, guard
from unidecouple.api.scoring import EvalOptions, evaluate
from unidecouple.api.training import DataOptions, GridOptions, MergeOptions, TrainOptions, compare, merge, train
from unidecouple.convert.steps import Conversion
from unidecouple.delta.decouple import DecoupleOptions
from unidecouple.delta.distill import Distillation
from unidecouple.delta.forms import Fidelity
from unidecouple.delta.guard import GuardOptions
from unidecouple.generate.engine import Engine
from unidecouple.train.push import push_to_hub

__all__ = [
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
    "compare",
    "convert",
    "decouple",
    "diagnose",
    "evaluate",
    "guard",
    "infer",
    "load",
    "merge",
    "push_to_hub",
    "train",
]
