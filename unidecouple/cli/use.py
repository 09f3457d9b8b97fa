"""Commands that use a model: chat, image generation, batched inference, the server."""

from __future__ import annotations

import argparse
import itertools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unidecouple.cli.command import FAILED, OK, add, existing, number, progress_bar, say, whole
from unidecouple.cli.sampling import add_sampling_options, sampling_of
from unidecouple.extras import missing_package
from unidecouple.generate.sampling import GREEDY, SamplingParams

if TYPE_CHECKING:
    import numpy as np

    from unidecouple.cli.command import Commands
    from unidecouple.generate.engine import Engine


def chat(arguments: argparse.Namespace) -> int:
    """Chat with a model, with or without images: ask one question, or one per line of standard input."""
    from unidecouple.data.formats.record import ImageFile
    from unidecouple.data.pictures import ImagePreprocessor

    for image in arguments.image:
        existing(image, "--image")
    sampling, engine = sampling_of(arguments, GREEDY), _engine(arguments, "mmu", max_batch_size=1)
    preprocessor = ImagePreprocessor(engine.processor)
    pictures = [preprocessor.for_understanding(ImageFile(image)) for image in arguments.image]
    turns: list[tuple[str, list[Any]]] = []
    questions = [arguments.question] if arguments.question else sys.stdin
    for question in questions:
        if not question.strip():
            continue
        turns.append(("user", [*pictures, question.strip()] if not turns else [question.strip()]))
        turns.append(("assistant", [_answer(engine, turns, arguments, sampling)]))
    return OK


