"""`remotegpu prices` and `remotegpu budgets`: what a unit costs from a moment on, and what a month may cost."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from traitlets import Bool

from .. import plain, words
from ..domain import budgets, prices, workspaces
from ..orm import Budget, BudgetAction, Price, Workspace
from ..runtime import utcnow
from ..units import iso, parse_money, price_unit
from .command import Command, Text, chosen, option, whole
from .stop import Usage
from .tables import Column, short

PRICE_COLUMNS = [
    Column("RESOURCE", "resource"),
    Column("PRICE", lambda row: words.money(row["unit_price_micros"], row["currency"], "en"), right=True),
    Column("PER", "unit"),
    Column("FROM", lambda row: short(row["effective_from"])),
    Column("IN FORCE", lambda row: "yes" if row["in_force"] else "no"),
]
BUDGET_COLUMNS = [
    Column("WORKSPACE", "workspace"),
    Column("MONTH", "month"),
    Column("BUDGET", lambda row: words.money(row["amount_micros"], row["currency"], "en"), right=True),
    Column("SPENT", lambda row: words.money(row["spent_micros"], row["currency"], "en"), right=True),
    Column("WARN AT", lambda row: f"{row['warn_percent']} %", right=True),
    Column("AT 100 %", "action"),
]


def plain_price(price: Price, *, currency: str, in_force: bool) -> dict[str, Any]:
    """A price for programs."""
    return {
        "resource": price.resource,
        "unit": price_unit(price.resource),
        "unit_price_micros": price.unit_price,
        "currency": currency,
        "effective_from": iso(price.effective_from),
        "in_force": in_force,
    }


def parse_moment(text: str) -> datetime:
    """Read `2026-12-01` or `2026-12-01T08:00+08:00`; without an offset it is UTC. Raises: Usage."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Usage(
            f"`{text}` is not a moment: write one such as 2026-12-01T00:00+08:00; without an offset it is UTC."
        ) from error


class PricesList(Command):
    name = "list"
    description = "List the prices in force, and those to come."
    all = option(Bool(False, help="Old prices too."), "all")

    def run(self) -> None:
        now = utcnow()
        with self.transaction(read_only=True) as session:
            currency = prices.currency(session)
            in_force = {price.id for price in prices.at(session, now=now).values()}
            rows = [
                plain_price(price, currency=currency, in_force=price.id in in_force)
                for history in prices.history(session).values()
                for price in history
                if self.all or price.id in in_force or price.effective_from > now
            ]
        self.show_rows("prices", rows, PRICE_COLUMNS, empty="There are no prices: nothing can start until there are.")


class PricesSet(Command):
    name = "set"
    words = ("RESOURCE", "PRICE")
    description = (
        "Set what a unit costs from a moment on, in the hub's currency. RESOURCE is cpu (a core-hour), memory or "
        "storage (a GiB-hour), or gpu:MODEL (a GPU-hour). Old prices are kept: what ran is never repriced."
    )
    examples = "remotegpu prices set gpu:A100-80GB 9.50\nremotegpu prices set cpu 0.05 --from 2026-12-01T00:00+08:00"
    since = option(Text(help="When it begins, ISO 8601. Default: now."), "from", "MOMENT")

    def run(self) -> None:
        now = utcnow()
        since = parse_moment(self.since) if self.since is not None else now
        with self.transaction() as session:
            price = prices.put(
                session, resource=self.need(0), unit_price=parse_money(self.need(1)), effective_from=since,
                actor=self.actor, now=now,
            )  # fmt: skip
            row = plain_price(price, currency=prices.currency(session), in_force=price.effective_from <= now)
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


class BudgetsList(Command):
    name = "list"
    description = "List the budgets, with what of them is spent this month."

    def run(self) -> None:
        now = utcnow()
        with self.transaction(read_only=True) as session:
            currency = prices.currency(session)
            found = session.scalars(
                select(Workspace).join(Budget, Budget.workspace_id == Workspace.id).order_by(Workspace.name)
            )
            rows = [plain.budget(session, one, currency=currency, now=now) for one in found]
        self.show_rows("budgets", rows, BUDGET_COLUMNS, empty="There are no budgets: nothing limits what is spent.")


class BudgetsSet(Command):
    name = "set"
    words = ("WORKSPACE", "AMOUNT")
    description = "Set what a workspace may spend in a calendar month of its time zone, in the hub's currency."
    examples = "remotegpu budgets set vision 5000\nremotegpu budgets set vision 5000 --warn 90 --action warn"
    warn = option(Text(help="Warn at this part of it, in %. Default: as it was, or 80."), "warn", "PERCENT")
    action = option(
        Text(help="At 100 %: `warn`, `refuse` new starts, or `stop`. Default: as it was, or refuse."),
        "action", "ACTION",
    )  # fmt: skip

    def run(self) -> None:
        action = chosen(BudgetAction, self.action, "--action")
        now = utcnow()
        with self.transaction() as session:
            workspace = workspaces.by_name(session, name=self.need(0))
            known = session.get(Budget, workspace.id)
            warn, action_before = (known.warn_percent, known.action) if known else (80, BudgetAction.REFUSE)
            warn = warn if self.warn is None else whole(self.warn, "--warn")
            budgets.put(
                session, workspace=workspace, amount=parse_money(self.need(1)), actor=self.actor, now=now,
                warn_percent=warn, action=action or action_before,
            )  # fmt: skip
            row = plain.budget(session, workspace, currency=prices.currency(session), now=now)
        shown = words.money(row["amount_micros"], row["currency"], "en")
        self.show_one("budget", row, f"{row['workspace']} may spend {shown} a month.")


class Budgets(BudgetsList):
    name = "budgets"
    description = "What a workspace may spend in a month. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (BudgetsList, "list them with what is spent"),
        "set": (BudgetsSet, "set one"),
    }
