"""Keeps the result of `make prove` in docs/prove.md: what was counted, how long it took, on which machine, when."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "prove.md"
HEAD = """# The last `make prove`

The full counts of races, kills and rounds. A row is one test: how its last run ended, what it counted, when and on which machine. A run of some
leaves the rows of the others as they were, and so does one that could not be made.

| test | result | seconds | counted | ended |
|---|---|---:|---|---|
"""


class Prove:
    """A pytest plugin that writes the page at the end; a test adds what it counted by `record_property`."""

    def __init__(self) -> None:
        lines = PAGE.read_text().splitlines(keepends=True)
        self.rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome != "skipped":
            return
        counted = ", ".join(f"{name}: {value}" for name, value in report.user_properties)
        name = report.nodeid.removeprefix("tests/").replace("|", "\\|")
        memory = psutil.virtual_memory().total / 2**30
        machine = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
        ended = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {machine}"
        row = f"| `{name}` | {report.outcome} | {report.duration:.0f} | {counted} | {ended} |\n"
        if report.outcome == "skipped":
            self.rows.setdefault(name, row)
        else:
            self.rows[name] = row

    def pytest_sessionfinish(self) -> None:
        PAGE.write_text(HEAD + "".join(self.rows.values()))
