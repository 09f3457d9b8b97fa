"""Pages that MkDocs makes when it builds the site (``make docs``), and links that lead out of ``docs/``.

The front page is README.md. The command line comes from its parser, the Python API from docstrings. A file of the repository
that a page links to becomes a page of the site.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from unidecouple.cli import _parser

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import File, Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "PAPERS.md": "papers.md", "CHANGELOG.md": "changelog.md"}
"""Documents outside ``docs/`` and what the site calls them."""
API = "reference/api"
LANGUAGES = {".yaml": "yaml", ".py": "python", ".toml": "toml"}
"""Files that are shown as code; others but Markdown are copied as they are."""
TERMS = {"lora": "LoRA", "aia": "AIA", "unix": "Uni-X", "Unix": "Uni-X", "Aia": "AIA", "Lora": "LoRA", "Unidecouple": "UniDecouple"}
"""How words of file names are spelt in the navigation."""
_LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")
_COMMAND = re.compile(r"<pre>(?=<span></span><code>(?:unidecouple|torchrun|make|pip) )")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the experiments to the navigation, grouped as their index groups them, and a page per package of the API."""
    for tab in config.nav or []:
        if "Experiments" in tab:
            tab["Experiments"] = ["experiments/README.md", *_experiments()]
        if "Reference" in tab:
            at = tab["Reference"].index({"Python API": f"{API}/index.md"})
            tab["Reference"][at] = {"Python API": [f"{API}/index.md", *(f"{API}/{name}.md" for name in _packages())]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the files of the repository that pages link to."""
    from mkdocs.structure.files import File

    made = {site: (ROOT / source).read_text(encoding="utf-8") for source, site in PAGES.items()}
    made |= {"reference/cli.md": command_line(), f"{API}/index.md": _api_index()}
    made |= {f"{API}/{name}.md": _api_page(name, modules) for name, modules in _packages().items()}
    for site, text in made.items():
        files.append(File.generated(config, site, content=text))
    linked = {target for file in files.documentation_pages() for target in _targets(_source(file.src_uri), file.content_string)}
    for target in sorted(linked - {ROOT / name for name in PAGES}):
        if target.is_file() and not target.is_relative_to(DOCS):
            files.append(_shown(target, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between places in the repository into links between places on the site."""
    source = _source(page.file.src_uri)
    here = PurePosixPath(page.file.src_uri).parent

    def moved(link: re.Match[str]) -> str:
        target = (source.parent / link[1]).resolve()
        if not target.is_relative_to(ROOT) or not target.exists():
            return link[1]  # MkDocs reports it
        return os.path.relpath(_site_path(target), here)

    return _LINK.sub(moved, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mark commands, which are wrapped where they are longer than a line."""
    return _COMMAND.sub('<pre class="command">', html)


def command_line() -> str:
    """The reference of the command line."""
    sections = [_command(name, parser) for name, parser in _commands("unidecouple", _parser())]
    return "# Command line\n\n    unidecouple COMMAND --help\n\nprints the same as this page.\n\n" + "\n".join(sections)


def _commands(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command that does something, with its full name."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        for word, inner in group.choices.items():
            yield from _commands(f"{name} {word}", inner)
    if not groups:
        yield name, parser


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    usage = parser.format_usage().removeprefix("usage: ").rstrip()
    rows = "".join(_option(action) for action in parser._actions if action.dest != "help")
    return f"## {name}\n\n{parser.description or ''}\n\n```text\n{usage}\n```\n\n| argument | meaning |\n|---|---|\n{rows}"


def _option(action: argparse.Action) -> str:
    value = f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.metavar or action.dest.upper()
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if action.option_strings and action.nargs != 0:
        names += f" {value}"
    meaning = " ".join((action.help or "").split()) % (vars(action) | {"prog": "unidecouple"})
    return f"| `{names}` | {meaning.replace('|', chr(92) + '|')} |\n".replace("<", "&lt;")


def _packages() -> dict[str, list[str]]:
    """Modules by the package that they lie in; the top's own under "unidecouple"."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "unidecouple").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not path.stem.startswith("_") or (path.stem == "__init__" and '"""' in path.read_text(encoding="utf-8")):
            module = ".".join(part for part in parts if part != "__init__")
            found.setdefault(parts[1] if len(parts) > 2 else "unidecouple", []).append(module)
    return found


def _api_index() -> str:
    rows = "".join(f"| [{name}]({name}.md) | {_first_line(name)} |\n" for name in _packages())
    return f"# Python API\n\nFrom the docstrings of the package.\n\n| package | holds |\n|---|---|\n{rows}"


def _first_line(name: str) -> str:
    path = ROOT / "unidecouple" / ("__init__.py" if name == "unidecouple" else f"{name}/__init__.py")
    found = re.match(r'"""(.*?)(?:"""|\n\n)', path.read_text(encoding="utf-8"), re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _api_page(name: str, modules: list[str]) -> str:
    return f"# {name}\n\n" + "".join(f"::: {module}\n    options:\n      heading_level: 2\n\n" for module in modules)


def _experiments() -> list[Any]:
    """Groups of the index, each page by the words of its file's name."""
    groups: list[Any] = []
    index = (DOCS / "experiments/README.md").read_text(encoding="utf-8")
    for heading, body in re.findall(r"^## (.+)\n\n((?:- .*\n)+)", index, re.MULTILINE):
        stems = re.findall(r"\]\(([\w-]+)\.md\)$", body, re.MULTILINE)
        groups.append({heading: [{_short(stem): f"experiments/{stem}.md"} for stem in stems]})
    return groups


def _short(stem: str) -> str:
    return " ".join(TERMS.get(word, word) for word in stem.replace("-", " ").capitalize().split())


def _source(site: str) -> Path:
    """The file of the repository that a page of the site is made from."""
    of = {made: source for source, made in PAGES.items()}
    if site in of:
        return ROOT / of[site]
    if site.startswith("files/"):
        path = ROOT / site.removeprefix("files/")
        return path if path.is_file() else path.with_suffix("")
    return DOCS / site


def _targets(source: Path, text: str) -> set[Path]:
    return {(source.parent / link).resolve() for link in _LINK.findall(text)}


def _site_path(target: Path) -> str:
    name = target.relative_to(ROOT).as_posix()
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    if name in PAGES:
        return PAGES[name]
    return f"files/{name}" + (".md" if target.suffix in LANGUAGES else "")


def _shown(target: Path, config: MkDocsConfig) -> File:
    from mkdocs.structure.files import File

    site, name = _site_path(target), target.relative_to(ROOT).as_posix()
    if target.suffix in LANGUAGES:
        text = target.read_text(encoding="utf-8")
        return File.generated(config, site, content=f"# {name}\n\n````{LANGUAGES[target.suffix]}\n{text}````\n")
    return File.generated(config, site, abs_src_path=str(target))
