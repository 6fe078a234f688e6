"""`remotegpu prices` and `remotegpu budgets`: what a unit costs from a moment on, and what a month may cost."""

from datetime import UTC, datetime
from typing import Any

from traitlets import Bool

from .. import words
from ..clients.api import Answer
from ..errors import RemoteGPUError
from ..orm import BudgetAction
from ..units import iso, parse_money
from .asking import Asking, missing
from .command import Text, chosen, option, whole
from .stop import Usage
from .tables import Column, short

PRICE_COLUMNS = [
    Column("RESOURCE", "resource"),
    Column("PRICE", lambda row: words.money(row["unit_price_micros"], row["currency"], "en"), right=True),
    Column("PER", "unit"),
    Column("FROM", lambda row: short(row["effective_from"])),
    Column("IN FORCE", lambda row: "yes" if row["in_force"] else "no"),
]
BUDGET = "workspaces/{workspace}/budget"
BUDGET_COLUMNS = [
    Column("WORKSPACE", "workspace"),
    Column("MONTH", "month"),
    Column("BUDGET", lambda row: words.money(row["amount_micros"], row["currency"], "en"), right=True),
    Column("SPENT", lambda row: words.money(row["spent_micros"], row["currency"], "en"), right=True),
    Column("WARN AT", lambda row: f"{row['warn_percent']} %", right=True),
    Column("AT 100 %", "action"),
]


def parse_moment(text: str) -> datetime:
    """Read `2026-12-01` or `2026-12-01T08:00+08:00`; without an offset it is UTC. Raises: Usage."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Usage(
            f"`{text}` is not a moment: write one such as 2026-12-01T00:00+08:00; without an offset it is UTC."
        ) from error


class PricesList(Asking):
    name = "list"
    description = "List the prices in force, and those to come."
    all = option(Bool(False, help="Old prices too."), "all")

    def run(self) -> None:
        rows = self.every("prices", query={"old": "true" if self.all else None})
        self.show_rows("prices", rows, PRICE_COLUMNS, empty="There are no prices: nothing can start until there are.")


class PricesSet(Asking):
    name = "set"
    words = ("RESOURCE", "PRICE")
    description = (
        "Set what a unit costs from a moment on, in the hub's currency. RESOURCE is cpu (a core-hour), memory or "
        "storage (a GiB-hour), or gpu:MODEL (a GPU-hour). Old prices are kept: what ran is never repriced."
    )
    examples = "remotegpu prices set gpu:A100-80GB 9.50\nremotegpu prices set cpu 0.05 --from 2026-12-01T00:00+08:00"
    since = option(Text(help="When it begins, ISO 8601. Default: now."), "from", "MOMENT")

    def run(self) -> None:
        body = {"resource": self.need(0), "unit_price_micros": parse_money(self.need(1))}
        if self.since is not None:
            body["effective_from"] = iso(parse_moment(self.since))
        row = self.create("prices", body)
        shown = words.money(row["unit_price_micros"], row["currency"], "en")
        since_shown = short(row["effective_from"])
        self.show_one("price", row, f"{row['resource']} costs {shown} per {row['unit']} from {since_shown}.")


class Prices(PricesList):
    name = "prices"
    description = "What a unit of a resource costs. Nothing runs unpriced. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (PricesList, "list those in force and to come"),
        "set": (PricesSet, "set one from a moment on"),
    }


class BudgetsList(Asking):
    name = "list"
    description = "List the budgets, with what of them is spent this month."

    def run(self) -> None:
        rows = self.every("budgets")
        self.show_rows("budgets", rows, BUDGET_COLUMNS, empty="There are no budgets: nothing limits what is spent.")


class BudgetsSet(Asking):
    name = "set"
    words = ("WORKSPACE", "AMOUNT")
    description = "Set what a workspace may spend in a calendar month of its time zone, in the hub's currency."
    examples = "remotegpu budgets set vision 5000\nremotegpu budgets set vision 5000 --warn 90 --action warn"
    warn = option(Text(help="Warn at this part of it, in %. Default: as it was, or 80."), "warn", "PERCENT")
    action = option(
        Text(
            help="At 100 %: `warn`, `refuse` new starts, or `stop` also what runs, an hour later. "
            "Default: as it was, or refuse."
        ),
        "action", "ACTION", values=BudgetAction,
    )  # fmt: skip

    def run(self) -> None:
        action = chosen(BudgetAction, self.action, "--action")
        warn = whole(self.warn, "--warn") if self.warn is not None else None
        body: dict[str, Any] = {"amount_micros": parse_money(self.need(1))}
        known = self.known()
        for name, value in (("warn_percent", warn), ("action", action)):
            if value is not None or known.value is not None:
                body[name] = value if value is not None else known.value[name]
        row = self.ask("PUT", BUDGET, body=body, match=known.tag, workspace=self.need(0)).value
        shown = words.money(row["amount_micros"], row["currency"], "en")
        self.show_one("budget", row, f"{row['workspace']} may spend {shown} a month.")

    def known(self) -> Answer:
        """The budget as it is, or nothing where there is none."""
        try:
            return self.ask("GET", BUDGET, workspace=self.need(0))
        except RemoteGPUError as error:
            if not missing(error, "The budget"):
                raise
        return Answer(None)


class BudgetsRemove(Asking):
    name = "remove"
    words = ("WORKSPACE",)
    description = "Take the budget of a workspace away: nothing limits then what is spent there."

    def run(self) -> None:
        row = self.ask("DELETE", BUDGET, workspace=self.need(0)).value
        self.show_one("budget", row, f"{row['workspace']} has no budget any more.")


class Budgets(BudgetsList):
    name = "budgets"
    description = "What a workspace may spend in a month. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (BudgetsList, "list them with what is spent"),
        "set": (BudgetsSet, "set one"),
        "remove": (BudgetsRemove, "take one away"),
    }
