"""Weights on disk: read one part at a time, from safetensors or torch's own files; written as sharded safetensors."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unidecouple.convert.parts import Part
from unidecouple.files import write_json_atomic

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")
WEIGHTS = (_INDEXES[0], _SINGLES[0], _INDEXES[1], _SINGLES[1])
"""Where a checkpoint's weights may begin, the preferred first. Never executed: torch's files are read with ``weights_only``."""


class Weights:
    """The weights of a checkpoint folder; files are mapped into memory, not read whole.

    Attributes:
        shapes: every weight by name, without data (on the meta device).
        start: the index, or the only file.
    """

    def __init__(self, folder: Path) -> None:
        found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
        if not found:
            raise ValueError(f"no weights in {folder}: it has none of {', '.join(WEIGHTS)}")
        self.start = found[0]
        self._file_of = _indexed(self.start) if self.start.name in _INDEXES else {}
        self._torch: tuple[Path, Part] | None = None
        self.shapes: Part = {}
        for file in sorted(set(self._file_of.values())) or [self.start]:
            here = self._shapes(file)
            absent = [name for name, where in self._file_of.items() if where == file and name not in here]
            if absent:
                raise ValueError(f"{file} lacks {absent[0]}, which {self.start.name} says is in it: copy the checkpoint again")
            self.shapes |= here
            self._file_of |= dict.fromkeys(here, file)

    def read(self, names: Sequence[str]) -> Part:
        """The data of ``names``, in that order."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._file_of[name], []).append(name)
        out: Part = {}
        for file, wanted in by_file.items():
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as opened:
                    out |= {name: opened.get_tensor(name) for name in wanted}
            else:
                tensors = self._load_torch(file)
                out |= {name: tensors[name] for name in wanted}
        return {name: out[name] for name in names}

    def _shapes(self, file: Path) -> Part:
        if file.suffix != ".safetensors":
            return {name: tensor.to("meta") for name, tensor in self._load_torch(file).items()}
        try:
            with safe_open(file, framework="pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no dictionary
                return {
                    name: torch.empty(one.get_shape(), dtype=_DTYPES[one.get_dtype()], device="meta")
                    for name, one in slices.items()
                }
        except KeyError as error:
            raise ValueError(f"{file} holds numbers of type {error}: floats of 16 bits or more can be converted") from error
        except SafetensorError as error:
            raise ValueError(f"cannot read {file}: {error}. Is it truncated? Copy it again") from error

    def _load_torch(self, file: Path) -> Part:
        if self._torch is None or self._torch[0] != file:
            try:
                loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
                raise ValueError(
                    f"cannot read {file}: it is truncated, older than torch 1.6, or holds more than tensors, and nothing in a "
                    f"checkpoint is ever executed ({str(error).splitlines()[0]})"
                ) from error
            self._torch = (file, {name: value for name, value in loaded.items() if isinstance(value, Tensor)})
        return self._torch[1]


def save_shards(folder: Path, shapes: Mapping[str, Tensor], parts: Iterable[Part], max_bytes: int) -> list[str]:
    """Write ``parts``, whose names and shapes together are ``shapes``, in that order, to safetensors in ``folder``.

    At most one shard and one part are in memory; parts are emptied. A weight bigger than ``max_bytes`` is a shard of its own.

    Returns:
        Names of the files.
    """
    shards = _assign({name: tensor.numel() * tensor.element_size() for name, tensor in shapes.items()}, max_bytes)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))] if len(shards) > 1 else [_SINGLES[0]]
    waiting: Part = {}
    where: dict[str, str] = {}
    done = 0
    for part in parts:
        for name in list(part):
            waiting[name] = part.pop(name)  # a part that is kept would be in memory beside the next
            if len(waiting) == len(shards[done]):
                save_file(_own(waiting), folder / files[done], {"format": "pt"})
                where |= dict.fromkeys(waiting, files[done])
                waiting, done = {}, done + 1
    if len(files) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in shapes.values())
        write_json_atomic(folder / _INDEXES[0], {"metadata": {"total_size": total}, "weight_map": where})
    return files


def _own(part: Part) -> Part:
    """Contiguous tensors that share no memory, as safetensors wants them."""
    seen: set[int] = set()
    out: Part = {}
    for name, tensor in part.items():
        whole = tensor.contiguous()
        out[name] = whole.clone() if whole.untyped_storage().data_ptr() in seen else whole
        seen.add(out[name].untyped_storage().data_ptr())
    return out


def _assign(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _indexed(index: Path) -> dict[str, Path]:
    """File of every weight, by the index; names of files must lie in its folder."""
    try:
        named: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is no index of weights: {error}") from error
    for file in set(named.values()):
        if Path(file).name != file or not (index.parent / file).is_file():
            raise ValueError(f"{index} names the file {file!r}, which is not in {index.parent}: copy the checkpoint again")
    return {name: index.parent / file for name, file in named.items()}
