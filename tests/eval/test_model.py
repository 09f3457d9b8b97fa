"""A checkpoint as benchmarks see it: images of any size, blind questions, images that do not depend on how work is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from own_data import png
from published_sets import MMMU, write_mme, write_pope, write_vqav2
from unidecouple.data.formats.record import ImageBytes
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.eval.benchmark import Query
from unidecouple.eval.model import GREY, EvalModel
from unidecouple.eval.suite import BenchmarkOptions, open_benchmarks
from unidecouple.models.processing import UniJanusProcessor


@pytest.fixture
def judged(make_model: object, processor: UniJanusProcessor) -> EvalModel:
    return EvalModel(make_model(), processor, max_new_tokens=4, seed=3)  # type: ignore[operator]


def test_pictures_of_any_size_are_shaped_and_drawn_ones_must_fit(judged: EvalModel) -> None:
    wide = Query("1", "Is there a cow in the image?", ImageBytes(png(1, 40, 20)))
    grey = Query("2", wide.text, np.full((16, 16, 3), GREY, np.uint8))
    several = judged.ask([wide, grey, wide])
    assert several[0] == several[2] == judged.ask([wide])[0]
    assert judged.ask_grey([wide]) == judged.ask([grey])
    with pytest.raises(ValueError, match="images are 64 pixels a side, the model's 16"):
        judged.ask([Query("3", "?", np.zeros((64, 64, 3), np.uint8))])


def test_asked_by_text_a_model_gets_the_same_words_and_no_picture(judged: EvalModel, tmp_path: Path) -> None:
    """Of all benchmarks of questions, in their published forms."""
    (tmp_path / "mmmu").mkdir()
    pq.write_table(pa.Table.from_pylist(MMMU["Art"]), tmp_path / "mmmu" / "validation-0.parquet")
    for name, write in (("pope", write_pope), ("mme", write_mme), ("vqa", write_vqav2)):
        write(tmp_path / name)
    queries = [
        q for benchmark in open_benchmarks(["pope", "mmmu", "mme", "vqa"], BenchmarkOptions(tmp_path)) for q in benchmark.queries
    ]
    given: list[dict[str, Any]] = []
    hook = judged.model.register_forward_pre_hook(lambda module, args, inputs: given.append(inputs), with_kwargs=True)
    with hook:
        answers = judged.ask_text(queries)
    assert len(answers) == len(queries) == 4 + 2 + 8 + 2
    first = given[0]
    assert all(inputs.get("pixel_values") is None for inputs in given)
    assert not (first["input_ids"] == judged.model.config.image_token_id).any()
    builder = SequenceBuilder(judged.processor)
    for query, row, mask in zip(queries, first["input_ids"], first["attention_mask"], strict=True):
        words = [token for token in builder.understanding_prompt(query.text) if token not in builder._image]
        assert row[mask.bool()].tolist() == words
    assert answers[:1] == judged.ask_text(queries[:1])


def test_a_broken_picture_is_named(judged: EvalModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.jsonl:7: .*no image in a known format"):
        judged.ask([Query("1", "?", ImageBytes(b"no image"), "a.jsonl:7")])


@pytest.mark.parametrize(
    ("text", "said"), [("what? " * 9999, "tokens of prompt and 4 to generate are more than"), ("a <eos> ?", "<eos>")]
)
def test_questions_that_cannot_be_asked_are_named_before_any_is(judged: EvalModel, text: str, said: str) -> None:
    queries = [Query("1", "Is there a cow ?", ImageBytes(png(1)), "a.jsonl:1"), Query("2", text, ImageBytes(png(1)), "a.jsonl:2")]
    with pytest.raises(ValueError, match=f"a.jsonl:2: .*{said}"):
        judged.check_queries(queries)
    judged.check_queries(queries[:1])
    with pytest.raises(ValueError, match="prompt 1: "):
        judged.check_prompts([{"prompt": "a cow"}, {"prompt": text}])


def test_pictures_depend_on_their_number_alone(judged: EvalModel) -> None:
    prompts = ["a photo of a cow", "a photo of a red bus", "a photo of a pig"]
    whole = judged.generate(prompts, 2, 0)
    parts = judged.generate(prompts[:1], 2, 0) + judged.generate(prompts[1:], 2, 1)
    for together, apart in zip(whole, parts, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(together, apart, strict=True))
    shifted = judged.generate(prompts[1:], 2, 0)
    assert not np.array_equal(shifted[0][0], whole[1][0])
