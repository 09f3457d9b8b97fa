"""The page at ``/``: one document with its style and scripts inside it, which loads nothing from other servers."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

from starlette.responses import Response

SCRIPTS = ("api.js", "inside.js", "page.js")
"""In this order, one script: what a later one uses, an earlier one has."""


@cache
def document() -> tuple[str, str]:
    """The page, and the policy that lets a browser run what is in it and nothing else."""
    folder = resources.files(__package__) / "page"
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = "".join((folder / name).read_text(encoding="utf-8").replace('"use strict";\n', "", 1) for name in SCRIPTS)
    script = f'"use strict";\n{script}'
    html = (folder / "page.html").read_text(encoding="utf-8").replace("/*style*/", style).replace("/*script*/", script)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # styles of single elements are set by the scripts
    )
    return html, policy


async def page() -> Response:
    """The page for people."""
    html, policy = document()
    return Response(
        html,
        media_type="text/html; charset=utf-8",
        headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"},
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
