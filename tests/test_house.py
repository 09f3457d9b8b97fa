"""The house rules that a machine can check."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "unidecouple").rglob("*.py"))
SOURCES = [
    *PACKAGE,
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "benchmarks").rglob("*.py")),
    ROOT / "results" / "refresh.py",
    *sorted((ROOT / "docs").glob("*.py")),
]

TEXT_ENDINGS = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".jsonl", ".html", ".j2", ".css", ".js", ".cfg", ""}
TEXT_FOLDERS = ("unidecouple", "tests", "benchmarks", "recipes", "results", "docs", ".ci")
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:work|home|root|opt|tmp|mnt|Users)/\w|\b[A-Z]:\\\\?\w")


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def type_names(source: str) -> set[str]:
    """Names of the classes, type aliases, new types and type variables at the top level; constants have no lower-case letter."""
    body = ast.parse(source).body
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign) and node.value is not None]
    assigned = {target.id for target in targets if isinstance(target, ast.Name)}
    return classes | {name for name in assigned if re.fullmatch(r"_?[A-Z]\w*[a-z]\w*", name)}


def long_functions(source: str, limit: int) -> list[str]:
    """Names of the functions that span more than ``limit`` lines."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [node.name for node in functions if (node.end_lineno or 0) - node.lineno + 1 > limit]


def parameters_over(source: str, limit: int) -> list[str]:
    """Names of the functions with more than ``limit`` parameters, ``self`` and ``cls`` left out."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    counts = [(node.name, node.args.posonlyargs + node.args.args + node.args.kwonlyargs) for node in functions]
    return [name for name, parameters in counts if len([one for one in parameters if one.arg not in {"self", "cls"}]) > limit]


def unexplained_dependencies(pyproject: str) -> list[str]:
    """Lines of the dependency lists that hold a requirement without a comment of at least two words after it."""
    lists = re.findall(r"^(?:dependencies|dev) = \[\n(.*?)^\]", pyproject, flags=re.MULTILINE | re.DOTALL)
    requirements = [line.strip() for body in lists for line in body.splitlines() if line.strip()]
    assert requirements, "found no list of dependencies"
    return [line for line in requirements if not re.fullmatch(r'"[^"]+",? # \S+ \S.*', line)]


def test_files_and_functions_are_short() -> None:
    assert {path: len(lines_of(path)) for path in SOURCES if len(lines_of(path)) > 400} == {}
    found = {path: long_functions(path.read_text(encoding="utf-8"), limit=60) for path in SOURCES}
    assert {path: functions for path, functions in found.items() if functions} == {}


def test_few_functions_have_many_parameters() -> None:
    """The limit is 6; what is over it becomes less, never more.

    ``forward`` has transformers' signature, and functions of ``api`` take a command's options by keyword.
    """
    house = [path for path in PACKAGE if path.parent.name != "api"]
    found = [name for path in house for name in parameters_over(path.read_text(encoding="utf-8"), limit=6) if name != "forward"]
    assert len(found) <= 14


def test_the_median_file_is_short() -> None:
    assert statistics.median(len(lines_of(path)) for path in PACKAGE if lines_of(path)) <= 130


def test_a_type_name_has_one_meaning() -> None:
    """No exceptions. Where two modules need one type, one of them imports it from the other, or from a module below both."""
    homes: dict[str, list[str]] = defaultdict(list)
    for path in PACKAGE:
        for name in type_names(path.read_text(encoding="utf-8")):
            homes[name].append(str(path.relative_to(ROOT)))
    assert len(homes) > 300
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_no_file_is_a_drawer_for_everything() -> None:
    assert not [path for path in PACKAGE if path.stem in {"utils", "util", "helpers", "common", "misc"}]


def test_no_path_of_one_machine() -> None:
    inside = (path for folder in TEXT_FOLDERS for path in (ROOT / folder).rglob("*"))
    texts = [p for p in (*ROOT.iterdir(), *inside) if p.is_file() and p.suffix in TEXT_ENDINGS and "__pycache__" not in p.parts]
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in texts for m in MACHINE_PATH.finditer(p.read_text(encoding="utf-8"))]
    assert found == []


def test_every_dependency_has_its_reason() -> None:
    assert unexplained_dependencies((ROOT / "pyproject.toml").read_text(encoding="utf-8")) == []


def test_every_dependency_is_pinned() -> None:
    def name(line: str) -> str:
        return re.split(r"[^\w.-]", line.strip().strip('"'))[0].lower().replace("_", "-")

    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = {name(requirement) for requirement in re.findall(r'^    "([\w.-]+[<>=]+[^"]*)", #', pyproject, flags=re.MULTILINE)}
    pinned = {name(line) for line in lines_of(ROOT / "constraints.txt") if "==" in line}
    assert wanted
    assert wanted - pinned == set()


def test_the_oldest_versions_are_the_lower_ends() -> None:
    """`make test-oldest` installs what the ranges of the package and its extras start with; torch is pinned to its CPU build."""
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(
        r"^(?:dependencies|data|gguf|gradient|quantized|serve) = \[\n(.*?)^\]", pyproject, flags=re.MULTILINE | re.DOTALL
    )
    lower = {name.lower(): Version(least) for body in lists for name, least in re.findall(r'"([\w-]+)>=([\d.]+)', body)}
    lines = [line.split("==") for line in lines_of(ROOT / "constraints-oldest.txt") if not line.startswith("#")]
    oldest = {name: Version(pin) for name, pin in lines}
    assert lower.pop("torch") <= oldest.pop("torch")
    assert oldest == lower


def test_what_the_makefile_names_is_there() -> None:
    """pytest of several processes ends without a test, and little else, where one path of its list is missing."""
    named = re.findall(r"\b(?:tests|benchmarks)/[\w/.]+", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_imports_point_one_way() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_checks_find_what_they_look_for() -> None:
    assert long_functions("def short():\n    pass\n\ndef long():\n    a = 1\n    b = 2\n", limit=2) == ["long"]
    assert parameters_over("def many(self, a, b, *, c):\n    pass\n\ndef few(a, b):\n    pass\n", limit=2) == ["many"]
    assert unexplained_dependencies('dependencies = [\n    "a>=1", # why it is here\n    "b>=1",\n]\n') == ['"b>=1",']
    source = "class Row:\n    Inner = int\n\nPart = dict[str, int]\n_Key: TypeAlias = int\nT, LIMIT = TypeVar('T'), 6\nvalue = 1\n"
    assert type_names(source) == {"Row", "Part", "_Key"}
    separator = "/"
    assert MACHINE_PATH.search(f"see {separator}home{separator}someone")
    assert not MACHINE_PATH.search(f"https://a.org{separator}home{separator}x")
