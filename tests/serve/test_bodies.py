"""Bodies: what is too much is refused before it is parsed, the message names the field, and null or neutral values pass."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from unidecouple.serve.bodies import MAX_DEPTH, MAX_MARKS, parse, parse_form
from unidecouple.serve.errors import ApiError
from unidecouple.serve.schemas import ChatRequest, EditRequest, ImageRequest

JSON = "application/json"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
DRAW: dict[str, Any] = {"prompt": "a cow"}


def refused(body: Any, model: Any = ChatRequest, kind: str = JSON) -> ApiError:
    with pytest.raises(ApiError) as error:
        parse(model, body if isinstance(body, bytes) else json.dumps(body).encode(), kind)
    assert error.value.status == 400
    assert len(error.value.message) < 300
    return error.value


def many(piece: bytes, count: int) -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":[' + b",".join([piece] * count) + b"]}]}"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (many(b"1", 500_000), "too_many_values"),
        (many(b"{}", 500_000), "too_many_values"),
        (b'"a" ' * 500_000, "too_many_values"),
        (b'"' * 1_000_000, "too_many_values"),
        (b"[" * 500_000, "too_deep"),
        (b'{"a":' * 500_000, "too_deep"),
        (many(b"1", 20_000), "model_attributes_type"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(20_000)) + b"}", "missing"),
        (b"1" * 3_000_000, "invalid_json"),
        (b'"' + b"\\n" * 400_000 + b'"', "model_type"),
        (b'"' + b"\\n" * 1_000_000 + b'"', "too_many_values"),
    ],
)
def test_a_bomb_is_refused_in_little_memory(body: bytes, code: str) -> None:
    tracemalloc.start()
    try:
        assert refused(body).code == code
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(body) + (20 << 20)


def test_the_bounds_are_those_that_are_named() -> None:
    deep: Any = "x"
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    assert refused({"model": deep}).param == "model"
    assert refused({"model": [deep]}).code == "too_deep"
    inside = json.dumps({**CHAT, "user": "[{" * MAX_MARKS}).encode()  # in a string they are only characters
    assert refused(inside).code == "string_too_long"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b'{"seed": NaN}', "NaN"),
        (b'{"seed": -Infinity}', "Infinity"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"n": 1, "n": 2}', "'n' comes twice"),
        (b'{"model": "\xff"}', "not UTF-8"),
        (b"[]", "the body: must be an object"),
        (b"null", "the body: must be an object"),
    ],
)
def test_what_is_no_json_object_is_said_to_be_that(body: bytes, words: str) -> None:
    assert words in refused(body).message


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_a_missing_json_header_is_said_to_be_that(kind: str) -> None:
    assert "application/json" in refused(CHAT, kind=kind).message
    assert parse(ChatRequest, json.dumps(CHAT).encode(), "Application/JSON; charset=utf-8").model == "m"
    assert parse(ChatRequest, b"\xef\xbb\xbf" + json.dumps(CHAT).encode(), "application/vnd.api+json").model == "m"


PARTS: list[tuple[Any, str, str]] = [
    ({"type": "image_url", "image_url": "data:x"}, ".image_url", "must be an object"),
    ({"type": "image_url", "image_url": {}}, ".image_url.url", "is missing"),
    ({"type": "image_url", "image_url": {"url": 5}}, ".image_url.url", "must be a string"),
    ({"type": "image_url", "image_url": {"url": "x", "detail": "original"}}, ".image_url.detail", "'auto', 'low' or 'high'"),
    ({"type": "image_url"}, ".image_url", "is missing"),
    ({"type": "text"}, ".text", "is missing"),
    ({"type": "text", "text": "x", "cache_control": {}}, ".cache_control", "is not supported"),
    ({"type": "text", "text": "\ud83d"}, ".text", "half a surrogate pair"),
    ({"type": "input_image", "image_url": "x"}, ".type", '"image_url"'),
    ({"type": "input_text", "text": "x"}, ".type", '"text"'),
    ({"type": "video" * 99}, ".type", '"text" and "image_url"'),
    ({}, ".type", "is missing"),
    ("hi", "", "must be an object"),
    (None, "", "must be an object"),
]


@pytest.mark.parametrize(("part", "place", "words"), PARTS)
def test_a_wrong_part_is_named(part: Any, place: str, words: str) -> None:
    content = [{"type": "text", "text": "a"}, part]
    error = refused({"model": "m", "messages": [{"role": "user", "content": content}]})
    assert error.param == f"messages.0.content.1{place}"
    assert error.message.startswith(f"{error.param}: ")
    assert words in error.message
    assert "function" not in error.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", "1"),
        ("n", True),
        ("n", 1.5),
        ("n", 0),
        ("temperature", "0"),
        ("temperature", False),
        ("stream", 1),
        ("stream", "true"),
        ("seed", 1 << 63),
        ("stop", ["a"] * 5),
        ("stop", [1]),
        ("model", 5),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("frequency_penalty", 0.5),
        ("frequency_penalty", False),
        ("logprobs", True),
        ("logprobs", 0),
        ("logit_bias", {"5": 1}),
        ("response_format", {"type": "json_object"}),
        ("reasoning_effort", "high"),
        ("made_up", 1),
    ],
)
def test_what_would_change_the_answer_is_named(field: str, value: Any) -> None:
    error = refused({**CHAT, field: value})
    assert error.param is not None
    assert error.param.split(".")[0] == field


NEUTRAL: dict[str, list[Any]] = {
    "temperature": [None],
    "n": [None, 1, 1.0],
    "seed": [None],
    "stop": [None, []],
    "stream": [None, False],
    "stream_options": [None, {"include_usage": None, "include_obfuscation": False}],
    "frequency_penalty": [None, 0, 0.0],
    "presence_penalty": [None, 0, 0.0],
    "logit_bias": [None, {}],
    "logprobs": [None, False],
    "top_logprobs": [None, 0],
    "tools": [None, []],
    "tool_choice": [None, "none", "auto"],
    "parallel_tool_calls": [None, True, False],
    "response_format": [None, {"type": "text"}],
    "modalities": [None, ["text"]],
    "service_tier": [None, "auto"],
    "reasoning_effort": [None],
    "prediction": [None],
    "store": [None, False],
    "metadata": [None, {}],
    "user": [None, "me"],
}


@pytest.mark.parametrize("field", NEUTRAL)
def test_null_and_neutral_values_are_as_if_left_out(field: str) -> None:
    plain = parse(ChatRequest, json.dumps(CHAT).encode(), JSON).model_dump(exclude={"user", "metadata", "store", "stream_options"})
    for value in NEUTRAL[field]:
        body = parse(ChatRequest, json.dumps({**CHAT, field: value}).encode(), JSON)
        assert body.model_dump(exclude={"user", "metadata", "store", "stream_options"}) == plain


def test_neutral_values_of_pictures() -> None:
    plain = parse(ImageRequest, json.dumps(DRAW).encode(), JSON)
    more = {
        "background": "auto",
        "moderation": "auto",
        "output_compression": 100,
        "style": None,
        "n": None,
        "response_format": None,
    }
    assert parse(ImageRequest, json.dumps({**DRAW, **more}).encode(), JSON) == plain
    for field, value in {"background": "transparent", "output_format": "jpeg", "response_format": "url", "style": "vivid"}.items():
        assert refused({**DRAW, field: value}, ImageRequest).param == field
    assert refused({"prompt": None}, ImageRequest).message == "prompt: is missing"


def test_a_dumped_message_is_a_message() -> None:
    unused = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    turns = [*CHAT["messages"], {"role": "assistant", "content": None, **unused}, {"role": "user", "content": "and?"}]
    body = parse(ChatRequest, json.dumps({"model": "m", "messages": turns}).encode(), JSON)
    assert [len(message.content) for message in body.messages] == [1, 0, 1]
    turns[1] = {"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}
    assert refused({"model": "m", "messages": turns}).param == "messages.1.tool_calls"


def test_a_forms_texts_are_jsons_values() -> None:
    form = {
        "prompt": "7",
        "n": "2",
        "seed": "4",
        "stream": "true",
        "guidance_scale": "1.5",
        "partial_images": "1",
        "input_fidelity": "high",
    }
    body = parse_form(EditRequest, form)
    assert (body.prompt, body.n, body.seed, body.stream, body.guidance_scale) == ("7", 2, 4, True, 1.5)
    for name, text in (
        ("n", "2.5"),
        ("n", ""),
        ("n", "[1]"),
        ("seed", '"4"'),
        ("stream", "yes"),
        ("temperature", "NaN"),
        ("m", "1"),
    ):
        with pytest.raises(ApiError) as error:
            parse_form(EditRequest, {"prompt": "a cow", name: text})
        assert (error.value.status, error.value.param) == (400, name)
