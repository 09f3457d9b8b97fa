"""A file through the engine: what each line asks for, that batches and kills change nothing, and that faults are listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from own_data import write_jsonl, write_pictures
from unidecouple.data.formats.entry import folder_finder
from unidecouple.data.formats.record import BadRecordError
from unidecouple.files import sha256_tree
from unidecouple.generate import infer as module
from unidecouple.generate.album import settings_of
from unidecouple.generate.engine import Engine
from unidecouple.generate.image_generator import generate_image_tokens
from unidecouple.generate.infer import Settings, infer
from unidecouple.generate.jobs import ImageJob
from unidecouple.generate.parsed_request import asked
from unidecouple.generate.sampling import SamplingParams
from unidecouple.shares import WorkShare

USER = {"role": "user", "content": "<image>What is this?"}
SETTINGS = Settings("unified", seed=3, max_new_tokens=4, answers=SamplingParams())


def of(entry: object) -> Any:
    return asked(entry, "x:1", folder_finder(Path()))


def test_what_a_line_asks_for() -> None:
    given = {"images": ["a.png"]}
    [turn] = of({"messages": [USER], **given}).turns
    assert turn.parts[1] == "What is this?"
    assert of({"messages": [USER, {"role": "assistant", "content": "a cat"}], **given}).turns == (turn,)
    llava = [{"from": "human", "value": "<image>What is this?"}, {"from": "gpt", "value": "a cat"}]
    assert of({"conversations": llava, "image": "a.png"}).turns == (turn,)
    drawn = [{"role": "user", "content": "a red cat"}, {"role": "assistant", "content": "<image>"}]
    assert of({"messages": drawn, **given}).prompt == "a red cat"
    assert of({"messages": drawn[:1], "task": "t2i"}).prompt == "a red cat"
    assert of({"messages": drawn[:1]}).turns[0].parts == ("a red cat",)
    edit = of({"messages": [{"role": "user", "content": "<image>make it red"}], "task": "t2i", **given})
    assert (edit.prompt, edit.pictures) == ("make it red", (turn.parts[0],))
    assert of({"prompt": "make it red", "source_image": "a.png"}) == edit
    assert of({"prompt": " a red cat "}).prompt == of({"caption": "a red cat", "image": "a.png"}).prompt == "a red cat"


@pytest.mark.parametrize(
    "entry", [None, 3, {}, {"prompt": ""}, {"messages": []}, {"messages": "x"}, {"messages": [USER]}, {"messages": [3]}]
)
def test_what_asks_for_nothing_is_refused(entry: object) -> None:
    with pytest.raises(BadRecordError):
        of(entry)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_pictures(tmp_path, "a.png", "b.png")
    lines: list[dict[str, Any]] = [{"prompt": f"a photo of {count} cows"} for count in ("two", "three", "four")]
    lines += [{"id": name, "messages": [USER], "images": [name]} for name in ("a.png", "b.png", "missing.png")]
    lines += [{"prompt": "an <image>"}, {"messages": [{"role": "user", "content": "what? " * 1000}]}]
    return write_jsonl(tmp_path / "asked.jsonl", lines)


def results(path: Path) -> list[dict[str, Any]]:
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda line: line["line"])


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("unified", max_batch_size=2)


def test_a_file_is_gone_through(source: Path, engine: Engine) -> None:
    shown: list[tuple[int, int]] = []
    counts = infer(engine, source, source.parent / "out.jsonl", SETTINGS, lambda done, whole: shown.append((done, whole)))
    found = results(source.parent / "out.jsonl")
    assert [line["line"] for line in found] == list(range(1, 9))
    assert [("image" in line, "answer" in line, "error" in line) for line in found] == (
        [(True, False, False)] * 3 + [(False, True, False)] * 2 + [(False, False, True)] * 3
    )
    assert found[3]["id"] == "a.png"
    assert settings_of(source.parent / found[1]["image"])["prompt"] == "a photo of three cows"
    assert counts.done == 8
    assert len(counts.failed) == 3
    assert "missing.png" in counts.failed[0]
    assert shown[-1] == (8, 8)


def test_a_killed_run_goes_on_to_the_same(source: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = source.parent / "whole.jsonl", source.parent / "broken.jsonl"
    infer(Engine.load("unified", max_batch_size=5), source, whole, SETTINGS)
    write = module.append_jsonl
    left = [4]

    def until_killed(path: Path, line: dict[str, object]) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(path, line)

    with monkeypatch.context() as patch:
        patch.setattr(module, "append_jsonl", until_killed)
        with pytest.raises(KeyboardInterrupt):
            infer(Engine.load("unified", max_batch_size=2), source, broken, SETTINGS)
    with broken.open("a") as file:
        file.write('{"line": 8, "ans')  # as a kill within a write would leave it
    counts = infer(engine, source, broken, SETTINGS)
    assert (counts.before, counts.done, len(counts.failed)) == (4, 4, 3)
    same = [{**line, "image": line.get("image", "").replace("broken", "whole")} for line in results(broken)]
    assert same == [{**line, "image": line.get("image", "")} for line in results(whole)]
    for name in ("000001.png", "000003.png"):
        assert (source.parent / "whole" / name).read_bytes() == (source.parent / "broken" / name).read_bytes()


def test_shares_make_the_file_of_one_process(source: Path, engine: Engine) -> None:
    whole, parted = source.parent / "whole.jsonl", source.parent / "parted.jsonl"
    infer(engine, source, whole, SETTINGS)
    shares = [WorkShare(rank, 3, independent=True) for rank in range(3)]
    counts = [infer(engine, source, parted, SETTINGS, share=share) for share in shares]
    assert [(one.done, one.lacking) for one in counts] == [(3, 5), (3, 2), (2, 0)]
    same = [{**line, "image": line.get("image", "").replace("parted", "whole")} for line in results(parted)]
    assert same == [{**line, "image": line.get("image", "")} for line in results(whole)]
    assert sha256_tree(source.parent / "parted") == sha256_tree(source.parent / "whole")
    settings = [path.with_name(f"{path.name}.settings.json").read_text() for path in (whole, parted)]
    assert settings[0] == settings[1]
    parted.unlink()
    again = infer(engine, source, parted, SETTINGS, share=shares[0])  # any share merges what is there
    assert (again.before, again.done, again.lacking, len(results(parted))) == (3, 0, 0, 8)
    assert infer(engine, source, parted, SETTINGS).before == 8


def test_other_settings_do_not_continue(source: Path, engine: Engine) -> None:
    output = source.parent / "out.jsonl"
    infer(engine, source, output, SETTINGS)
    with pytest.raises(ValueError, match="'seed': 4"):
        infer(engine, source, output, Settings("unified", seed=4, max_new_tokens=4, answers=SamplingParams()))


def test_a_file_that_grew_is_continued_and_a_changed_one_is_not(source: Path, engine: Engine) -> None:
    output = source.parent / "out.jsonl"
    infer(engine, source, output, SETTINGS)
    before = source.read_text()
    source.write_text(before + json.dumps({"messages": [{"role": "user", "content": "hello ?"}]}) + "\n")
    assert infer(engine, source, output, SETTINGS).done == 1
    source.write_text(before.replace("two cows", "six cows"))
    with pytest.raises(ValueError, match="was made from other lines"):
        infer(engine, source, output, SETTINGS)


@pytest.mark.parametrize("line", ["my notes", "[]", "{}", '{"line": null}', "7"])
def test_results_of_something_else_are_not_continued(source: Path, engine: Engine, line: str) -> None:
    output = write_jsonl(source.parent / "out.jsonl", [line])
    with pytest.raises(ValueError, match="other settings"):
        infer(engine, source, output, SETTINGS)
    output.unlink()
    source.write_text("")
    infer(engine, source, output, SETTINGS)
    write_jsonl(output, [line])
    with pytest.raises(ValueError, match=r"out\.jsonl:1: no result of"):
        infer(engine, source, output, SETTINGS)
    assert output.read_text() == f"{line}\n"


def test_lines_with_source_images(tmp_path: Path, engine: Engine) -> None:
    write_pictures(tmp_path, "a.png")
    lines = [{"prompt": "a red cow"}, {"prompt": "a red cow", "source_image": "a.png"}]
    many = {"prompt": "a red cow", "source_images": ["a.png"] * 60}
    source = write_jsonl(tmp_path / "edits.jsonl", [*lines, many, {"prompt": "a", "source_image": "b.png"}])
    infer(engine, source, tmp_path / "out.jsonl", SETTINGS)
    found = results(tmp_path / "out.jsonl")
    assert [line["task"] if "image" in line else "error" for line in found] == ["t2i", "t2i", "error", "error"]
    assert "tokens of prompt and 16 to generate are more than" in found[2]["error"]
    assert "b.png" in found[3]["error"]
    job = ImageJob.of(engine.builder, "a red cow", (3, 2), SETTINGS.images, pictures=[understood(engine, tmp_path / "a.png")])
    [picture] = engine.render(generate_image_tokens(engine.images, [job]))
    with Image.open(tmp_path / found[1]["image"]) as image:
        assert image.tobytes() == picture.tobytes()


def understood(engine: Engine, path: Path) -> Any:
    with Image.open(path) as picture:
        return engine.processor.understood(picture)
