"""The page in a real browser: `make e2e`. Needs Chromium and Playwright, so it is no part of `make test`.

Images of what was seen go to the folder that E2E_SHOTS names. CHROMIUM names the browser where it is not on the path.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from unidecouple.batch import Task
from unidecouple.convert.load import load
from unidecouple.generate.engine import Engine
from unidecouple.methods.structure.ta_moe import TaskAwareMoE
from unidecouple.serve.api import Server
from unidecouple.serve.run import uvicorn_server
from unidecouple.train.build import restructure
from waiting import until

SHOTS = Path(os.environ.get("E2E_SHOTS", "runs/e2e"))
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}
KEY = "a key"


class Live:
    """A server that listens, over the shipped base; ``parted`` upcycles it, with routers that send tokens anywhere."""

    def __init__(self, api_key: str | None = None, parted: bool = True) -> None:
        model, processor = load("unified")
        if parted:
            model = restructure(model, TaskAwareMoE(), seed=0)
            for layer in model.decoder.layers:
                torch.nn.init.normal_(layer.mlp.router.weight, generator=torch.Generator().manual_seed(0))
        self.server = Server(Engine(model, processor, max_batch_size=4), "tiny", api_key=api_key)
        self.http = uvicorn_server(self.server, "127.0.0.1", 0)
        self.thread = threading.Thread(target=self.http.run)
        self.thread.start()
        until(lambda: self.http.started)
        self.url = f"http://127.0.0.1:{self.http.servers[0].sockets[0].getsockname()[1]}/"

    def close(self) -> None:
        self.http.should_exit = True
        self.thread.join(30)

    @property
    def jobs(self) -> int:
        return sum(task_queue.waiting + task_queue.running for task_queue in self.server.scheduler.task_queues.values())


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    live = Live()
    yield live
    live.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "no Chromium was found: install it (apt install chromium), or name it: make e2e CHROMIUM=/path/to/chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """``open_page(live, size, dark)``; at the end no script has failed, and nothing was asked of anybody else."""
    wrong: list[str] = []
    pages = []

    def start(live: Live, size: dict[str, int] = WIDE, dark: bool = False) -> Page:
        page = browser.new_page(viewport=size, color_scheme="dark" if dark else "light")
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if "Content Security Policy" in line.text else None)
        page.on("request", lambda one: None if one.url.startswith((live.url, "data:")) else wrong.append(one.url))
        page.goto(live.url)
        pages.append(page)
        return page

    yield start
    for page in pages:
        page.close()
    assert wrong == []


def png(color: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (80, 60), color).save(content, "PNG")
    return content.getvalue()


def say(page: Page, words: str, draw: bool = False) -> None:
    page.get_by_text("Draw" if draw else "Ask", exact=True).click()
    page.get_by_label("Your question or prompt").fill(words)
    page.get_by_role("button", name="Send").click()


def attach(page: Page) -> None:
    page.get_by_text("Ask", exact=True).click()
    page.locator("#file").set_input_files({"name": "red.png", "mimeType": "image/png", "buffer": png()})
    expect(page.get_by_text("red.png")).to_be_visible()


def shot(page: Page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")


@pytest.mark.parametrize(("size", "dark"), [(WIDE, False), (PHONE, True)], ids=["wide", "phone"])
def test_ask_draw_and_look_inside(live: Live, open_page: Callable[..., Page], size: dict[str, int], dark: bool) -> None:
    page, name = open_page(live, size, dark), "phone" if dark else "wide"
    expect(page.locator("#model")).to_have_text("tiny · understanding and generation")
    shot(page, f"{name}-start")
    attach(page)
    say(page, "Is there a cow in the image?")
    answer = page.locator("li.theirs.mmu")
    expect(answer.get_by_role("button", name="See the conflict")).to_be_visible()
    assert answer.locator(".text").inner_text().strip() in ("yes", "no")
    say(page, "a photo of a red cow", draw=True)
    picture = page.get_by_alt_text("Drawn for: a photo of a red cow")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") == live.server.preparer.processor.picture_size
    shot(page, f"{name}-conversation")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]

    page.locator("li.theirs.t2i").get_by_role("button", name="See the conflict").click()
    inside = page.get_by_role("dialog")
    expect(inside.get_by_role("radio", name="By the learned router")).to_be_checked()
    expect(inside.locator("#verdict")).to_contain_text("tokens to the group of their label (generation)")
    grid = inside.get_by_role("application")
    grid.focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    expect(inside.locator("#readout")).to_contain_text("Token 3, “a", timeout=2000)
    expect(inside.locator("#readout")).to_contain_text("layer 1: to ")
    assert inside.locator("polyline").count() == 2, "this drawing's curve, and the last answer's"
    odd = inside.locator("rect.odd").count()
    inside.get_by_text("By label, as served").click()
    assert (odd > 0, inside.locator("rect.odd").count()) == (True, 0), "by label all stand where the label says"
    inside.get_by_text("By the learned router").click()
    shot(page, f"{name}-inside")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.keyboard.press("Escape")
    expect(inside).to_be_hidden()


def test_the_pictures_follow_the_settings(live: Live, open_page: Callable[..., Page]) -> None:
    page = open_page(live)

    def drawn(seed: str, n: str) -> list[str | None]:
        pictures = page.get_by_alt_text("Drawn for: a photo of two cups")
        before = pictures.count()
        page.get_by_label("Seed").fill(seed)
        page.get_by_label("Images").fill(n)
        say(page, "a photo of two cups", draw=True)
        expect(pictures).to_have_count(before + int(n))
        return [pictures.nth(before + i).get_attribute("src") for i in range(int(n))]

    first = drawn("3", "2")
    assert first[0] != first[1]
    assert drawn("3", "2") == first, "the same seed, the same images"
    assert drawn("4", "1")[0] != first[0]
    shot(page, "several")
    page.get_by_label("Images").fill("99")
    turns = page.locator("li.mine").count()
    say(page, "a photo of two cups", draw=True)
    expect(page.locator("#said")).to_have_text("A setting is out of its bounds.")
    assert page.locator("li.mine").count() == turns


@pytest.mark.parametrize(("size", "dark", "n"), [(WIDE, False, 1), (PHONE, True, 2)], ids=["wide", "phone"])
def test_a_drawing_grows(
    live: Live, open_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch, size: dict[str, int], dark: bool, n: int
) -> None:
    page, worker = open_page(live, size, dark), live.server.scheduler.task_queues[Task.T2I].generator
    step, go = worker.step, threading.Semaphore(0)
    monkeypatch.setattr(worker, "step", lambda: (go.acquire(timeout=20), step())[1])
    body = {"prompt": "a photo of a red cow", "n": n, "seed": 3}
    for name, value in (("seed", 3), ("n", n)):  # on a phone the settings are behind a button
        page.evaluate("([name, value]) => { $('options').elements[name].value = value; }", [name, value])
    say(page, "a photo of a red cow", draw=True)
    bar, part = page.get_by_role("progressbar").first, page.get_by_alt_text("Drawn so far for: a photo of a red cow").first
    expect(part).to_be_hidden()
    for share in (0.25, 0.5, 0.75):
        go.release(4)
        expect(bar).to_have_js_property("value", share)
        expect(part).to_have_css("clip-path", f"inset(0px 0px calc({100 * (1 - share):g}% + 2px))")
        expect(page.locator("li.theirs .who")).to_contain_text(f"Drawing, {100 * share:g}%, ")
        shot(page, f"{'phone' if dark else 'wide'}-growing-{100 * share:g}")
    go.release(4)
    done = page.get_by_alt_text("Drawn for: a photo of a red cow")
    expect(done).to_have_count(n)
    expect(page.get_by_role("progressbar")).to_have_count(0)
    monkeypatch.undo()
    made = page.evaluate("async (body) => await api.json('/v1/images/generations', body)", body)
    assert [done.nth(i).get_attribute("src") for i in range(n)] == [
        f"data:image/png;base64,{one['b64_json']}" for one in made["data"]
    ]


def test_a_question_goes_with_what_was_said_about_the_picture(live: Live, open_page: Callable[..., Page]) -> None:
    page = open_page(live)
    sent: list[Any] = []
    page.on("request", lambda one: sent.append(one.post_data_json) if one.url.endswith("completions") else None)
    attach(page)
    say(page, "What is in the image?")
    expect(page.get_by_role("button", name="See the conflict")).to_have_count(1)
    say(page, "a photo of a cow", draw=True)
    expect(page.get_by_role("button", name="Ask about it")).to_be_visible()
    say(page, "Is it red?")
    expect(page.get_by_role("button", name="See the conflict")).to_have_count(3)
    assert [turn["role"] for turn in sent[1]["messages"]] == ["user", "assistant", "user"]
    assert sent[1]["messages"][0] == sent[0]["messages"][0]
    page.get_by_role("button", name="Ask about it").click()
    say(page, "Is there a cow in the image?")
    expect(page.get_by_role("button", name="See the conflict")).to_have_count(4)
    [turn] = sent[2]["messages"]
    assert turn["content"][0]["image_url"]["url"] == page.locator("figure img").get_attribute("src"), "a new image begins anew"


def test_pictures_come_by_drop_and_paste(live: Live, open_page: Callable[..., Page]) -> None:
    page = open_page(live)
    give = """([event, kind, name, data]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type: kind }));
      const made = event === "paste" ? new ClipboardEvent(event, { clipboardData: transfer, bubbles: true, cancelable: true })
        : new DragEvent(event, { dataTransfer: transfer, bubbles: true, cancelable: true });
      document.body.dispatchEvent(made);
    }"""
    data = base64.b64encode(png("blue")).decode()
    page.evaluate(give, ["dragenter", "image/png", "dropped.png", data])
    expect(page.get_by_text("Drop the image to ask about it")).to_be_visible()
    page.evaluate(give, ["drop", "image/png", "dropped.png", data])
    expect(page.get_by_text("Drop the image to ask about it")).to_be_hidden()
    expect(page.get_by_text("dropped.png")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_text("dropped.png")).to_be_hidden()
    page.evaluate(give, ["paste", "image/png", "pasted.png", data])
    expect(page.get_by_text("pasted.png")).to_be_visible()
    page.evaluate(give, ["drop", "text/plain", "notes.txt", data])
    expect(page.get_by_role("alert")).to_contain_text("“notes.txt” is no image that can be read here")


def test_errors_are_told_in_words_and_nothing_is_lost(live: Live, open_page: Callable[..., Page]) -> None:
    page = open_page(live)
    say(page, "a cow <bos>", draw=True)
    expect(page.get_by_role("alert")).to_contain_text("a special token")
    expect(page.get_by_label("Your question or prompt")).to_have_value("a cow <bos>")
    page.route("**/v1/images/generations", lambda route: route.abort())
    say(page, "a cow", draw=True)
    expect(page.get_by_role("alert").last).to_contain_text("The server does not answer. Is it still running?")
    shot(page, "errors")


def test_stop_gives_the_work_up(live: Live, open_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch) -> None:
    page, drawing = open_page(live), live.server.scheduler.engine.images
    step = drawing.step
    monkeypatch.setattr(drawing, "step", lambda: (time.sleep(0.2), step())[1])
    say(page, "a photo of a cow", draw=True)
    until(lambda: live.jobs == 1)
    shot(page, "drawing")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("li.theirs .who")).to_have_text("Stopped")
    until(lambda: live.jobs == 0, 2.0)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    monkeypatch.undo()
    say(page, "a photo of a cow", draw=True)
    expect(page.get_by_alt_text("Drawn for: a photo of a cow")).to_be_visible()


def test_it_works_by_keyboard_alone(live: Live, open_page: Callable[..., Page]) -> None:
    page = open_page(live)
    page.keyboard.press("Tab")
    expect(page.get_by_text("To the input")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("a photo of a cow")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="Draw")).to_be_checked()
    ring = page.evaluate("getComputedStyle(document.activeElement.nextElementSibling).outlineStyle")
    assert ring == "solid", "focus can be seen"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_alt_text("Drawn for: a photo of a cow")).to_be_visible()


def test_a_key_is_asked_for_and_a_dense_model_says_so(open_page: Callable[..., Page]) -> None:
    live = Live(KEY, parted=False)
    try:
        page = open_page(live)
        expect(page.locator("#model")).to_contain_text("asks for an API key")
        page.get_by_label("API key").fill(KEY)
        page.get_by_label("API key").press("Tab")
        expect(page.locator("#model")).to_have_text("tiny · understanding and generation")
        say(page, "a photo of a cow", draw=True)
        page.get_by_role("button", name="See the conflict").click()
        expect(page.get_by_role("dialog")).to_contain_text("This model is dense")
        assert page.get_by_role("dialog").locator("polyline").count() == 1, "the drawing's curve"
        expect(page.get_by_role("dialog")).to_contain_text("Do the other task in this conversation, too")
        shot(page, "dense-inside")
    finally:
        live.close()
