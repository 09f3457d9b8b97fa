"""Entries of every format become the records that a reader of their documentation expects."""

from __future__ import annotations

import base64
import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from own_data import asked, flat, png
from unidecouple.data.formats.entry import entry_type, folder_finder, parse
from unidecouple.data.formats.record import BadRecordError, ImageBytes, ImageFile, Record, Turn, make_record

ROOT = Path("pictures")
A, B = ImageFile(ROOT / "a.png"), ImageFile(ROOT / "b.png")
URL = "data:image/png;base64," + base64.b64encode(png()).decode()


def read(entry: object, data_type: str | None = None) -> Record:
    return parse(entry, "data.jsonl:7", folder_finder(ROOT), data_type)


def said(user: tuple[Any, ...], assistant: tuple[Any, ...]) -> tuple[Turn, ...]:
    return (Turn("user", user), Turn("assistant", assistant))


def messages(*content: Any, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(content)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, content, strict=False)], **more}


@pytest.mark.parametrize(
    ("entry", "kind", "turns"),
    [
        (messages("<image>What is this?", "A cat.", images=["a.png"]), "mmu", said((A, "What is this?"), ("A cat.",))),
        (messages("Is <image> like <image>\n", "Yes.", images=["a.png", "b.png"]), "mmu", said(("Is", A, "like", B), ("Yes.",))),
        (messages("a cow", "<image>", images=["a.png"]), "t2i", said(("a cow",), (A,))),
        (messages("<image> as a drawing", "<image>", images=["a.png", "b.png"]), "t2i", said((A, "as a drawing"), (B,))),
        (messages("Hello", "Good day."), "text", said(("Hello",), ("Good day.",))),
        (messages([{"type": "text", "text": "?"}, {"type": "image"}], "A.", images=["a.png"]), "mmu", said(("?", A), ("A.",))),
        (messages([{"type": "image", "image": "b.png"}], "A cat."), "mmu", said((B,), ("A cat.",))),
        (messages([{"type": "image_url", "image_url": {"url": URL}}], "Noise."), "mmu", said((ImageBytes(png()),), ("Noise.",))),
        (messages([{"type": "image_url", "image_url": URL}], "Noise."), "mmu", said((ImageBytes(png()),), ("Noise.",))),
        (messages("<image>?", "A cat.", images=[{"bytes": b"x", "path": None}]), "mmu", said((ImageBytes(b"x"), "?"), ("A cat.",))),
        (
            {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}], "image": "a.png"},
            "mmu",
            said((A, "What?"), ("A cat.",)),
        ),
        (
            {"conversations": [{"from": "human", "value": "a cow"}, {"from": "gpt", "value": "<image>"}], "image": "a.png"},
            "t2i",
            said(("a cow",), (A,)),
        ),
        (flat(), "t2i", said(("a photo of a cow",), (A,))),
        ({"caption": " a cow ", "image": "a.png", "text": None}, "t2i", said(("a cow",), (A,))),
        ({"text": "a cow", "image": {"bytes": None, "path": "a.png"}}, "t2i", said(("a cow",), (A,))),
        ({"prompt": "two cows", "images": ["a.png", "b.png"]}, "t2i", said(("two cows",), (A, B))),
        ({"prompt": "a red cow", "source_image": "a.png", "image": "b.png"}, "t2i", said((A, "a red cow"), (B,))),
        ({"prompt": "both", "source_images": ["a.png", "b.png"], "image": "b.png"}, "t2i", said((A, B, "both"), (B,))),
        ({"query": "<image> a cow", "response": "<image>", "images": ["a.png", "b.png"]}, "t2i", said((A, "a cow"), (B,))),
        ({"question": "What?", "answer": "A cat.", "image": "a.png"}, "mmu", said((A, "What?"), ("A cat.",))),
        (
            {"query": "Is <image> like <image>", "response": "Yes.", "images": ["a.png", "b.png"]},
            "mmu",
            said(("Is", A, "like", B), ("Yes.",)),
        ),
        ({"query": "a cow", "response": "<image>", "images": ["a.png"]}, "t2i", said(("a cow",), (A,))),
        ({"instruction": "Name it.", "input": "Moo", "output": "A cow."}, "text", said(("Name it.\nMoo",), ("A cow.",))),
        ({"instruction": "Name it.", "input": "", "output": "A cow.", "image": None}, "text", said(("Name it.",), ("A cow.",))),
        ({"prompt": "Hi", "completion": "Ho"}, "text", said(("Hi",), ("Ho",))),
        (
            {"question": "Red?", "answer": "N.", "image": ["a.png", "b.png"], "system": "Brief.", "history": [["What?", "A cat."]]},
            "mmu",
            (Turn("system", ("Brief.",)), *said((A, B, "What?"), ("A cat.",)), *said(("Red?",), ("N.",))),
        ),
    ],
)  # fmt: skip
def test_golden_entries(entry: dict[str, Any], kind: str, turns: tuple[Turn, ...]) -> None:
    assert read(entry) == Record(kind, turns, "data.jsonl:7")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"question": "?", "answer": 3}, "answer is int; give a text"),
        ({"question": ["?"], "answer": "A."}, "question is list; give a text"),
        ({"question": "?", "answer": "A.", "history": [["a"]]}, "give a list of .question, answer. pairs"),
        ({"question": "?", "answer": "A.", "history": "a"}, "give a list of .question, answer. pairs"),
        ({"question": "?", "answer": ""}, "the assistant's, is empty"),
        ({"question": "<image>?", "answer": "A."}, "more <image> tags than images"),
        ({"question": "?", "image": "a.png"}, "of no known format"),
    ],
)
def test_questions_that_are_none(entry: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecordError, match=reason):
        read(entry)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_picture_in_base64_without_its_prefix(form: str) -> None:
    content = io.BytesIO()
    Image.open(io.BytesIO(png())).save(content, form)
    plain = base64.b64encode(content.getvalue()).decode()
    for name in (plain, "\n".join(plain[at : at + 76] for at in range(0, len(plain), 76)), f"data:image/x;base64,{plain}\n"):
        assert read({"prompt": "a cow", "image": name}).generated == (ImageBytes(content.getvalue()),)
    for path in ("/9j/a.jpg", "Qkq/" + "a" * 90 + ".png", "iVBORw0KGgo" * 8 + ".png"):
        assert read({"prompt": "a cow", "image": path}).generated == (ImageFile(ROOT / path),)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "entry",
    [
        {"prompt": "a", "image": "iVBORw0KGgo" + "A" * 100_000 + "!"},
        {"prompt": "a", "image": f"data:{LONG};base64,@@"},
        {"prompt": "a", "image": f"data:{LONG}"},
        {"prompt": "a", "image": f"https://{LONG}"},
        {"prompt": " " * 100_000, "image": "a.png"},
        {"prompt": [LONG], "image": "a.png"},
        {"prompt": "a", "image": "a.png", "task": LONG},
        {LONG: 1},
        {"messages": [{"role": LONG, "content": "?"}]},
        messages([{"type": LONG}], "A."),
        messages([{"type": {"a": LONG}}], "A."),
        messages([{"type": "text", "text": [LONG]}], "A."),
        messages("?", "A.", task=LONG),
        messages(f"{LONG}\ud83d", "A."),
        {"\ud83d": LONG},
    ],
)  # fmt: skip
def test_no_message_repeats_a_record(entry: dict[str, Any]) -> None:
    with pytest.raises(BadRecordError) as caught:
        read(entry)
    assert len(str(caught.value)) < 400
    assert LONG[:121] not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("place", ["user", "assistant", "system", "prompt"])
