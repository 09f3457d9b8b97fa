"""Our cache of image tokens: prompts and the images generated for them, 2 bytes per token (576 tokens: 1,152 bytes per image).

A folder with ``manifest.json``, and for each shard ``tokens-00000.safetensors`` ("tokens", uint16, images x tokens) beside
``records-00000.jsonl``, whose images are {"type": "image_tokens", "row": row of the shard}. ``data/encode.py`` writes it.
A source image is understood, too, so it is {"type": "source_image", "row", "offset", "size"}: a row of the shard, and a byte
range of ``sources-00000.bin``, which holds the encoded images as they were. Tokens are valid only for the tokenizer that made them,
so the manifest has its hash.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from unidecouple.data.formats.lines import JsonLines
from unidecouple.data.formats.record import BadRecordError, EncodedSource, ImageFile, ImageTokens, Record, Turn, make_record

MANIFEST: Final = "manifest.json"
PLAN: Final = "encoding.json"
"""What is being encoded, and by which tokenizer; written first, so that no other encoding continues in the folder."""

FORMAT: Final = "unidecouple image tokens 1"
FORMAT_WITH_SOURCES: Final = "unidecouple image tokens 2"


@dataclass(frozen=True)
class Manifest:
    """Description of a cache.

    Attributes:
        tokenizer: hash of the image tokenizer (``models/vq.py: tokenizer_hash``).
        tokens_per_image, codes, image_size: tokens of an image, codebook's rows, pixels a side.
        count: images.
        skipped: records that were left out: not t2i, or broken.
        sources: file name -> SHA-256 of what was encoded.
        shards: images of each shard.
        format: name and version of the format.
    """

    tokenizer: str
    tokens_per_image: int
    codes: int
    image_size: int
    count: int
    skipped: int
    sources: dict[str, str]
    shards: list[int]
    format: str = FORMAT


def is_cache(folder: Path) -> bool:
    """Whether ``folder`` holds a cache, finished or not."""
    return any((folder / name).is_file() for name in (PLAN, shard_files(folder, 0)[0].name))


def read_manifest(folder: Path, tokenizer: str | None = None) -> Manifest:
    """The manifest of the cache in ``folder``.

    Raises:
        ValueError: it is missing, of another version, or of another tokenizer than ``tokenizer`` (any, if None).
    """
    try:
        manifest = Manifest(**json.loads((folder / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{folder} is no finished cache of image tokens ({error}): encode it (again)") from error
    if manifest.format not in (FORMAT, FORMAT_WITH_SOURCES):
        raise ValueError(f"{folder} is in the format {manifest.format!r}, not {FORMAT_WITH_SOURCES!r}: encode it again")
    if tokenizer is not None and manifest.tokenizer != tokenizer:
        raise ValueError(
            f"{folder} was encoded by the image tokenizer {manifest.tokenizer[:12]}, but the model has {tokenizer[:12]}: "
            "its tokens do not fit this model. Encode the data again with this model"
        )
    return manifest


def token_readers(folder: Path, cache: Path | None = None, tokenizer: str | None = None) -> list[JsonLines]:
    """One reader per shard.

    Raises:
        ValueError: as ``read_manifest``; or a shard is missing.
    """
    manifest = read_manifest(folder, tokenizer)
    readers = []
    for number, count in enumerate(manifest.shards):
        tokens, records = shard_files(folder, number)
        if not (tokens.is_file() and records.is_file()):
            raise ValueError(f"{folder} lacks shard {number} ({tokens.name}, {records.name}): copy it again, or encode it again")
        reader = JsonLines(records, functools.partial(_parse, tokens=tokens), "image_tokens", cache)
        if len(reader.kinds) != count:
            raise ValueError(f"{records} holds {len(reader.kinds)} records where the manifest says {count}: encode it again")
        readers.append(reader)
    return readers


def shard_files(folder: Path, number: int) -> tuple[Path, Path]:
    """Paths of a shard's tokens and of its records."""
    return folder / f"tokens-{number:05d}.safetensors", folder / f"records-{number:05d}.jsonl"


def sources_file(folder: Path, number: int) -> Path:
    """Path of the encoded source images of a shard; there is no file where it has none."""
    return folder / f"sources-{number:05d}.bin"


def record_entry(record: Record, row: int, offset: int, sizes: Iterable[int]) -> dict[str, Any]:
    """Entry of a shard for ``record``.

    Args:
        record: its images are the rows from ``row`` on, in the order of its turns.
        row: see there.
        offset: of its first source image in ``sources_file``.
        sizes: bytes of its source images, which follow each other.
    """
    turns, left = [], iter(sizes)
    for turn in record.turns:
        parts: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, str):
                parts.append({"type": "text", "text": part})
                continue
            if turn.role == "assistant":
                parts.append({"type": "image_tokens", "row": row})
            else:
                parts.append({"type": "source_image", "row": row, "offset": offset, "size": (size := next(left))})
                offset += size
            row += 1
        turns.append({"role": turn.role, "content": parts})
    return {"turns": turns, "where": record.where}


def _image(part: Mapping[str, Any], tokens: Path) -> ImageTokens | EncodedSource:
    row = ImageTokens(tokens, int(part["row"]))
    if part["type"] != "source_image":
        return row
    number = int(tokens.stem.rpartition("-")[2])
    return EncodedSource(ImageFile(sources_file(tokens.parent, number), int(part["offset"]), int(part["size"])), row)


def _parse(entry: object, where: str, tokens: Path) -> Record:
    if not isinstance(entry, Mapping):
        raise BadRecordError(where, f"a JSON object is expected, not {type(entry).__name__}")
    try:
        turns = [
            Turn(
                turn["role"],
                tuple(p["text"] if p["type"] == "text" else _image(p, tokens) for p in turn["content"]),
            )
            for turn in entry["turns"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecordError(where, f"the cache is broken ({error!r}): encode it again") from error
    return make_record(turns, "t2i", where)
