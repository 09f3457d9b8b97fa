"""Batches from files: a function of (seed, step), right in every token, and steadfast where records are bad."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from own_data import asked, flat, write_jsonl, write_pictures
from unidecouple.batch import IGNORE, NO_IMAGE_TOKEN, Batch, JointBatch, Task
from unidecouple.convert.load import load
from unidecouple.data.bad_records import BadDataError
from unidecouple.data.file_batches import FileBatches, indices_of
from unidecouple.data.formats import open_source
from unidecouple.data.formats import reader as reader_module
from unidecouple.data.formats.record import ImageFile
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.sequences import SequenceBuilder, pixels
from unidecouple.data.settings import Files, Source
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.models.vq import encode_image_tokens
from unidecouple.run import RunConfig
from unidecouple.source import data_source

WORDS = ["cow", "pig", "cup", "bus", "car", "cake"]
Make = Callable[..., FileBatches]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six questions about images and one text in one file, six images to draw in another."""
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, *(f"{word}.png" for word in WORDS))
    questions = [asked(f"{word}.png", f"Is there a {word} in the image?") for word in WORDS]
    write_jsonl(folder / "asked.jsonl", [*questions, asked(None, "yes", "no")])
    write_jsonl(folder / "drawn.jsonl", [flat(f"{word}.png", f"a photo of a {word}") for word in WORDS])
    return folder


@pytest.fixture(scope="module")
def vq(make_model: Callable[..., UniJanusForConditionalGeneration]) -> Any:
    return make_model().model.vqmodel


@pytest.fixture
def make(folder: Path, processor: UniJanusProcessor, builder: SequenceBuilder, vq: Any) -> Make:
    def made(*names: str, seed: int = 0, cache: Path | None = None, tokenizer: Any = vq, **more: Any) -> FileBatches:
        sources = tuple(Source(folder / name) for name in names or ("asked.jsonl", "drawn.jsonl"))
        settings = {"sources": sources, "mmu_batch_size": 3, "t2i_batch_size": 2, "cond_dropout_prob": 0.0, **more}
        return FileBatches(Files(**settings), processor, builder, seed, tokenizer, cache)

    return made


def same(one: JointBatch, other: JointBatch) -> bool:
    def parts(joint: JointBatch) -> list[Any]:
        return [getattr(batch, f.name) for batch in joint for f in fields(Batch)]

    pairs = zip(parts(one), parts(other), strict=True)
    return all((a is None) == (b is None) and (a is None or torch.equal(a, b)) for a, b in pairs)


def prompts(builder: SequenceBuilder, batch: Batch) -> list[str]:
    """The words of each row, without special tokens."""
    return [builder.tokenizer.decode(row[row != 4], skip_special_tokens=True) for row in batch.input_ids]


def test_a_joint_batch(make: Make, builder: SequenceBuilder) -> None:
    source = make()
    assert source.tasks == (Task.MMU, Task.T2I)
    understanding, generation = source.batch(0)
    assert set(understanding.task_ids.flatten().tolist()) == {Task.MMU}
    assert understanding.pixel_values is not None
    assert generation.pixel_values is None
    assert (generation.image_tokens != NO_IMAGE_TOKEN).sum(1).tolist() == [16, 16]
    assert int((understanding.labels != IGNORE).sum()) == 3 * 2  # an answer of one word and its end, each


def test_tokens_are_those_of_the_picture_the_prompt_names(
    make: Make, builder: SequenceBuilder, processor: UniJanusProcessor, folder: Path, vq: Any
) -> None:
    (_, batch) = make().batch(1)
    for row, prompt in enumerate(prompts(builder, batch)):
        shown = ImagePreprocessor(processor).for_generation(ImageFile(folder / f"{prompt.split()[-1]}.png"))
        wanted = encode_image_tokens(vq, pixels([shown]))[0]
        assert torch.equal(batch.image_tokens[row][batch.image_tokens[row] != NO_IMAGE_TOKEN], wanted)


@pytest.mark.parametrize("pack", [False, True])
def test_a_step_is_a_function_of_seed_and_step(make: Make, tmp_path: Path, pack: bool) -> None:
    whole = [make(pack=pack, cond_dropout_prob=0.5).batch(step) for step in range(6)]
    resumed = make(pack=pack, cond_dropout_prob=0.5, cache=tmp_path)
    assert same(resumed.batch(5), whole[5])
    assert same(resumed.batch(2), whole[2])
    with mock.patch.object(reader_module.RangeReader, "_build", side_effect=AssertionError("read again")):
        assert same(make(pack=pack, cond_dropout_prob=0.5, cache=tmp_path).batch(4), whole[4])
    assert not same(whole[0], whole[1])
    assert not same(make(pack=pack, seed=1).batch(0), make(pack=pack).batch(0))


