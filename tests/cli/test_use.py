"""Commands that use a model, as a user types them."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from own_data import write_pictures
from unidecouple.cli import main
from unidecouple.generate.album import settings_of
from unidecouple.generate.engine import Engine


def test_generate_writes_pictures_that_say_how(tmp_path: Path) -> None:
    prompts = ["a photo of a red cow", "a photo of ein Kühlschrank"]
    assert main(["generate", "unified", *prompts, "--num-images", "2", "--seed", "4", "--output", str(tmp_path)]) == 0
    ours = Engine.load("unified").generate_images(prompts, 2, seed=4)
    for i, row in enumerate(ours):
        for j, picture in enumerate(row):
            path = tmp_path / f"{i:05}-{j:02}.png"
            with Image.open(path) as found:
                assert found.tobytes() == picture.tobytes()
            said = settings_of(path)
            assert (said["prompt"], said["seed"], said["copy"], said["guidance_scale"]) == (prompts[i], 4, j, 1.5)
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (64 * 2 + 2, 64 * 2 + 2)
        assert grid.crop((66, 66, 130, 130)).tobytes() == ours[1][1].tobytes()


def test_eager_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("unidecouple.generate.engine.recorder_of", asked.append)  # and gives none
    command = ["generate", "unified", "a photo of a cow", "--output", str(tmp_path)]
    assert main([*command, "--eager"]) == 0
    assert asked == []
    assert main(command) == 0
    assert len(asked) == 1


def test_a_picture_without_settings_says_so(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    with pytest.raises(ValueError, match="does not say how"):
        settings_of(tmp_path / "a.png")


def test_chat_answers_one_question_or_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path, "a.png")
    image = ["--image", str(tmp_path / "a.png")]
    assert main(["chat", "unified", *image, "--question", "Is there a cow in the image?"]) == 0
    answer = capsys.readouterr().out
    with Image.open(tmp_path / "a.png") as picture:
        assert answer == Engine.load("unified").understand([picture], ["Is there a cow in the image?"])[0] + "\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("Is there a cow in the image?\n\nWhat is this?\n"))
    assert main(["chat", "unified", *image]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0] + "\n" == answer


def test_infer_lists_failures_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a cow"}\nbroken\n')
    command = ["infer", "unified", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    for _ in range(2):  # the second finds all done, and still says what failed
        assert main(command) == 1
        assert "in.jsonl:2: no valid JSON" in capsys.readouterr().err
    assert (tmp_path / "out" / "000001.png").is_file()


def test_serve_without_its_packages_names_the_remedy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("unidecouple.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", "unified"]) == 1
    assert "serve needs fastapi, which is not installed: pip install 'fastapi>=" in capsys.readouterr().err


def test_generate_from_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path, "a.png", "b.png")
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    command = ["generate", "unified", "a photo of a cow", "--output", str(tmp_path / "out")]
    shown = [text for file in files for text in ("--image", str(file))]
    assert main([*command, *shown]) == 0
    [picture] = Engine.load("unified").generate_images("a photo of a cow", images=files)
    with Image.open(tmp_path / "out" / "00000-00.png") as found:
        assert found.tobytes() == picture.tobytes()
    assert settings_of(tmp_path / "out" / "00000-00.png")["images"] == [str(file) for file in files]
    assert main([*command, "--image", str(tmp_path / "gone.png")]) == 1
    assert "gone.png" in capsys.readouterr().err
