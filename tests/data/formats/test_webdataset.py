"""WebDataset tars: samples by key, in any order; damage in the middle or at the end costs the samples it touches."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from own_data import asked, png, write_tar
from unidecouple.data.formats import BAD, BadRecordError, open_readers
from unidecouple.data.formats.record import ImageFile, Record
from unidecouple.data.formats.webdataset import WebDataset

BLOCK = 512


def records(path: Path) -> list[Record | str]:
    (reader,) = open_readers(path)
    out: list[Record | str] = []
    for index in range(len(reader.kinds)):
        try:
            out.append(reader.record(index))
        except BadRecordError as error:
            assert reader.kinds[index] == BAD
            out.append(str(error))
    return out


def pairs(count: int) -> dict[str, bytes]:
    out = {}
    for number in range(count):
        out |= {f"d/{number}.png": png(number), f"d/{number}.txt": f"image {number}".encode()}
    return out


def prompts(found: list[Record | str]) -> list[object]:
    return [record.turns[0].parts[0] if isinstance(record, Record) else "bad" for record in found]


def test_samples_of_every_sort(tmp_path: Path) -> None:
    two = {**asked(None), "messages": [{"role": "user", "content": "<image><image>?"}, {"role": "assistant", "content": "A."}]}
    edit = {"prompt": "a red cow", "source_image": "6a.old.png", "image": "6a.new.png"}
    named = {**two, "images": ["x.b.png", "some/x.a.png"]}
    path = write_tar(
        tmp_path / "a.tar",
        {
            "0.jpg": png(0), "0.json": json.dumps({"caption": "a cow", "width": 3}).encode(),
            "1.png": png(1), "1.txt": b"a pig", "1.json": json.dumps({"url": "somewhere", "status": "success"}).encode(),
            "2.a.webp": png(2), "2.b.webp": png(3), "2.json": json.dumps(two).encode(),
            "x.a.png": png(4), "x.b.png": png(5), "x.json": json.dumps(named).encode(),
            "4.json": json.dumps(asked(None, "Hi", "Ho")).encode(),
            "5.png": png(6), "6.txt": b"no image",
            "6a.new.png": png(9), "6a.old.png": png(8), "6a.json": json.dumps(edit).encode(),
            "7.png": png(7), "7.json": b"{broken", "8.json": json.dumps(asked("y.png")).encode(),
        },
    )  # fmt: skip
    found = records(path)
    assert [found[n].kind for n in range(5)] == ["t2i", "t2i", "mmu", "mmu", "text"]  # type: ignore[union-attr]
    assert prompts(found)[:2] == ["a cow", "a pig"]
    shown = [[p.read() for p in record.turns[n].pictures] for record, n in zip(found, (1, 1, 0, 0), strict=False)]  # type: ignore[union-attr]
    assert shown == [[png(0)], [png(1)], [png(2), png(3)], [png(5), png(4)]]
    edited = found.pop(7)
    assert isinstance(edited, Record)
    assert [[p.read() for p in shown] for shown in (edited.sources, edited.generated)] == [[png(8)], [png(9)]]
    assert [str(problem).partition("sample ")[2] for problem in found[5:]] == [
        "6 (5): no .txt or .json beside the image: files of one sample must follow each other (tar --sort=name)",
        "7 (6): no image (jpg, jpeg, png, webp, gif, bmp, tif, tiff, ppm, pgm) beside the .txt: files of one sample must follow "
        "each other (tar --sort=name)",
        "9 (7): its text cannot be read: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "10 (8): there is no image 'y.png' in the sample; it has none",
    ]


def test_long_names_and_folders(tmp_path: Path) -> None:
    name = "a" * 150 + "/" + "b" * 150
    path = write_tar(tmp_path / "a.tar", {f"{name}.png": png(), f"{name}.txt": "un château".encode()})
    with tarfile.open(path, "a") as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert prompts(records(path)) == ["un château"]


@pytest.mark.parametrize(("cut", "where"), [(1, "text"), (400, "text"), (512, "text"), (600, None), (1500, "picture")])
def test_a_truncated_tar_keeps_its_whole_samples(tmp_path: Path, cut: int, where: str | None) -> None:
    """Cut in the last text or its header, exactly between two files, or in the last image."""
    path = write_tar(tmp_path / "a.tar", pairs(4))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset_data + last.size - cut])
    found = records(path)
    assert prompts(found)[:3] == ["image 0", "image 1", "image 2"]
    torn = "damaged or truncated"
    expected = {"text": ["no .txt or .json", torn], None: ["no .txt or .json"], "picture": [torn]}[where]
    assert all(reason in str(problem) for reason, problem in zip(expected, found[3:], strict=True))


@pytest.mark.parametrize(("kept", "warned"), [(7, True), (512, True), (1024, True), (1536, False), (2000, True), (2048, False)])
def test_a_tar_without_its_end_mark_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: int, warned: bool) -> None:
    """Bytes from the last text on: its 7, its block of 512, then blocks of zeros, of which two are the end mark."""
    path = write_tar(tmp_path / "a.tar", pairs(2))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    assert last.size == 7
    path.write_bytes(path.read_bytes()[: last.offset_data + kept])
    for _ in range(2):
        assert prompts(records(path)) == ["image 0", "image 1"]
    found = [record.getMessage() for record in caplog.records]
    assert len(found) == warned
    assert all(f"{path} lacks the end mark of a tar file" in message for message in found)


def test_a_damaged_header_in_the_middle(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pairs(4))
    with tarfile.open(path) as tar:
        header = tar.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[header : header + 20] = b"\xff" * 20
    path.write_bytes(bytes(content))
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 2  # tarfile takes it for the end, silently
    found = records(path)
    assert prompts(found) == ["image 0", "bad", "bad", "image 2", "image 3"]  # the header's image, and the text left alone
    assert f"bytes {header} to" in str(found[1])


def test_tars_put_one_after_the_other(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", {f"{number}.png": png(), f"{number}.txt": b"a cow"})
    path = tmp_path / "both.tar"
    path.write_bytes(b"".join((tmp_path / f"{n}.tar").read_bytes() for n in range(2)))
    assert prompts(records(path)) == ["a cow", "a cow"]


def test_names_that_are_part_of_no_sample(tmp_path: Path) -> None:
    """macOS's ``._`` files and folder, hidden files, names without a dot, the library's metadata; none parts a sample."""
    members: dict[str, bytes] = {"__meta__": b"x", "README": b"x", "d/.DS_Store": b"x"}
    for number in range(3):
        for ending, content in (("png", png(number)), ("txt", f"image {number}".encode())):
            members |= {f"d/._{number}.{ending}": b"\0\5\x16\7", f"d/{number}.{ending}": content}
            members[f"__MACOSX/d/._{number}.{ending}"] = b"x"
            members[f"__MACOSX/d/{number}.{ending}"] = b"x"
    assert prompts(records(write_tar(tmp_path / "a.tar", members))) == ["image 0", "image 1", "image 2"]


def test_two_texts_of_one_key_are_a_bad_sample(tmp_path: Path) -> None:
    """The key ends at the first dot, so dotted names make one sample of all; it is counted, and the message says how many it is."""
    dotted = {f"img.{n:03}.{end}": png(n) if end == "png" else b'{"prompt": "p"}' for n in range(20) for end in ("png", "json")}
    (problem,) = records(write_tar(tmp_path / "a.tar", dotted))
    assert "it has 20 .json files ('img.000.json' and 'img.001.json') and 20 images with one key" in str(problem)
    texts = {f"chat.{n}.txt": b"a" for n in range(2)}
    (problem,) = records(write_tar(tmp_path / "b.tar", texts))
    assert "it has 2 .txt files" in str(problem)


def test_a_name_that_comes_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (("0.png", png(0)), ("0.png", png(1)), ("0.txt", b"a"), ("1.PNG", png(1)), ("1.txt", b"b")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    first, second = records(path)
    assert "two files named '0.png'" in str(first)
    assert prompts([second]) == ["b"]


def test_links_devices_and_folders_part_no_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        links = {"0.webp": tarfile.SYMTYPE, "d": tarfile.DIRTYPE, "0.jpg": tarfile.FIFOTYPE, "0.json": tarfile.LNKTYPE}
        for name, kind in ({"0.png": tarfile.REGTYPE} | links | {"0.txt": tarfile.REGTYPE}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.pax_headers = kind, "/etc/passwd", {"comment": "é" * 300}
            content = {"0.png": png(0), "0.txt": b"a cow"}.get(name, b"")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (record,) = records(path)
    assert prompts([record]) == ["a cow"]


def test_members_in_another_order_are_counted(tmp_path: Path) -> None:
    members = {f"{n}.png": png(n) for n in range(3)} | {f"{n}.txt": b"a" for n in range(3)}
    found = records(write_tar(tmp_path / "a.tar", members))
    assert len(found) == 6
    assert all("files of one sample must follow each other" in str(problem) for problem in found)


def test_texts_that_are_no_text(tmp_path: Path) -> None:
    deep = b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    members = {
        "0.png": png(0), "0.json": b'{"prompt": "a \\ud83d"}', "1.png": png(1), "1.txt": b"\xff\xfe",
        "2.png": png(2), "2.json": deep, "3.png": png(3), "3.txt": b"a cow",
    }  # fmt: skip
    found = records(write_tar(tmp_path / "a.tar", members))
    assert prompts(found) == ["bad", "bad", "bad", "a cow"]
    assert "half a surrogate pair" in str(found[0])


def test_pictures_are_references(tmp_path: Path) -> None:
    reader = WebDataset(write_tar(tmp_path / "a.tar", pairs(2)))
    (picture,) = reader.record(1).generated
    assert isinstance(picture, ImageFile)
    assert picture.offset % BLOCK == 0
    assert picture.read() == png(1)


@given(damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=40)), max_size=3), cut=st.floats(0.5, 1))
def test_no_damage_stops_the_index(tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[float, bytes]], cut: float) -> None:
    path = write_tar(tmp_path_factory.mktemp("tar") / "a.tar", pairs(3))
    content = bytearray(path.read_bytes()[:9000])
    for place, change in damage:
        start = int(place * len(content))
        content[start : start + len(change)] = change
    path.write_bytes(bytes(content[: int(cut * len(content))]))
    reader = WebDataset(path)
    for index, kind in enumerate(reader.kinds.tolist()):
        if kind == BAD:
            with pytest.raises(BadRecordError):
                reader.record(index)
        else:
            assert reader.record(index).turns[-1].role == "assistant"
