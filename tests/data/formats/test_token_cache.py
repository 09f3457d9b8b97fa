"""The cache of image tokens: what went in comes out, 2 bytes a token; other tokenizers' and broken caches are refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from own_data import asked, flat, png, write_jsonl, write_pictures, write_tar
from unidecouple.batch import NO_IMAGE_TOKEN
from unidecouple.data import check
from unidecouple.data.bad_records import BadDataError
from unidecouple.data.build_sample import build
from unidecouple.data.encode import EncodeOptions, encode
from unidecouple.data.file_batches import FileBatches
from unidecouple.data.formats import open_readers
from unidecouple.data.formats.record import ImageTokens
from unidecouple.data.formats.token_cache import FORMAT, FORMAT_WITH_SOURCES, MANIFEST, PLAN, read_manifest
from unidecouple.data.pictures import ImagePreprocessor, decode
from unidecouple.data.sequences import SequenceBuilder, pixels
from unidecouple.data.settings import Files, Source
from unidecouple.data.split import _name
from unidecouple.files import sha256_file, sha256_tree
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.models.vq import encode_image_tokens, tokenizer_hash
from unidecouple.shares import WorkShare

WORDS = ["cow", "pig", "cup", "bus", "car"]
MakeModel = Callable[..., UniJanusForConditionalGeneration]


@pytest.fixture(scope="module")
def vq(make_model: MakeModel) -> Any:
    return make_model().model.vqmodel


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five images to draw among two questions."""
    folder = tmp_path / "data"
    write_pictures(folder, *(f"{word}.png" for word in WORDS))
    entries: list[Any] = [flat(f"{word}.png", f"a photo of a {word}") for word in WORDS]
    return write_jsonl(folder / "a.jsonl", [asked("cow.png"), *entries, asked(None)])


@pytest.fixture
def write(source: Path, processor: UniJanusProcessor, vq: Any, tmp_path: Path) -> Callable[..., Path]:
    def written(name: str = "cache", **settings: Any) -> Path:
        options = {"batch_size": 2, "shard_size": 2, **settings}
        tokenizer, progress = options.pop("vq", vq), options.pop("progress", lambda done, of: None)
        encode(open_readers(source), tokenizer, ImagePreprocessor(processor), tmp_path / name, EncodeOptions(**options), progress)
        return tmp_path / name

    return written


def test_shares_make_the_cache_of_one_process(write: Callable[..., Path]) -> None:
    whole = write()
    parted = write("parted", share=WorkShare(1, 2, independent=True))
    assert not (parted / "manifest.json").exists()
    write("parted", share=WorkShare(0, 2, independent=True))
    assert sha256_tree(parted) == sha256_tree(whole)


def test_what_goes_in_comes_out(write: Callable[..., Path], processor: UniJanusProcessor, vq: Any, source: Path) -> None:
    cache = write()
    readers = open_readers(cache)
    assert [reader.kinds.tolist() for reader in readers] == [[1, 1], [1, 1], [1]]
    assert {reader.format for reader in readers} == {"image_tokens"}
    records = [reader.record(index) for reader in readers for index in range(len(reader.kinds))]
    for word, record, original in zip(WORDS, records, range(1, 6), strict=True):
        assert record.turns[0].parts == (f"a photo of a {word}",)
        (picture,) = record.generated
        assert isinstance(picture, ImageTokens)
        shown = ImagePreprocessor(processor).for_generation(open_readers(source)[0].record(original).generated[0])
        assert picture.read().tolist() == encode_image_tokens(vq, pixels([shown]))[0].tolist()
    manifest = read_manifest(cache)
    assert (manifest.count, manifest.skipped, manifest.tokens_per_image, manifest.codes) == (5, 2, 16, 64)
    assert (manifest.sources, manifest.tokenizer) == ({str(source): sha256_file(source)}, tokenizer_hash(vq))
    tokens = load_file(cache / "tokens-00000.safetensors")["tokens"]
    assert (tokens.dtype, tokens.nbytes) == (np.uint16, 2 * 16 * 2)


