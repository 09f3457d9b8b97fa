"""What is found by name and imported when it is asked for: benchmarks, data sources, commands. One line each.

Nothing else in the package refers to the synthetic benchmark (``unidecouple.world``).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import Any, Final

BENCHMARKS: Final = {
    "pope": "unidecouple.eval.pope_files:BENCHMARK",
    "vqa": "unidecouple.eval.vqa_files:BENCHMARK",
    "geneval": "unidecouple.eval.geneval_files:BENCHMARK",
    "edits": "unidecouple.eval.edits:BENCHMARK",
    "visual_cot": "unidecouple.eval.visual_cot_files:BENCHMARK",
    "mmmu": "unidecouple.eval.mmmu:BENCHMARK",
    "mme": "unidecouple.eval.mme:BENCHMARK",
    "language": "unidecouple.eval.language:BENCHMARK",
    "multiple_choice": "unidecouple.eval.multiple_choice:BENCHMARK",
}
"""Name -> ``eval.suite.Benchmark``; score pages show them in this order."""

SYNTHETIC_BENCHMARKS: Final = {
    "pope": "unidecouple.world.pope:BENCHMARK",
    "vqa": "unidecouple.world.vqa:BENCHMARK",
    "geneval": "unidecouple.world.geneval:BENCHMARK",
    "edits": "unidecouple.world.edit_benchmark:BENCHMARK",
    "visual_cot": "unidecouple.world.visual_cot:BENCHMARK",
}
"""Name -> ``eval.suite.Benchmark`` that replaces the published one where no folder of files is given."""

DATA_SOURCES: Final = {
    "files": "unidecouple.train.file_source:SOURCE",
    "world": "unidecouple.world.source:SOURCE",
}
"""``kind`` of ``RunConfig.data`` -> ``source.DataSource``."""

TRACKERS: Final = {
    "tensorboard": "unidecouple.train.trackers:TensorBoard",
    "wandb": "unidecouple.train.trackers:WeightsAndBiases",
}
"""Name in ``RunConfig.report_to`` -> ``train.trackers.Tracker``."""

SYNTHETIC_DATA: Final = "world"
"""The data source where none is chosen."""

SAMPLE_LENGTHS: Final = "unidecouple.world.lengths:sample_lengths"
"""What ``plan`` measures samples' lengths with."""

COMMANDS: Final = ("unidecouple.world.commands",)
"""Modules with ``add_commands``, and ``recipes``: configuration class -> what a recipe of it is."""


def found(names: Mapping[str, str], name: str) -> Any:
    """Import what ``names`` has under ``name``."""
    return pkgutil.resolve_name(names[name])
