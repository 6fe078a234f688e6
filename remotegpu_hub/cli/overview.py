"""`remotegpu overview`: how the whole hub stands, and what needs attention."""

from typing import Any

from .. import words
from .asking import Asking
from .tables import Column, Row, dump, pairs, printable, short, table

KINDS = {"held": "HELD", "free": "FREE", "foreign": "USED BY OTHERS", "broken": "BROKEN", "off": "OFF", "total": "ALL"}
MODELS = [Column("MODEL", "model"), *(Column(title, kind, right=True) for kind, title in KINDS.items())]


def _holders(title: str, currency: str) -> list[Column]:
    return [
        Column(title, "name"),
        Column("GPUS", lambda row: words.gpus(row["gpu_millis"]), right=True),
        Column("RUNNING", "runs", right=True),
        Column("AN HOUR", lambda row: words.money(row["per_hour_micros"], currency, "en"), right=True),
    ]


def _concern(row: Row) -> str:
    since = f" Since {short(row['since'])}." if row["since"] else ""
    return f"{'!' if row['urgent'] else '-'} {printable(row['message'])}{since}"


class Overview(Asking):
    name = "overview"
    description = (
        "Show the hub at a glance: GPUs by model, environments by state, who holds most, and what needs attention, of "
        "which what is urgent is marked with !."
    )
    examples = "remotegpu overview\nremotegpu overview --json"

    def run(self) -> None:
        found = self.read("overview")
        if self.json:
            self.say(dump({"overview": found}))
            return
        currency = found["currency"]
        states = ", ".join(f"{number} {state}" for state, number in found["environments"].items() if number)
        self.say(
            pairs(
                [
                    ("GPUs held", f"{found['gpus']['held']} of {found['gpus']['total']}"),
                    ("running", found["runs"]),
                    ("an hour", words.money(found["per_hour_micros"], currency, "en")),
                    ("environments", states),
                ]
            )
        )
        for columns, rows in (
            (MODELS, found["models"]),
            (_holders("USER", currency), found["users"]),
            (_holders("WORKSPACE", currency), found["workspaces"]),
        ):
            if rows:
                self.say("\n" + table(columns, rows))
        self.say("\n" + self._attention(found))

    def _attention(self, found: dict[str, Any]) -> str:
        if not found["concerns"]:
            return "Nothing needs attention."
        more = found["more_concerns"]
        lines = [_concern(one) for one in found["concerns"]]
        return "\n".join(["What needs attention:", *lines, *([f"and {more} more"] if more else [])])
