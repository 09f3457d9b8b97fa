"""Batched inference over a file of questions and prompts; a killed run continues where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from unidecouple.batch import Task
from unidecouple.data.formats.entry import folder_finder
from unidecouple.data.formats.record import BadRecordError
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.files import append_jsonl, write_bytes_atomic, write_json_atomic
from unidecouple.generate.album import save_image
from unidecouple.generate.engine import Engine
from unidecouple.generate.generator import generate_all
from unidecouple.generate.jobs import AnswerJob, ImageJob
from unidecouple.generate.padding import check_length
from unidecouple.generate.parsed_request import ParsedRequest, asked
from unidecouple.generate.sampling import GREEDY, IMAGE_SAMPLING, SamplingParams
from unidecouple.ownership import check_apart, check_file
from unidecouple.shares import ALONE, WorkShare

J = TypeVar("J")
_Waiting = tuple[int, dict[str, Any], J]
"""A line that waits for its batch: its number, what its result repeats of it, and its job."""
_Write = Callable[[int, dict[str, Any]], None]


@dataclass(frozen=True)
class Settings:
    """What the results of a file depend on; a run continues with equal settings only.

    Attributes:
        model: as the user named it.
        seed: the answer or image of line i depends on (seed, i) only.
        max_new_tokens: longest answer.
        answers: sampling of answers.
        images: sampling of images.
    """

    model: str
    seed: int = 0
    max_new_tokens: int = 64
    answers: SamplingParams = GREEDY
    images: SamplingParams = IMAGE_SAMPLING

    def to_json(self) -> dict[str, Any]:
        """The settings as one flat object, which stands beside the results and in every image."""
        images = {name if name == "guidance_scale" else f"image_{name}": value for name, value in asdict(self.images).items()}
        answers = {name: value for name, value in asdict(self.answers).items() if name != "guidance_scale"}
        return {"model": self.model, "seed": self.seed, "max_new_tokens": self.max_new_tokens, **answers, **images}


@dataclass(frozen=True)
class Counts:
    """Lines done now, those that were there from before, what failed of either, and the lines that other shares still lack."""

    done: int
    failed: tuple[str, ...]
    before: int
    lacking: int = 0


def infer(
    engine: Engine,
    source: Path,
    output: Path,
    settings: Settings,
    progress: Callable[[int, int], None] = lambda done, of: None,
    share: WorkShare = ALONE,
) -> Counts:
    """Answer, or generate an image for, every line of ``source`` (see ``asked``); each result is a line of JSON in ``output``.

    A result has the number of its "line" (from 1), its "id" if it had one, then "answer", or "image" (a PNG in a folder beside
    ``output``), or "error": a line that fails stops no other. Settings are in ``<output>.settings.json``.

    Processes that share the work write ``<output>.part-<rank>-of-<size>``; the one that finds all lines in them writes ``output``.

    Raises:
        ValueError: ``output`` is of other settings, is ``source`` itself, or not a file that this package wrote; or ``source`` has
            changed in the lines that were there; more may follow them.
    """
    check_apart(output, [source])
    content = source.read_bytes()
    lines = content.split(b"\n")
    every = [number for number, line in enumerate(lines, 1) if line.strip()]
    numbers, merged, output = share.of(every), output, _part(output, source, share)
    done = _continued(output, settings, source, content)
    reader = _Reader(engine, source, settings)
    failed = [f"{source}:{number}: {error}" for number, error in done.items() if error is not None]
    count = 0

    def write(number: int, result: dict[str, Any]) -> None:
        nonlocal count
        append_jsonl(output, {"line": number, **result})
        if "error" in result:
            failed.append(f"{source}:{number}: {result['error']}")
        count += 1
        progress(len(done) + count, len(numbers))

    answers: list[_Waiting[AnswerJob]] = []
    images: list[_Waiting[ImageJob]] = []
    for number in numbers:
        if number in done:
            continue
        try:
            kept, work = reader.read(lines[number - 1], number)
        except ValueError as error:
            reason = error.reason if isinstance(error, BadRecordError) else str(error)
            write(number, {"error": reason})
            continue
        if isinstance(work, AnswerJob):
            answers.append((number, kept, work))
            if len(answers) >= engine.max_batch_size:
                _answer(engine, answers, write)
        else:
            images.append((number, kept, work))
            if len(images) >= engine.max_batch_size:
                _generate(engine, images, settings, output, write)
    _answer(engine, answers, write)
    _generate(engine, images, settings, output, write)
    return Counts(count, tuple(failed), len(done), _merge(merged, share.size, every, settings, content))


def _part_name(output: Path, rank: int, size: int) -> Path:
    return output.with_name(f"{output.name}.part-{rank:04}-of-{size:04}")


def _part(output: Path, source: Path, share: WorkShare) -> Path:
    """The file that ``share`` writes.

    Raises:
        ValueError: ``output``, which it is merged into, is a file of something else.
    """
    if share.size == 1:
        return output
    if not _is_ours(output.with_name(f"{output.name}.settings.json")):
        check_file(output, [source])
    return _part_name(output, share.rank, share.size)


def _merge(output: Path, size: int, numbers: Sequence[int], settings: Settings, data: bytes) -> int:
    """Write ``output`` from its parts, if there are any and they hold all lines; how many they lack."""
    if size == 1:
        return 0
    found: dict[int, bytes] = {}
    for rank in range(size):
        part = _part_name(output, rank, size)
        content = part.read_bytes() if part.is_file() else b""
        rows = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
        found |= {number: row for (number, _), row in zip(_lines(b"".join(rows), part), rows, strict=True)}
    lacking = sum(number not in found for number in numbers)
    if not lacking:
        write_json_atomic(output.with_name(f"{output.name}.settings.json"), _described(settings, data))
        write_bytes_atomic(output, b"".join(found[number] for number in numbers))
    return lacking


def _described(settings: Settings, data: bytes) -> dict[str, Any]:
    """What stands beside the results: the settings, and the data's length and hash."""
    return {**settings.to_json(), "data_bytes": len(data), "data_sha256": hashlib.sha256(data).hexdigest()}


