"""One HTML page with samples of each task as the model meets them: pictures at its size, turns, and which tokens bear loss."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from unidecouple.batch import IGNORE
from unidecouple.data.building import build
from unidecouple.data.formats import KINDS, BadRecordError, Reader, Record, Shelf
from unidecouple.data.formats.record import ImageTokens, Picture
from unidecouple.data.permutation import permute
from unidecouple.data.pictures import Shaper
from unidecouple.data.sequences import Sample, SequenceBuilder
from unidecouple.files import write_text_atomic
from unidecouple.ownership import check_file

_TEMPLATE = "preview.html.j2"


@dataclass(frozen=True)
class Stretch:
    """Neighbouring tokens alike: ``look`` is loss, context, shown (a picture's placeholders) or drawn (tokens that bear loss)."""

    look: str
    text: str
    count: int


@dataclass(frozen=True)
class Shown:
    """One sample on the page; a turn is its role and (what, value) pairs: ("text", words), ("picture", data URI) or a note."""

    kind: str
    where: str
    turns: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    stretches: tuple[Stretch, ...]
    length: int


def write_preview(
    readers: Sequence[Reader], shaper: Shaper, builder: SequenceBuilder, output: Path, count: int = 4, seed: int = 0
) -> Path:
    """Write the page: at most ``count`` samples a task, drawn by ``seed``, and what was wrong with those that could not be shown.

    Returns:
        ``output``. The page needs no other file, no network and no script.

    Raises:
        ValueError: ``output`` is one of the files read, or a file that this package did not write.
        StorageError: it could not be written.
    """
    check_file(output, [Path(reader.path) for reader in readers])
    shown: list[Shown] = []
    problems: list[str] = []
    shelves = {kind: Shelf(readers, (kind,)) for kind in KINDS}
    for number, (kind, shelf) in enumerate(shelves.items()):
        for place in permute(np.arange(min(count, len(shelf))), len(shelf), (seed, number)).tolist() if len(shelf) else []:
            try:
                shown.append(_show(shelf.record(place), shaper, builder))
            except BadRecordError as error:
                problems.append(f"{kind}: {error}")
    here = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    totals = {kind: len(shelf) for kind, shelf in shelves.items()}
    names = [str(reader.path) for reader in readers]
    page = environment.get_template(_TEMPLATE).render(samples=shown, problems=problems, totals=totals, names=names)
    write_text_atomic(output, page)
    return output


def stretches(sample: Sample, builder: SequenceBuilder) -> Iterator[Stretch]:
    """The tokens of ``sample`` in order, neighbours that look alike together; what ends a picture's rows is not counted."""
    placeholder = builder.tokenizer.convert_tokens_to_ids(builder.tokenizer.image_token)

    def look(number: int) -> str:
        ends_row = sample.input_ids[number] in builder.row_end and sample.image_mask[max(0, number - 1)]
        if sample.image_mask[number] or ends_row:
            return "drawn"
        if sample.input_ids[number] == placeholder:
            return "shown"
        return "context" if sample.labels[number] == IGNORE else "loss"

    for kind, group in itertools.groupby(range(len(sample.input_ids)), look):
        numbers = list(group)
        ids = [sample.input_ids[number] for number in numbers]
        count = sum(sample.image_mask[number] for number in numbers) if kind == "drawn" else len(numbers)
        yield Stretch(kind, "" if kind in ("drawn", "shown") else builder.tokenizer.decode(ids), count)


def _show(record: Record, shaper: Shaper, builder: SequenceBuilder) -> Shown:
    sample = build(record, shaper, builder)
    turns = tuple((turn.role, tuple(_content(p, record, turn.role, shaper) for p in turn.parts)) for turn in record.turns)
    return Shown(record.kind, record.where, turns, tuple(stretches(sample, builder)), len(sample.input_ids))


def _content(part: str | Picture, record: Record, role: str, shaper: Shaper) -> tuple[str, str]:
    if isinstance(part, str):
        return "text", part
    if isinstance(part, ImageTokens):
        return "note", f"a picture as image tokens (row {part.row} of {part.shard.name})"
    draws = record.kind == "t2i" and role == "assistant"
    buffer = io.BytesIO()
    Image.fromarray(shaper.drawn(part) if draws else shaper.understood(part)).save(buffer, "PNG")
    return "picture", "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