def test_a_resumed_run_reads_only_what_it_needs(make: Make) -> None:
    source = make(t2i_batch_size=0)
    real = ImagePreprocessor.for_understanding
    with mock.patch.object(ImagePreprocessor, "for_understanding", side_effect=real, autospec=True) as opened:
        source.batch(1000)
    assert opened.call_count <= 3


def test_epochs_are_whole(make: Make, builder: SequenceBuilder) -> None:
    source = make(mmu_batch_size=0, t2i_batch_size=3)
    assert source.tasks == (Task.T2I,)
    seen = Counter(prompt for step in range(4) for prompt in prompts(builder, source.batch(step)[0]))
    assert seen == {f"a photo of a {word}": 2 for word in WORDS}


def test_mixing_in_the_other_task_changes_nothing(make: Make) -> None:
    """Variants with other mixtures see the same samples of the task that they share."""
    assert same(make().batch(3)[:1], make(t2i_batch_size=0).batch(3))
    assert same(make().batch(3)[1:], make(mmu_batch_size=0).batch(3))


def test_measurements_have_an_order_of_their_own(make: Make, builder: SequenceBuilder) -> None:
    source = make(pack=True)
    (alone,) = source.task_batch(Task.T2I, 6, 0)
    assert sorted(prompts(builder, alone)) == sorted(f"a photo of a {word}" for word in WORDS)
    assert same((alone,), make().task_batch(Task.T2I, 6, 0))
    assert not same((alone,), make(mmu_batch_size=0, t2i_batch_size=6).batch(0))


def test_packed_rows_hold_both_tasks(make: Make) -> None:
    (packed,) = make(pack=True, max_length=200).batch(0)
    apart = make().batch(0)
    assert packed.num_tokens == sum(part.num_tokens for part in apart)
    assert set(packed.task_ids.flatten().tolist()) == {Task.MMU, Task.T2I}
    assert packed.position_ids is not None
    assert len(packed.input_ids) < 5


def test_prompts_are_dropped_at_their_share(make: Make, builder: SequenceBuilder) -> None:
    source = make(mmu_batch_size=0, t2i_batch_size=50, cond_dropout_prob=0.3)
    dropped = sum(words == "" for step in range(4) for words in prompts(builder, source.batch(step)[0]))
    assert 40 < dropped < 80
    assert all(prompts(builder, make(cond_dropout_prob=1.0).batch(0)[0]))  # questions keep their words


def test_bad_pictures_are_replaced_counted_and_logged_once(
    make: Make, folder: Path, tmp_path: Path, builder: SequenceBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    write_pictures(tmp_path, *(f"{word}.png" for word in WORDS))
    (tmp_path / "pig.png").write_bytes((tmp_path / "pig.png").read_bytes()[:100])
    (tmp_path / "bus.png").unlink()
    path = write_jsonl(tmp_path / "drawn.jsonl", [flat(f"{word}.png", f"a photo of a {word}") for word in WORDS])
    settings: dict[str, Any] = {"sources": (Source(path),), "mmu_batch_size": 0, "t2i_batch_size": 6}
    source = make(max_bad_ratio=0.5, **settings)
    with caplog.at_level(logging.WARNING):
        batches = [source.batch(step) for step in range(2)]
    assert {word for (batch,) in batches for words in prompts(builder, batch) for word in words.split()} & {"pig", "bus"} == set()
    assert source.bad_records.bad == 4
    assert sorted(record.getMessage().partition(": image")[0] for record in caplog.records) == [
        f"skipped: {path}:2",
        f"skipped: {path}:4",
    ]
    again = make(max_bad_ratio=0.5, **settings)
    assert same(again.batch(1), batches[1])
    with pytest.raises(
        BadDataError, match=r"1 of \d records seen are bad, more than max_bad_ratio=0.01; the last: .*drawn.jsonl:[24]: image"
    ):
        make(**settings).batch(0)


def test_broken_lines_are_told_before_the_first_step(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path, "a.png")
    path = write_jsonl(tmp_path / "a.jsonl", [flat(), "{broken", flat()])
    with pytest.raises(BadDataError, match=r"more than max_bad_ratio=0.01; the last: .*a.jsonl:2: no valid JSON"):
        make(sources=(Source(path),), mmu_batch_size=0)
    source = make(sources=(Source(path),), mmu_batch_size=0, max_bad_ratio=0.4)
    assert len(source.batch(0)[0].input_ids) == 2
    assert "a.jsonl:2" in caplog.text


def test_bad_records_are_logged_five_times_then_counted(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path, "a.png")
    path = write_jsonl(tmp_path / "a.jsonl", [flat(), *["{broken"] * 30, *[flat()] * 9])
    with caplog.at_level(logging.WARNING):
        make(sources=(Source(path),), mmu_batch_size=0, max_bad_ratio=0.9)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(": no")[0] for line in lines[:5]] == [f"skipped: {path}:{line}" for line in range(2, 7)]
    assert lines[5:] == ["skipped: 10 of 10 records so far; `unidecouple data check` says what is wrong"]


