"""Parts of records share no image, whatever the source, the task and the format; each has its share of both tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from own_data import asked, flat, png, write_jsonl, write_pictures, write_tar
from unidecouple.batch import Task
from unidecouple.data import split
from unidecouple.data.file_batches import indices_of
from unidecouple.data.formats import KINDS, open_source
from unidecouple.data.settings import Files, Source
from unidecouple.data.split import _chosen, _groups, in_part, warn_of_training_files


def images(files: Files) -> dict[Task, list[str]]:
    """Names of the images of each task's records in the part of ``files``."""
    opened = [open_source(source) for source in files.sources]
    return {
        task: [
            str(picture)
            for _, index in indices_of(files, opened, task)
            for number in range(len(index))
            for turn in index.record(number).turns
            for picture in turn.pictures
        ]
        for task in Task
    }


def test_no_image_is_on_both_sides_of_files_and_tasks(tmp_path: Path) -> None:
    """Twenty images, each generated and asked about three times, in two files and by two spellings of its path."""
    names = [f"{number}.png" for number in range(20)]
    write_pictures(tmp_path, *names)
    write_jsonl(tmp_path / "und.jsonl", [asked(name, f"Is there a {what}?") for what in ("cow", "pig", "cup") for name in names])
    write_jsonl(tmp_path / "gen.jsonl", [flat(str(tmp_path / name)) for name in names])
    files = Files((Source(tmp_path / "und.jsonl"), Source(tmp_path / "gen.jsonl")), split=(0.0, 0.75))
    assert files.held_out is not None
    ours, theirs = images(files), images(files.held_out)
    assert [len(ours[task]) for task in Task] == [45, 15]
    assert [len(theirs[task]) for task in Task] == [15, 5]
    sides = [{name for task in Task for name in side[task]} for side in (ours, theirs)]
    assert [len(side) for side in sides] == [15, 5]
    assert not sides[0] & sides[1]


def test_records_without_shared_images_are_cut_where_the_fraction_says(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{n}.{end}": png(n) if end == "png" else b"a cow" for n in range(21) for end in ("png", "txt")})
    files = Files((Source(tmp_path / "a.tar"),), mmu_batch_size=0, split=(0.0, 0.95))
    assert files.held_out is not None
    assert (len(images(files)[Task.T2I]), len(images(files.held_out)[Task.T2I])) == (19, 2)  # int(0.95 x 21) = 19


def test_given_validation_files_are_taken_whole(tmp_path: Path) -> None:
    files = Files((Source(tmp_path / "a"),), (Source(tmp_path / "b"),), split=(0.0, 0.5))
    assert files.held_out is not None
    assert (files.held_out.sources, files.held_out.split) == ((Source(tmp_path / "b"),), (0.0, 1.0))
    assert Files((Source(tmp_path / "a"),)).held_out is None
    with pytest.raises(ValueError, match=r"split=\[0\.5, 0\.5\] must rise within 0 and 1"):
        Files((Source(tmp_path / "a"),), split=(0.5, 0.5))


def test_groups_by_hand() -> None:
    """Records 0 and 3 share image 7; 1 and 4 do by way of 2, which has both of their images; 5 has none."""
    pairs = np.array([(0, 7), (1, 8), (2, 8), (2, 9), (3, 7), (4, 9)])
    assert _groups(pairs, 6).tolist() == [0, 1, 1, 0, 1, 2]
    assert _groups(np.zeros((0, 2), np.int64), 3).tolist() == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, len(KINDS))), min_size=1, max_size=40), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_parts_are_disjoint_whole_and_keep_groups_together(records: list[tuple[int, int]], cut: float) -> None:
    numbers, kinds = (np.array(column) for column in zip(*records, strict=True))
    groups = np.unique(numbers, return_inverse=True)[1]
    first, second = (_chosen(groups, kinds, part) for part in ((0.0, cut), (cut, 1.0)))
    assert not (first & second).any()
    assert ((first | second) == (kinds != len(KINDS))).all()  # all but those that cannot be parsed
    assert all(not (first[groups == g].any() and second[groups == g].any()) for g in groups)
    assert second.any() or (kinds == len(KINDS)).all()


def test_the_cache_gives_the_same_parts_and_knows_changed_files(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(12)]
    path = write_jsonl(tmp_path / "a.jsonl", [flat(name) for name in names])

    def part(cache: Path | None) -> list[bool]:
        source = Source(path)
        return in_part([(source, open_source(source, cache))], (0.0, 0.5), cache)[0][0].tolist()

    fresh = part(None)
    assert part(tmp_path / "cache") == part(tmp_path / "cache") == fresh
    write_jsonl(path, [flat("0.png", f"cow {n}") for n in range(12)])
    assert part(tmp_path / "cache") == [False] * 12  # one image: all belong to the later part


def test_held_out_files_that_are_trained_on_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By path, in a folder, and by content; disjoint fractions of one file, or of its copy, are two data sets."""
    (tmp_path / "train").mkdir()
    train = write_jsonl(tmp_path / "train" / "a.jsonl", [asked(None, f"What is {n}?", "yes") for n in range(4)])
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(train.read_bytes())
    (tmp_path / "link.jsonl").symlink_to(train)
    other = write_jsonl(tmp_path / "other.jsonl", [asked(None, f"What is {n}?", "yes") for n in range(4, 8)])
    assert other.stat().st_size == train.stat().st_size

    def warned(*validation: Source, source: Source | None = None) -> str:
        caplog.clear()
        split._warn.cache_clear()
        warn_of_training_files(Files((source or Source(train),), validation=validation), tmp_path / "cache")
        return caplog.text

    assert not warned()
    assert not warned(Source(other))
    for path in (train, tmp_path / "train", tmp_path / "link.jsonl"):
        assert "is trained on, too, so its scores are of training data. Leave --validation" in warned(Source(other), Source(path))
    assert f"copy.jsonl equals {train}, which is trained on" in warned(Source(copy), source=Source(tmp_path / "train"))
    first = Source(train, fraction=(0, 0.75))
    assert not warned(Source(copy, fraction=(0.75, 1)), source=first)
    assert "which is trained on" in warned(Source(copy, fraction=(0.5, 1)), source=first)
    with pytest.raises(ValueError, match="no data at"):
        warned(Source(tmp_path / "none.jsonl"))
