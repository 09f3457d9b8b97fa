"""Documents, recipes, the site, the package and its tests use the field's words, and no word of this code base alone.

Results and old keys keep their words, and this file names them.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator
from pathlib import Path
from tokenize import COMMENT, generate_tokens

ROOT = Path(__file__).parents[1]
CHECKED = ("README.md", "CONTRIBUTING.md", "PAPERS.md", "docs", "recipes", "mkdocs.yml", "tests", "unidecouple")
"""Files, and folders of which each file is checked."""

ENDINGS = {".md", ".yaml", ".yml", ".py", ".svg", ".css", ".j2", ".html"}
WORDS = {
    r"told": "labelled, given as input, reported",
    r"untold": "not labelled",
    r"shelf|shelves": "RecordIndex, index",
    r"tally": "BadRecordCounter, count",
    r"lanes?": "TaskQueue, queue",
    r"quiz|quizzes": "QABenchmark, benchmark",
    r"gallery": "GenerationBenchmark, SampleGrid",
    r"judged pictures?": "judged images",
    r"drawn world|the world's|our world": "synthetic benchmark",
    r"outlives?": "not significant after Holm correction",
    r"by processor": "per processor",
    r"is said|was said|as said": "reported, stated, printed",
    r"a group's own|a task's own|no task's own": "of one group, of one task",
    r"(?:of|for) (?:its|their) own (?:group|task)": "of its group, of its task",
    r"none is none|None is none": "None: nothing was …",
    r"to the bit": "bit for bit",
    r"pictures? seen|pictures? drawn": "images to be understood, images to be generated",
    r"teach(?:es)? (?:the )?(?:shared expert|router) nothing": "gives no gradient",
    r"looks? across": "attends across",
    r"an? (?:update|pair|set|expert|model|branch|row|line|figure|column) a (?:task|token|group|layer|prompt|sample)": "… per …",
}
"""Pattern of whole words, any case -> what to write."""
IN_TEXT = {re.compile(r"(?<![\w`.-])pictures?(?![\w`(=-])", re.IGNORECASE): "image"}
"""Words that are refused in documents and in the texts of the package (docstrings, comments, messages), but not as names."""
_GAP = r"\s+(?:# )?"
"""Between two words: also the end of a line, of a comment too."""
_FOUND = {
    re.compile(rf"(?<![\w-])(?:{words.replace(' ', _GAP)})(?![\w-])", re.IGNORECASE): better for words, better in WORDS.items()
}
_NOT_PROSE = re.compile(
    r"<!-- results/[^>]*-->\n\n(?:\|.*\n)+"  # a table that results/refresh.py writes
    r"|<!-- keys, written by docs/recipe_keys.py -->\n(?s:.*)"  # docstrings of the package
    r"|^```\w+\n(?s:.*?)^```"  # code, whose names are the package's
    r"|\]\([^)]*\)|`[^`\n]*`",  # links and names
    re.MULTILINE,
)


def files(checked: tuple[str, ...] = CHECKED) -> Iterator[Path]:
    """Every file to check."""
    for name in checked:
        path = ROOT / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (one for one in found if one.suffix in ENDINGS and one != Path(__file__))


def prose(path: Path, text: str) -> str:
    """``text`` without tables from results, generated tables, code and names; lines stay where they are."""
    if path.suffix != ".md":
        return text
    return _NOT_PROSE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def old_words(path: Path, text: str) -> list[str]:
    """Old words of ``text``, each with its line and what to write."""
    text = prose(path, text)
    return [
        f"{text.count(chr(10), 0, found.start()) + 1}: {found[0]!r}: {better}"
        for pattern, better in _FOUND.items()
        for found in pattern.finditer(text)
    ]


def texts(source: str) -> list[str]:
    """Docstrings, messages (string constants with a space) and comments of Python code, without names of attributes and code."""
    constants = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    found = [value for value in constants if isinstance(value, str) and " " in value]
    found += [token.string for token in generate_tokens(io.StringIO(source).readline) if token.type == COMMENT]
    return [re.sub(r"``[^`]*``|^ *[\w, ]+(?: \([^)]*\))?: ", " ", text, flags=re.MULTILINE) for text in found]


def test_no_old_word() -> None:
    found = {str(path.relative_to(ROOT)): old_words(path, path.read_text(encoding="utf-8")) for path in files()}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_users_read_of_images() -> None:
    """The package and the documents; tests and the words of the synthetic prompts are free."""
    wrong = []
    for path in files(("README.md", "CONTRIBUTING.md", "docs", "recipes", "unidecouple")):
        text = path.read_text(encoding="utf-8")
        lines = texts(text) if path.suffix == ".py" else [prose(path, text)] if path.suffix == ".md" else []
        wrong += [f"{path.relative_to(ROOT)}: {line[:80]!r}" for line in lines for word in IN_TEXT if word.search(line)]
    assert wrong == ["unidecouple/world/prompts.py: 'a picture of'"]


def test_what_is_found_and_what_is_not() -> None:
    page = Path("page.md")
    table = "<!-- results/field: claims -->\n\n| told |\n\n"
    text = f"The task is told.\n{table}`told` and [page](told.md): one LoRA pair per task.\n"
    assert old_words(page, text) == ["1: 'told': labelled, given as input, reported"]
    assert old_words(page, "a\n\nthe drawn\nworld") == ["3: 'drawn\\nworld': synthetic benchmark"]
    assert old_words(page, "An update a task.") == ["1: 'An update a task': … per …"]
    assert old_words(Path("code.py"), "told = 1\nretold, told_updates") == ["1: 'told': labelled, given as input, reported"]
    assert old_words(page, "```python\ntold = 1\n```\nthe Drawn World") == ["4: 'Drawn World': synthetic benchmark"]


def test_everything_is_found() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in files()}
    assert {
        "README.md",
        "docs/methods/lora.md",
        "docs/site_hooks.py",
        "recipes/janus_pro/data.yaml",
        "tests/test_house.py",
    } <= names


def test_texts_of_code() -> None:
    source = '''def f(picture):
    """Draw one.

    Args:
        picture: the ``picture`` itself.
    """
    raise ValueError(f"no picture {picture}")  # a picture
'''
    found = [[line for line in texts(source) if word.search(line)] for word in IN_TEXT]
    assert found == [["no picture ", "# a picture"]]
