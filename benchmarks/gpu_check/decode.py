"""G3 to G6: seconds per image at Janus-Pro's sizes: the engine, replayed and launched from Python, and other loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.check import Check, Switched
from benchmarks.gpu_check.findings import Goal
from benchmarks.gpu_check.sizes import ONE_TASK_MIXTURE, SIZES, TINY
from benchmarks.image_loop import GUIDANCE, PROMPT, Sides, random_model, sides
from benchmarks.tiny import processor_of
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.image_generator import ImageGenerator, generate_image_tokens
from unidecouple.generate.jobs import ImageJob, image_jobs
from unidecouple.generate.sampling import SamplingParams


@dataclass(frozen=True)
class Case:
    """What is timed, and its goals.

    Attributes:
        name: goal and size.
        size: in ``SIZES``.
        images: at a time.
        text: fields of the decoder; empty for the dense one.
        seconds: at most, per image.
        rate: at least, images per second.
        peer_tokens: tokens that the peers generate; 0 leaves them out.
        faster: at least, than each peer.
    """

    name: str
    size: str
    images: int = 1
    text: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    rate: float | None = None
    peer_tokens: int = 0
    faster: float | None = None


SMALL_CASES = (
    Case("G3 1B, dense", "1B", seconds=0.78, peer_tokens=48, faster=10.0),
    Case("G4 1B, mixture", "1B", text=ONE_TASK_MIXTURE, seconds=1.3, peer_tokens=48),
    Case("G5 1B, mixture", "1B", 16, ONE_TASK_MIXTURE, rate=9.0),
    Case("G6 1B, dense", "1B", 128, rate=20.0),
)
LARGE_CASES = (
    Case("G3 7B, dense", "7B", seconds=2.9, peer_tokens=24, faster=4.0),
    Case("G4 7B, mixture", "7B", text=ONE_TASK_MIXTURE, seconds=4.8),
    Case("G5 7B, mixture", "7B", 16, ONE_TASK_MIXTURE, rate=2.6),
)


def small(check: Check) -> None:
    """The cases of 1B."""
    for case in SMALL_CASES[1::2] if check.tiny else SMALL_CASES:  # one with peers, one of many images
        with check.attempt(case.name), torch.no_grad():
            _case(check, case)


def large(check: Check) -> None:
    """The cases of 7B."""
    for case in LARGE_CASES[:1] if check.tiny else LARGE_CASES:
        with check.attempt(case.name), torch.no_grad():
            _case(check, case)


def _case(check: Check, case: Case) -> None:
    images, size = (min(case.images, 2), TINY) if check.tiny else (case.images, SIZES[case.size])
    switch, start = Switched(check.recorder()), check.now()
    made: Sides | None = None
    if case.peer_tokens:
        made = sides(images, size, check.device, torch.bfloat16, switch, **case.text)
        drawing, builder = made.drawing, made.builder
    else:
        processor = processor_of(size)
        builder = SequenceBuilder(processor)
        model = random_model(processor, size, check.device, torch.bfloat16, **case.text)
        drawing = ImageGenerator(model, builder, images, max_prompt_length=32, recorder=switch)
    built = check.now() - start
    jobs = image_jobs(builder, [PROMPT], images, 0, SamplingParams(guidance_scale=GUIDANCE))
    first, *found = (_seconds(check, partial(generate_image_tokens, drawing, jobs)) for _ in range(3))
    best, details = min(found), {"seconds": found, "first": first, "built": built, "memory_gb": check.peak_gb()}
    if case.rate is None:
        check.add(f"{case.name}: an image", best / images, "s", Goal(case.seconds or 0.0, at_most=True), **details)
    else:
        check.add(f"{case.name}: {images} images at a time", images / best, "images/s", Goal(case.rate), **details)
    with check.attempt(f"{case.name}: steps"):
        _steps(check, case, drawing, jobs, switch)
    if made is not None:
        _peers(check, case, made, best / drawing.length)


def _seconds(check: Check, call: Callable[[], object]) -> float:
    start = check.now()
    call()
    return check.now() - start


def _steps(check: Check, case: Case, drawing: ImageGenerator, jobs: list[ImageJob], switch: Switched) -> None:
    """Kernels and waits of a replayed step; time and tokens of the same step launched from Python."""
    replayed = _first_tokens(drawing, jobs, lambda: check.add(f"{case.name}: a step", **_anatomy(check, drawing)))
    switch.on = False
    times: list[float] = []
    launched = _first_tokens(drawing, jobs, lambda: times.append(check.timed(drawing.step, 3, 1)))
    share = float((replayed == launched).double().mean())
    check.add(f"{case.name}: replayed and launched tokens, share equal", share, "", Goal(1.0, always=True))
    check.add(f"{case.name}: a step launched from Python", 1e3 * times[0], "ms")


def _anatomy(check: Check, drawing: ImageGenerator) -> dict[str, Any]:
    return check.kernels(drawing.step) | check.waits(drawing.step)


def _first_tokens(drawing: ImageGenerator, jobs: list[ImageJob], between: Callable[[], object]) -> Tensor:
    """The first eight tokens of each image, greedily; ``between`` runs at most four of the steps."""
    greedy = [
        ImageJob(job.prompt_ids, job.negative_ids, job.seed, SamplingParams(guidance_scale=GUIDANCE, temperature=0.0))
        for job in jobs
    ]
    images = drawing.add(greedy)
    for _ in range(4):
        drawing.step()
    between()
    while images[0].count < 8:
        drawing.step()
    tokens = torch.stack([drawing.partial(image) for image in images])
    for image in images:
        drawing.remove(image)
    return tokens


def _peers(check: Check, case: Case, made: Sides, ours: float) -> None:
    """A few tokens of each peer, whose steps grow slower with length, beside the engine's mean step (``ours``, seconds)."""
    few = 4 if check.tiny else case.peer_tokens
    made.plain.model.vision_model.config.num_image_tokens = few  # what ``generate`` reads
    for name, call in {
        "transformers generate": partial(made.transformers, greedy=False),
        "deepseek's loop": partial(made.deepseek, greedy=False, tokens=few),
    }.items():
        with check.attempt(f"{case.name}: {name}"):
            call()
            step = _seconds(check, call) / few
            goal = None if case.faster is None else Goal(case.faster)
            check.add(f"{case.name}: {name} / engine", step / ours, "x", goal, step_ms=1e3 * step, tokens=few)
