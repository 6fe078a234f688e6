"""Keeps the result of `make prove` in docs/prove.md: what was counted, how long it took, on which machine, when."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "prove.md"
HEAD = """# The last `make prove`

The full counts of races, kills and rounds, on {machine}, {date}. A row is one test; what it counted stands behind it.

| test | result | seconds | counted |
|---|---|---:|---|
"""


class Prove:
    """A pytest plugin that writes the page at the end; a test adds what it counted by `record_property`."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome != "skipped":
            return
        counted = ", ".join(f"{name}: {value}" for name, value in report.user_properties)
        name = report.nodeid.removeprefix("tests/").replace("|", "\\|")
        self.rows.append(f"| `{name}` | {report.outcome} | {report.duration:.0f} | {counted} |\n")

    def pytest_sessionfinish(self) -> None:
        memory = psutil.virtual_memory().total / 2**30
        machine = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
        head = HEAD.format(machine=machine, date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
        PAGE.write_text(head + "".join(self.rows))
