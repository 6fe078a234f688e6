"""Money that a workspace may spend in a calendar month of its time zone."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session, joinedload

from ..errors import BudgetExceeded, Invalid, NotFound
from ..orm import (
    Allocation,
    AllocationState,
    Budget,
    BudgetAction,
    Deadline,
    EndReason,
    MemberMonth,
    Workspace,
)
from ..units import Money, month_bounds, month_of
from . import events, quotas
from .audit import SYSTEM, Actor, record
from .quotas import BudgetTerms, Level

STOP_GRACE: Final = timedelta(hours=1)
"""How long what runs goes on after a budget that stops was found spent: time to save a result."""
SPENT: Final = "The budget of its workspace is spent."
"""What is told of a run that ends for it."""


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
    _spare_at_once(session, workspace, wanted, actor=actor, now=now)
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
    _spare_at_once(session, workspace, {}, actor=actor, now=now)


# what runs where a budget that stops is spent

_lives = Allocation.state.in_([AllocationState.ADMITTED, AllocationState.ACTIVE])
_announced = exists().where(Deadline.allocation_id == Allocation.id, Deadline.reason == EndReason.BUDGET)


@dataclass(frozen=True)
class Plan:
    """Runs by their workspace, all of which live."""

    announce: Mapping[int, list[int]]
    """They cost something where nothing is left, and know of no end for it yet."""
    spare: Mapping[int, list[int]]
    """They were to end, and there is money again: another month, a larger budget, or none that stops."""


def plan(session: Session, *, now: datetime) -> Plan:
    """Compare what runs with the budgets that stop: five statements at most, and two where there are none."""
    stopping = select(Workspace, Budget.amount).join(Budget, Budget.workspace_id == Workspace.id)
    runs_there = exists().where(Allocation.workspace_id == Workspace.id, _lives, ~Allocation.metered)
    found = session.execute(stopping.where(Budget.action == BudgetAction.STOP, runs_there)).all()
    so_far = months(session, workspaces=[space for space, _ in found], now=now) if found else {}
    spent = {space.id for space, amount in found if so_far[space.id].spent >= amount}
    told = select(Allocation.workspace_id, Allocation.id).where(_lives, ~Allocation.metered, _announced)
    untold = select(Allocation.workspace_id, Allocation.id).where(
        Allocation.workspace_id.in_(spent), _lives, ~Allocation.metered, Allocation.price_per_hour > 0, ~_announced
    )
    spare = [(space, run) for space, run in session.execute(told.order_by(Allocation.id)) if space not in spent]
    announce = session.execute(untold.order_by(Allocation.id)).tuples().all() if spent else ()
    return Plan(_by_workspace(announce), _by_workspace(spare))


def _by_workspace(pairs: Collection[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for space, run in pairs:
        found.setdefault(space, []).append(run)
    return found


def announce(session: Session, *, workspace_id: int, allocation_ids: Collection[int], now: datetime) -> None:
    """Give these runs of a workspace a time to end, and tell of it. What began to end meanwhile is left alone.

    The rows are locked in the order of their ids, as metering does.
    """
    wanted = select(Allocation).where(Allocation.id.in_(allocation_ids), _lives, ~_announced).order_by(Allocation.id)
    locked = wanted.options(joinedload(Allocation.environment, innerjoin=True)).with_for_update(
        of=Allocation, key_share=True
    )
    runs = session.scalars(locked).all()
    ends_at = now + STOP_GRACE
    for run in runs:
        session.add(Deadline(allocation_id=run.id, reason=EndReason.BUDGET, at=ends_at, message=SPENT))
        events.of_deadline(
            session, run.environment, at=ends_at, reason=EndReason.BUDGET.value, message=SPENT, now=now
        )  # fmt: skip
    session.flush()
    if runs:
        record(session, actor=SYSTEM, action="budget.stop", entity="workspace", entity_id=workspace_id, now=now,
               runs=len(runs), ends_at=ends_at.isoformat())  # fmt: skip


def spare(
    session: Session, *, workspace_id: int, allocation_ids: Collection[int], now: datetime, actor: Actor = SYSTEM
) -> None:
    """Take the end of these runs of a workspace back, where it has not begun, and tell of it."""
    runs = Allocation.id.in_(allocation_ids)
    if gone := events.spare(session, runs, _lives, reason=EndReason.BUDGET, now=now):
        record(session, actor=actor, action="budget.spare", entity="workspace", entity_id=workspace_id, now=now,
               runs=gone)  # fmt: skip


def _spare_at_once(
    session: Session, workspace: Workspace, terms: Mapping[str, Any], *, actor: Actor, now: datetime
) -> None:
    """Take coming ends back as the next look of `plan` would, whose minute their users need not wait for."""
    told = select(Allocation.id).where(Allocation.workspace_id == workspace.id, _lives, ~Allocation.metered, _announced)
    runs = session.scalars(told.order_by(Allocation.id)).all()
    if not runs:
        return
    stops = terms.get("action") == BudgetAction.STOP
    if stops and months(session, workspaces=[workspace], now=now)[workspace.id].spent >= terms["amount"]:
        return
    spare(session, workspace_id=workspace.id, allocation_ids=runs, now=now, actor=actor)
