"""What the command prints: tables for people, JSON for programs, both made from the same plain rows."""

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, and how a row's cell reads (by default the row's value of `key`)."""

    title: str
    cell: str | Callable[[Row], Any]
    right: bool = False

    def text(self, row: Row) -> str:
        value = row[self.cell] if isinstance(self.cell, str) else self.cell(row)
        return printable("-" if value is None or value == "" else str(value))


def printable(text: str) -> str:
    """Replace what would move the cursor or hide in a terminal: names may come from people who wish us ill."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def width(text: str) -> int:
    """Columns of a terminal that a text takes: Chinese characters take two, combining marks none."""
    total = 0
    for char in text:
        if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
            continue
        total += 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1
    return total


def pad(text: str, columns: int, *, right: bool = False) -> str:
    gap = " " * max(0, columns - width(text))
    return gap + text if right else text + gap


def table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Lay rows out under their titles, two spaces between columns, nothing at line ends."""
    cells = [[column.title for column in columns], *([column.text(row) for column in columns] for row in rows)]
    widths = [max(width(line[index]) for line in cells) for index in range(len(columns))]
    return "\n".join(
        "  ".join(
            pad(text, size, right=column.right) for text, size, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in cells
    )


def pairs(facts: Sequence[tuple[str, Any]]) -> str:
    """Lay out the facts of one thing, a line each, values under each other."""
    size = max(width(name) for name, _value in facts)
    return "\n".join(
        f"{pad(name, size)}  {printable('-' if value in (None, '') else str(value))}" for name, value in facts
    )


def short(moment: str | None) -> str:
    """An ISO instant for people, to the second and still in UTC: `2026-11-23 04:00:00Z`."""
    return "-" if moment is None else moment[:19].replace("T", " ") + "Z"


def dump(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=2)
