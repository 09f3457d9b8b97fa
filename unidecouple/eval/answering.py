"""Answers are written as they come, so that a killed evaluation asks nothing twice; scoring comes after and needs no model.

``answers.<rank>.jsonl`` grow while a process asks; together they are the answers. Their number may change between two starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from unidecouple.eval.benchmark import Query, ask
from unidecouple.eval.records import read_lines
from unidecouple.files import append_jsonl
from unidecouple.inputs import quoted
from unidecouple.shares import ALONE, WorkShare

AskBatch = Callable[[Sequence[Query]], list[str]]
"""Puts queries to a model, one answer each, in order."""
Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, of)."""


def read_answers(folder: Path, kind: str = "answers") -> dict[str, str]:
    """All answers in ``folder``; a line that a kill cut short is none.

    Raises:
        ValueError: another line is damaged; with its file and number.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.glob(f"{kind}.*.jsonl")):
        content = path.read_bytes()
        for row in read_lines(content[: content.rfind(b"\n") + 1], path):
            if not isinstance(row["answer"], str):
                row.fail(f"'answer' is {quoted(row['answer'])}; delete the line, and the question is asked again")
            found[row.text("id")] = row["answer"]
    return found


def collect(
    model: AskBatch,
    queries: Sequence[Query],
    folder: Path,
    batch_size: int,
    share: WorkShare = ALONE,
    progress: Progress = lambda what, done, of: None,
    kind: str = "answers",
) -> None:
    """Ask what has no answer in ``folder`` yet; several processes share the work.

    Raises:
        ValueError: two queries of one id, or the model did not give one answer a query.
    """
    if len({query.id for query in queries}) < len(queries):
        raise ValueError("two questions have the same id, by which answers are kept: look for repeated lines in the files")
    done = read_answers(folder, kind)
    share.wait()  # all have read before any writes, so they agree on what is left
    if share.independent:
        mine = [query for query in share.of(queries) if query.id not in done]
    else:
        mine = list(share.of([query for query in queries if query.id not in done]))
    path = folder / f"{kind}.{share.rank}.jsonl"
    _drop_cut_line(path)
    for start in range(0, len(mine), batch_size):
        batch = mine[start : start + batch_size]
        for name, answer in ask(model, batch).items():
            append_jsonl(path, {"id": name, "answer": answer})
        progress(f"{folder.name}: {kind}", start + len(batch), len(mine))
    share.wait()


def complete(answers: dict[str, str], queries: Iterable[Query], folder: Path) -> dict[str, str]:
    """The answers to ``queries``.

    Raises:
        ValueError: some have none; scoring them would be a guess.
    """
    missing = [query.id for query in queries if query.id not in answers]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} answers, the first to {missing[0]!r}: run the same command without --score-only"
        )
    return {query.id: answers[query.id] for query in queries}


def _drop_cut_line(path: Path) -> None:
    """Cut what follows the last whole line."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
