"""Whole or not there: every way a write can be cut short leaves what stood before, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unidecouple import files
from unidecouple.files import (
    StorageError,
    append_jsonl,
    atomic_directory,
    sha256_file,
    sha256_tree,
    write_array_atomic,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from unidecouple.ownership import MARKER


def tree(folder: Path) -> dict[str, str]:
    """Relative name -> text of every file, hidden ones too but the marker; folders end in a slash."""
    found = [path for path in folder.rglob("*") if path.name != MARKER]
    return {f"{p.relative_to(folder)}{'/' * p.is_dir()}": "" if p.is_dir() else p.read_text(encoding="utf-8") for p in found}


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


class TestTextAndJson:
    def test_text_is_replaced_and_folders_are_made(self, tmp_path: Path) -> None:
        write_text_atomic(tmp_path / "a" / "b.txt", "old")
        write_text_atomic(tmp_path / "a" / "b.txt", "grün\n")
        assert tree(tmp_path) == {"a/": "", "a/b.txt": "grün\n"}

    def test_json_reads_back(self, tmp_path: Path) -> None:
        write_json_atomic(tmp_path / "r.json", {"ü": [1, None, 0.5]})
        assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {"ü": [1, None, 0.5]}

    def test_a_number_json_cannot_hold_writes_nothing(self, tmp_path: Path) -> None:
        write_json_atomic(tmp_path / "r.json", 1)
        with pytest.raises(ValueError, match=r"r\.json was not written.*write None"):
            write_json_atomic(tmp_path / "r.json", {"loss": float("nan")})
        assert tree(tmp_path) == {"r.json": "1\n"}

    @pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), RuntimeError("bug")])
    def test_a_stop_before_the_rename_keeps_the_earlier_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
    ) -> None:
        write_text_atomic(tmp_path / "a.txt", "old")
        monkeypatch.setattr(os, "fsync", failing(stop))
        with pytest.raises(StorageError if isinstance(stop, OSError) else type(stop)):
            write_text_atomic(tmp_path / "a.txt", "new")
        assert tree(tmp_path) == {"a.txt": "old"}

    def test_permissions_are_those_of_any_new_file(self, tmp_path: Path) -> None:
        write_text_atomic(tmp_path / "a.txt", "x")
        (tmp_path / "b.txt").write_text("x", encoding="utf-8")
        assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode

    def test_a_path_that_cannot_be_written_is_explained(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x", encoding="utf-8")
        with pytest.raises(StorageError, match=r"could not write .*/file/a\.txt: .*Check the path"):
            write_text_atomic(tmp_path / "file" / "a.txt", "x")


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    write_bytes_atomic(tmp_path / "a.bin", b"\r\n\x00\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\r\n\x00\xff"


def test_an_array_reads_back(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.uint16).reshape(2, 3)
    write_array_atomic(tmp_path / "a.npy", array)
    loaded = np.load(tmp_path / "a.npy")
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)


class TestFullDisk:
    """A limit on file sizes stands in for a disk that fills up in the middle of a real write."""

    def run(self, folder: Path, code: str) -> str:
        """Standard error of ``code`` run where no file may grow over 4,096 bytes."""
        limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n" + code
        done = subprocess.run([sys.executable, "-c", limited], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return done.stderr

    def test_text(self, tmp_path: Path) -> None:
        write_text_atomic(tmp_path / "a.txt", "old")
        code = "from pathlib import Path\nfrom unidecouple.files import *\nwrite_text_atomic(Path('a.txt'), 'x' * 9999)"
        said = self.run(tmp_path, code)
        assert "StorageError: could not write a.txt: the limit on a file's size is reached. Earlier files are intact." in said
        assert "MiB are free" in said
        assert tree(tmp_path) == {"a.txt": "old"}

    def test_a_line_that_fits_in_part_is_taken_back(self, tmp_path: Path) -> None:
        append_jsonl(tmp_path / "log.jsonl", {"step": 1})
        code = "from pathlib import Path\nfrom unidecouple.files import *\nappend_jsonl(Path('log.jsonl'), {'x': 'y' * 9999})"
        assert "StorageError: could not write log.jsonl" in self.run(tmp_path, code)
        assert tree(tmp_path) == {"log.jsonl": '{"step": 1}\n'}

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "save",
        [
            "numpy.zeros(9999).tofile(new / 'w')",
            "from safetensors.numpy import save_file; save_file({'w': numpy.zeros(9999)}, new / 'w')",
            "import torch; torch.save(torch.zeros(9999), new / 'w')",
        ],
        ids=["numpy", "safetensors", "torch"],
    )
    def test_a_folder_whatever_library_fills_it(self, tmp_path: Path, save: str) -> None:
        with atomic_directory(tmp_path / "checkpoint-1") as new:
            write_text_atomic(new / "w", "old")
        code = "import numpy\nfrom pathlib import Path\nfrom unidecouple.files import *\n"
        said = self.run(tmp_path, code + f"with atomic_directory(Path('checkpoint-1')) as new:\n    {save}")
        assert "StorageError: could not write checkpoint-1: " in said
        assert tree(tmp_path) == {"checkpoint-1/": "", "checkpoint-1/w": "old"}


class TestDirectory:
    def test_it_appears_when_the_block_ends(self, tmp_path: Path) -> None:
        target = tmp_path / "run" / "checkpoint-1"
        with atomic_directory(target) as new:
            (new / "inner").mkdir()
            write_text_atomic(new / "inner" / "a.txt", "x")
            assert not target.exists()
        assert tree(tmp_path / "run") == {"checkpoint-1/": "", "checkpoint-1/inner/": "", "checkpoint-1/inner/a.txt": "x"}

    def test_it_replaces_an_earlier_one_whole(self, tmp_path: Path) -> None:
        for name in ("old.txt", "new.txt"):
            with atomic_directory(tmp_path / "c") as new:
                write_text_atomic(new / name, name)
        assert tree(tmp_path) == {"c/": "", "c/new.txt": "new.txt"}

    @pytest.mark.parametrize("stop", [KeyboardInterrupt(), FileNotFoundError(errno.ENOENT, "gone"), ValueError("bug")])
    def test_an_error_in_the_block_passes_unchanged_and_leaves_the_earlier_one(self, tmp_path: Path, stop: BaseException) -> None:
        with atomic_directory(tmp_path / "c") as new:
            write_text_atomic(new / "a.txt", "old")

        def fill_and_stop() -> None:
            with atomic_directory(tmp_path / "c") as new:
                write_text_atomic(new / "a.txt", "half")
                raise stop

        with pytest.raises(type(stop)) as caught:
            fill_and_stop()
        assert caught.value is stop
        assert tree(tmp_path) == {"c/": "", "c/a.txt": "old"}

    def test_a_rename_that_fails_puts_the_earlier_one_back(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with atomic_directory(tmp_path / "c") as new:
            write_text_atomic(new / "a.txt", "old")
        rename = Path.rename

        def rename_unless_new(path: Path, target: Path) -> Path:
            if path.name.endswith(".tmp"):
                raise OSError(errno.ENOSPC, "No space left on device")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", rename_unless_new)
        with pytest.raises(StorageError, match="no space left"), atomic_directory(tmp_path / "c") as new:
            write_text_atomic(new / "a.txt", "new")
        assert tree(tmp_path) == {"c/": "", "c/a.txt": "old"}

    def test_files_reach_the_disk_before_the_name_does(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[tuple[int, bool]] = []
        target = tmp_path / "c"
        monkeypatch.setattr(os, "fsync", lambda handle: synced.append((os.fstat(handle).st_ino, target.exists())))
        with atomic_directory(target) as new:
            (new / "a.txt").write_text("x", encoding="utf-8")
        inside = {((target / name).stat().st_ino, False) for name in ("a.txt", MARKER)}
        assert set(synced[:2]) == inside
        assert synced[2:] == [(target.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


class TestJsonl:
    def test_one_line_a_record(self, tmp_path: Path) -> None:
        for step in (1, 2):
            append_jsonl(tmp_path / "run" / "log.jsonl", {"step": step})
        assert tree(tmp_path / "run") == {"log.jsonl": '{"step": 1}\n{"step": 2}\n'}

    def test_a_number_json_cannot_hold_writes_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="was not written"):
            append_jsonl(tmp_path / "log.jsonl", {"loss": float("inf")})
        assert tree(tmp_path) == {}


class TestHashes:
    def test_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
        assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    def test_a_copy_of_a_tree_has_its_hash_and_any_change_another(self, tmp_path: Path) -> None:
        def build(name: str, *files: tuple[str, str]) -> str:
            for path, text in files:
                write_text_atomic(tmp_path / name / path, text)
            return sha256_tree(tmp_path / name)

        original = build("original", ("a", "1"), ("b/c", "2"))
        assert build("copy", ("b/c", "2"), ("a", "1")) == original
        changed = [
            build("content", ("a", "1"), ("b/c", "3")),
            build("name", ("a", "1"), ("b/d", "2")),
            build("place", ("a", "1"), ("c", "2")),
            build("swapped", ("a", "2"), ("b/c", "1")),
            build("more", ("a", "1"), ("b/c", "2"), ("d", "")),
        ]
        assert len({original, *changed}) == 6

    def test_a_file_is_no_tree(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="is no folder"):
            sha256_tree(tmp_path / "nothing")


def test_a_removed_folder_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is killed while it deletes leaves a hidden name."""
    target = tmp_path / "checkpoint-1"
    target.mkdir()
    (target / "a").write_text("a")
    seen: list[list[str]] = []
    monkeypatch.setattr(files.shutil, "rmtree", lambda path: seen.append(sorted(p.name for p in tmp_path.iterdir())))
    files.remove_directory(target)
    assert not target.exists()
    assert [name.startswith(".checkpoint-1.") and name.endswith(".old") for name in seen[0]] == [True]