def test_training_from_the_cache_is_training_from_the_pictures(
    write: Callable[..., Path], source: Path, processor: UniJanusProcessor, builder: SequenceBuilder, vq: Any
) -> None:
    def batches(path: Path) -> FileBatches:
        files = Files((Source(path),), mmu_batch_size=0, t2i_batch_size=3)
        return FileBatches(files, processor, builder, seed=0, vq=vq)

    for step in range(3):
        (cached,), (fresh,) = batches(write(f"cache-{step}")).batch(step), batches(source).batch(step)
        assert torch.equal(cached.input_ids, fresh.input_ids)
        assert torch.equal(cached.image_tokens, fresh.image_tokens)
        assert int((cached.image_tokens != NO_IMAGE_TOKEN).sum()) == 3 * 16


def test_another_tokenizer_is_refused(
    write: Callable[..., Path], make_model: MakeModel, processor: UniJanusProcessor, builder: Any
) -> None:
    other = make_model(seed=1).model.vqmodel
    with pytest.raises(ValueError, match="its tokens do not fit this model"):
        FileBatches(Files((Source(write()),), mmu_batch_size=0), processor, builder, 0, other)
    assert tokenizer_hash(other) != tokenizer_hash(make_model().model.vqmodel)
    assert tokenizer_hash(other) == tokenizer_hash(make_model(seed=1).model.vqmodel)


def test_an_interrupted_encoding_goes_on(write: Callable[..., Path], vq: Any) -> None:
    whole = write("whole")

    def stop(done: int, of: int) -> None:
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write("cut", progress=stop)
    assert (whole.parent / "cut" / "tokens-00000.safetensors").is_file()
    with pytest.raises(ValueError, match="is no finished cache of image tokens"):
        open_readers(whole.parent / "cut")
    times = []
    cut = write("cut", progress=lambda done, of: times.append(done))
    assert min(times) == 2
    for file in sorted(whole.iterdir()):
        assert (cut / file.name).read_bytes() == file.read_bytes()