def test_half_a_surrogate_pair_is_a_bad_record(place: str) -> None:
    bad = "a cow \ud83d"
    entry = {"prompt": bad, "image": "a.png"} if place == "prompt" else messages("hi", "ho")
    if place != "prompt":
        entry["messages"] = [{"role": "system", "content": "s"}, *entry["messages"]]
        next(turn for turn in entry["messages"] if turn["role"] == place)["content"] = bad
    with pytest.raises(BadRecordError, match=r"data.jsonl:7: the text .* has half a surrogate pair"):
        read(entry)


def test_many_turns_and_a_system_turn() -> None:
    entry = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "<image>What?"},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "And <image>?"},
            {"role": "assistant", "content": "A dog."},
        ],
        "images": ["a.png", "b.png"],
    }
    record = read(entry)
    assert record.kind == "mmu"
    assert [turn.role for turn in record.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.pictures for turn in record.turns] == [(), (A,), (), (B,), ()]


NO, IN = ("words",), (A, "words")


@pytest.mark.parametrize(
    ("user", "assistant", "task", "kind"),
    [
        (IN, NO, None, "mmu"),
        (NO, IN, None, "t2i"),
        (IN, IN, None, "t2i"),
        (NO, NO, None, "text"),
        (IN, NO, "mmu", "mmu"),
        (NO, IN, "mmu", "mmu"),
        (IN, IN, "mmu", "mmu"),
        (NO, NO, "mmu", "mmu"),
        (NO, IN, "t2i", "t2i"),
        (IN, IN, "t2i", "t2i"),
        (NO, NO, "text", "text"),
        (IN, NO, "t2i", "needs the image to generate in an assistant turn"),
        (NO, NO, "t2i", "needs the image to generate in an assistant turn"),
        (IN, NO, "text", "has an image"),
        (NO, IN, "text", "has an image"),
        (IN, NO, "vqa", "'vqa' is not one of mmu, t2i, text"),
    ],
)
def test_the_task_rule(user: Any, assistant: Any, task: str | None, kind: str) -> None:
    turns = said(user, assistant)
    if kind in ("mmu", "t2i", "text"):
        record = make_record(turns, task, "")
        assert record.kind == kind
        assert record.generated == (turns[1].pictures if kind == "t2i" else ())
    else:
        with pytest.raises(BadRecordError, match=kind):
            make_record(turns, task, "")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ([1], "a JSON object is expected, not list"),
        ({"a": 1}, "no known format"),
        ({"prompt": "no image"}, "no known format"),
        ({"messages": "hello"}, "not a list of objects"),
        ({"messages": []}, "the conversation has no turns"),
        (messages("<image>What?", "A cat."), "more <image> tags than images"),
        (messages("What?", "A cat.", images=["a.png"]), "1 of them have no <image>"),
        (messages("What?"), "the last turn has no answer"),
        (messages("What?", " "), "turn 2, the assistant's, is empty"),
        (messages("What?", None), "content is NoneType"),
        (messages([{"type": "video"}], "A cat."), "type 'video'"),
        (messages(["What?"], "A cat."), "type None"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "turn 1 is the assistant's, but the user's is expected"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "'tool' is not one of user"),
        (messages("<image>?", "A.", images=["https://a.org/cat.png"]), "download the image"),
        (messages("<image>?", "A.", images=["data:image/png;base64,@@"]), "data URL"),
        (messages("<image>?", "A.", images=["data:image/png,abc"]), "is not base64"),
        (messages("<image>?", "A.", images=[3]), "an image has type int"),
        (messages("<image>?", "A.", images=[""]), "an image is empty"),
        ({"prompt": "a cow", "image": None}, "image is null: give a value"),
        ({"question": None, "answer": None, "image": "a.png"}, "answer, question are null: give a value"),
        ({"prompt": " ", "image": "a.png"}, "the prompt is ' '"),
        ({"prompt": "a cow", "image": "a.png", "task": "mmu"}, "give messages instead"),
        (asked() | {"task": "t2i"}, "needs the image to generate"),
    ],
)  # fmt: skip
def test_broken_entries_say_where_and_why(entry: object, reason: str) -> None:
    with pytest.raises(BadRecordError, match=reason) as caught:
        read(entry)
    assert str(caught.value).startswith("data.jsonl:7: ")


def test_a_forced_format_wins_over_the_keys() -> None:
    both = {**flat(), **messages("<image>?", "A cow.")}
    assert (entry_type(both), read(both).kind, read(both, "flat").kind) == ("messages", "mmu", "t2i")
    with pytest.raises(BadRecordError, match="conversations is not a list"):
        read(both, "llava")


words = st.sampled_from(["<image>", "user", "assistant", "text"])
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | words
names = st.sampled_from(["role", "content", "from", "value", "type", "text", "image", "image_url", "url", "bytes", "path"])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12)
keys = st.sampled_from(["messages", "conversations", "images", "image", "prompt", "caption", "text", "task"])


@given(entry=st.dictionaries(keys, values, max_size=5), data_type=st.sampled_from([None, "messages", "llava", "flat"]))
def test_anything_is_a_record_or_a_bad_one(entry: dict[str, Any], data_type: str | None) -> None:
    with contextlib.suppress(BadRecordError):
        record = read(entry, data_type)
        assert record.turns[-1].role == "assistant"
