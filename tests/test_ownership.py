"""What a user has is never overwritten; what this package wrote is replaced; what a killed process left is settled."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unidecouple.files import atomic_directory, sha256_tree, write_json_atomic, write_text_atomic
from unidecouple.generate.album import save_image
from unidecouple.ownership import MARKER, check_directory, check_file, foreign

HEX = "0123456789ab"


def result(folder: Path, text: str = "old") -> Path:
    """A folder that this package wrote."""
    with atomic_directory(folder) as new:
        (new / "inner").mkdir()
        write_text_atomic(new / "inner" / "a.txt", text)
    return folder


class TestFolders:
    def test_an_empty_one_and_an_earlier_result_are_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        for text in ("first", "second"):
            assert (result(tmp_path / "out", text) / "inner" / "a.txt").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("name", ["thesis/chapter1.txt", "config.json", "adapter_config.json", ".hidden", "empty/"])
    def test_a_folder_with_anything_else_stays(self, tmp_path: Path, name: str) -> None:
        place = tmp_path / "out" / name
        place.mkdir(parents=True) if name.endswith("/") else write_text_atomic(place, "{}")
        with pytest.raises(ValueError, match=f"holds {name.rstrip('/')}, which unidecouple did not write"):
            result(tmp_path / "out")
        assert place.exists()

    def test_what_a_user_added_to_an_earlier_result_stays(self, tmp_path: Path) -> None:
        write_text_atomic(result(tmp_path / "out") / "inner" / "notes.txt", "mine")
        with pytest.raises(ValueError, match=r"holds inner/notes\.txt"):
            result(tmp_path / "out", "new")
        assert (tmp_path / "out" / "inner" / "a.txt").read_text() == "old"

    def test_what_appears_while_it_is_filled_stays(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"holds late\.txt"), atomic_directory(tmp_path / "out"):
            write_text_atomic(tmp_path / "out" / "late.txt", "mine")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["late.txt"]

    @pytest.mark.parametrize("content", ["[]", "{}", "null", '{"files": 1}', '{"files": [1]}', "\ufeff", "[" * 9999])
    def test_a_marker_of_another_kind_is_none(self, tmp_path: Path, content: str) -> None:
        write_text_atomic(tmp_path / MARKER, content)
        write_text_atomic(tmp_path / "a.txt", "mine")
        assert foreign(tmp_path) == "a.txt"

    def test_a_file_and_a_broken_link_stay(self, tmp_path: Path) -> None:
        write_text_atomic(tmp_path / "file", "mine")
        (tmp_path / "link").symlink_to("nowhere")
        (tmp_path / "loop").symlink_to("loop")
        for name in ("file", "link", "loop"):
            with pytest.raises(ValueError, match="is a file or a broken link"):
                check_directory(tmp_path / name)

    def test_a_link_to_a_folder_is_followed(self, tmp_path: Path) -> None:
        result(tmp_path / "real")
        (tmp_path / "link").symlink_to("real")
        result(tmp_path / "link", "new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "inner" / "a.txt").read_text() == "new"

    def test_the_source_its_parents_and_its_children_are_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = result(tmp_path / "runs" / "a")
        (tmp_path / "link").symlink_to(source)
        monkeypatch.chdir(tmp_path)
        same = (source, tmp_path / "runs" / ".." / "runs" / "a", tmp_path / "link", Path("runs/a"), source.parent, tmp_path)
        for target in same:
            with pytest.raises(ValueError, match="which is read, or a folder around it"):
                check_directory(target, [source])
        for target in (source / "out", tmp_path / "link" / "x" / "y", source / "inner"):
            with pytest.raises(ValueError, match=r"is inside .*, which is read"):
                check_directory(target, [source])
        check_directory(source.parent / "ab", [source])
        check_directory(source, [source.parent / "ab"])

    def test_the_current_folder_stays(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "here" / "below").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "here" / "below")
        for target in (Path(), Path(".."), tmp_path / "here" / "below"):
            with pytest.raises(ValueError, match="is the current folder, or a folder around it"):
                check_directory(target)

    def test_an_internal_folder_has_no_marker(self, tmp_path: Path) -> None:
        write_text_atomic(tmp_path / "checkpoint-1" / "a.txt", "old")
        with atomic_directory(tmp_path / "checkpoint-1", internal=True) as new:
            write_text_atomic(new / "b.txt", "new")
        assert [path.name for path in (tmp_path / "checkpoint-1").iterdir()] == ["b.txt"]

    def test_the_marker_changes_no_hash(self, tmp_path: Path) -> None:
        with_marker = sha256_tree(result(tmp_path / "out"))
        (tmp_path / "out" / MARKER).unlink()
        assert sha256_tree(tmp_path / "out") == with_marker


class TestLeftovers:
    def test_a_result_that_was_replaced_is_deleted(self, tmp_path: Path) -> None:
        result(tmp_path / "out").rename(tmp_path / f".out.{HEX}.old")
        (tmp_path / "out").mkdir()
        result(tmp_path / "out", "new")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_a_folder_between_two_renames_gets_its_name_back(self, tmp_path: Path) -> None:
        write_text_atomic(tmp_path / f".out.{HEX}.old" / "thesis.txt", "mine")
        with pytest.raises(ValueError, match=r"holds thesis\.txt"):
            result(tmp_path / "out")
        assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"

    def test_a_users_folder_is_named_and_stays(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_text_atomic(tmp_path / f".out.{HEX}.old" / "thesis.txt", "mine")
        (tmp_path / "out").mkdir()
        with caplog.at_level(logging.WARNING):
            result(tmp_path / "out")
        assert f".out.{HEX}.old holds what stood at" in caplog.text
        assert (tmp_path / f".out.{HEX}.old" / "thesis.txt").read_text() == "mine"

    def test_a_half_written_folder_is_deleted_after_a_day(self, tmp_path: Path) -> None:
        names = [f".out.{HEX}.tmp", f".out.{HEX[::-1]}.tmp", ".out.mine.tmp", f".other.{HEX}.tmp"]
        for name in names:
            (tmp_path / name).mkdir()
        for name in (names[0], *names[2:]):
            os.utime(tmp_path / name, (0, time.time() - 90_000))
        result(tmp_path / "out")
        assert {path.name for path in tmp_path.iterdir()} == {*names[1:], "out"}


class TestFiles:
    def test_a_file_of_the_user_stays(self, tmp_path: Path) -> None:
        write_text_atomic(tmp_path / "page.html", "<html><title>My page about unidecouple</title>")
        with pytest.raises(ValueError, match="exists, and unidecouple did not write it"):
            check_file(tmp_path / "page.html")
        check_file(tmp_path / "page.html", content=(tmp_path / "page.html").read_bytes())
        write_text_atomic(tmp_path / "empty", "")
        check_file(tmp_path / "empty")

    def test_a_file_in_the_place_of_its_folder_is_named(self, tmp_path: Path) -> None:
        """Before work begins that would be lost when it is written."""
        (tmp_path / "notes.txt").write_text("mine")
        for target in (tmp_path / "notes.txt" / "guard.json", tmp_path / "notes.txt" / "deeper" / "guard.json"):
            with pytest.raises(ValueError, match=r"notes\.txt is a file or a broken link, and guard\.json is to lie in it"):
                check_file(target)
        check_file(tmp_path / "new" / "guard.json")

    def test_the_source_is_refused_under_any_name(self, tmp_path: Path) -> None:
        write_text_atomic(tmp_path / "d.jsonl", "")
        (tmp_path / "hard").hardlink_to(tmp_path / "d.jsonl")
        (tmp_path / "soft").symlink_to("d.jsonl")
        for name in ("d.jsonl", "hard", "soft"):
            with pytest.raises(ValueError, match=r"is .*d\.jsonl, which is read"):
                check_file(tmp_path / name, [tmp_path / "d.jsonl"])

    def test_devices_folders_and_pipes_stay(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "link").symlink_to("nowhere")
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", Path(os.devnull)):
            with pytest.raises(ValueError, match="is no regular file"):
                check_file(path)

    @pytest.mark.parametrize(
        ("content", "ours"),
        [
            ({"step": 0, "checkpoint": "unified", "data": "world", "scores": []}, True),
            ({"step": 400, "wall_seconds": 1.0, "scores": []}, False),
            ({"meta": {"name": "a", "created": "2026", "command": "unidecouple report a b --output c"}, "rows": []}, True),
            ({"meta": {"name": "a", "created": "2026", "command": "unidecouple compare a.yaml"}, "rows": []}, False),
            ({"meta": {}, "rows": []}, False),
        ],
    )
    def test_scores_of_runs_and_results_of_comparisons_stay(self, tmp_path: Path, content: dict[str, Any], ours: bool) -> None:
        write_json_atomic(tmp_path / "a.json", content)
        with contextlib.nullcontext() if ours else pytest.raises(ValueError, match="did not write it"):
            check_file(tmp_path / "a.json")

    def test_pages_pictures_and_diagnoses_of_ours_are_replaced(self, tmp_path: Path) -> None:
        picture = Image.new("RGB", (8, 8))
        save_image(tmp_path / "a.png", picture, {"prompt": "a cow"})
        save_image(tmp_path / "a.png", picture, {"prompt": "a pig"})
        picture.save(tmp_path / "mine.png")
        with pytest.raises(ValueError, match="did not write it"):
            save_image(tmp_path / "mine.png", picture, {})
        head = '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>demo · UniDecouple report</title>\n'
        write_text_atomic(tmp_path / "report.html", head)  # as 0.1.0 wrote it
        write_text_atomic(tmp_path / "diagnosis.json", json.dumps({"generator": "unidecouple", "name": "x"}, indent=1))
        for name in ("report.html", "diagnosis.json"):
            check_file(tmp_path / name)
