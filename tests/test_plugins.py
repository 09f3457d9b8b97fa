"""What is found by name: every line of the registries is importable and of its kind, and nothing needs the synthetic benchmark."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

from unidecouple import plugins
from unidecouple.config.explain import inner_types, union_members
from unidecouple.data.settings import DataSettings
from unidecouple.eval.suite import Benchmark, BenchmarkOptions, benchmarks, headlines, tasks_of_benchmarks
from unidecouple.run import RunConfig
from unidecouple.source import DataSource

GENERIC = ("cli", "compare.runner", "eval.suite", "plan.stages", "report", "run", "source", "train.train", "train.file_source")


@pytest.mark.parametrize("name", plugins.BENCHMARKS)
def test_a_benchmark_is_called_as_its_line_says(name: str) -> None:
    benchmark = plugins.found(plugins.BENCHMARKS, name)
    assert isinstance(benchmark, Benchmark)
    assert benchmark.name == name
    assert {metric.benchmark for metric in benchmark.metrics} == {name}


def test_synthetic_benchmarks_have_a_published_form() -> None:
    assert set(plugins.SYNTHETIC_BENCHMARKS) < set(benchmarks())
    for name in plugins.SYNTHETIC_BENCHMARKS:
        synthetic = plugins.found(plugins.SYNTHETIC_BENCHMARKS, name)
        assert (synthetic.name, synthetic.metrics) == (name, benchmarks()[name].metrics)
        assert synthetic.open(BenchmarkOptions(limit=2)).name == name


def test_headlines_are_understanding_first() -> None:
    assert [(metric.benchmark, metric.metric) for metric in headlines()] == [
        ("pope", "accuracy"),
        ("vqa", "accuracy"),
        ("visual_cot", "accuracy/own"),
        ("visual_cot", "accuracy/none"),
        ("visual_cot", "accuracy/oracle"),
        ("visual_cot", "accuracy/wrong"),
        ("mmmu", "accuracy"),
        ("mme", "perception"),
        ("mme", "cognition"),
        ("answers", "log_probability"),
        ("language", "log_probability"),
        ("multiple_choice", "accuracy"),
        ("text", "log_probability"),
        ("geneval", "overall"),
        ("edits", "accuracy"),
        ("image_tokens", "log_probability"),
    ]
    assert [tasks_of_benchmarks()[name] for name in ("image_tokens", "multiple_choice")] == ["t2i", "language"]


def test_every_kind_of_data_has_its_source() -> None:
    (union,) = inner_types(RunConfig, "data")
    assert union_members(union) == [plugins.found(plugins.DATA_SOURCES, kind).settings for kind in plugins.DATA_SOURCES]
    assert RunConfig().data.kind == plugins.SYNTHETIC_DATA
    for kind in plugins.DATA_SOURCES:
        source = plugins.found(plugins.DATA_SOURCES, kind)
        assert issubclass(source.settings, DataSettings)
        assert source.settings.kind == kind
        for method in ("open", "scorer", "probe_data"):
            wanted = inspect.signature(getattr(DataSource, method)).parameters
            assert list(inspect.signature(getattr(type(source), method)).parameters) == list(wanted)


def test_commands_and_lengths_are_there() -> None:
    assert callable(pkgutil.resolve_name(plugins.SAMPLE_LENGTHS))
    for name in plugins.COMMANDS:
        module = importlib.import_module(name)
        assert callable(module.add_commands)
        assert all(isinstance(kind, type) and text for kind, text in module.recipes().items())


@pytest.mark.slow
def test_the_package_is_imported_without_the_synthetic_benchmark() -> None:
    code = (
        f"import importlib, sys; [importlib.import_module('unidecouple.' + name) for name in {GENERIC}]; "
        "print([name for name in sys.modules if name.startswith('unidecouple.world')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
