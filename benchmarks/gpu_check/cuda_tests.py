"""The project's tests that are marked ``cuda``, each outcome a finding."""

from __future__ import annotations

import os

import pytest

from benchmarks.gpu_check.check import ROOT, Check
from benchmarks.gpu_check.findings import Goal


def run(check: Check) -> None:
    """Run them in this process. Without a GPU they are skipped.

    Raises:
        RuntimeError: one failed, or none was found.
    """

    class Outcomes:
        """Adds each test's outcome as soon as it is known."""

        count = 0

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            """See pytest."""
            if report.when == "call" or report.outcome != "passed":
                self.count += report.when != "teardown"
                passed = None if report.outcome == "skipped" else float(report.outcome == "passed")
                check.add(report.nodeid, passed, "", Goal(1.0, always=True), outcome=report.outcome, seconds=report.duration)

    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # whatever else is installed
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text(encoding="utf-8")]
    outcomes = Outcomes()
    code = pytest.main(["-q", "-m", "cuda", "-W", "default", "-p", "no:cacheprovider", *files], plugins=[outcomes])
    if code != pytest.ExitCode.OK or not outcomes.count:
        raise RuntimeError(f"pytest ended with {code!r} after {outcomes.count} tests marked cuda: see the log")
