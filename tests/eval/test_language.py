"""Likelihood of English: sums by hand, the model's own loss as oracle, and guard finds a model that forgot it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from unidecouple.batch import Task
from unidecouple.cli import main
from unidecouple.convert.load import load
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.eval.benchmark import Query, evaluate
from unidecouple.eval.language import open_passages, report
from unidecouple.eval.model import EvalModel
from unidecouple.eval.statistics import RatioOfSums
from unidecouple.eval.suite import BenchmarkOptions, open_benchmarks


def test_scores_by_hand() -> None:
    """Two passages of 8 and 24 bytes: 6 nats over 4 tokens and 18 over 8."""
    queries = (Query("a/1", "abcdefgh", None), Query("a/2", "abcdefgh" * 3, None))
    result = report(queries, {"a/1": "-6.0 4 0", "a/2": "-18.0 8 1"})
    values = {score.metric: score.value for score in result.scores}
    assert values["log_probability"] == -2.0
    assert values["perplexity"] == pytest.approx(math.e**2)
    assert values["bits_per_byte"] == pytest.approx(24 / math.log(2) / 32)
    assert result.scores[0].floor == pytest.approx(-8 * math.log(2) * 32 / 12)
    assert result.failures == {"unknown tokens": 1}


def test_the_interval_is_the_ratio_estimator_s() -> None:
    """Residuals -6 + 2 * 4 = 2 and -18 + 2 * 8 = -2, so the error is sqrt(2 / 1 * 8) / 12; t(1) at 97.5% is 12.706."""
    ratio = RatioOfSums(((-6.0, 4), (-18.0, 8)))
    low, high = ratio.interval()
    assert (high - low) / 2 == pytest.approx(12.7062 * 4 / 12, rel=1e-4)
    assert sum(ratio.shares) / 2 == pytest.approx(ratio.mean)
    assert RatioOfSums(((-6.0, 4),)).interval() == (-1.5, -1.5)


@torch.no_grad()
def test_equal_words_give_the_chance_level_and_the_model_s_loss_is_the_oracle(language_base: Path) -> None:
    model, processor = load(str(language_base))
    [benchmark] = open_benchmarks(["language"], BenchmarkOptions(limit=2))
    scored = EvalModel(model, processor)
    found = evaluate(benchmark, scored).scores[0].value
    total, count = 0.0, 0
    for query in benchmark.queries:
        ids = torch.tensor([SequenceBuilder(processor).passage(query.text)])
        out = model(input_ids=ids, labels=ids, task_ids=torch.full((1, 1), int(Task.MMU)))
        total, count = total - float(out.loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert found == pytest.approx(total / count, rel=1e-5)
    model.lm_head.weight.zero_()
    assert evaluate(benchmark, scored).scores[0].value == pytest.approx(-math.log(294), rel=1e-6)


def test_shipped_passages() -> None:
    benchmark = open_passages(None)
    assert len(benchmark.queries) == 64
    assert all(query.text.isascii() and 350 < len(query.text) < 650 for query in benchmark.queries)
    assert benchmark.queries[0].id == "passages/1"


def test_files_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "language").mkdir()
    (tmp_path / "language" / "news.txt").write_text("One passage,\non two lines.\n\n \nAnother.\n")
    benchmark = open_passages(tmp_path)
    assert [query.text for query in benchmark.queries] == ["One passage,\non two lines.", "Another."]
    assert list(benchmark.files) == ["language/news.txt"]
    (tmp_path / "language" / "news.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        open_passages(tmp_path)
    (tmp_path / "language" / "news.txt").write_text(" \n")
    with pytest.raises(ValueError, match="has no text"):
        open_passages(tmp_path)
    with pytest.raises(ValueError, match="'nan 3 0' is no finite log-likelihood"):
        report((Query("a/1", "text", None),), {"a/1": "nan 3 0"})


def test_the_command(language_base: Path, tmp_path: Path) -> None:
    words = ["eval", str(language_base), "--benchmarks", "language,multiple_choice", "--limit", "4", "--device", "cpu", "--blind"]
    for _ in range(2):  # the second reads what the first wrote
        assert main([*words, "--output", str(tmp_path / "eval")]) == 0
    card = json.loads((tmp_path / "eval/language/card.json").read_text())
    assert [row["metric"] for row in card["scores"]] == ["log_probability", "perplexity", "bits_per_byte"]
    card = json.loads((tmp_path / "eval/multiple_choice/card.json").read_text())
    assert [row["metric"] for row in card["scores"]] == ["accuracy", "accuracy_norm"]


@pytest.mark.slow
def test_guard_finds_that_it_is_lost(language_base: Path, tmp_path: Path) -> None:
    model, processor = load(str(language_base))
    with torch.no_grad():
        model.lm_head.weight.add_(torch.randn(model.lm_head.weight.shape, generator=torch.Generator().manual_seed(0)))
    model.save_pretrained(tmp_path / "tuned")
    processor.save_pretrained(tmp_path / "tuned")
    guard = ["guard", str(language_base), str(tmp_path / "tuned"), "--benchmarks", "language", "--output", str(tmp_path / "guard")]
    assert main([*guard, "--limit", "8"]) == 1
    content = json.loads((tmp_path / "guard/guard.json").read_text())
    [row] = content["tests"]
    assert (row["task"], row["name"], row["unit"], row["verdict"]) == ("language", "English text", "nats", "worse")
    assert content["worse"] == ["language"]
