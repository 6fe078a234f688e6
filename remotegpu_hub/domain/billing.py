"""Reads of the ledger: what a workspace and its members spent in a month, and on each of its days."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import and_, case, func, literal, select
from sqlalchemy.orm import Session

from ..orm import Allocation, BillingRecord, RecordKind, SubjectKind, User, Workspace
from ..units import month_bounds, month_of
from . import metering, prices
from .metering import Slice


@dataclass(frozen=True)
class MonthUsage:
    """A workspace's month: what is on the ledger and what is not written yet, by user and resource, in millionths."""

    workspace: str
    month: str
    currency: str
    written: int
    running: int
    by_user: dict[str, int]
    by_resource: dict[str, int]

    @property
    def total(self) -> int:
        return self.written + self.running


def usage_of(session: Session, *, workspace: Workspace, month: str | None, now: datetime) -> MonthUsage:
    """Sum the records of one month of the workspace's zone; the current month includes what runs."""
    zone = workspace.time_zone
    chosen = month or month_of(now, zone)
    start, end = month_bounds(chosen, zone)
    by_user: dict[str, int] = defaultdict(int)
    by_resource: dict[str, int] = defaultdict(int)
    rows = session.execute(
        select(User.name, BillingRecord.resource, func.sum(BillingRecord.amount))
        .join(User, User.id == BillingRecord.user_id)
        .where(BillingRecord.workspace_id == workspace.id, BillingRecord.start >= start, BillingRecord.start < end)
        .group_by(User.name, BillingRecord.resource)
    )
    written = 0
    for name, resource, amount in rows:
        by_user[name] += int(amount)
        by_resource[resource] += int(amount)
        written += int(amount)
    unwritten = 0
    if start <= now < end:
        for _run, name, one in _unwritten(session, workspace, now):
            if one.start >= start:
                by_user[name] += one.amount
                by_resource[one.resource] += one.amount
                unwritten += one.amount
    return MonthUsage(
        workspace.name,
        chosen,
        prices.currency(session),
        written,
        unwritten,
        dict(sorted(by_user.items())),
        dict(sorted(by_resource.items())),
    )


def _unwritten(session: Session, workspace: Workspace, now: datetime) -> Iterator[tuple[Allocation, str, Slice]]:
    """What is not on the ledger yet, with its run and whose it is."""
    history, zone = prices.history(session), workspace.time_zone
    runs = session.execute(
        select(Allocation, User.name)
        .join(User, User.id == Allocation.user_id)
        .where(Allocation.workspace_id == workspace.id, ~Allocation.metered, Allocation.started_at.is_not(None))
    )
    for run, name in runs:
        for one in metering.unwritten(run, now, history=history, time_zone=zone):
            yield run, name, one


@dataclass(frozen=True)
class MemberDays:
    """One member's month, a number for each day."""

    user: str
    amounts: tuple[int, ...]
    """Millionths of the currency."""
    gpu_times: tuple[int, ...]
    """Milli-GPU-seconds."""


@dataclass(frozen=True)
class Days:
    """A workspace's month by day and member, most expensive first, with what is not written yet."""

    workspace: str
    month: str
    time_zone: str
    currency: str
    days: tuple[date, ...]
    members: tuple[MemberDays, ...]


def by_day(session: Session, *, workspace: Workspace, month: str | None, now: datetime) -> Days:
    """Sum one month of the workspace's zone by day and member, up to today. A charge counts on the day on which it
    begins; it is no longer than an hour.

    One statement over the index of workspace and start sums the ledger, however long it is.
    """
    chosen = month or month_of(now, workspace.time_zone)
    begins = _midnights(chosen, workspace.time_zone, now)
    count = len(begins) - 1
    sums: dict[int, list[list[int]]] = defaultdict(lambda: [[0] * count, [0] * count])
    names: dict[int, str] = {}
    if count:
        for user_id, name, day, amount, gpu_time in session.execute(_ledger_by_day(workspace.id, begins)):
            names[user_id] = name
            sums[user_id][0][day], sums[user_id][1][day] = int(amount), int(gpu_time or 0)
        for run, name, one in _unwritten(session, workspace, now) if begins[0] <= now < begins[-1] else ():
            if one.start >= begins[0]:
                day = bisect_right(begins, one.start) - 1
                names[run.user_id] = name
                sums[run.user_id][0][day] += one.amount
                sums[run.user_id][1][day] += metering.gpu_time(run, one)
    members = [
        MemberDays(names[one], tuple(amounts), tuple(gpu_times)) for one, (amounts, gpu_times) in sums.items()
    ]  # fmt: skip
    members.sort(key=lambda one: (-sum(one.amounts), -sum(one.gpu_times), one.user))
    zone = ZoneInfo(workspace.time_zone)
    days = tuple(begin.astimezone(zone).date() for begin in begins[:-1])
    return Days(workspace.name, chosen, workspace.time_zone, prices.currency(session), days, tuple(members))


def _midnights(month: str, time_zone: str, now: datetime) -> list[datetime]:
    """Where each day of a month begins, up to today, and where the last of them ends; empty for a month to come."""
    zone, (start, end) = ZoneInfo(time_zone), month_bounds(month, time_zone)
    day = start.astimezone(zone).date()
    found: list[datetime] = []
    while True:
        at = datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)
        if at > now and found:
            return [*found, at]
        if at >= end:
            return [*found, end]
        if at > now:
            return [at]
        found.append(at)
        day += timedelta(days=1)


def _ledger_by_day(workspace_id: int, begins: Sequence[datetime]) -> Any:
    day = _which(begins, 0, len(begins) - 1).label("day")
    gpu_time = BillingRecord.quantity * Allocation.gpu_millis // Allocation.gpu_slots
    its_run = and_(
        BillingRecord.subject_kind == SubjectKind.ALLOCATION, BillingRecord.subject_id == Allocation.id,
        BillingRecord.resource.startswith("gpu:"), BillingRecord.kind == RecordKind.USAGE,
    )  # fmt: skip
    records = (
        select(BillingRecord.user_id, BillingRecord.amount, gpu_time.label("gpu_time"), day)
        .outerjoin(Allocation, its_run)
        .where(
            BillingRecord.workspace_id == workspace_id, BillingRecord.start >= begins[0],
            BillingRecord.start < begins[-1],
        )
        .subquery()
    )  # fmt: skip
    sums = (
        select(records.c.user_id, records.c.day, func.sum(records.c.amount).label("amount"),
               func.sum(records.c.gpu_time).label("gpu_time"))
        .group_by(records.c.user_id, records.c.day)
        .subquery()
    )  # fmt: skip
    return select(sums.c.user_id, User.name, sums.c.day, sums.c.amount, sums.c.gpu_time).join(
        User, User.id == sums.c.user_id
    )


def _which(begins: Sequence[datetime], low: int, high: int) -> Any:
    """The number of the day in which a record begins, by halving: the databases share no arithmetic of zones."""
    if high - low == 1:
        return literal(low)
    middle = (low + high) // 2
    return case((BillingRecord.start < begins[middle], _which(begins, low, middle)), else_=_which(begins, middle, high))
