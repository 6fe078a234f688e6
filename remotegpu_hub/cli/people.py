"""`remotegpu limits` and `remotegpu users`: what you may hold, and who there is."""

from typing import Any

from .asking import Asking
from .command import Text, option
from .quotas import LIMITS, cell
from .tables import Column, Row, short

LIMIT_COLUMNS = [
    Column("WORKSPACE", "workspace"),
    Column("WHOSE", "level"),
    Column("LIMIT", "resource"),
    Column("HELD", "held", right=True),
    Column("MAY HOLD", "limit", right=True),
]
USER_COLUMNS = [
    Column("USER", "name"),
    Column("RUNNING", "running", right=True),
    Column("SINCE", lambda row: short(row["created_at"])),
    Column("WORKSPACES", lambda row: ", ".join(row["workspaces"])),
]


def _rows(me: Row) -> list[dict[str, Any]]:
    """Your own limits once, then those of each workspace and, where there are some, yours inside it."""
    rows: list[dict[str, Any]] = []
    for number, space in enumerate(me["workspaces"]):
        for level in ("user", "workspace", "member"):
            if level == "user" and number:
                continue
            limits, held = space["limits"][level], space["held"][level]
            for name, (column, _read) in LIMITS.items():
                if level == "member" and limits[column] == "unlimited":
                    continue
                rows.append(
                    {
                        "workspace": None if level == "user" else space["name"],
                        "level": {"user": "yours", "workspace": "all members'", "member": "yours inside"}[level],
                        "resource": name,
                        "held": cell(name)(held) if column in held else None,
                        "limit": cell(name)(limits),
                    }
                )
    return rows


class Limits(Asking):
    name = "limits"
    description = (
        "Show what you and your workspaces may hold and hold now. A start needs room at all levels. GPU hours count "
        "in a month."
    )
    examples = "remotegpu limits"

    def run(self) -> None:
        self.needs_hub()
        me = self.read("me")
        rows = me["workspaces"] if self.json else _rows(me)
        self.show_rows("limits", rows, LIMIT_COLUMNS, empty="You are in no workspace.")


class Users(Asking):
    name = "users"
    description = "List the users of the hub, with their workspaces and what they run."
    examples = "remotegpu users --search ali"
    search = option(Text(help="Only those with this in their name."), "search", "TEXT")

    def run(self) -> None:
        rows = self.every("users", query={"search": self.search})
        self.show_rows("users", rows, USER_COLUMNS, empty="There are no such users.")
