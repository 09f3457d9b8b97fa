"""One HTML page with samples of each task as the model gets them: images at its size, turns, and which tokens have a loss."""

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
from unidecouple.data.build_sample import build
from unidecouple.data.formats import KINDS, BadRecordError, Reader, Record, RecordIndex
from unidecouple.data.formats.record import ImageTokens, StoredImage
from unidecouple.data.permutation import permute
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.sequences import Sample, SequenceBuilder
from unidecouple.files import write_text_atomic
from unidecouple.ownership import check_file

_TEMPLATE = "preview.html.j2"


@dataclass(frozen=True)
class TokenSpan:
    """Neighbouring tokens of one kind.

    Attributes:
        look: "loss" (text with a loss), "context" (text without), "image_in" (of an image to be understood, or of a source
            image), "image_out" (of an image to be generated, with a loss).
        text: of text.
        count: tokens.
    """

    look: str
    text: str
    count: int


@dataclass(frozen=True)
class PreviewSample:
    """One sample on the page; a turn is its role and (what, value) pairs: ("text", words), ("image", data URI) or a note."""

    kind: str
    where: str
    turns: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    token_spans: tuple[TokenSpan, ...]
    length: int


def write_preview(
    readers: Sequence[Reader],
    preprocessor: ImagePreprocessor,
    builder: SequenceBuilder,
    output: Path,
    count: int = 4,
    seed: int = 0,
) -> Path:
    """Write the page: at most ``count`` random samples per task, and what is wrong with those that cannot be used.

    Returns:
        ``output``. The page needs no other file, no network and no script.

    Raises:
        ValueError: ``output`` is one of the files read, or a file that this package did not write.
        StorageError: it could not be written.
    """
    check_file(output, [Path(reader.path) for reader in readers])
    shown: list[PreviewSample] = []
    problems: list[str] = []
    indices = {kind: RecordIndex(readers, (kind,)) for kind in KINDS}
    for number, (kind, index) in enumerate(indices.items()):
        for place in permute(np.arange(min(count, len(index))), len(index), (seed, number)).tolist() if len(index) else []:
            try:
                shown.append(_show(index.record(place), preprocessor, builder))
            except BadRecordError as error:
                problems.append(f"{kind}: {error}")
    here = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    totals = {kind: len(index) for kind, index in indices.items()}
    names = [str(reader.path) for reader in readers]
    page = environment.get_template(_TEMPLATE).render(samples=shown, problems=problems, totals=totals, names=names)
    write_text_atomic(output, page)
    return output


def token_spans(sample: Sample, builder: SequenceBuilder) -> Iterator[TokenSpan]:
    """The tokens of ``sample`` in order, neighbours of one kind together; tokens that end an image's rows are not counted."""
    placeholder = builder.tokenizer.convert_tokens_to_ids(builder.tokenizer.image_token)

    def look(number: int) -> str:
        ends_row = sample.input_ids[number] in builder.row_end and sample.image_mask[max(0, number - 1)]
        if sample.image_mask[number] or ends_row:
            return "image_out"
        if sample.input_ids[number] == placeholder or sample.source_mask[number]:
            return "image_in"
        return "context" if sample.labels[number] == IGNORE else "loss"

    for kind, group in itertools.groupby(range(len(sample.input_ids)), look):
        numbers = list(group)
        ids = [sample.input_ids[number] for number in numbers]
        count = sum(sample.image_mask[number] for number in numbers) if kind == "image_out" else len(numbers)
        yield TokenSpan(kind, "" if kind in ("image_out", "image_in") else builder.tokenizer.decode(ids), count)


def _show(record: Record, preprocessor: ImagePreprocessor, builder: SequenceBuilder) -> PreviewSample:
    sample = build(record, preprocessor, builder)
    turns = tuple((turn.role, tuple(_content(p, record, turn.role, preprocessor) for p in turn.parts)) for turn in record.turns)
    return PreviewSample(record.kind, record.where, turns, tuple(token_spans(sample, builder)), len(sample.input_ids))


def _content(part: str | StoredImage, record: Record, role: str, preprocessor: ImagePreprocessor) -> tuple[str, str]:
    if isinstance(part, str):
        return "text", part
    if isinstance(part, ImageTokens):
        return "note", f"an image as image tokens (row {part.row} of {part.shard.name})"
    draws = record.kind == "t2i" and role == "assistant"
    buffer = io.BytesIO()
    picture = preprocessor.for_generation(part, bool(record.sources)) if draws else preprocessor.for_understanding(part)
    Image.fromarray(picture).save(buffer, "PNG")
    return "image", "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
