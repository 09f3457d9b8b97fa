"""Files that break while a run is on them: survived or stopped cleanly, as ``max_bad_ratio`` says, and named either way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from own_data import flat, png, write_jsonl, write_pictures, write_tar
from unidecouple.data.bad_records import BadDataError
from unidecouple.data.encode import EncodeOptions, encode
from unidecouple.data.file_batches import FileBatches
from unidecouple.data.formats import open_readers
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.settings import Files, Source
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor

WORDS = {"whole": ["cow", "pig", "cup", "bus"], "broken": ["car", "cake", "dog", "cat"]}
Damage = Callable[[Path], object]
Open = Callable[[Path, float], FileBatches]


def vanish(path: Path) -> None:
    path.unlink()


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def overwrite(path: Path) -> None:
    """The middle half turns to rubbish; the first and last bytes, and the size, stay."""
    content = bytearray(path.read_bytes())
    quarter = len(content) // 4
    content[quarter:-quarter] = b"\xff" * (len(content) - 2 * quarter)
    path.write_bytes(bytes(content))


def webdataset(folder: Path, name: str) -> Path:
    members = {f"{word}.{end}": png(3) if end == "png" else f"a {word}".encode() for word in WORDS[name] for end in ("png", "txt")}
    return write_tar(folder / f"{name}.tar", members)


def jsonl(folder: Path, name: str) -> Path:
    write_pictures(folder, *(f"{word}.png" for word in WORDS[name]))
    return write_jsonl(folder / f"{name}.jsonl", [flat(f"{word}.png", f"a {word}") for word in WORDS[name]])


def parquet(folder: Path, name: str) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": f"a {word}", "image": {"bytes": png(number), "path": None}} for number, word in enumerate(WORDS[name])]
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=1)
    return folder / f"{name}.parquet"


@pytest.fixture
def opened(
    processor: UniJanusProcessor, builder: SequenceBuilder, make_model: Callable[..., UniJanusForConditionalGeneration]
) -> Open:
    def batches(path: Path, max_bad_ratio: float) -> FileBatches:
        files = Files((Source(path),), mmu_batch_size=0, t2i_batch_size=4, cond_dropout_prob=0.0, max_bad_ratio=max_bad_ratio)
        return FileBatches(files, processor, builder, 0, make_model().model.vqmodel)

    return batches


@pytest.mark.parametrize(
    ("write", "damage"),
    [(w, d) for w in (webdataset, jsonl, parquet) for d in (vanish, cut_off, overwrite) if (w, d) != (parquet, vanish)],
    ids=lambda f: f.__name__,
)  # parquet files stay open: one that vanishes is read to the end
def test_a_file_that_breaks_in_training(
    write: Callable[[Path, str], Path], damage: Damage, opened: Open, builder: SequenceBuilder, tmp_path: Path, caplog: Any
) -> None:
    whole, broken = (write(tmp_path, name) for name in ("whole", "broken"))
    patient, strict = (opened(tmp_path / f"*{whole.suffix}", ratio) for ratio in (0.95, 0.01))
    damage(broken)
    with caplog.at_level(logging.WARNING):
        drawn = [
            builder.tokenizer.decode(row) for step in range(4) for (batch,) in [patient.batch(step)] for row in batch.input_ids
        ]
    assert len(drawn) == 16
    assert patient.bad_records.bad > 0
    assert all(broken.name in line.getMessage() or "cannot be read" in line.getMessage() for line in caplog.records)
    with pytest.raises(BadDataError, match=rf"more than max_bad_ratio=0.01; the last: .*{broken.stem}") as refused:
        [strict.batch(step) for step in range(4)]
    assert whole.name not in str(refused.value)


@pytest.mark.parametrize("damage", [vanish, cut_off], ids=lambda f: f.__name__)
def test_a_cache_of_tokens_that_breaks_in_training(
    damage: Damage, opened: Open, processor: UniJanusProcessor, make_model: Any, tmp_path: Path
) -> None:
    vq, readers = make_model().model.vqmodel, open_readers(jsonl(tmp_path, "whole"))
    encode(readers, vq, ImagePreprocessor(processor), tmp_path / "cache", EncodeOptions(batch_size=2, max_bad_ratio=0.0))
    source = opened(tmp_path / "cache", 0.01)
    (tokens,) = (tmp_path / "cache").glob("tokens-*.safetensors")
    damage(tokens)
    with pytest.raises(BadDataError, match=rf"max_bad_ratio=0.01; the last: .*{tokens.name}"):
        source.batch(0)
