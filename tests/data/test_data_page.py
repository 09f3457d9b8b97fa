"""docs/data.md: every record of its table is read as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from own_data import write_jsonl, write_pictures
from unidecouple import config
from unidecouple.data.check import check
from unidecouple.data.formats import open_readers
from unidecouple.data.pictures import ImagePreprocessor
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.data.settings import Files
from unidecouple.models.processing import UniJanusProcessor

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
ROWS = re.findall(r"^\| `(\w+)`[^|]*\| `(\{.*?\})`[^|]*\| (\w+) \|$", PAGE, re.MULTILINE)


def test_all_rows_are_found() -> None:
    table = PAGE[PAGE.index("| format |") : PAGE.index("| container | records |")]
    assert len(ROWS) == len(table.strip().splitlines()) - 2
    assert {form for form, _, _ in ROWS} == {"messages", "llava", "qa", "flat"}


@pytest.mark.parametrize(("form", "text", "kind"), ROWS)
def test_a_record(form: str, text: str, kind: str, tmp_path: Path, processor: UniJanusProcessor, builder: SequenceBuilder) -> None:
    write_pictures(tmp_path, "a.png", "b.png")
    for name, content in (("a.jsonl", f"{text}\n"), ("a.json", f"[{text}]")):
        (tmp_path / name).write_text(content)
        readers = open_readers(tmp_path / name)
        found = check(tmp_path / name, readers, ImagePreprocessor(processor), builder)
        assert (found.formats, found.samples, found.problems) == ({form: 1}, {kind: 1}, [])
        pictures = sum(name in text for name in ("a.png", "b.png"))
        sources = pictures - 1 if kind == "t2i" else pictures
        assert (found.understood, found.generated) == (sources, pictures - sources)
        assert found.edits == (kind == "t2i" and sources > 0)
        (forced,) = open_readers(tmp_path / name, form)
        assert forced.record(0) == readers[0].record(0)


def test_a_record_as_a_row_of_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_pictures(tmp_path, "a.png", "b.png")
    rows = [row for row in ROWS if '"content": [' not in row[1]]  # no column holds texts and lists
    for number, (_, text, kind) in enumerate(rows):
        path = tmp_path / f"{number}.parquet"
        parquet.write_table(pa.Table.from_pylist([json.loads(text)]), path)
        (reader,) = open_readers(path)
        (line,) = open_readers(write_jsonl(tmp_path / "a.jsonl", [text]))
        assert reader.record(0).kind == kind
        assert reader.record(0).turns == line.record(0).turns


def test_the_recipe_of_the_page(tmp_path: Path) -> None:
    text = re.search(r"```yaml\ndata:\n(.*?)```", PAGE, re.DOTALL)
    assert text is not None
    recipe = tmp_path / "data.yaml"
    recipe.write_text("\n".join(line.removeprefix("  ") for line in text.group(1).splitlines()))
    files = config.load(Files, [recipe], [])
    assert [sorted(source.columns) for source in files.sources] == [["answer", "image", "question"], ["image", "prompt"]]
