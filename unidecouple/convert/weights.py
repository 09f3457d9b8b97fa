"""Weights on disk: read one part at a time, from safetensors or torch's own files; written as sharded safetensors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unidecouple.convert.json_files import read_json
from unidecouple.convert.parts import Part
from unidecouple.files import write_json_atomic
from unidecouple.inputs import refuse_pointer

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
    """The weights of a checkpoint folder, or of one file; files are mapped into memory, not read whole.

    Safetensors are preferred to torch's files, as transformers does. Of what the files of an index hold, only what the index
    assigns to them counts.

    Attributes:
        shapes: every weight by name, without data (on the meta device).
        start: the index, or the only file.

    Raises:
        ValueError: there are no weights, two sets of them, or one that cannot be read; an index leaves its folder, or names a
            weight that its file lacks.
    """

    def __init__(self, folder: Path) -> None:
        self.start = folder if folder.is_file() else _start(folder)
        self._file_of = _indexed(self.start) if self.start.name in _INDEXES else {}
        self._torch: tuple[Path, Part] | None = None
        self.shapes: Part = {}
        if not self._file_of:
            self.shapes = self._shapes(self.start)
            self._file_of = dict.fromkeys(self.shapes, self.start)
            return
        for file in sorted(set(self._file_of.values())):
            here = self._shapes(file)
            mine = [name for name, where in self._file_of.items() if where == file]
            if absent := next((name for name in mine if name not in here), None):
                raise ValueError(f"{file} lacks {absent}, which {self.start.name} says is in it: copy the checkpoint again")
            self.shapes |= {name: here[name] for name in mine}

    def read(self, names: Sequence[str]) -> Part:
        """The data of ``names``, in that order.

        Raises:
            ValueError: a weight is NaN or infinite.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._file_of[name], []).append(name)
        out: Part = {}
        for file, wanted in by_file.items():
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as opened:
                    here = {name: opened.get_tensor(name) for name in wanted}
            else:
                here = {name: self._load_torch(file)[name] for name in wanted}
            check_finite(here, str(file))
            out |= here
        return {name: out[name] for name in names}

    def _shapes(self, file: Path) -> Part:
        refuse_pointer(file)
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
            raise ValueError(
                f"{file} stores numbers of type {error}: only floating-point types of 16 bits or more can be converted"
            ) from error
        except SafetensorError as error:
            raise ValueError(f"cannot read {file}: {error}. Is it truncated? Copy it again") from error
        except (OSError, RuntimeError, OverflowError) as error:  # shapes beyond 64 bits, a file that is gone
            raise ValueError(f"cannot read {file}: {error}. Copy it again") from error

    def _load_torch(self, file: Path) -> Part:
        if self._torch is None or self._torch[0] != file:
            try:
                loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
            except Exception as error:  # pickles of any content fail in any way
                raise ValueError(
                    f"cannot read {file}: it is truncated, older than torch 1.6, or holds more than tensors, and nothing in a "
                    f"checkpoint is ever executed ({(str(error) or repr(error)).splitlines()[0]})"
                ) from error
            if not isinstance(loaded, dict):
                raise ValueError(f"{file} contains no state dictionary: save one with torch.save(model.state_dict(), …)")
            self._torch = (file, {name: value for name, value in loaded.items() if isinstance(value, Tensor)})
        return self._torch[1]


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse NaN and infinite weights, in one pass that makes no copy (about 0.4 s per GB on one core).

    Raises:
        ValueError: a weight has one; with its name and ``where`` it is.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            least, most = torch.aminmax(tensor.detach())  # both are NaN where any number is
            if not (math.isfinite(least) and math.isfinite(most)):
                raise ValueError(f"{where} has NaN or infinite numbers in {name}: training diverged, or the file is damaged")


def save_shards(folder: Path, shapes: Mapping[str, Tensor], parts: Iterable[Part], max_bytes: int) -> list[str]:
    """Write ``parts``, whose names and shapes together are ``shapes``, in that order, to safetensors in ``folder``.

    At most one shard and one part are in memory; parts are emptied. A weight bigger than ``max_bytes`` is a shard of its own.

    Returns:
        Names of the files.

    Raises:
        ValueError: a weight is NaN or infinite.
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
                check_finite(waiting, "what is to be written")
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


def _start(folder: Path) -> Path:
    """The index or only file that the weights of ``folder`` begin with."""
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise ValueError(f"no weights in {folder}: it has none of {', '.join(WEIGHTS)}")
    start, *others = found
    single = folder / _SINGLES[_INDEXES.index(start.name)] if start.name in _INDEXES else None
    if single in others and single not in _indexed(start).values():
        raise ValueError(f"{folder} has two sets of weights, {start.name} and {single.name}: delete one of them")
    return start


def _indexed(index: Path) -> dict[str, Path]:
    """File of every weight, by the index.

    Names of files must lie in the index's folder. A link may lead out of it to a Hugging Face cache's blobs alone.
    """
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise ValueError(f"{index} is no index of weights: it has no weight_map of names to files")
    for file in set(named.values()):
        path = index.parent / file
        if Path(file).name != file or "\0" in file or not path.is_file():
            raise ValueError(f"{index} names the file {file!r}, which is not in {index.parent}: copy the checkpoint again")
        if not _stays(path):
            raise ValueError(
                f"{path} is a link out of its folder, to {os.path.realpath(path)}, which an index of weights must not name: copy "
                "the file there"
            )
    return {name: index.parent / file for name, file in named.items()}


def _stays(path: Path) -> bool:
    """Whether ``path``, links followed, lies in its folder or among the blobs of a Hugging Face cache (models--*/blobs)."""
    real = Path(os.path.realpath(path))
    cached = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    return cached or real.parent == Path(os.path.realpath(path.parent))