class _Reader:
    def __init__(self, engine: Engine, source: Path, settings: Settings) -> None:
        self.engine, self.source, self.settings = engine, source, settings
        self.find, self.preprocessor = folder_finder(source.parent), ImagePreprocessor(engine.processor)

    def read(self, line: bytes, number: int) -> tuple[dict[str, Any], AnswerJob | ImageJob]:
        """What is kept of a line, and its work.

        Raises:
            ValueError: it cannot be done.
        """
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no valid JSON: {error}") from error
        wanted = asked(entry, f"{self.source}:{number}", self.find)
        kept = {"id": entry["id"]} if isinstance(entry, dict) and isinstance(entry.get("id"), str | int) else {}
        settings, builder = self.settings, self.engine.builder
        seed = (settings.seed, number)
        task = Task.MMU if wanted.prompt is None else Task.T2I
        kept["task"] = task.key
        if self.engine.task not in (None, task):
            raise ValueError(f"the model was loaded without what serves {task.key}")
        if wanted.prompt is not None:
            pictures = tuple(map(self.preprocessor.for_understanding, wanted.pictures))
            job = ImageJob.of(builder, wanted.prompt, seed, settings.images, pictures=pictures)
            tokens = len(job.prompt_ids) - len(pictures) * builder.source_length
            if tokens > self.engine.max_prompt_length:
                raise ValueError(f"{tokens} tokens of prompt are more than {self.engine.max_prompt_length}")
            if pictures:
                longest = self.engine.images.model.config.text_config.max_position_embeddings
                check_length(len(job.prompt_ids), builder.seen_tokens, longest)
            return kept | {"prompt": wanted.prompt}, job
        sample = builder.conversation(self._turns(wanted), Task.MMU)
        room = min(self.engine.max_length, self.engine.answers.model.config.text_config.max_position_embeddings)
        check_length(len(sample.input_ids), settings.max_new_tokens, room)
        return kept, AnswerJob(sample.input_ids, sample.pictures, settings.max_new_tokens, settings.answers, seed)

    def _turns(self, wanted: ParsedRequest) -> list[tuple[str, list[Any]]]:
        return [
            (turn.role, [part if isinstance(part, str) else self.preprocessor.for_understanding(part) for part in turn.parts])
            for turn in wanted.turns or ()
        ]


