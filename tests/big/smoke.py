"""Janus-Pro-1B in full size with random weights, from deepseek-ai's layout to an image's first tokens, in bfloat16.

Writes the published layout, converts it to a task-aware mixture, takes two joint training steps of a small part, answers a
question and draws a few image tokens; prints the time and memory of each. ``--size tiny`` does the same in seconds.

    python tests/big/smoke.py FOLDER [--size 1B] [--experts-per-group 2] [--threads 2]
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from published import PRO_1B, TINY, write_published
from step_settings import step_settings
from unidecouple.batch import Task
from unidecouple.convert.convert import convert
from unidecouple.convert.load import load
from unidecouple.convert.steps import Conversion
from unidecouple.data.sequences import QAPair, SequenceBuilder, collate
from unidecouple.generate.image import draw_tokens
from unidecouple.generate.jobs import image_jobs
from unidecouple.generate.sampling import SamplingParams
from unidecouple.generate.text import answer
from unidecouple.methods.objective import Objective
from unidecouple.methods.structure import TaskAwareMoE
from unidecouple.models.janus import UniJanusForConditionalGeneration
from unidecouple.models.vq import encode_image_tokens
from unidecouple.train.step import train_step
from unidecouple.train.trainable import make_param_groups

SIZES = {"1B": PRO_1B, "tiny": TINY}
TRAINED = {"task_router": 1.0, "alpha": 1.0}  # gradients reach every layer, yet the optimizer holds next to nothing
STEPS, DRAWN = 2, 8


def memory() -> str:
    """Peak of all resident memory, and what of it now is no file's copy, in GB (Linux; elsewhere unknown)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return "memory unknown"
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    peak, own = (int(fields[name].split()[0]) / 2**20 for name in ("VmHWM", "RssAnon"))
    return f"peak {peak:.2f} GiB, now {own:.2f} GiB besides mapped files"


def stage(name: str, work: Callable[[], object]) -> None:
    began = time.monotonic()
    result = work()
    print(f"{name}: {time.monotonic() - began:.1f} s, {memory()}" + ("" if result is None else f": {result}"), flush=True)


def train(model: UniJanusForConditionalGeneration, builder: SequenceBuilder, picture: np.ndarray) -> list[dict[str, float]]:
    """Two joint steps on one conversation and one drawing (its first tokens); losses of each."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).to(model.dtype) / 127.5 - 1
    tokens = encode_image_tokens(model.model.vqmodel, pixels)[0, : 8 * DRAWN].tolist()
    talk = builder.understanding(picture, [QAPair("pope", "Is there a cow in the image?", "yes")])
    pad = builder.tokenizer.pad_token_id
    batch = collate([talk], pad), collate([builder.generation("a photo of a blue pig", tokens)], pad)
    optimizer = torch.optim.AdamW(make_param_groups(model, TRAINED, 1e-3), weight_decay=0.0)
    model.train()
    model.model.vqmodel.eval()
    results = [train_step(model, optimizer, [batch], step_settings(Objective(), list(Task), "label", 1.0)) for _ in range(STEPS)]
    model.eval()
    return [result.losses | {"gradient": result.grad_norm} for result in results]


def draw(model: UniJanusForConditionalGeneration, builder: SequenceBuilder) -> list[int]:
    """The first image tokens of a guided image."""
    model.config.vision_config.num_image_tokens = DRAWN  # only how long the loop runs
    return draw_tokens(model, builder, image_jobs(builder, ["a photo of a blue pig"], 1, 0, SamplingParams(guidance_scale=5.0)))[
        0
    ].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the checkpoints go; they are deleted at the end")
    parser.add_argument("--size", choices=SIZES, default="1B", help="1B is Janus-Pro-1B")
    parser.add_argument("--experts-per-group", type=int, default=2, help="2 makes 5.4 billion parameters of it, 1 makes 3.7")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    size, original, mixture = SIZES[arguments.size], arguments.folder / "original", arguments.folder / "mixture"
    wanted = Conversion(structure=TaskAwareMoE(experts_per_group=arguments.experts_per_group), max_shard_bytes=2 * 10**9)
    try:
        stage("written in deepseek-ai's layout", lambda: write_published(original, size=size))
        stage("converted to a mixture", lambda: convert(original, mixture, wanted, print))
        began = time.monotonic()
        model, processor = load(str(mixture), "auto")
        print(f"loaded {model.num_parameters():,} parameters: {time.monotonic() - began:.1f} s, {memory()}", flush=True)
        builder = SequenceBuilder(processor)
        picture = np.random.default_rng(0).integers(0, 256, (size.image, size.image, 3), dtype=np.uint8)
        stage(f"{STEPS} joint steps", lambda: train(model, builder, picture))
        stage("answered", lambda: answer(model, builder, [picture], ["Is there a cow in the image?"], max_new_tokens=4))
        stage("drawn", lambda: draw(model, builder))
    finally:
        for made in (original, mixture):
            shutil.rmtree(made, ignore_errors=True)


if __name__ == "__main__":
    main()
