"""A file of questions and prompts through the engine, batched; a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unidecouple.batch import Task
from unidecouple.data.formats.entry import folder_finder
from unidecouple.data.formats.record import BadRecordError
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.files import append_jsonl, write_bytes_atomic, write_json_atomic
from unidecouple.generate.album import save_picture
from unidecouple.generate.answering import Request
from unidecouple.generate.drawing import GUIDANCE, ImageJob
from unidecouple.generate.engine import Engine
from unidecouple.generate.padding import check_length
from unidecouple.generate.parsed_request import ParsedRequest, asked
from unidecouple.generate.sampler import Choice
from unidecouple.ownership import check_apart, check_file


@dataclass(frozen=True)
class Settings:
    """How a file is gone through; a run is continued with the same ones only.

    Attributes:
        model: as it was named.
        seed: line i's answer or picture depends on (seed, i) only.
        max_new_tokens: longest answer.
        temperature: of answers; 0 is greedy.
        image_temperature, image_top_k, image_top_p, guidance_scale: of pictures.
    """

    model: str
    seed: int = 0
    max_new_tokens: int = 64
    temperature: float = 0.0
    image_temperature: float = 1.0
    image_top_k: int = 0
    image_top_p: float = 1.0
    guidance_scale: float = GUIDANCE


@dataclass(frozen=True)
class Counts:
    """Lines done now, those that were there from before, and what failed of either."""

    done: int
    failed: tuple[str, ...]
    before: int


def infer(
    engine: Engine, source: Path, output: Path, settings: Settings, progress: Callable[[int, int], None] = lambda done, of: None
) -> Counts:
    """Answer or draw every line of ``source`` (see ``asked``) into ``output``, one line of JSON each, as they are done.

    Each has the "line" it is of (from 1) and its "id" if it had one, then "answer", or "image" (a PNG in a folder beside
    ``output``), or "error": a line that cannot be done stops no other. Settings stand in ``<output>.settings.json``.

    Raises:
        ValueError: ``output`` is of other settings, is ``source`` itself, or not a file that this package wrote; or ``source`` has
            changed in the lines that were there; more may follow them.
    """
    check_apart(output, [source])
    content = source.read_bytes()
    lines = content.split(b"\n")
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
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

    answers: list[tuple[int, dict[str, Any], Request]] = []
    orders: list[tuple[int, dict[str, Any], ImageJob]] = []
    for number in numbers:
        if number in done:
            continue
        try:
            kept, work = reader.read(lines[number - 1], number)
        except ValueError as error:
            reason = error.reason if isinstance(error, BadRecordError) else str(error)
            write(number, {"error": reason})
            continue
        if isinstance(work, Request):
            answers.append((number, kept, work))
        else:
            orders.append((number, kept, work))
        if len(answers) >= engine.most:
            _answer(engine, answers, write)
        if len(orders) >= engine.most:
            _draw(engine, orders, settings, output, write)
    _answer(engine, answers, write)
    _draw(engine, orders, settings, output, write)
    return Counts(count, tuple(failed), len(done))


class _Reader:
    def __init__(self, engine: Engine, source: Path, settings: Settings) -> None:
        self.engine, self.source, self.settings = engine, source, settings
        self.find, self.preprocessor = folder_finder(source.parent), ImagePreprocessor(engine.processor)

    def read(self, line: bytes, number: int) -> tuple[dict[str, Any], Request | ImageJob]:
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
        if self.engine.task not in (None, task):
            raise ValueError(f"the model was loaded without what serves {task.key}")
        if wanted.prompt is not None:
            prompt = builder.conversation([("user", [wanted.prompt])], Task.T2I)  # refuses special tokens
            if len(prompt.input_ids) > self.engine.prompt_length:
                raise ValueError(f"{len(prompt.input_ids)} tokens of prompt are more than {self.engine.prompt_length}")
            choice = Choice(settings.image_temperature, settings.image_top_k, settings.image_top_p)
            return kept, ImageJob(wanted.prompt, seed, settings.guidance_scale, choice)
        sample = builder.conversation(self._turns(wanted), Task.MMU)
        room = min(self.engine.length, self.engine.answering.model.config.text_config.max_position_embeddings)
        check_length(len(sample.input_ids), settings.max_new_tokens, room)
        return kept, Request(sample.input_ids, sample.pictures, settings.max_new_tokens, Choice(settings.temperature), seed)

    def _turns(self, wanted: ParsedRequest) -> list[tuple[str, list[Any]]]:
        return [
            (turn.role, [part if isinstance(part, str) else self.preprocessor.for_understanding(part) for part in turn.parts])
            for turn in wanted.turns or ()
        ]


def _answer(
    engine: Engine, waiting: list[tuple[int, dict[str, Any], Request]], write: Callable[[int, dict[str, Any]], None]
) -> None:
    if not waiting:
        return
    answering = engine.answering
    given = answering.add([request for _, _, request in waiting])
    of = {id(answer): (number, kept) for (number, kept, _), answer in zip(waiting, given, strict=True)}
    while answering.answers:
        for answer in answering.step():
            number, kept = of[id(answer)]
            write(number, {**kept, "task": Task.MMU.key, "answer": answering.text(answer), "ended": answer.ended})
    waiting.clear()


def _draw(
    engine: Engine,
    waiting: list[tuple[int, dict[str, Any], ImageJob]],
    settings: Settings,
    output: Path,
    write: Callable[[int, dict[str, Any]], None],
) -> None:
    if not waiting:
        return
    drawing = engine.drawing
    given = drawing.add([order for _, _, order in waiting])
    while drawing.pictures:
        drawing.step()
    pictures = engine.render(torch.stack([drawing.tokens(picture) for picture in given]))
    for (number, kept, order), picture in zip(waiting, pictures, strict=True):
        path = output.with_suffix("") / f"{number:06}.png"
        save_picture(path, picture, {"prompt": order.prompt, "line": number, **asdict(settings)})
        write(number, {**kept, "task": Task.T2I.key, "prompt": order.prompt, "image": path.relative_to(output.parent).as_posix()})
    waiting.clear()


def _continued(output: Path, settings: Settings, source: Path, data: bytes) -> dict[int, str | None]:
    """Lines that ``output`` has, with their errors; half a line, which a kill may leave at its end, is cut off."""
    beside = output.with_name(f"{output.name}.settings.json")
    mine = {**asdict(settings), "data_bytes": len(data), "data_sha256": hashlib.sha256(data).hexdigest()}
    if output.is_dir():
        raise ValueError(f"{output} is a folder: name a file")
    if not output.exists():
        check_file(output, [source])
        if not (beside.is_file() and _keys(beside) >= asdict(settings).keys()):
            check_file(beside, [source])
        write_json_atomic(beside, mine)
        return {}
    before = _settings_beside(beside)
    length = before.pop("data_bytes", None)
    digest = before.pop("data_sha256", None)  # releases before kept neither
    if before != asdict(settings):
        other = {name: value for name, value in asdict(settings).items() if before.get(name) != value}
        raise ValueError(f"{output} was made with other settings than {other}: give the same, or another --output")
    if digest is not None and hashlib.sha256(data[:length]).hexdigest() != digest:
        raise ValueError(f"{output} was made from other lines than the data has now: give the same data, or another --output")
    write_json_atomic(beside, mine)
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_bytes_atomic(output, whole)
    return dict(_lines(whole, output))


def _settings_beside(path: Path) -> dict[str, Any]:
    """The settings that ``output`` was made with; none if the file is missing, and then ``output`` is no one's to continue."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): give another --output") from error
    return found if isinstance(found, dict) else {}


def _keys(path: Path) -> Set[str]:
    """Names in a JSON object; none where ``path`` holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return frozenset()
    return found.keys() if isinstance(found, dict) else frozenset()


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