def _answer(engine: Engine, waiting: list[_Waiting[AnswerJob]], write: _Write) -> None:
    if not waiting:  # and a side of the engine that no line needs is not laid out
        return
    for place, answer in generate_all(engine.answers, [job for _, _, job in waiting]):
        number, kept, _ = waiting[place]
        write(number, {**kept, "answer": engine.answers.text(answer), "ended": answer.stopped})
    waiting.clear()


def _generate(engine: Engine, waiting: list[_Waiting[ImageJob]], settings: Settings, output: Path, write: _Write) -> None:
    if not waiting:
        return
    for place, image in generate_all(engine.images, [job for _, _, job in waiting]):
        number, kept, _ = waiting[place]
        path = output.with_name(output.name.partition(".part-")[0]).with_suffix("") / f"{number:06}.png"
        assert image.tokens is not None
        [picture] = engine.render(image.tokens.unsqueeze(0))
        save_image(path, picture, {"prompt": kept["prompt"], "line": number, **settings.to_json()})
        write(number, {**kept, "image": path.relative_to(output.parent).as_posix()})
    waiting.clear()


def _continued(output: Path, settings: Settings, source: Path, data: bytes) -> dict[int, str | None]:
    """Lines that ``output`` has, with their errors; half a line, which a kill may leave at its end, is cut off."""
    beside, wanted = output.with_name(f"{output.name}.settings.json"), settings.to_json()
    mine = _described(settings, data)
    if output.is_dir():
        raise ValueError(f"{output} is a folder: name a file")
    if not output.exists():
        check_file(output, [source])
        if not _is_ours(beside):
            check_file(beside, [source])
        write_json_atomic(beside, mine)
        return {}
    before = {"top_k": 0, "top_p": 1.0, **_stored(beside)}  # version 0.1 wrote neither
    length, digest = before.pop("data_bytes", None), before.pop("data_sha256", None)  # nor, at first, these
    if before != wanted:
        other = {name: value for name, value in wanted.items() if before.get(name) != value}
        raise ValueError(f"{output} was made with other settings than {other}: give the same, or another --output")
    if digest is not None and hashlib.sha256(data[:length]).hexdigest() != digest:
        raise ValueError(f"{output} was made from other lines than the data has now: give the same data, or another --output")
    write_json_atomic(beside, mine)
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_bytes_atomic(output, whole)
    return dict(_lines(whole, output))


_SINCE_0_1 = {"model", "seed", "max_new_tokens", "temperature", "guidance_scale"}
"""Keys by which a settings file is recognised as this command's."""


def _is_ours(path: Path) -> bool:
    try:
        return _stored(path).keys() >= _SINCE_0_1
    except ValueError:
        return False


def _stored(path: Path) -> dict[str, Any]:
    """The settings in ``path``; empty where it is missing or holds no JSON object.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): give another --output") from error
    return found if isinstance(found, dict) else {}


def _lines(content: bytes, output: Path) -> Iterator[tuple[int, str | None]]:
    """Each line's number, and its error if it had one."""
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            result = json.loads(line)
            yield int(result["line"]), result.get("error")
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(
                f"{output}:{number}: no result of `unidecouple infer`: delete the line, or give another --output"
            ) from error
