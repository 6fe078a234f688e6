"""Money that a workspace may spend in a calendar month of its time zone."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..errors import BudgetExceeded, Invalid, NotFound
from ..orm import Allocation, Budget, BudgetAction, MemberMonth, Workspace
from ..units import Money, month_bounds, month_of
from . import quotas
from .audit import Actor, record
from .quotas import BudgetTerms, Level


@dataclass(frozen=True)
class BudgetStatus:
    """A workspace's month: amounts in millionths of the hub's currency."""

    workspace: str
    month: str
    month_end: datetime
    amount: int
    spent: int
    """What is on the ledger plus what runs and is not yet written."""
    per_hour: int
    """What everything that runs there costs an hour."""
    warn_percent: int
    action: BudgetAction

    @property
    def left(self) -> int:
        return self.amount - self.spent


def status(
    terms: BudgetTerms | Budget | None, level: Level, *, workspace: str, time_zone: str, now: datetime
) -> BudgetStatus | None:
    """The month so far, of a workspace with this budget and this level; None without a budget."""
    if terms is None:
        return None
    month = month_of(now, time_zone)
    end = month_bounds(month, time_zone)[1]
    return BudgetStatus(
        workspace, month, end, terms.amount, level.spent, level.per_hour, terms.warn_percent, terms.action
    )


def status_of(session: Session, *, workspace: Workspace, now: datetime) -> BudgetStatus | None:
    """Read the month so far, with what is not on the ledger yet to the second; None without a budget."""
    budget, zone = session.get(Budget, workspace.id), workspace.time_zone
    if budget is None:
        return None
    found = quotas.levels(session, user_id=0, workspace_id=workspace.id, time_zone=zone, now=now)
    return status(budget, found["workspace"], workspace=workspace.name, time_zone=zone, now=now)


@dataclass(frozen=True)
class Month:
    """A workspace's money in the month that it is in, in millionths."""

    spent: int
    """On the ledger, and what runs and is not yet written."""
    per_hour: int


def months(session: Session, *, workspaces: Collection[Workspace], now: datetime) -> dict[int, Month]:
    """The month so far of many workspaces, by their ids, as `status_of` tells it of one: in two statements."""
    current = {one.id: month_of(now, one.time_zone) for one in workspaces}
    starts = {one.id: month_bounds(current[one.id], one.time_zone)[0] for one in workspaces}
    written = (
        select(MemberMonth.workspace_id, MemberMonth.month, func.sum(MemberMonth.amount))
        .where(MemberMonth.workspace_id.in_(current), MemberMonth.month.in_(set(current.values())))
        .group_by(MemberMonth.workspace_id, MemberMonth.month)
    )
    spent = {number: int(amount) for number, month, amount in session.execute(written) if current[number] == month}
    columns = (Allocation.price_per_hour, Allocation.metered_until, Allocation.started_at, Allocation.ended_at)
    unmetered = select(Allocation.workspace_id, *columns).where(
        ~Allocation.metered, Allocation.workspace_id.in_(current)
    )
    unwritten, per_hour = Counter[int](), Counter[int]()
    for number, price, metered_until, started_at, ended_at in session.execute(unmetered):
        if ended_at is None:
            per_hour[number] += price
        if started_at is not None:
            since = max(metered_until or started_at, starts[number])
            unwritten[number] += price * max(int((ended_at or now).timestamp()) - int(since.timestamp()), 0)
    return {number: Month(spent.get(number, 0) + unwritten[number] // 3600, per_hour[number]) for number in current}


def check(status: BudgetStatus | None, *, price_per_hour: int) -> None:
    """Raises: BudgetExceeded when the month's money is spent and the start would cost something."""
    if status is None or status.action == BudgetAction.WARN or price_per_hour == 0:
        return
    if status.spent >= status.amount:
        raise BudgetExceeded(
            "The budget of {workspace} for {month} is spent. Ask a hub admin to raise it.",
            workspace=status.workspace,
            month=status.month,
            spent=status.spent,
            amount=status.amount,
        )


def lasts_until(status: BudgetStatus, *, more_per_hour: int, now: datetime) -> datetime | None:
    """When the budget would be spent at what runs now plus this; None when it outlasts the month."""
    per_hour = status.per_hour + more_per_hour
    if per_hour <= 0:
        return None
    end = now + timedelta(seconds=max(status.left, 0) * 3600 // per_hour)
    return end if end < status.month_end else None


def put(
    session: Session,
    *,
    workspace: Workspace,
    amount: Money,
    actor: Actor,
    now: datetime,
    warn_percent: int = 80,
    action: BudgetAction = BudgetAction.REFUSE,
) -> Budget:
    """Set a workspace's budget a month. Raises: Invalid."""
    if amount < 0 or not 0 <= warn_percent <= 100:
        raise Invalid("A budget is 0 or more, and its warning between 0 and 100 %.")
    wanted: dict[str, Any] = {"amount": int(amount), "warn_percent": warn_percent, "action": action}
    budget = session.get(Budget, workspace.id)
    if budget is None:
        before: dict[str, Any] = {}
        session.add(Budget(workspace_id=workspace.id, **wanted))
    else:
        before = {name: getattr(budget, name) for name in wanted}
        for name, value in wanted.items():
            setattr(budget, name, value)
    session.flush()
    record(session, actor=actor, action="budget.put", entity="workspace", entity_id=workspace.id, now=now,
           before=before, after=wanted)  # fmt: skip
    return session.get_one(Budget, workspace.id)


def remove(session: Session, *, workspace: Workspace, actor: Actor, now: datetime) -> None:
    """Take a workspace's budget away: nothing limits what it spends. Raises: NotFound where there is none."""
    budget = session.get(Budget, workspace.id)
    if budget is None:
        raise NotFound("The budget")
    before = {name: getattr(budget, name) for name in ("amount", "warn_percent", "action")}
    session.delete(budget)
    session.flush()
    record(session, actor=actor, action="budget.remove", entity="workspace", entity_id=workspace.id, now=now,
           before=before)  # fmt: skip
