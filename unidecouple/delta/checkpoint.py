"""A checkpoint of any layout, read tensor by tensor under our names; of other families, under its own."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unidecouple.convert.check_weights import check_weights
from unidecouple.convert.json_files import check_configs
from unidecouple.convert.layouts import is_known, read_config
from unidecouple.convert.parts import Part, split_into_parts
from unidecouple.convert.processors import read_processor
from unidecouple.convert.steps import Conversion, Step, changes, reading
from unidecouple.convert.stored import source_folder
from unidecouple.convert.weights import WEIGHTS, Weights
from unidecouple.inputs import refuse_pointer
from unidecouple.models.configuration import UniLlamaConfig
from unidecouple.models.families import UnifiedConfig
from unidecouple.models.processing import UnifiedProcessor
from unidecouple.models.shipped import located

_TOKENIZER = "tokenizer.json"


@dataclass
class Checkpoint:
    """Weights by name, one layer in memory at a time.

    Attributes:
        name: as the user named it.
        folder: of its files.
        shapes: every weight without data, under our names where the family is known. Low-rank updates are merged.
        parts: the names of ``shapes``, layer by layer; reading in this order reads every file once.
        config: of the model; None for other families.
        processor: of the model; None where it has none.
        vocabulary: token -> id; empty where there is no tokenizer.
    """

    name: str
    folder: Path
    shapes: Part
    parts: list[tuple[str, ...]]
    config: UnifiedConfig | None
    processor: UnifiedProcessor | None
    vocabulary: dict[str, int]
    _weights: Weights
    _sources: dict[str, tuple[str, ...]]
    _steps: Sequence[Step]
    _last: tuple[tuple[str, ...], Part] = field(default=((), {}))

    def read(self, names: Sequence[str]) -> Part:
        """The data of ``names``, in that order.

        Raises:
            ValueError: a weight is NaN or infinite, or is a low-rank update of one task alone.
        """
        return {name: self._part(self._sources[name])[name] for name in names}

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self.parts)

    @property
    def start(self) -> Path:
        """The index of the weights, or their only file."""
        return self._weights.start

    def _part(self, source: tuple[str, ...]) -> Part:
        if self._last[0] != source:
            self._last = ((), {})  # the part before is freed first
            self._last = (source, _transformed(self._weights.read(source), self._steps))
        return self._last[1]


def open_checkpoint(name_or_path: str) -> Checkpoint:
    """Open a checkpoint: a folder in deepseek-ai's, transformers' or our layout, a run's folder, or a shipped base's name.

    A checkpoint of another family is a folder with safetensors, or one such file.

    Raises:
        ValueError: nothing is there, it is quantised, its files are broken, its weights are not those of its config.json, or it
            has one LoRA per task.
    """
    place = located(name_or_path)
    bare = place.is_file() or (not (place / "config.json").is_file() and any((place / name).is_file() for name in WEIGHTS))
    folder = place if bare else source_folder(name_or_path)
    if bare or not is_known(folder):
        return _other_family(name_or_path, folder)
    described = read_config(folder)
    processor = read_processor(described)
    config, weights = described.build(processor), Weights(folder)
    config.dtype = config.dtype or next(iter(weights.shapes.values())).dtype
    _check_mergeable(name_or_path, config.text_config)
    steps = reading(described, config, weights)
    merging = changes(config, Conversion(merge=True))
    shapes: Part = {}
    parts: list[tuple[str, ...]] = []
    sources: dict[str, tuple[str, ...]] = {}
    for names in split_into_parts(weights.shapes):
        planned = _transformed({name: weights.shapes[name] for name in names}, [*steps, *merging])
        shapes |= planned
        sources |= dict.fromkeys(planned, names)
        parts.append(tuple(planned))
    final = merging[-1].config if merging else config
    check_weights(shapes, final, weights.start)
    vocabulary = {} if processor is None else processor.tokenizer.get_vocab()
    filled = [part for part in parts if part]
    return Checkpoint(name_or_path, folder, shapes, filled, final, processor, vocabulary, weights, sources, [*steps, *merging])


def _check_mergeable(name: str, text: UniLlamaConfig) -> None:
    if not text.lora_per_task:
        return
    if text.ffn != "dense":
        raise ValueError(
            f"{name} has experts (ffn={text.ffn!r}) and one LoRA per task, so its weights have no counterpart in a dense base: "
            "compare scores by `unidecouple eval`, and measure conflict by `unidecouple diagnose`"
        )
    raise ValueError(
        f"{name} has one LoRA per task ({', '.join(text.lora_per_task)}), so the tasks' weights differ: convert one task's model, "
        f"`unidecouple convert {shlex.quote(name)} --task mmu --to transformers --output FOLDER` (or --task t2i), and give FOLDER"
    )


def _other_family(name: str, place: Path) -> Checkpoint:
    folder = place.parent if place.is_file() else place
    check_configs(folder)
    weights = Weights(place)
    parts = split_into_parts(weights.shapes)
    sources = {name: names for names in parts for name in names}
    return Checkpoint(name, folder, weights.shapes, parts, None, None, _vocabulary(folder / _TOKENIZER), weights, sources, ())


def _transformed(part: Part, steps: Sequence[Step]) -> Part:
    try:
        for step in steps:
            part = step.transform(part)
    except (RuntimeError, IndexError) as error:  # a shape that no layout has
        raise ValueError(f"weights of shapes that do not fit ({step.says}): {error}. Copy the checkpoint again") from error
    return part


def _vocabulary(path: Path) -> dict[str, int]:
    """Token -> id of a tokenizer.json; empty without such a file, or where its model has no table."""
    if not path.is_file():
        return {}
    refuse_pointer(path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        table = raw["model"]["vocab"]
        found = dict(table) if isinstance(table, dict) else {token: number for number, (token, _) in enumerate(table)}
        return found | {one["content"]: one["id"] for one in raw.get("added_tokens", ())}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read {path}: {error}. Copy it again") from error
