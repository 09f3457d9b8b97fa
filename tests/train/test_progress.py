"""The progress bar: on a terminal a bar below the lines, elsewhere the lines alone."""

from __future__ import annotations

import io

import pytest

from unidecouple.train.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    said: list[str] = []
    with progress_bar(8, 2, said.append, shown=True) as progress:
        progress.print_line("step 3/8")
        progress.show(5, {"mmu": 1.25})
        progress.bar.refresh()
    progress.print_line("after")
    assert said == ["step 3/8", "after"]
    assert "5/8" in terminal.getvalue()
    assert "mmu=1.250" in terminal.getvalue()


@pytest.mark.parametrize(("stream", "shown"), [(io.StringIO(), True), (Terminal(), False)])
def test_lines_alone_elsewhere(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, shown: bool) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    said: list[str] = []
    with progress_bar(8, 0, said.append, shown) as progress:
        progress.show(1, {"mmu": 1.0})
        progress.print_line("step 1/8")
    assert said == ["step 1/8"]
    assert not stream.getvalue()
