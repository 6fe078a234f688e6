"""`remotegpu audit`: who changed what."""

import json
import sys
from datetime import datetime
from typing import Any

from traitlets import Bool

from .. import sheets
from ..sheets import MOST_IN_A_FILE
from ..units import iso
from .asking import Asking
from .command import Text, option, whole
from .money import parse_moment
from .stop import Usage
from .tables import Column, Row, short

SHOWN = 50
CUT_OFF = "Cut off after {count} entries: narrow the filters down."


def _who(row: Row) -> str:
    return f"{row['actor']} as {row['acted_as']}" if row["acted_as"] else str(row["actor"])


def _what(row: Row) -> str:
    return row["entity"] if row["entity_id"] is None else f"{row['entity']} {row['entity_id']}"


def facts(detail: Row) -> str:
    """Plain facts in one line: `role=admin, user=bob`."""
    return ", ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in detail.items()
    )


COLUMNS = [
    Column("ENTRY", "id", right=True),
    Column("AT", lambda row: short(row["at"])),
    Column("WHO", _who),
    Column("ACTION", "action"),
    Column("OF", _what),
    Column("FROM", "address"),
    Column("DETAIL", lambda row: facts(row["detail"])),
]


class Audit(Asking):
    name = "audit"
    description = "Show who changed what, newest first: as a table, as JSON, or as the CSV file of the page Audit."
    examples = (
        "remotegpu audit --action quota.put --since 2026-11-01\n"
        "remotegpu audit --entity workspace --id 3 --json\n"
        "remotegpu audit --actor alice --most 500\n"
        "remotegpu audit --since 2026-11-01 --csv > audit.csv"
    )
    who = option(Text(help="Only what this one did: a user, `service:NAME`, `cli:USER` or `system`."), "actor", "NAME")
    action = option(Text(help="Only this action, such as quota.put."), "action", "ACTION")
    entity = option(Text(help="Only what was done to this kind of thing, such as workspace."), "entity", "KIND")
    number = option(Text(help="Only what was done to the thing with this number; with --entity."), "id", "ID")
    since = option(Text(help="Only from this moment on, ISO 8601."), "since", "MOMENT")
    until = option(Text(help="Only before this moment, ISO 8601."), "until", "MOMENT")
    most = option(
        Text(help=f"How many entries at most. Default: {SHOWN}, in a file {MOST_IN_A_FILE}."), "most", "COUNT"
    )
    csv = option(
        Bool(False, help="A file for spreadsheets, in which nothing that somebody named is run as a formula."), "csv"
    )

    def run(self) -> None:
        query = {
            "actor": self.who, "action": self.action, "entity": self.entity,
            "entity_id": whole(self.number, "--id") if self.number is not None else None,
            "since": iso(parse_moment(self.since)) if self.since is not None else None,
            "until": iso(parse_moment(self.until)) if self.until is not None else None,
        }  # fmt: skip
        most = whole(self.most, "--most") if self.most is not None else None
        if self.csv:
            if self.json:
                raise Usage("--csv and --json do not go together.")
            self._write(query, most)
            return
        most = SHOWN if most is None else most
        rows = self.every("audit", query=query, most=most)
        self.show_rows("audit", rows, COLUMNS, empty="There are no such entries.")

    def _write(self, query: dict[str, Any], most: int | None) -> None:
        """The lines as they are read; whoever named no number is told in the last one where the file ends early."""
        sys.stdout.write(sheets.head())
        rows = self.each("audit", query=query, most=MOST_IN_A_FILE + 1 if most is None else most)
        for number, row in enumerate(rows):
            if most is None and number == MOST_IN_A_FILE:
                sys.stdout.write(sheets.lines([[CUT_OFF.format(count=MOST_IN_A_FILE)]]))
                return
            sys.stdout.write(sheets.lines([sheets.of_entry({**row, "at": datetime.fromisoformat(row["at"])})]))
