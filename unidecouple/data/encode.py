"""Encode images to be generated, and their source images, into a cache of image tokens, shard by shard.

An interrupted encoding resumes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.numpy import save

from unidecouple.data.bad_records import BadRecordCounter
from unidecouple.data.formats import BadRecordError, Reader, Record, RecordIndex
from unidecouple.data.formats.reader import file_state
from unidecouple.data.formats.record import StoredImage
from unidecouple.data.formats.token_cache import (
    FORMAT,
    FORMAT_WITH_SOURCES,
    MANIFEST,
    PLAN,
    Manifest,
    record_entry,
    shard_files,
    sources_file,
)
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.sequences import pixels
from unidecouple.files import sha256_file, sha256_tree, write_bytes_atomic, write_json_atomic, write_text_atomic
from unidecouple.models.vq import ImageTokenizer, encode_image_tokens, tokenizer_hash
from unidecouple.ownership import check_apart
from unidecouple.shares import ALONE, WorkShare

EncodeProgress = Callable[[int, int], None]
"""Called with the records that are done, and of how many."""


@dataclass(frozen=True)
class EncodeOptions:
    """How a cache of image tokens is written.

    Attributes:
        batch_size: images encoded together.
        shard_size: records per shard.
        max_bad_ratio: fraction of bad records above which the encoding fails.
        share: this process among several.
    """

    batch_size: int = 32
    shard_size: int = 10_000
    max_bad_ratio: float = 0.01
    share: WorkShare = ALONE


def encode(
    readers: Sequence[Reader],
    vq: ImageTokenizer,
    preprocessor: ImagePreprocessor,
    output: Path,
    options: EncodeOptions | None = None,
    progress: EncodeProgress = lambda done, of: None,
) -> Manifest | None:
    """Encode every t2i record of ``readers`` into ``output``; shards that are there already are kept.

    Source images are kept as they came, beside their tokens; those of one shard are held in memory. Processes that share the work
    write a part of the shards each; the one that finds all of them writes the manifest, others return None.

    Args:
        readers: from ``open_readers``.
        vq: the image tokenizer, of at most 65,536 codes.
        preprocessor: brings images to the model's size.
        output: folder of the cache.
        options: see ``EncodeOptions``.
        progress: see ``EncodeProgress``.

    Raises:
        ValueError: there is nothing to encode, or ``output`` holds another encoding.
        BadDataError: too many images cannot be read.
        StorageError: a file could not be written; the same command goes on.
    """
    options = options or EncodeOptions()
    check_apart(output, [reader.path for reader in readers])
    codes = vq.quantize.embedding.weight.shape[0]
    if codes > 1 << 16:
        raise ValueError(f"a codebook of {codes} rows does not fit uint16, which holds {1 << 16}")
    total = sum(len(reader.kinds) for reader in readers)
    drawable = RecordIndex(readers, ("t2i",))
    if not len(drawable):
        raise ValueError(f"none of {total} records is t2i (an image in an assistant turn): there is nothing to encode")
    digest = tokenizer_hash(vq)
    settings = {"tokenizer": digest, "image_size": preprocessor.size, "shard_size": options.shard_size}
    sources = _claim(output, settings, [reader.path for reader in readers])
    bad_records = BadRecordCounter(options.max_bad_ratio, len(drawable))
    encoder = _Encoder(drawable, vq, preprocessor, options.batch_size, bad_records)
    counts = encoder.shards(output, options.shard_size, options.share, progress)
    if counts is None:
        return None
    edits = any(output.glob(sources_file(output, 0).name.replace("00000", "*")))
    manifest = Manifest(
        tokenizer=digest,
        tokens_per_image=_width(output),
        codes=codes,
        image_size=preprocessor.size,
        count=sum(counts),
        skipped=total - sum(counts),
        sources=sources,
        shards=counts,
        format=FORMAT_WITH_SOURCES if edits else FORMAT,
    )
    write_json_atomic(output / MANIFEST, asdict(manifest))
    return manifest


def _claim(output: Path, settings: Mapping[str, object], paths: Sequence[Path]) -> dict[str, str]:
    """Claim ``output``, or find that it holds the same encoding; return the hash of each source.

    The first process hashes the sources. Others wait for it, and take its hashes as long as no file has changed since.
    """
    file = output / PLAN
    states = [] if any(path.is_dir() for path in paths) else [file_state(path, "source") for path in paths]
    output.mkdir(parents=True, exist_ok=True)
    with FileLock(output / ".plan.lock"):
        kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        if not kept and any(not path.name.startswith(".") for path in output.iterdir()):
            raise ValueError(f"{output} is not empty: choose another folder, or delete it")
        unchanged = kept.pop("states", None) == states and bool(states)
        sources = kept["sources"] if unchanged else {str(path): _hash(path) for path in paths}
        plan = {**settings, "sources": sources}
        if not kept:
            write_json_atomic(file, {**plan, "states": states})
        elif kept != plan:
            raise ValueError(f"{output} holds an encoding of other data or by another model: choose another folder, or delete it")
    return sources


@dataclass(frozen=True)
class _Encoder:
    """Makes shards; ``bad_records`` counts over all of them."""

    drawable: RecordIndex
    vq: ImageTokenizer
    preprocessor: ImagePreprocessor
    batch_size: int
    bad_records: BadRecordCounter

    def shards(self, output: Path, shard_size: int, share: WorkShare, progress: EncodeProgress) -> list[int] | None:
        """Write the shards of ``share`` that are not in ``output`` yet.

        Returns:
            The records of each shard; None while some are missing.
        """
        starts = range(0, len(self.drawable), shard_size)
        for start in share.of(starts):
            tokens, records = shard_files(output, start // shard_size)
            chunk = range(start, min(start + shard_size, len(self.drawable)))
            if not tokens.is_file():
                kept, rows, sources = self.shard(chunk, progress)
                if sources:
                    write_bytes_atomic(sources_file(output, start // shard_size), sources)
                write_text_atomic(records, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept))
                write_bytes_atomic(tokens, save({"tokens": rows}))  # last: it marks the shard as complete
            progress(chunk.stop, len(self.drawable))
        files = [shard_files(output, number) for number in range(len(starts))]
        if not all(tokens.is_file() for tokens, _ in files):
            return None
        return [records.read_bytes().count(b"\n") for _, records in files]

    def shard(self, chunk: range, progress: EncodeProgress) -> tuple[list[dict[str, object]], np.ndarray, bytes]:
        """Entries of the records numbered ``chunk``, the tokens of their images, uint16 (images, tokens), and source images."""
        kept: list[dict[str, object]] = []
        sources = bytearray()
        rows: list[np.ndarray] = []
        waiting: list[np.ndarray] = []
        for number, record, pictures, contents in self._readable(chunk):
            kept.append(record_entry(record, sum(map(len, rows)) + len(waiting), len(sources), map(len, contents)))
            sources += b"".join(contents)
            waiting += pictures
            if len(waiting) >= self.batch_size:
                rows.append(self._tokens(waiting))
                waiting = []
                progress(number, len(self.drawable))
        if waiting:
            rows.append(self._tokens(waiting))
        return kept, np.concatenate(rows) if rows else np.zeros((0, 0), np.uint16), bytes(sources)

    def _readable(self, chunk: range) -> Iterator[tuple[int, Record, list[np.ndarray], list[bytes]]]:
        """Numbers, records, all their images, uint8 at the model's size, and bytes of source images; bad records are counted."""
        for number in chunk:
            try:
                record = self.drawable.record(number)
                pictures, contents = self._pictures(record)
            except BadRecordError as error:
                self.bad_records.skip(error)
            else:
                self.bad_records.good()
                yield number, record, pictures, contents

    def _pictures(self, record: Record) -> tuple[list[np.ndarray], list[bytes]]:
        edit, pictures, contents = bool(record.sources), [], []
        try:
            for turn in record.turns:
                for picture in turn.pictures:
                    if turn.role == "assistant":
                        pictures.append(self.preprocessor.for_generation(picture, edit))
                        continue
                    pictures.append(self.preprocessor.for_understanding(picture))
                    contents.append(_bytes_of(picture))
        except (ValueError, OSError) as error:
            raise BadRecordError(record.where, str(error)) from error
        return pictures, contents

    def _tokens(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        values = pixels(pictures).contiguous(memory_format=torch.channels_last).to(self.vq.quantize.embedding.weight)
        return encode_image_tokens(self.vq, values).cpu().numpy().astype(np.uint16)


def _bytes_of(picture: StoredImage) -> bytes:
    content = picture.read()
    assert isinstance(content, bytes)  # tokens were refused when the image was decoded
    return content


def _hash(path: Path) -> str:
    return sha256_file(path) if path.is_file() else sha256_tree(path)


def _width(output: Path) -> int:
    """Tokens per image, from the first shard that has some."""
    for file in sorted(output.glob("tokens-*.safetensors")):
        with safe_open(file, "np") as shard:
            width = int(shard.get_slice("tokens").get_shape()[1])
        if width:
            return width
    raise ValueError(f"no image could be encoded into {output}")