def test_special_tokens_in_a_text_are_bad(make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = [asked(None, "yes <begin_of_image> no", "no"), *[asked(None, "yes", "no")] * 3]
    source = make(
        sources=(Source(write_jsonl(tmp_path / "a.jsonl", texts)),), mmu_batch_size=4, t2i_batch_size=0, max_bad_ratio=0.5
    )
    source.batch(0)
    assert "a.jsonl:1: the text spells out '<begin_of_image>', a special token" in caplog.text


def test_samples_that_are_too_long(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    (batch,) = make(t2i_batch_size=0, max_length=30, max_bad_ratio=1.0).batch(0)
    assert batch.pixel_values is None  # the text alone is short enough
    assert re.search(r"asked.jsonl:[1-6]: 33 tokens are more than max_length=30", caplog.text)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"names": ("asked.jsonl",)}, "t2i_batch_size=2, but no source has t2i records"),
        ({"names": ("drawn.jsonl",)}, "mmu_batch_size=3, but no source has mmu or text records"),
        ({"names": ("gone.jsonl",)}, "no data at"),
    ],
)
def test_mistakes_are_told(make: Make, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make(*settings["names"])


def test_without_a_tokenizer_pictures_cannot_be_drawn(make: Make) -> None:
    source = make(tokenizer=None)
    with pytest.raises(ValueError, match="run `unidecouple data encode` on them"):
        source.batch(0)


def test_a_tokenizer_of_another_grid_is_told(make: Make, builder: SequenceBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make()
    monkeypatch.setattr(builder, "num_image_tokens", 25)
    with pytest.raises(ValueError, match="makes 16 tokens of an image, but the processor has 25"):
        source.batch(0)


def test_several_images_and_turns_train_either_task(
    make: Make, folder: Path, make_model: Callable[..., UniJanusForConditionalGeneration]
) -> None:
    def turns(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]

    images = ["cow.png", "pig.png", "cup.png", "bus.png"]
    understood = {"messages": turns("<image> like <image>", "no", "<image> and", "yes", "<image>", "no"), "images": images}
    generated = {"messages": turns("a <image>", "<image>", "a cup", "<image> and <image>"), "images": images}
    write_jsonl(folder / "several.jsonl", [understood, generated])
    source = make("several.jsonl", mmu_batch_size=1, t2i_batch_size=1, max_length=400)
    mmu, t2i = source.batch(0)
    assert (len(mmu.pixel_values), len(t2i.pixel_values)) == (4, 1)
    assert (mmu.source_tokens, int((t2i.source_tokens != NO_IMAGE_TOKEN).sum())) == (None, 16)
    assert int((t2i.image_tokens != NO_IMAGE_TOKEN).sum()) == 3 * 16
    losses = make_model()(batch=(mmu, t2i))
    for part in (losses.mmu, losses.t2i):
        assert torch.isfinite(part.total)
        assert part.count > 0
    assert int(losses.t2i.count) == 3 * 16


def test_it_trains(make: Make, make_model: Callable[..., UniJanusForConditionalGeneration]) -> None:
    output = make_model()(batch=make(pack=True, max_length=128).batch(0))
    assert (int(output.mmu.count), int(output.t2i.count)) == (6, 32)
    assert np.isfinite(output.mmu.mean.item() + output.t2i.mean.item())


def test_text_alone_trains_a_base_made_from_a_language_model(language_base: Path, tmp_path: Path) -> None:
    """Its loss is the language model's own on the answers' words: conversations without images are understanding samples."""
    model, processor = load(str(language_base))
    turns = [{"role": "user", "content": "What is a cat?"}, {"role": "assistant", "content": "A red cat."}]
    write_jsonl(tmp_path / "text.jsonl", [{"messages": turns}] * 2)
    run = RunConfig(data=Files(sources=(Source(tmp_path / "text.jsonl"),), mmu_batch_size=2, t2i_batch_size=0))
    builder = SequenceBuilder(processor)
    source = data_source(run).open(run, model, processor, builder, tmp_path / "cache", lambda what, done, of: None)
    batch = source.task_batch(Task.MMU, 2, 0)
    answer = processor.tokenizer("A red cat.<|im_end|>", add_special_tokens=False)["input_ids"]
    kept = batch[0].labels[0]
    assert kept[kept != IGNORE].tolist() == answer
    ids = batch[0].input_ids[:1]
    expected = model(input_ids=ids, labels=batch[0].labels[:1], task_ids=torch.full((1, 1), int(Task.MMU))).loss
    torch.testing.assert_close(model(batch=batch).mmu.mean, expected)


def test_kinds_are_chosen_after_the_fraction(folder: Path) -> None:
    """So the parts of a file do not depend on them: the text is in one of two halves, whichever kinds are asked for."""
    sources = [Source(folder / "asked.jsonl", fraction=half) for half in ((0.0, 0.5), (0.5, 1.0))]
    counts = []
    for source in sources:
        files = Files((source,))
        [(_, both)] = indices_of(files, [tuple(open_source(source))], Task.MMU)
        parts = []
        for kind in ("mmu", "text"):
            [(_, index)] = indices_of(replace(files, kinds=(kind,)), [tuple(open_source(source))], Task.MMU)
            parts += [(index.kind(place), index.record(place).where) for place in range(len(index))]
        assert sorted(parts) == sorted((both.kind(place), both.record(place).where) for place in range(len(both)))
        counts.append(sum(kind == "text" for kind, _ in parts))
    assert sorted(counts) == [0, 1]


@torch.no_grad()
def test_an_edit_is_generated_from_its_source(
    make: Make, folder: Path, processor: UniJanusProcessor, vq: Any, make_model: Callable[..., UniJanusForConditionalGeneration]
) -> None:
    """Both blocks hold the source, padded as the target is; losses are on the target alone and depend on both blocks."""
    entry = {"prompt": "a red cow", "source_image": "cow.png", "image": "pig.png"}
    write_jsonl(folder / "edits.jsonl", [entry])
    (batch,) = make("edits.jsonl", mmu_batch_size=0, t2i_batch_size=1).batch(0)
    preprocessor = ImagePreprocessor(processor)
    shown = [pixels([preprocessor.for_understanding(ImageFile(folder / name))]) for name in ("cow.png", "pig.png")]
    assert batch.pixel_values is not None
    assert torch.equal(batch.pixel_values, shown[0])
    assert batch.source_tokens is not None
    source, target = (encode_image_tokens(vq, picture)[0] for picture in shown)
    assert torch.equal(batch.source_tokens[0][batch.source_tokens[0] != NO_IMAGE_TOKEN], source)
    assert torch.equal(batch.image_tokens[0][batch.image_tokens[0] != NO_IMAGE_TOKEN], target)
    model = make_model()
    loss = model(batch=(batch,)).t2i
    assert int(loss.count) == 16
    other = batch.source_tokens.where(batch.source_tokens == NO_IMAGE_TOKEN, (batch.source_tokens + 7) % vq.config.num_embeddings)
    for changed in (replace(batch, source_tokens=other), replace(batch, pixel_values=shown[1])):
        assert not torch.isclose(model(batch=(changed,)).t2i.total, loss.total, rtol=1e-5)
    embeds = model.embed(batch)
    there = batch.source_tokens[0] != NO_IMAGE_TOKEN
    assert torch.equal(embeds[0, there], model.embed_image_tokens(source.unsqueeze(0))[0])
    packed = make("edits.jsonl", mmu_batch_size=0, t2i_batch_size=2, pack=True, max_length=400).batch(0)
    assert float(model(batch=packed).t2i.total) == pytest.approx(2 * float(loss.total), rel=1e-4)
    (dropped,) = make("edits.jsonl", mmu_batch_size=0, t2i_batch_size=1, cond_dropout_prob=1.0).batch(0)
    assert (dropped.pixel_values, dropped.source_tokens) == (None, None)
    assert dropped.input_ids.shape == batch.input_ids.shape