def test_one_process_hashes_the_sources(source: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The others take its hashes while the file is unchanged; a later time of the file is looked into, other content refused."""
    hashed: list[Path] = []

    def count(path: Path) -> str:
        hashed.append(path)
        return sha256_file(path)

    monkeypatch.setattr("unidecouple.data.encode._hash", count)
    for rank in range(2):
        folder = write(share=WorkShare(rank, 2))
    assert hashed == [source]
    assert read_manifest(folder).sources == {str(source): sha256_file(source)}
    os.utime(source, ns=(1, 1))
    write()
    assert hashed == [source, source]
    write_jsonl(source, [flat("cow.png", "a cow")])
    with pytest.raises(ValueError, match="of other data or by another model"):
        write()


def test_another_encoding_is_not_mixed_in(write: Callable[..., Path], make_model: MakeModel, tmp_path: Path) -> None:
    write()
    with pytest.raises(ValueError, match="of other data or by another model: choose another folder"):
        write(vq=make_model(seed=1).model.vqmodel)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.md").write_text("mine")
    with pytest.raises(ValueError, match="is not empty: choose another folder"):
        write("full")
    assert json.loads((tmp_path / "cache" / PLAN).read_text())["shard_size"] == 2


def test_bad_pictures_are_left_out(tmp_path: Path, processor: UniJanusProcessor, vq: Any, caplog: pytest.LogCaptureFixture) -> None:
    members = {f"{n}.{end}": content for n in range(4) for end, content in (("png", png(n)), ("txt", f"image {n}".encode()))}
    members["1.png"] = members["1.png"][:200]
    readers = open_readers(write_tar(tmp_path / "a.tar", members))
    manifest = encode(readers, vq, ImagePreprocessor(processor), tmp_path / "cache", EncodeOptions(max_bad_ratio=0.5))
    assert (manifest.count, manifest.skipped, manifest.format) == (3, 1, FORMAT)
    assert "sample 2 (1): image" in caplog.text
    (reader,) = open_readers(tmp_path / "cache")
    assert [reader.record(index).turns[0].parts[0] for index in range(3)] == ["image 0", "image 2", "image 3"]
    with pytest.raises(BadDataError, match=r"max_bad_ratio=0\.01"):
        encode(readers, vq, ImagePreprocessor(processor), tmp_path / "strict")
    with pytest.raises(ValueError, match="none of 1 records is t2i"):
        encode(open_readers(write_jsonl(tmp_path / "a.jsonl", [asked(None)])), vq, ImagePreprocessor(processor), tmp_path / "none")


@pytest.mark.parametrize("container", ["jsonl", "tar"])
def test_edits_are_samples_as_before(tmp_path: Path, processor: UniJanusProcessor, vq: Any, container: str) -> None:
    """Tokens, pixels and losses of a cached edit are those of the record itself, whatever its images come from."""
    edit = {"messages": [{"role": "user", "content": "<image>brighter<image>"}, {"role": "assistant", "content": "<image>"}]}
    if container == "tar":
        members = {"0.png": png(9), "0.txt": b"image", "1.json": json.dumps(edit).encode()}
        source = write_tar(tmp_path / "a.tar", members | {f"1.{name}.png": png(n, 40) for n, name in enumerate("abc")})
    else:
        for n, name in enumerate("abc"):
            (tmp_path / f"{name}.png").write_bytes(png(n, 40))
        source = write_jsonl(tmp_path / "a.jsonl", [flat("c.png", "image"), edit | {"images": ["a.png", "b.png", "c.png"]}])
    preprocessor, builder = ImagePreprocessor(processor), SequenceBuilder(processor)
    manifest = encode(open_readers(source), vq, preprocessor, tmp_path / "cache", EncodeOptions(batch_size=2, shard_size=1))
    assert manifest is not None
    assert (manifest.count, manifest.skipped, manifest.format) == (2, 0, FORMAT_WITH_SOURCES)
    [before] = [one for reader in open_readers(source) for n in range(2) if (one := reader.record(n)).sources]
    plain = build(before, preprocessor, builder)
    source.unlink()
    after = open_readers(tmp_path / "cache")[1].record(0)
    assert [one.read() for one in after.sources] == [png(0, 40), png(1, 40)]
    cached = build(after, preprocessor, builder)
    assert cached.input_ids == plain.input_ids
    assert all(np.array_equal(*pair) for pair in zip(cached.pictures, plain.pictures, strict=True))
    for tokens, shown in zip((*cached.sources, *cached.images), (*plain.sources, *plain.images), strict=True):
        assert list(tokens) == encode_image_tokens(vq, pixels([shown]))[0].tolist()  # type: ignore[list-item]
    assert build(after, preprocessor, builder, dropped=True).sources == ()
    assert len(check.digest(after)) == 16
    assert [_name(one) for one in after.sources] == [png(0, 40), png(1, 40)]  # so that no source image is in two parts


def read_all(cache: Path) -> None:
    for reader in open_readers(cache, "image_tokens"):
        for index in range(len(reader.kinds)):
            for picture in reader.record(index).generated:
                picture.read()


@pytest.mark.parametrize("file", [MANIFEST, "tokens-00001.safetensors", "records-00001.jsonl"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_broken_cache_is_told(write: Callable[..., Path], file: str, damage: str) -> None:
    path = write() / file
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 3])
    with pytest.raises(ValueError, match=r"encode it|copy it again") as caught:
        read_all(path.parent)
    assert str(path.parent) in str(caught.value)


def test_tokens_cannot_be_looked_at(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="image tokens, which can only be generated"):
        decode(open_readers(write())[0].record(0).generated[0])
