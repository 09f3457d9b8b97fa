"""Which Host and Origin headers pass: pages of other sites must not reach the server, ordinary clients must."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from unidecouple.serve.hosts import HostGuard


def status(method: str, headers: dict[str, str], hosts: tuple[str, ...] = ()) -> int:
    """Of a request to a guarded app that answers 200."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": method,
        "path": "/v1/files/a",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()],
    }
    asyncio.run(HostGuard(app, hosts)(scope, receive, send))
    if sent[0]["status"] != 200:
        assert json.loads(sent[1]["body"])["error"]["type"] == "permission_error"
    return int(sent[0]["status"])


LOOPBACK = ["localhost", "LocalHost:8000", "localhost.", "app.localhost", "127.0.0.1:1", "127.8.8.8", "[::1]", "[0:0::1]:80"]
FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "notlocalhost",
    "localhost@evil.example",
    "localhost:80:80",
    "localhost:",
    "localhost:a",
    "localhost, evil.example",
    "evil.example:127.0.0.1",
    "::1",
    "[::1",
    "0.0.0.0",
    "[::]",
    "8.8.8.8",
    "[2001:db8::1]",
    "127.1",
    "2130706433",
    "",
    "\xff",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_names_pass(host: str) -> None:
    assert status("POST", {"Host": host}) == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("host", FOREIGN)
def test_other_names_are_refused(method: str, host: str) -> None:
    assert status(method, {"Host": host}) == 403


@pytest.mark.parametrize(
    ("hosts", "host", "expected"),
    [
        (("192.168.1.5",), "192.168.1.5:8000", 200),
        (("192.168.1.5",), "192.168.1.6:8000", 403),
        (("models.example",), "Models.Example.:443", 200),
        (("models.example",), "a.models.example", 403),
        (("2001:DB8::1",), "[2001:db8:0::1]:80", 200),
        (("::ffff:10.0.0.1",), "10.0.0.1", 200),
        (("0.0.0.0",), "10.1.2.3:8000", 200),  # only names can be rebound
        (("::",), "[2001:db8::7]", 200),
        (("0.0.0.0",), "evil.example", 403),
    ],
)
def test_hosts_of_the_operator(hosts: tuple[str, ...], host: str, expected: int) -> None:
    assert status("GET", {"Host": host}, hosts) == expected


def test_a_client_without_host_passes() -> None:
    assert status("GET", {}) == 200


HERE = "127.0.0.1:8000"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "http://localhost:8000"}, 403),
        ({"Origin": "http://127.0.0.1:8000@evil.example"}, 403),
        ({"Origin": "ftp://127.0.0.1:8000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_pages_of_other_sites_change_nothing(headers: dict[str, str], expected: int) -> None:
    assert {status(method, {"Host": HERE, **headers}) for method in ("POST", "DELETE", "PUT")} == {expected}
    assert status("GET", {"Host": HERE, **headers}) == 200


@pytest.mark.parametrize(("origin", "expected"), [("https://models.example", 200), ("https://models.example:8443", 403)])
def test_the_default_port_may_be_left_out(origin: str, expected: int) -> None:
    assert status("POST", {"Host": "models.example:443", "Origin": origin}, ("models.example",)) == expected
