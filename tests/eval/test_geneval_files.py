"""GenEval's official prompts: scored from a file of detections alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from own_data import write_jsonl
from unidecouple.eval.benchmark import GenerationBenchmark
from unidecouple.eval.geneval_files import BENCHMARK
from unidecouple.eval.geneval_prompts import write_official
from unidecouple.eval.suite import BenchmarkOptions, SyntheticSizes


def test_official_prompts_need_a_detector(tmp_path: Path) -> None:
    write_official(tmp_path / "prompts")
    benchmark = BENCHMARK.open(BenchmarkOptions(tmp_path, limit=2, sizes=SyntheticSizes(num_images=1)))
    assert isinstance(benchmark, GenerationBenchmark)
    assert (len(benchmark.metadata), list(benchmark.files)) == (12, ["prompts/evaluation_metadata.jsonl"])
    with pytest.raises(ValueError, match="no judge of images comes with geneval"):
        benchmark.score_images([])
    rows = [
        {
            "filename": f"x/{number:05d}/samples/0000.png",
            "prompt": line["prompt"],
            "correct": line["tag"] in ("colors", "counting"),
            "reason": "",
            "metadata": json.dumps(line),
        }
        for number, line in enumerate(benchmark.metadata)
    ]
    assert benchmark.read_detections is not None
    result = benchmark.read_detections(write_jsonl(tmp_path / "results.jsonl", rows))
    values = {row.metric: row.value for row in result.scores}
    assert result.judge == "official results"
    assert (values["overall"], values["colors"], values["position"]) == (pytest.approx(1 / 3), 1.0, 0.0)
    assert result.proportions["overall"].mean == pytest.approx(1 / 3)
    assert result.failures == {"disagree with our rules": 0}
