"""Routes of budgets: what a workspace may spend in a calendar month, and what of it is spent."""

from typing import Annotated, Any

from pydantic import Field, StrictInt
from sqlalchemy import select

from ... import plain
from ...domain import budgets, prices, workspaces
from ...errors import NotFound
from ...orm import Budget, BudgetAction, Workspace
from ...units import Money
from ..api import LARGEST, Call, Needs, Route, Shape
from ..paging import Paging, page

Micros = Annotated[StrictInt, Field(ge=0, le=LARGEST, description="Millionths of the currency.")]
Percent = Annotated[StrictInt, Field(ge=0, le=100)]


class BudgetShown(Shape):
    workspace: str
    month: str = Field(description="Of the workspace's time zone, such as 2026-11.")
    amount_micros: int = Field(description="Millionths of the currency.")
    spent_micros: int = Field(description="With what runs and is not on the ledger yet, to the second.")
    currency: str
    warn_percent: int
    action: BudgetAction = Field(
        description="At 100 %: only `warn`; `refuse` new starts that cost something; or `stop`, which also ends what "
        "runs and costs something, an hour later."
    )


class BudgetEdit(Shape):
    amount_micros: Micros
    warn_percent: Percent = 80
    action: BudgetAction = BudgetAction.REFUSE


def list_budgets(call: Call) -> Any:
    query = select(Workspace).join(Budget, Budget.workspace_id == Workspace.id)
    currency = prices.currency(call.session)
    found, following = page(
        call.session, query, call.query, sorts={"name": (Workspace.name,)}, sort="name", shown=lambda one: one
    )  # fmt: skip
    return plain.all_budgets(call.session, found, currency=currency, now=call.now), following


def read_budget(call: Call) -> Any:
    if call.locked:
        workspaces.lock(call.session, call.space)
        call.afresh()
    if call.session.get(Budget, call.space.id) is None:
        raise NotFound("The budget")
    return plain.budget(call.session, call.space, currency=prices.currency(call.session), now=call.now)


def put_budget(call: Call) -> Any:
    given: BudgetEdit = call.body
    workspaces.lock(call.session, call.space)
    budgets.put(
        call.session, workspace=call.space, amount=Money(given.amount_micros), warn_percent=given.warn_percent,
        action=given.action, actor=call.actor, now=call.now,
    )  # fmt: skip
    return read_budget(call)


def remove_budget(call: Call) -> Any:
    workspaces.lock(call.session, call.space)
    was = read_budget(call)
    budgets.remove(call.session, workspace=call.space, actor=call.actor, now=call.now)
    return was


SPENDING = frozenset({"month", "spent_micros"})
ROUTES = [
    Route("GET", "budgets", "List all budgets with what of them is spent this month", Needs.HUB_ADMIN, list_budgets,
          answers=BudgetShown, query=Paging, listing=True),
    Route("GET", "workspaces/{workspace}/budget", "Read the budget of a workspace; 404 where it has none",
          Needs.MEMBER, read_budget, answers=BudgetShown, etag=True, volatile=SPENDING),
    Route("PUT", "workspaces/{workspace}/budget", "Set what a workspace may spend in a month", Needs.HUB_ADMIN,
          put_budget, answers=BudgetShown, body=BudgetEdit, etag=True, shows=read_budget, volatile=SPENDING),
    Route("DELETE", "workspaces/{workspace}/budget", "Take the budget away; answers what it was", Needs.HUB_ADMIN,
          remove_budget, answers=BudgetShown, shows=read_budget, volatile=SPENDING),
]  # fmt: skip
