"""`stop`: an answer ends before the first such string, whole or streamed, and its decoding ends there, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from unidecouple.batch import Task

ASKED: dict[str, Any] = {
    "model": "unified",
    "messages": [{"role": "user", "content": "Describe the image."}],
    "temperature": 100.0,
    "seed": 6,
    "max_tokens": 12,
}


@pytest.fixture(scope="module")
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def words(client: openai.OpenAI) -> str:
    """The answer without ``stop``: 12 words."""
    said = client.chat.completions.create(**ASKED).choices[0]
    assert said.finish_reason == "length"
    assert said.message.content is not None
    assert len(said.message.content.split()) == 12
    return said.message.content


def streamed(client: openai.OpenAI, **more: Any) -> tuple[list[str], str | None, int]:
    """The pieces, why the answer ended, and its tokens."""
    pieces, finish, tokens = [], None, 0
    for chunk in client.chat.completions.create(**ASKED, **more, stream=True, stream_options={"include_usage": True}):
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        for choice in chunk.choices:
            pieces += [choice.delta.content] if choice.delta.content else []
            finish = choice.finish_reason or finish
    return pieces, finish, tokens


@pytest.mark.parametrize("across", [False, True], ids=["a word", "across tokens"])
def test_an_answer_ends_before_the_first(client: openai.OpenAI, words: str, across: bool) -> None:
    first, second, third = (words.split()[place] for place in (6, 7, 8))
    stop = f"{first[-1]} {second} {third[0]}" if across else first
    expected = words[: words.index(stop)]
    said = client.chat.completions.create(**ASKED, stop=[words.split()[10] + " never", stop])
    assert (said.choices[0].message.content, said.choices[0].finish_reason) == (expected, "stop")
    assert said.usage is not None
    assert said.usage.completion_tokens == len(words[: words.index(stop) + len(stop)].split())
    pieces, finish, tokens = streamed(client, stop=[words.split()[10] + " never", stop])
    assert ("".join(pieces), finish, tokens) == (expected, "stop", said.usage.completion_tokens)
    assert len(pieces) > 1, "it streams all the same"


def test_what_only_began_like_a_stop_string_comes_after_all(client: openai.OpenAI, words: str) -> None:
    held = " ".join(words.split()[-3:])
    pieces, finish, _ = streamed(client, stop=f"{held} and more")
    assert ("".join(pieces), finish) == (words, "length")
    assert held in pieces[-1], "held back until the end"


def test_the_decoding_ends_with_it(live: Any, client: openai.OpenAI, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, steps = live.server.scheduler.task_queues[Task.MMU].generator, []
    step = worker.step
    monkeypatch.setattr(worker, "step", lambda: (steps.append(len(worker.answers)), step())[1])
    first = words.split(maxsplit=1)[0]
    said = client.chat.completions.create(**ASKED, stop=first)
    assert (said.choices[0].message.content, said.choices[0].finish_reason) == ("", "stop")
    assert steps == [1]
    assert worker.free_slots == worker.max_batch_size


@pytest.mark.parametrize("stop", ["", ["a", ""], ["a"] * 5, [1], {"a": 1}, "a" * 257, "\ud800"])
def test_what_is_no_stop_string_is_a_400(live: Any, stop: Any) -> None:
    content = json.dumps({**ASKED, "stop": stop})  # httpx itself refuses half a surrogate pair
    reply = httpx.post(f"{live.url}/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"].startswith("stop")
