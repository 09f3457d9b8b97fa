"""Column maps: records under other names are the same records."""

from __future__ import annotations

from pathlib import Path

import pytest

from own_data import png, write_jsonl, write_pictures, write_tar
from unidecouple.data.columns import check_columns, parse_columns, rename
from unidecouple.data.formats import BAD, BadRecordError, open_readers, open_source
from unidecouple.data.settings import Files, Source

MAP = {"question": "q", "answer": "a", "image": "path"}
ENTRY = {"q": "What?", "a": "A cat.", "path": "a.png", "text": "of the file"}


def test_a_map_renames_and_keeps_the_rest() -> None:
    assert rename(ENTRY, MAP) == {"question": "What?", "answer": "A cat.", "image": "a.png", "text": "of the file"}
    assert rename({"image": "thumb.png", "path": "a.png", "q": "", "a": ""}, MAP)["image"] == "a.png"
    assert "image" not in rename({"q": "1", "a": "2"}, MAP)
    with pytest.raises(KeyError, match="no column 'a', which columns names; there are path, q"):
        rename({"q": "1", "path": "a.png"}, MAP)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("questoin=q", "'questoin' is not a field name. did you mean 'question'"),
        ("question", "is not a column map: write it as question=q"),
        ("", "is not a column map"),
        ("question=q,question=p", "gives a name twice"),
        ("question=q,answer=q", "'q' is given for 'question' and for another name"),
        ("question=", "'' is given"),
    ],
)
def test_mistakes_name_the_remedy(text: str, reason: str) -> None:
    assert parse_columns(" question=q, answer=a,image=path ") == MAP
    with pytest.raises(ValueError, match=reason):
        parse_columns(text)


def test_every_container_has_them(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    from pyarrow import parquet

    write_pictures(tmp_path, "a.png")
    picture = {"bytes": png(), "path": None}
    table = pa.table({"q": ["What?", "Or?"], "a": ["A cat.", "A dog."], "path": [picture, None]})
    parquet.write_table(table, tmp_path / "a.parquet")
    datasets.Dataset(table).save_to_disk(str(tmp_path / "set"))
    tar = {"1.json": b'{"q": "What?", "a": "A cat."}', "1.png": png(), "2.json": b'{"q": "What?"}'}
    sources = {
        write_jsonl(tmp_path / "a.jsonl", [ENTRY, {"q": "Or?", "a": "A dog."}, {"q": "?"}]): [0, 2, BAD],
        tmp_path / "a.parquet": [0, 2],
        tmp_path / "set": [0, 2],
        write_tar(tmp_path / "a.tar", tar): [0, BAD],
    }
    for path, kinds in sources.items():
        (reader,) = open_source(Source(path, columns=MAP), tmp_path / "cache")
        assert reader.kinds.tolist() == kinds, path
        user, assistant = reader.record(0).turns
        assert (user.pictures[0].read(), user.parts[1], assistant.parts) == (png(), "What?", ("A cat.",))
    (plain,) = open_readers(tmp_path / "a.jsonl", cache=tmp_path / "cache")
    assert plain.kinds.tolist() == [BAD] * 3, "another map, another index"
    with pytest.raises(BadRecordError, match=r"of no known format.*columns"):
        plain.record(1)


def test_settings_of_all_sources_and_of_one() -> None:
    files = Files((Source(Path("a")), Source(Path("b"), columns={"prompt": "title"})), (Source(Path("c")),), columns=MAP)
    assert [source.columns for source in files.read_sources] == [MAP, {"prompt": "title"}, MAP]
    with pytest.raises(ValueError, match="is not a field name"):
        Source(Path("a"), columns={"q": "question"})
    check_columns({})
