"""C8: calls of the image tokenizer's encoder in an epoch of generation data, from images and from a cache of image tokens."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from benchmarks.record import Result, Row
from benchmarks.timing import SidesDifferError, one_thread
from benchmarks.tiny import SIZE, model_of, processor_of
from unidecouple.data.encode import EncodeOptions, encode
from unidecouple.data.file_batches import FileBatches
from unidecouple.data.formats import open_readers
from unidecouple.data.formats.token_cache import read_manifest, shard_files
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.settings import Files, Source
from unidecouple.models.processing import UniJanusProcessor
from unidecouple.models.tiny import TinySize


class Calls:
    """Counts how often ``module`` is called, inside the ``with`` block."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        self._module = module

    def _add(self, *_: object) -> None:
        self.count += 1

    def __enter__(self) -> Calls:
        self._handle = self._module.register_forward_hook(self._add)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def write_pictures(folder: Path, count: int, pixels: int) -> Path:
    """``count`` prompts with images of noise to be drawn, as flat jsonl."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        lines.append(json.dumps({"prompt": f"a photo of {number}", "image": f"{number}.png"}))
    path = folder / "pictures.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def epoch(path: Path, processor: UniJanusProcessor, vq: JanusVQVAE, count: int, batch_size: int) -> tuple[int, list[Tensor]]:
    """Encoder calls in one epoch of ``count`` records at ``path``, and the image tokens of its batches."""
    files = Files((Source(path),), mmu_batch_size=0, t2i_batch_size=batch_size)
    batches = FileBatches(files, processor, SequenceBuilder(processor), seed=0, vq=vq)
    with Calls(vq.encoder) as calls:
        drawn = [batches.batch(step)[0].image_tokens for step in range(math.ceil(count / batch_size))]
    return calls.count, drawn


def bytes_of_tokens(cache: Path) -> int:
    """Bytes of all image tokens in ``cache``, without the files' headers."""
    shards = range(len(read_manifest(cache).shards))
    return sum(load_file(shard_files(cache, number)[0])["tokens"].nbytes for number in shards)


def run(size: TinySize = SIZE, count: int = 12, batch_size: int = 4) -> Result:
    """Encode, then read an epoch from the images and one from the cache.

    Raises:
        SidesDifferError: their batches hold other tokens.
    """
    one_thread()
    processor = processor_of(size)
    vq = model_of(processor, size).model.vqmodel
    with tempfile.TemporaryDirectory() as made:
        pictures, cache = write_pictures(Path(made) / "pictures", count, size.image_size), Path(made) / "cache"
        encode(open_readers(pictures), vq, ImagePreprocessor(processor), cache, EncodeOptions(batch_size))
        before, wanted = epoch(pictures, processor, vq, count, batch_size)
        after, found = epoch(cache, processor, vq, count, batch_size)
        if not all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True)):
            raise SidesDifferError("batches from the cache hold other image tokens than batches from the images")
        each = bytes_of_tokens(cache) / count
    exact = 2 * size.num_image_tokens
    rows = [
        Row("encoder calls in an epoch, from images", before, "calls"),
        Row("encoder calls in an epoch, from the cache", after, "calls", goal="exactly 0", met=after == 0),
        Row("an image in the cache", each, "bytes", goal=f"exactly {exact:,}", met=each == exact),
    ]
    settings = {"pictures": count, "batch size": batch_size, "tokens an image": size.num_image_tokens}
    return Result("cache", "C8: the image tokenizer's work with a cache of image tokens", settings, rows, {})


def command() -> None:
    """What ``python -m benchmarks.cache`` does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache", description="C8: encoder calls with a cache.")
    parser.add_argument("--pictures", type=int, default=12, help="in the epoch (default: 12)")
    result = run(count=parser.parse_args().pictures)
    print(f"{result.table()}\n{result.write()}")


if __name__ == "__main__":
    command()
