"""Writes the ledger from runs. Slices are canonical: cut at UTC hours, at price changes, at month ends of the
workspace's zone and at the end of the run, so metering twice, late, or from two workers gives the same rows."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ..orm import Allocation, AllocationState, BillingRecord, MemberMonth, Price, RecordKind, SubjectKind, Workspace
from ..units import charge, month_bounds, month_of, seconds_between
from . import prices
from .ports import insert_ignoring


@dataclass(frozen=True)
class Slice:
    """A charge of one resource over `[start, end)`."""

    resource: str
    quantity: int
    price_id: int
    unit_price: int
    amount: int
    start: datetime
    end: datetime


def cuts(
    start: datetime, end: datetime, *, history: dict[str, list[Price]], resources: list[str], time_zone: str
) -> Iterator[tuple[datetime, datetime]]:
    """Split `[start, end)` at every canonical boundary."""
    changes = sorted(
        {row.effective_from for name in resources for row in history.get(name, []) if start < row.effective_from < end}
    )
    begin = start
    while begin < end:
        hour = begin.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
        month_end = month_bounds(month_of(begin, time_zone), time_zone)[1]
        change = next((moment for moment in changes if moment > begin), end)
        stop = min(hour, month_end, change, end)
        yield begin, stop
        begin = stop


def slices(
    allocation: Allocation, start: datetime, end: datetime, *, history: dict[str, list[Price]], time_zone: str
) -> list[Slice]:
    """Price a run over a period at the prices in force in each part of it."""
    parts = prices.quantities(allocation)
    result = []
    for begin, stop in cuts(start, end, history=history, resources=list(parts), time_zone=time_zone):
        for resource, amount in parts.items():
            in_force = [row for row in history.get(resource, []) if row.effective_from <= begin]
            if not in_force:
                continue
            price = in_force[-1]
            quantity = amount * seconds_between(begin, stop)
            result.append(
                Slice(resource, quantity, price.id, price.unit_price, charge(resource, quantity, price.unit_price),
                      begin, stop)
            )  # fmt: skip
    return result


def running(
    session: Session, *, allocation: Allocation, now: datetime, history: dict[str, list[Price]] | None = None
) -> list[Slice]:
    """The part of a run that is not on the ledger yet, up to now: computed when somebody asks."""
    time_zone = session.scalar(select(Workspace.time_zone).where(Workspace.id == allocation.workspace_id)) or "UTC"
    return unwritten(
        allocation, now, history=prices.history(session) if history is None else history, time_zone=time_zone
    )


def running_of(session: Session, *, user_id: int, now: datetime) -> dict[int, list[Slice]]:
    """The same of each of a user's runs that is not wholly on the ledger: two statements, however many they are."""
    history = prices.history(session)
    rows = session.execute(
        select(Allocation, Workspace.time_zone)
        .join(Workspace, Workspace.id == Allocation.workspace_id)
        .where(Allocation.user_id == user_id, ~Allocation.metered)
    )
    return {run.id: unwritten(run, now, history=history, time_zone=zone) for run, zone in rows}


def unwritten(allocation: Allocation, now: datetime, *, history: dict[str, list[Price]], time_zone: str) -> list[Slice]:
    """`running` of a run whose workspace's zone is known; `history` are all prices."""
    start, end = allocation.metered_until or allocation.started_at, allocation.ended_at or now.replace(microsecond=0)
    return slices(allocation, start, end, history=history, time_zone=time_zone) if start is not None else []


def unmetered(session: Session, *, after: int, limit: int) -> list[int]:
    """Ids of runs that may have something to write, in order, from behind `after`."""
    return list(
        session.scalars(
            select(Allocation.id)
            .where(~Allocation.metered, Allocation.started_at.is_not(None), Allocation.id > after)
            .order_by(Allocation.id)
            .limit(limit)
        )
    )


@dataclass(frozen=True)
class Metered:
    written: int
    """Rows that were not on the ledger before; a second call writes none."""
    left: list[int]
    """Runs that were not looked at, or not to their end, because so many slices were over."""


