"""Load, convert, answer files, score and look into checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from unidecouple.api.training import CACHE, PathLike, paths, print_at_once
from unidecouple.convert.convert import convert as write_converted
from unidecouple.convert.steps import Conversion
from unidecouple.convert.stored import source_folder
from unidecouple.generate.engine import Engine
from unidecouple.generate.infer import Counts, Settings
from unidecouple.generate.infer import infer as answer_file
from unidecouple.generate.sampling import GREEDY
from unidecouple.models.shipped import located
from unidecouple.ownership import check_directory
from unidecouple.report.checkpoint_page import write_diagnosis
from unidecouple.run import RunConfig
from unidecouple.shares import local_rank, share_of_environment
from unidecouple.source import PrintLine
from unidecouple.train.launch import device_of, processes
from unidecouple.train.probe_input import open_probe_input

DType = Literal["float32", "bfloat16"]


def load(
    model: PathLike,
    *,
    device: str = "auto",
    dtype: DType = "float32",
    task: Literal["mmu", "t2i"] | None = None,
    max_batch_size: int = 16,
    eager: bool = False,
) -> Engine:
    """Load a model that answers questions about images and generates images.

    Args:
        model: a checkpoint's folder in any layout, a run's folder, a Hub id, or a shipped base: "understanding", "unified".
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", …
        dtype: of the weights; float32 generates the plain loop's tokens.
        task: load only what serves image understanding ("mmu") or generation ("t2i"); None for both.
        max_batch_size: answers, and images, at a time.
        eager: record no CUDA graphs.

    Returns:
        An engine with ``understand(images, questions)`` and ``generate_images(prompts, num_images, seed)``.

    Raises:
        ValueError: there is no such model.
    """
    return Engine.load(os.fspath(model), device_of(device), getattr(torch, dtype), task, max_batch_size, eager)


@dataclass(frozen=True, kw_only=True)
class InferOptions:
    """How a file of requests is answered.

    Attributes:
        seed: the answer or image of line i depends on (seed, i) only.
        max_new_tokens: longest answer.
        temperature: of answers; None is greedy.
        image_temperature, guidance_scale: of images; None is the checkpoint's.
        device, dtype, eager: see ``load``.
        progress: gets (lines done, lines in all).
    """

    seed: int = 0
    max_new_tokens: int = 64
    temperature: float | None = None
    image_temperature: float | None = None
    guidance_scale: float | None = None
    device: str = "auto"
    dtype: DType = "float32"
    eager: bool = False
    progress: Callable[[int, int], None] = lambda done, of: None


def infer(model: PathLike, data: PathLike, output: PathLike, options: InferOptions | None = None) -> Counts:
    """Answer, or generate an image for, every line of a jsonl file; after an interruption the same call continues.

    Processes started by torchrun, srun or a Slurm job array divide the lines; the last of them writes ``output``.

    Args:
        model: see ``load``.
        data: messages or conversations to be answered, prompts for images.
        output: jsonl to write; images go to a folder beside it.
        options: see ``InferOptions``.

    Returns:
        Lines done, done before, and failed.

    Raises:
        ValueError: the model or the data cannot be read, or ``output`` is of other settings.
    """
    chosen = options or InferOptions()
    share, device = share_of_environment(), str(device_of(chosen.device, local_rank()))
    engine = load(model, device=device, dtype=chosen.dtype, eager=chosen.eager)
    answers = GREEDY.override(temperature=chosen.temperature)
    images = engine.image_sampling.override(temperature=chosen.image_temperature, guidance_scale=chosen.guidance_scale)
    settings = Settings(os.fspath(model), chosen.seed, chosen.max_new_tokens, answers, images)
    return answer_file(engine, Path(data), Path(output), settings, chosen.progress, share)


def convert(
    checkpoint: PathLike,
    output: PathLike,
    to: Literal["unidecouple", "transformers", "deepseek"] = "unidecouple",
    *,
    conversion: Conversion | None = None,
    print_line: PrintLine = print_at_once,
) -> Path:
    """Copy a checkpoint between deepseek-ai's layout, transformers' and ours, with another structure if asked.

    Args:
        checkpoint: a checkpoint's or a run's folder, or a Hub id.
        output: folder to write.
        to: layout of the result.
        conversion: structure, task and so on of the result, in place of ``to``.
        print_line: gets what was done.

    Returns:
        ``output``.

    Raises:
        ValueError: the checkpoint cannot become what is wanted. Nothing was written.
    """
    source, target = os.fspath(checkpoint), Path(output)
    check_directory(target, [located(source)])
    write_converted(source_folder(source), target, conversion or Conversion(to), print_line)
    return target


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions:
    """How a checkpoint is measured.

    Attributes:
        recipe: of a run whose held-out files are read, in place of ``data``.
        batches: of 16 samples per task and measurement.
        device: "auto", "cpu" or "cuda".
        cache: folder of generated and encoded data.
        print_line: gets lines of progress.
    """

    recipe: RunConfig | None = None
    batches: int = 8
    device: str = "auto"
    cache: PathLike = CACHE
    print_line: PrintLine = print_at_once


def diagnose(
    checkpoint: PathLike,
    output: PathLike | None = None,
    data: PathLike | Sequence[PathLike] = (),
    options: DiagnoseOptions | None = None,
) -> Path:
    """Measure gradient conflict, routing, alignment by depth and ablations of a checkpoint; write JSON and an HTML page.

    Args:
        checkpoint: see ``load``.
        output: folder of diagnosis.json and diagnosis.html; None for ``diagnosis/<name>``.
        data: your files, in any format; without them those of the checkpoint's run, else the synthetic benchmark.
        options: see ``DiagnoseOptions``.

    Returns:
        The page.

    Raises:
        ValueError: the checkpoint or the data cannot be read.
    """
    chosen, files, name = options or DiagnoseOptions(), list(paths(data)), os.fspath(checkpoint)
    if chosen.recipe is not None and files:
        raise ValueError("a recipe and data are both given: each names data to look at; leave one out")
    target = Path(output) if output is not None else Path("diagnosis") / Path(name).name
    with processes(chosen.device, bf16=False, kind="ddp") as place:
        opened = open_probe_input(
            name,
            chosen.recipe,
            files,
            chosen.batches,
            place.device,
            Path(chosen.cache),
            lambda what, done, of: chosen.print_line(f"{what}: {done} of {of}"),
        )
        chosen.print_line(f"{opened.checkpoint} on {opened.data}, {chosen.batches} batches per task")
        return write_diagnosis(opened, target, chosen.print_line)
