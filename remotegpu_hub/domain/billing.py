"""Reads of the ledger: what a workspace and its members spent in a month."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..orm import Allocation, BillingRecord, User, Workspace
from ..units import month_bounds, month_of
from . import metering, prices


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
        history = prices.history(session)
        for allocation, name in session.execute(
            select(Allocation, User.name)
            .join(User, User.id == Allocation.user_id)
            .where(
                Allocation.workspace_id == workspace.id,
                ~Allocation.metered,
            )
        ):
            for one in metering.unwritten(allocation, now, history=history, time_zone=workspace.time_zone):
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
