"""The documentation site without MkDocs: navigation, generated pages and moved links. `make docs` builds it and checks links."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from docs import site_hooks
from unidecouple.cli import main

ROOT = Path(__file__).parents[1]
NAVIGATION = re.findall(r"([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)


def moved(site: str, text: str) -> str:
    """``text`` of the page ``site`` as MkDocs gets it."""
    page = cast(Any, SimpleNamespace(file=SimpleNamespace(src_uri=site)))
    return site_hooks.on_page_markdown(text, page, cast(Any, None), cast(Any, None))


def test_every_page_is_in_the_navigation_once() -> None:
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(page for page in pages if not page.startswith("experiments/")) == sorted(
        page for page in NAVIGATION if page not in site_hooks.PAGES.values() and not page.startswith(("reference/", "experiments/"))
    )
    assert set(site_hooks.PAGES.values()) <= set(NAVIGATION)


def test_every_experiment_is_in_the_navigation() -> None:
    listed = {
        page for group in site_hooks._experiments() for pages in group.values() for page in (next(iter(p.values())) for p in pages)
    }
    assert listed == {f"experiments/{path.name}" for path in (ROOT / "docs/experiments").glob("*.md")} - {"experiments/README.md"}


def test_the_command_line_page_has_what_help_prints(capsys: Any) -> None:
    text = site_hooks.command_line()
    for command in ("train", "eval", "data check", "adapter load", "assemble"):
        try:
            main([*command.split(), "--help"])
        except SystemExit:
            options = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
        section = re.search(rf"^## unidecouple {command}\n(?s:.*?)(?=^## |\Z)", text, re.MULTILINE)
        assert section is not None
        assert options <= set(re.findall(r"--[\w-]+", section[0])) | {"--help"}, command


def test_links_lead_to_places_of_the_site() -> None:
    assert moved("index.md", "[a](docs/eval.md#cards) [b](LICENSE-none) [c](https://x.org/a.md)") == (
        "[a](eval.md#cards) [b](LICENSE-none) [c](https://x.org/a.md)"
    )
    assert moved("methods/moe.md", "[a](../compare.md) [b](../../recipes/demo.yaml) [c](../../CONTRIBUTING.md)") == (
        "[a](../compare.md) [b](../files/recipes/demo.yaml.md) [c](../contributing.md)"
    )
    assert moved("eval.md", "[a](../results/held-out-style/results.json)") == "[a](files/results/held-out-style/results.json)"
    assert moved("files/benchmarks/README.md", "[a](../docs/eval.md)") == "[a](../../eval.md)"


def test_every_module_is_on_a_page_of_the_api() -> None:
    packages = site_hooks._packages()
    assert "unidecouple.models.moe" in packages["models"]
    assert {"unidecouple.run", "unidecouple.batch"} <= set(packages["unidecouple"])
    assert set(packages) >= {path.name for path in (ROOT / "unidecouple").iterdir() if (path / "__init__.py").is_file()}
