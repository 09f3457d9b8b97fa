"""JSON files of a checkpoint: read within bounds, and refused where they name code to run or weights that are quantised."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unidecouple.inputs import refuse_pointer

_MOST_BYTES = 64 * 2**20
"""Published indexes of weights have up to 10 MB, configurations a few kB."""

_CONFIGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
    "adapter_config.json",
)
_DEPTHS, _MOST_LAYERS = ("num_hidden_layers", "layers", "depth", "num_res_blocks"), 10_000
_CODE = ("auto_map", "custom_generate", "custom_pipelines")
_QUANTISED = ("quantization_config", "compression_config")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: the file is missing, no regular file, too large, or holds something else.
    """
    if not path.is_file():
        said = "is no regular file" if path.exists() else "is missing, or a broken link"
        raise ValueError(f"cannot read {path}: it {said}")
    refuse_pointer(path)
    try:
        size = path.stat().st_size
        value = json.loads(path.read_text(encoding="utf-8")) if size <= _MOST_BYTES else None
    except RecursionError as error:
        raise ValueError(f"cannot read {path}: it is nested too deeply") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if size > _MOST_BYTES:
        raise ValueError(f"cannot read {path}: {size:,} bytes are more than {_MOST_BYTES:,}")
    if not isinstance(value, dict):
        raise ValueError(f"{path} does not contain a JSON object")  # noqa: TRY004 - a mistake in a file, not in the code
    return value


def check_configs(folder: Path, config: dict[str, Any] | None = None) -> None:
    """Refuse a checkpoint whose configurations, nested ones included, name code to run or quantised weights.

    Nothing in a checkpoint is executed, and transformers would ask whether to. Quantised weights fit no layout here.
    ``config`` is its config.json where that was read before.

    Raises:
        ValueError: one does; with its file and key.
    """
    for path in (folder / name for name in _CONFIGS):
        if not path.is_file():
            continue
        raw = config if config is not None and path.name == "config.json" else read_json(path)
        for place, key, value in _keys(raw):
            if key in _CODE and value:
                raise ValueError(
                    f"{path}: {place} names code to run, and nothing in a checkpoint is ever executed. If a class of transformers "
                    "can read it, remove this key"
                )
            if key in _QUANTISED and value and path.name == "config.json":
                raise ValueError(f"{path}: {place} says that the weights are quantised: give a checkpoint in 16 or 32 bits")


def check_depths(path: Path, raw: dict[str, Any]) -> None:
    """Refuse configurations of absurdly many layers, of which lists and modules would be made before any shape is compared.

    Raises:
        ValueError: a number of layers is above 10,000.
    """
    for place, key, value in _keys(raw):
        if key in _DEPTHS and isinstance(value, int | float) and value > _MOST_LAYERS:
            raise ValueError(f"{path}: {place}={value} is above {_MOST_LAYERS:,}: no model has so many layers")


def _keys(value: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every key in nested objects and lists, with its place and value; a stack, since files may nest deeper than Python calls."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        place, inner = waiting.pop()
        if isinstance(inner, list):
            waiting += [(f"{place}{number}.", one) for number, one in enumerate(inner)]
        elif isinstance(inner, dict):
            yield from ((place + key, key, one) for key, one in inner.items())
            waiting += [(f"{place}{key}.", one) for key, one in inner.items()]
