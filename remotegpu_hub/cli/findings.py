"""What `remotegpu doctor` says of one thing: a level, the thing, and a sentence that tells what to do."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    """It works, but somebody should look."""
    PROBLEM = "problem"
    """Something is wrong or will be."""


@dataclass(frozen=True)
class Finding:
    level: Level
    subject: str
    text: str


Findings = Iterator[Finding]


def ok(subject: str, text: str) -> Finding:
    return Finding(Level.OK, subject, text)


def warn(subject: str, text: str) -> Finding:
    return Finding(Level.WARN, subject, text)


def problem(subject: str, text: str) -> Finding:
    return Finding(Level.PROBLEM, subject, text)


def some(names: list[str], most: int = 5) -> str:
    """The first few of many, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
