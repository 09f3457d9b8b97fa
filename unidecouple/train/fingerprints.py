"""What a run was trained on, as hashes beside its ``run.yaml``: a resumed run must use the same data.

Covered: every file of records (jsonl, json, parquet, tar shards, caches of image tokens, folders of ``datasets``) whole up to
``_WHOLE`` bytes each; image files of up to ``_RECORDS`` records of each file of records; the base checkpoint. Of larger files
``_BLOCKS`` blocks spread evenly are hashed, with the size. Names are those of the recipe, so a folder may move with its data.
Not covered: images of further records, and the cache of the synthetic benchmark, which is a function of the recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from unidecouple.data.formats import BAD, BadRecordError, Reader, open_source
from unidecouple.data.formats.record import EncodedSource, ImageFile, ImageTokens
from unidecouple.files import sha256_file, write_json_atomic
from unidecouple.run import RunConfig

FINGERPRINTS: Final = "fingerprints.json"
_WHOLE: Final = 8 << 30
_BLOCKS: Final = 1024
_BLOCK: Final = 1 << 20
_RECORDS: Final = 4096
_SHOWN: Final = 5
_NOT_TRAINED_ON: Final = "generation_config.json"
"""Of a base: how users' images are sampled; training does not read it."""


def take_fingerprints(run: RunConfig, cache: Path) -> dict[str, str]:
    """Name of each file that ``run`` reads -> hexadecimal SHA-256; ``cache`` holds indices of records.

    Raises:
        ValueError: a source is missing or of no known format.
    """
    from unidecouple.convert.load import checkpoint_folder

    base = checkpoint_folder(run.model_name_or_path)
    found = {f"base/{name}": digest for name, digest in _folder(base) if name != _NOT_TRAINED_ON}
    for source in run.data.read_sources:
        for reader in open_source(source, cache / "files"):
            if reader.path.is_dir():
                found |= {str(reader.path / name): digest for name, digest in _folder(reader.path)}
            else:
                found[str(reader.path)] = _digest(reader.path)
            for path in sorted(_pictures(reader)):
                if str(path) not in found:
                    found[str(path)] = _digest(path) if path.is_file() else "missing"
    return found


def check_fingerprints(folder: Path, found: Mapping[str, str]) -> None:
    """Compare ``found`` with the hashes saved when the run in ``folder`` began; runs of earlier versions have none.

    Raises:
        ValueError: something changed, is new or is gone; or the file cannot be read.
    """
    path = folder / FINGERPRINTS
    if not path.exists():
        return
    try:
        before = json.loads(path.read_bytes())
        changed = sorted(name for name in {*before, *found} if before.get(name) != found.get(name))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it to resume without this check of the data") from error
    if changed:
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise ValueError(
            f"what the run in {folder} was trained on has changed since it began: {', '.join(changed[:_SHOWN])}{more}. Bring the "
            f"files back, or give another output folder. To resume on other data all the same, delete {path}"
        )


def write_fingerprints(folder: Path, found: Mapping[str, str]) -> None:
    """Keep ``found`` in ``folder``."""
    write_json_atomic(folder / FINGERPRINTS, dict(sorted(found.items())))


def _pictures(reader: Reader) -> set[Path]:
    """Files of images and of tokens that records of ``reader`` point to; those inside the file itself are hashed with it."""
    numbers = np.flatnonzero(np.asarray(reader.kinds) != BAD)
    if len(numbers) > _RECORDS:
        numbers = numbers[np.linspace(0, len(numbers) - 1, _RECORDS).astype(int)]
    paths: set[Path] = set()
    for number in numbers.tolist():
        try:
            pictures = [picture for turn in reader.record(number).turns for picture in turn.pictures]
        except BadRecordError:  # training counts it
            continue
        paths |= {picture.path for picture in pictures if isinstance(picture, ImageFile) and picture.path != reader.path}
        paths |= {picture.shard for picture in pictures if isinstance(picture, ImageTokens)}
        paths |= {path for one in pictures if isinstance(one, EncodedSource) for path in (one.picture.path, one.tokens.shard)}
    return paths


def _folder(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), _digest(path)


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of its size and of blocks spread over it if it is larger than ``_WHOLE``."""
    size = path.stat().st_size
    if size <= _WHOLE:
        return sha256_file(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in np.linspace(0, size - _BLOCK, _BLOCKS).astype(int).tolist():
            file.seek(start, os.SEEK_SET)
            digest.update(file.read(_BLOCK))
    return f"{_BLOCKS} blocks: {digest.hexdigest()}"