def meter(session: Session, *, allocation_ids: list[int], now: datetime, most: int = 1000) -> Metered:
    """Write every slice of these runs that is over and was seen alive to its end, or whose run has ended: runs in the
    order of their ids, until some `most` slices were looked at.
    """
    history = prices.history(session)
    rows = session.execute(
        select(Allocation, Workspace.time_zone)
        .join(Workspace, Workspace.id == Allocation.workspace_id)
        .where(Allocation.id.in_(allocation_ids))
        .order_by(Allocation.id)
        .with_for_update(of=Allocation, key_share=True)
        .execution_options(populate_existing=True)
    ).all()
    written, looked_at = 0, 0
    left = []
    sums: dict[tuple[int, str, int], list[int]] = defaultdict(lambda: [0, 0])
    for allocation, time_zone in rows:
        if looked_at >= most:
            left.append(allocation.id)
        elif not allocation.metered and allocation.started_at is not None:
            over, complete = _over(allocation, time_zone, history, most - looked_at)
            looked_at += len(over)
            if not complete:
                left.append(allocation.id)
            for one in _write(session, allocation, over, now, last=complete):
                added = sums[allocation.workspace_id, month_of(one.start, time_zone), allocation.user_id]
                added[0] += one.amount
                added[1] += gpu_time(allocation, one)
                written += 1
    session.flush()
    for (workspace_id, month, user_id), (amount, time) in sorted(sums.items()):  # one order, so two cannot deadlock
        _add(session, {"workspace_id": workspace_id, "month": month, "user_id": user_id}, amount, time)
    return Metered(written, left)


def gpu_time(allocation: Allocation, one: Slice | BillingRecord) -> int:
    """Milli-GPU-seconds of a slice or record of this run; 0 for what is no GPU."""
    return one.quantity * allocation.gpu_millis // allocation.gpu_slots if one.resource.startswith("gpu:") else 0


def _over(
    allocation: Allocation, time_zone: str, history: dict[str, list[Price]], most: int
) -> tuple[list[Slice], bool]:
    """Slices of a run that are over and not known to be written, and whether these are all: of more than `most` the
    earliest, cut between two periods."""
    start = allocation.metered_until or allocation.started_at
    ended = allocation.state == AllocationState.ENDED
    alive_until = allocation.ended_at if ended else allocation.seen_at
    if start is None or alive_until is None:
        return [], True
    over = slices(allocation, start, alive_until, history=history, time_zone=time_zone)
    if not ended:
        mine = {name: history.get(name, []) for name in prices.quantities(allocation)}
        over = [one for one in over if one.end < alive_until or _is_boundary(one, mine, time_zone)]
    if len(over) <= most:
        return over, True
    last = over[most - 1].end
    return [one for one in over if one.end <= last], False


def _is_boundary(one: Slice, history: dict[str, list[Price]], time_zone: str) -> bool:
    """The slice ends where a canonical cut lies anyway, not merely where the run was last seen."""
    if one.end.minute == one.end.second == 0:
        return True
    if month_bounds(month_of(one.start, time_zone), time_zone)[1] == one.end:
        return True
    return any(row.effective_from == one.end for rows in history.values() for row in rows)


def _write(session: Session, allocation: Allocation, over: list[Slice], now: datetime, *, last: bool) -> list[Slice]:
    """Put slices on the ledger, and note how far the run is metered; returns those that were not there yet."""
    common = {
        "workspace_id": allocation.workspace_id,
        "user_id": allocation.user_id,
        "environment_id": allocation.environment_id,
        "subject_kind": SubjectKind.ALLOCATION,
        "subject_id": allocation.id,
        "kind": RecordKind.USAGE,
        "written_at": now,
    }
    written = []
    if over:
        rows = session.connection().execute(
            insert_ignoring(session, BillingRecord).returning(
                BillingRecord.resource, BillingRecord.start, BillingRecord.price_id
            ),
            [{**common, **vars(one)} for one in over],
        )
        keys = {tuple(row) for row in rows}
        written = [one for one in over if (one.resource, one.start, one.price_id) in keys]
        allocation.metered_until = max(one.end for one in over)
    if last and allocation.state == AllocationState.ENDED:
        allocation.metered = True
    return written


def _add(session: Session, key: dict[str, Any], amount: int, gpu_time: int) -> None:
    """Keep a month's running sums in step with the ledger."""
    dialect = session.get_bind().dialect.name
    statement: Any = (postgresql if dialect == "postgresql" else sqlite).insert(MemberMonth)
    session.execute(
        statement.values(**key, amount=amount, gpu_time=gpu_time).on_conflict_do_update(
            index_elements=list(key),
            set_={"amount": MemberMonth.amount + amount, "gpu_time": MemberMonth.gpu_time + gpu_time},
        )
    )