def _answer(
    engine: Engine, turns: list[tuple[str, list[str | np.ndarray]]], arguments: argparse.Namespace, sampling: SamplingParams
) -> str:
    """The answer to the last of ``turns``, printed as it grows."""
    from unidecouple.batch import Task
    from unidecouple.generate.jobs import AnswerJob

    sample, generator = engine.builder.conversation(turns, Task.MMU), engine.answers
    job = AnswerJob(sample.input_ids, sample.pictures, arguments.max_new_tokens, sampling, (arguments.seed, len(turns) // 2))
    [answer] = generator.add([job])
    shown = ""
    while not generator.step():
        text = generator.text(answer)
        if not text.endswith("\ufffd"):  # a part of a character
            print(text[len(shown) :], end="", flush=True)
            shown = text
    text = generator.text(answer)
    print(text[len(shown) :], flush=True)
    return text


def generate(arguments: argparse.Namespace) -> int:
    """Generate images for prompts: one PNG file each, with its settings in the metadata, and grid.png with a row per prompt."""
    from unidecouple.generate.album import grid, save_image
    from unidecouple.ownership import check_file

    if not all(prompt.strip() for prompt in arguments.prompt):
        raise ValueError("a prompt is empty: describe the image")
    places = [[arguments.output / f"{i:05}-{j:02}.png" for j in range(arguments.num_images)] for i in range(len(arguments.prompt))]
    for path in (*itertools.chain(*places), arguments.output / "grid.png"):
        check_file(path)  # before minutes of work
    for image in arguments.image:
        existing(image, "--image")
    engine = _engine(arguments, "t2i")
    sampling = sampling_of(arguments, engine.image_sampling)
    sources = [arguments.image] * len(arguments.prompt)
    drawn = engine.generate_images(
        arguments.prompt, arguments.num_images, arguments.seed, sampling, arguments.negative_prompt, sources
    )
    settings = {name: getattr(arguments, name) for name in ("model", "seed", "negative_prompt")} | asdict(sampling)
    settings |= {"images": [str(image) for image in arguments.image]} if arguments.image else {}
    for i, (prompt, pictures) in enumerate(zip(arguments.prompt, drawn, strict=True)):
        for j, picture in enumerate(pictures):
            path = places[i][j]
            save_image(path, picture, {**settings, "prompt": prompt, "number": i, "copy": j})
            print(path)
    save_image(arguments.output / "grid.png", grid(drawn), {**settings, "prompts": arguments.prompt})
    print(arguments.output / "grid.png")
    return OK


def infer(arguments: argparse.Namespace) -> int:
    """Answer each question and generate an image for each prompt of a jsonl file; an interrupted command continues when rerun."""
    from unidecouple import api

    existing(arguments.data, "data")
    names = ("seed", "max_new_tokens", "temperature", "image_temperature", "guidance_scale", "device", "dtype", "eager")
    options = api.InferOptions(
        progress=progress_bar(arguments.data.name, "lines"), **{name: getattr(arguments, name) for name in names}
    )
    counts = api.infer(arguments.model, arguments.data, arguments.output, options)
    for problem in counts.failed:
        print(f"unidecouple: {problem}", file=sys.stderr)
    earlier = f", {counts.before:,} from before" if counts.before else ""
    others = f"; {counts.lacking:,} lines of other shares are missing, and the last share merges" if counts.lacking else ""
    say(f"{arguments.output}: {counts.done:,} lines done{earlier}; {len(counts.failed):,} failed{others}")
    return FAILED if counts.failed else OK


def serve(arguments: argparse.Namespace) -> int:
    """Serve a model over an OpenAI-compatible HTTP API; SIGINT and SIGTERM stop it after running requests."""
    import logging
    import os
    import signal
    from dataclasses import replace

    try:
        from unidecouple.serve.api import Server
        from unidecouple.serve.run import uvicorn_server
    except ModuleNotFoundError as error:
        raise missing_package("serve", "serve", error) from error
    from unidecouple.serve.limits import Limits

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    limits = Limits()
    given = {"queue": arguments.max_queue, "n": min(limits.n, arguments.max_queue), "drain_seconds": arguments.drain_seconds}
    limits = replace(limits, **given)
    key = arguments.api_key or os.environ.get("UNIDECOUPLE_API_KEY")
    name = arguments.served_model_name or Path(arguments.model).name
    engine = _engine(arguments, arguments.task, arguments.batch_size)
    server = Server(engine, name, limits, key, with_page=not arguments.no_page, hosts=[arguments.host, *arguments.allowed_host])
    http = uvicorn_server(server, arguments.host, arguments.port)
    address = f"http://{arguments.host}:{arguments.port}"
    page = "" if arguments.no_page else f", with a page at {address}/"
    say(f"serving {name!r} on {address}/v1{page} (Ctrl-C ends it)")
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # uvicorn raises it again at its end, which would look like a crash
    try:
        http.run()
    except KeyboardInterrupt:  # the same with SIGINT
        return OK
    return OK if http.started else FAILED


def _engine(arguments: argparse.Namespace, task: Literal["mmu", "t2i"] | None, max_batch_size: int = 16) -> Engine:
    from unidecouple import api

    return api.load(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        task=task,
        max_batch_size=max_batch_size,
        eager=arguments.eager,
    )


def add_commands(commands: Commands) -> None:
    """``unidecouple chat|generate|infer|serve``."""
    made = {function: add(commands, function, function.__name__) for function in (chat, generate, infer, serve)}
    for function, command in made.items():
        command.add_argument(
            "model", help="folder of a checkpoint or of a training run, Hub id, or shipped base: understanding, unified"
        )
        command.add_argument(
            "--device",
            default="auto",
            help="device to compute on: auto, cpu, cuda, cuda:1, … (default: auto, a GPU if there is one)",
        )
        command.add_argument(
            "--dtype", choices=("float32", "bfloat16"), default="float32", help="data type of the weights (default: float32)"
        )
        command.add_argument("--eager", action="store_true", help="do not use CUDA graphs")
        if function is not serve:
            command.add_argument("--seed", type=whole(0), default=0, help="seed of the sampling (default: 0)")
        if function in (chat, infer):
            command.add_argument(
                "--max-new-tokens", type=whole(1, 1 << 20), default=64, help="most tokens of an answer (default: 64)"
            )
    add_sampling_options(made[chat], "temperature", "top_k", "top_p", default=GREEDY)
    add_sampling_options(made[generate], "guidance_scale", "temperature", "top_k", "top_p")
    add_sampling_options(made[infer], "temperature", default=GREEDY)
    add_sampling_options(made[infer], "guidance_scale")
    add_sampling_options(made[infer], "temperature", prefix="image-")
    made[chat].add_argument(
        "--image", type=Path, action="append", default=[], help="image file that the first question is about; may be repeated"
    )
    made[chat].add_argument("--question", help="ask one question (default: one per line of standard input)")
    made[generate].add_argument("prompt", nargs="+", help="prompt of an image; several prompts are generated together")
    made[generate].add_argument(
        "--image",
        type=Path,
        action="append",
        default=[],
        help="source image that every prompt edits or combines; may be repeated. For a model that was trained on edits",
    )
    made[generate].add_argument("--output", type=Path, required=True, help="folder to write the images to")
    made[generate].add_argument("--num-images", type=whole(1, 10_000), default=1, help="images per prompt (default: 1)")
    made[generate].add_argument("--negative-prompt", help="text that classifier-free guidance leads away from")
    made[infer].add_argument(
        "data", type=Path, help="jsonl file: messages or conversations to answer, prompts to generate images for"
    )
    made[infer].add_argument("--output", type=Path, required=True, help="jsonl file to write; images go to a folder beside it")
    _add_serve(made[serve])


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    command.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="also accept this name in the Host header, for example the name of a proxy; may be repeated",
    )
    command.add_argument("--port", type=whole(1, 65535), default=8000, help="port to listen on (default: 8000)")
    command.add_argument("--api-key", help="key that clients must send (default: $UNIDECOUPLE_API_KEY, or no key)")
    command.add_argument("--served-model-name", help="name of the model in the API (default: the name of the folder)")
    command.add_argument("--task", choices=("mmu", "t2i"), help="load only the weights of this task (default: both tasks)")
    command.add_argument(
        "--batch-size", type=whole(1), default=16, help="answers, and likewise images, generated in parallel (default: 16)"
    )
    command.add_argument(
        "--max-queue",
        type=whole(1),
        default=64,
        help="answers, and likewise images, that may wait; further requests get status 429 (default: 64)",
    )
    command.add_argument(
        "--no-page", action="store_true", help="no web page at / and no /v1/routing; saves memory, since both need the whole model"
    )
    command.add_argument(
        "--drain-seconds",
        type=number(above=0, most=86400),
        default=30.0,
        help="seconds that a shutdown waits for running requests (default: 30)",
    )
