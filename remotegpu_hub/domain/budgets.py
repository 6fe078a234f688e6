"""Money that a workspace may spend in a calendar month of its time zone."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, case, extract, func, select
from sqlalchemy.orm import Session

from ..errors import BudgetExceeded, Invalid
from ..orm import Allocation, AllocationState, Budget, BudgetAction, Spend, Workspace
from ..units import Money, month_bounds, month_of
from .audit import Actor, record


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


_here = Allocation.workspace_id == bindparam("workspace_id")
_open = _here & (Allocation.state != AllocationState.ENDED)
_since: Any = extract("epoch", func.coalesce(Allocation.metered_until, Allocation.started_at))
_since = case((_since < bindparam("month_epoch"), bindparam("month_epoch")), else_=_since)
_until = case((Allocation.ended_at.is_(None), bindparam("epoch")), else_=extract("epoch", Allocation.ended_at))
_seconds = case((_until > _since, _until - _since), else_=0)
_unmetered = (
    select(func.coalesce(func.sum(Allocation.price_per_hour * _seconds), 0))
    .where(_here, ~Allocation.metered, Allocation.started_at.is_not(None))
    .scalar_subquery()
)
_running = select(func.coalesce(func.sum(Allocation.price_per_hour), 0)).where(_open).scalar_subquery()
_status = (
    select(Budget.amount, Budget.warn_percent, Budget.action, Spend.amount, _unmetered, _running)
    .outerjoin(Spend, (Spend.workspace_id == Budget.workspace_id) & (Spend.month == bindparam("month")))
    .where(Budget.workspace_id == bindparam("workspace_id"))
)


def status(
    session: Session, *, workspace_id: int, workspace: str, time_zone: str, now: datetime
) -> BudgetStatus | None:
    """The month so far, with what is not on the ledger yet to the second, at the prices of its admission; None for a
    workspace without a budget."""
    month = month_of(now, time_zone)
    start, end = month_bounds(month, time_zone)
    facts = {"month": month, "epoch": int(now.timestamp()), "month_epoch": int(start.timestamp())}
    row = session.connection().execute(_status, {"workspace_id": workspace_id, **facts}).first()
    if row is None:
        return None
    amount, warn, action, spent, unmetered, running = row
    spent_now = int(spent or 0) + int(unmetered) // 3600
    return BudgetStatus(workspace, month, end, amount, spent_now, int(running), warn, action)


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
