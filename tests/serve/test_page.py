"""The page as the server gives it: whole, asking nobody else, and guarded by a policy that fits its own script."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from unidecouple.generate.engine import Engine
from unidecouple.models.shipped import located
from unidecouple.serve.api import Server
from unidecouple.serve.page import SCRIPTS, document

HERE = Path(__file__).parents[2] / "unidecouple" / "serve" / "page"


@pytest.fixture(scope="module")
def html(live: Any) -> str:
    response = httpx.get(f"{live.url}/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"] == document()[1]
    return response.text


def test_it_holds_everything_and_asks_for_nothing_else(html: str) -> None:
    assert "/*style*/" not in html
    assert "/*script*/" not in html
    for name in (*SCRIPTS, "page.css"):
        longest = max((HERE / name).read_text(encoding="utf-8").splitlines(), key=len)
        assert longest in html, name
    outside = [address for address in re.findall(r"https?://[^\s\"'<>)]+", html) if not address.startswith("http://www.w3.org/")]
    assert outside == [], "namespaces of SVG are no requests"
    assert not re.findall(r"<(?:script|link|img)[^>]*\s(?:src|href)=\"(?!data:)", html)


def test_the_policy_admits_its_script_alone(html: str) -> None:
    [script] = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = dict(part.strip().split(" ", 1) for part in document()[1].split(";"))
    assert policy["script-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert not re.findall(r"\son\w+=\"", html), "handlers in attributes would not run under it"


def test_everything_has_a_name(html: str) -> None:
    """Inputs have labels, the dialog a title, images words; ids that are named exist, once."""
    ids = re.findall(r"\sid=\"([\w-]+)\"", html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:for|aria-labelledby|aria-controls)=\"([\w-]+)\"", html)) <= set(ids)
    body = html[html.index("<body>") : html.index("<script>")]
    inputs = re.findall(r"<input[^>]*>", body)
    labelled = re.findall(r"<label[^>]*>(?:(?!</label>).)*<input", body, re.DOTALL)
    assert len(labelled) == len(inputs) >= 10
    assert all("alt=" in image for image in re.findall(r"<img[^>]*>", body))
    script = html[html.index("<script>") :]
    assert set(re.findall(r"\$\(\"([\w-]+)\"\)", script)) <= set(ids), "the script asks for elements that there are"


def test_it_is_shown_without_the_key_that_it_asks_for(serve: Any) -> None:
    with serve(api_key="secret") as live, httpx.Client(base_url=live.url) as client:
        assert client.get("/").status_code == 200
        assert client.get("/v1/models").status_code == 401
        assert client.post("/v1/routing", json={}).status_code == 401


def test_it_can_be_switched_off() -> None:
    server = Server(Engine.load(str(located("unified")), max_batch_size=1), "unified", with_page=False)
    try:
        paths = server.app.openapi()["paths"]
        assert "/v1/routing" not in paths
        assert "/v1/chat/completions" in paths
        assert all(getattr(route, "path", "") != "/" for route in server.app.routes)
    finally:
        server.close()
