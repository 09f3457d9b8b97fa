"""GenEval's published prompts as a benchmark: pictures are painted here, and judged from a file of detections."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from unidecouple.eval.benchmark import Metric
from unidecouple.eval.gallery import Gallery
from unidecouple.eval.geneval_prompts import METADATA, read_metadata
from unidecouple.eval.sources import find, hashes
from unidecouple.eval.suite import Benchmark, Options


def official_gallery(data: Path, num_images: int, limit: int | None = None) -> Gallery:
    """The prompts of ``evaluation_metadata.jsonl`` in ``data``; with ``limit`` the first so many of each tag.

    Raises:
        ValueError: it is missing or broken.
    """
    paths = find(data, "geneval", (METADATA, f"prompts/{METADATA}"))
    return Gallery("geneval", read_metadata(paths[0], limit), num_images, files=hashes(paths[:1], data))


def _open(data: Path, options: Options) -> Gallery:
    return official_gallery(data, options.sizes.num_images, options.limit)


BENCHMARK: Final = Benchmark("geneval", (Metric("geneval", "overall", "GenEval", "t2i"),), _open)
