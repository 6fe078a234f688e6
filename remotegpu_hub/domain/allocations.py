"""One run of an environment: admit (hold), activate (it runs), mark_ending, release (confirmed gone), and the
comparison of what the database says with what really runs."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import bindparam, delete, exists, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, make_transient_to_detached

from ..errors import Abandoned, Conflict, IllegalMove, NoCapacity
from ..orm import (
    ENDED,
    Allocation,
    AllocationSlot,
    AllocationState,
    Attempt,
    Deadline,
    EndReason,
    Environment,
    EnvironmentState,
    GpuSlot,
    Host,
    User,
    VolumeKind,
    locked,
)
from ..units import ceil_second, floor_second
from . import budgets, environments, inventory, placement, ports, prices, quotas, volumes
from .audit import SYSTEM, Actor, record
from .environments import Rules, Wish
from .quotas import Resources

TRANSITIONS: dict[AllocationState, frozenset[AllocationState]] = {
    AllocationState.ADMITTED: frozenset({AllocationState.ACTIVE, AllocationState.ENDING}),
    AllocationState.ACTIVE: frozenset({AllocationState.ENDING}),
    AllocationState.ENDING: frozenset({AllocationState.ENDED}),
    AllocationState.ENDED: frozenset(),
}
"""Legal moves of an allocation. Ending twice is a no-op; everything else raises."""


def move(allocation: Allocation, state: AllocationState) -> None:
    """Raises: IllegalMove."""
    if state not in TRANSITIONS[allocation.state]:
        raise IllegalMove("The run", allocation.state.value, state.value)
    allocation.state = state


def admit(
    session: Session,
    *,
    user: User,
    server_name: str,
    wish: Wish,
    attempt: str,
    rules: Rules,
    actor: Actor,
    now: datetime,
    busy_ports: Collection[int] = frozenset(),
    same_inside: bool = False,
) -> Allocation:
    """Hold what a run needs, or raise: Abandoned, Conflict while an older run still holds, QuotaExceeded with every
    limit it would break, BudgetExceeded, NoCapacity explaining each host, Refused when no port is free.
    """
    _claim(session, attempt, now)
    scopes = quotas.lock(session, user_id=user.id, workspace_id=wish.workspace_id, gpu_model=wish.gpu_model)
    environment_id = environments.begin_creating(session, user_id=user.id, server_name=server_name, wish=wish, now=now)
    wanted = Resources(
        wish.gpu_model, wish.gpu_slots, wish.gpu_slots * scopes.slot_millis, wish.cpu_millis, wish.memory_bytes
    )
    found = quotas.levels(session, user_id=user.id, workspace_id=wish.workspace_id, time_zone=wish.time_zone, now=now)
    there = volumes.of_run(session, user_id=user.id, workspace_id=wish.workspace_id) if rules.volumes else {}
    more = volumes.lacking(there, rules.volumes)
    home = more.get(VolumeKind.HOME, 0)
    storage = {"user": home, "workspace": sum(more.values()), "member": home}
    quotas.check(found, scopes=scopes, wanted=wanted, storage=storage)
    if more:
        volumes.ensure(session, user_id=user.id, workspace_id=wish.workspace_id, there=there, sizes=rules.volumes,
                       actor=actor, now=now)  # fmt: skip
    unit_prices, lines = prices.of(session, wanted=wanted, now=now)
    per_hour = sum(lines.values())
    status = budgets.status(
        scopes.budget, found["workspace"], workspace=wish.workspace, time_zone=wish.time_zone, now=now
    )
    budgets.check(status, price_per_hour=per_hour)
    spot = placement.choose(session, wanted=wanted, policy=rules.policy)
    ids = {"environment_id": environment_id, "user_id": user.id, "host_id": spot.host_id}
    allocation = _insert(session, ids, wish, attempt, wanted, unit_prices, per_hour, now)
    if wanted.gpu_slots:
        _take_slots(session, allocation, wanted)
    if wish.ports:
        ports.take(
            session,
            allocation_id=allocation.id,
            services=wish.ports,
            address=rules.port_address or allocation.host.address,
            ranges=rules.port_ranges,
            ingress=rules.ingress,
            busy=busy_ports,
            same_inside=same_inside,
        )
    record(session, actor=actor, action="allocation.admit", entity="allocation", entity_id=allocation.id, now=now,
           environment=environment_id, host=spot.host, policy=spot.policy,
           wanted=placement.describe(wanted))  # fmt: skip
    return allocation


def _claim(session: Session, attempt: str, now: datetime) -> None:
    """Insert the attempt's row; if release was here first its tombstone is in the way."""
    connection = session.connection()
    row = connection.execute(
        _claim_on(connection.dialect.name), {"attempt": attempt, "at": now, "released": False}
    ).first()
    if row is None:
        raise Abandoned("This start was given up before it began. Start again.")


@cache
def _claim_on(dialect: str) -> Any:
    insert_on = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert_on(Attempt).on_conflict_do_nothing().returning(Attempt.attempt)


_add = insert(Allocation).returning(Allocation.id)
_NOT_YET = dict.fromkeys(
    ("mark", "started_at", "seen_at", "ending_at", "ended_at", "metered_until", "end_reason"), None
)


def _insert(
    session: Session,
    ids: dict[str, int],
    wish: Wish,
    attempt: str,
    wanted: Resources,
    unit_prices: dict[str, int],
    per_hour: int,
    now: datetime,
) -> Allocation:
    """Insert the row by a plain statement, which costs a fraction of the session's unit of work, and return it as
    an object of the session, loaded but for its relationships."""
    columns: dict[str, Any] = {
        **ids,
        "attempt": attempt,
        "workspace_id": wish.workspace_id,
        "gpu_model": wanted.gpu_model,
        "gpu_slots": wanted.gpu_slots,
        "gpu_millis": wanted.gpu_millis,
        "cpu_millis": wanted.cpu_millis,
        "memory_bytes": wanted.memory_bytes,
        "image_reference": wish.image_reference,
        "image_digest": wish.image_digest,
        "price_per_hour": per_hour,
        "prices": unit_prices,
        "state": AllocationState.ADMITTED,
        "requested_at": now,
        "admitted_at": now,
        "metered": False,
    }
    try:
        row_id = session.connection().execute(_add, columns).scalar_one()
    except IntegrityError as error:
        raise Conflict("The environment runs already.") from error
    allocation = Allocation(id=row_id, **columns, **_NOT_YET)
    make_transient_to_detached(allocation)
    session.add(allocation)
    return allocation


_free = (
    select(bindparam("run", type_=AllocationSlot.allocation_id.type), GpuSlot.id, literal(True))
    .where(
        GpuSlot.host_id == bindparam("host_id"),
        GpuSlot.model == bindparam("wanted_model"),
        GpuSlot.usable,
        ~exists().where(AllocationSlot.slot_id == GpuSlot.id, AllocationSlot.open),
    )
    .order_by(GpuSlot.gpu_id, GpuSlot.ordinal)
    .limit(bindparam("slots"))
)
_take_free = (
    insert(AllocationSlot).from_select(["allocation_id", "slot_id", "open"], _free).returning(AllocationSlot.slot_id)
)


def _take_slots(session: Session, allocation: Allocation, wanted: Resources) -> None:
    """Pick free slots of the host, whose locked row keeps others away. Fewer than counted means that the sums
    are wrong, which the next sync repairs: refuse rather than give less."""
    facts = {
        "run": allocation.id,
        "host_id": allocation.host_id,
        "wanted_model": wanted.gpu_model,
        "slots": wanted.gpu_slots,
    }
    taken = session.connection().execute(_take_free, facts).all()
    if len(taken) < wanted.gpu_slots:
        raise NoCapacity((), wanted=placement.describe(wanted))


def by_attempt(session: Session, *, attempt: str, lock: bool = False) -> Allocation | None:
    """The run that this start made, if it was admitted."""
    query = select(Allocation).where(Allocation.attempt == attempt)
    if lock:
        query = locked(query)
    return session.scalar(query)


def open_of(session: Session, *, user_id: int, server_name: str) -> Allocation | None:
    """What this server of this user still holds."""
    return session.scalar(
        select(Allocation)
        .join(Environment, Environment.id == Allocation.environment_id)
        .where(
            Environment.user_id == user_id,
            Environment.server_name == server_name,
            Allocation.state != ENDED,
        )
        .order_by(Allocation.id.desc())
    )


def activate(session: Session, *, attempt: str, mark: str, now: datetime) -> Allocation:
    """Note that the run really runs: from this second on it is billed. Twice is a no-op.

    Raises: Abandoned when it was given up meanwhile.
    """
    allocation = by_attempt(session, attempt=attempt, lock=True)
    if allocation is None or allocation.state in (AllocationState.ENDING, AllocationState.ENDED):
        raise Abandoned("This start was given up before it began. Start again.")
    if allocation.state == AllocationState.ACTIVE:
        return allocation
    move(allocation, AllocationState.ACTIVE)
    allocation.mark = mark
    allocation.started_at = allocation.seen_at = ceil_second(now)
    environments.change(session, allocation.environment, EnvironmentState.RUNNING, now=now)
    session.flush()
    record(session, actor=SYSTEM, action="allocation.activate", entity="allocation", entity_id=allocation.id,
           now=now, mark=mark)  # fmt: skip
    return allocation


def seen(session: Session, *, allocation_ids: Collection[int], at: datetime) -> None:
    """Note that these runs were seen alive at an instant; an older one than known changes nothing.

    The rows are locked in the order of their ids, as metering does.
    """
    if not allocation_ids:
        return
    moment = floor_second(at)
    alive = (
        select(Allocation.id)
        .where(
            Allocation.id.in_(allocation_ids),
            Allocation.state.in_([AllocationState.ACTIVE, AllocationState.ENDING]),
            Allocation.started_at.is_not(None),
            Allocation.seen_at < moment,
        )
        .order_by(Allocation.id)
        .with_for_update(key_share=True)
    )
    session.execute(
        update(Allocation)
        .where(Allocation.id.in_(alive), Allocation.seen_at < moment)
        .values(seen_at=moment)
        .execution_options(synchronize_session=False)
    )


def without_learned_gpus(session: Session) -> set[int]:
    """Open runs of whose devices it is not known which ones they were given."""
    return set(
        session.scalars(
            select(AllocationSlot.allocation_id).where(AllocationSlot.open, AllocationSlot.observed_uuid.is_(None))
        )
    )


def learn_gpus(session: Session, *, uuids: Mapping[int, Sequence[str]]) -> None:
    """Write which devices runs were really given, where admission only counted them. What is known stays."""
    rows = session.scalars(
        select(AllocationSlot)
        .where(AllocationSlot.allocation_id.in_(uuids), AllocationSlot.observed_uuid.is_(None))
        .order_by(AllocationSlot.allocation_id, AllocationSlot.slot_id)
    )
    left = {run: list(known) for run, known in uuids.items()}
    for slot in rows:
        if left[slot.allocation_id]:
            slot.observed_uuid = left[slot.allocation_id].pop(0)
    session.flush()


def mark_ending(
    session: Session, *, attempt: str, reason: EndReason, actor: Actor, now: datetime, message: str = ""
) -> Allocation | None:
    """Begin the end of a run: it keeps all it holds until it is confirmed gone. Twice is a no-op.

    Also leaves the tombstone that keeps a start which is still on its way from ever being admitted.
    """
    _bury(session, attempt, now)
    allocation = by_attempt(session, attempt=attempt, lock=True)
    if allocation is None or allocation.state in (AllocationState.ENDING, AllocationState.ENDED):
        return allocation
    move(allocation, AllocationState.ENDING)
    allocation.ending_at = now
    allocation.end_reason = reason
    environments.change(
        session, allocation.environment, EnvironmentState.STOPPING, now=now, message=message, reason=reason.value
    )
    session.flush()
    record(session, actor=actor, action="allocation.ending", entity="allocation", entity_id=allocation.id, now=now,
           reason=reason.value, message=message)  # fmt: skip
    return allocation


def _bury(session: Session, attempt: str, now: datetime) -> None:
    dialect = session.get_bind().dialect.name
    statement = (postgresql if dialect == "postgresql" else sqlite).insert(Attempt)
    session.execute(
        statement.values(attempt=attempt, at=now, released=True).on_conflict_do_update(
            index_elements=["attempt"], set_={"released": True}
        )
    )


FAILURES = frozenset(
    {
        EndReason.FAILED, EndReason.TIMEOUT, EndReason.GHOST, EndReason.ORPHAN, EndReason.EVICTED, EndReason.OOM_KILLED,
        EndReason.NODE_LOST, EndReason.POD_DELETED, EndReason.IMAGE_PULL_FAILED, EndReason.UNSCHEDULABLE,
    }
)  # fmt: skip
"""Ends that nobody wanted: the environment shows an error with its message."""


def release(
    session: Session,
    *,
    attempt: str,
    reason: EndReason,
    actor: Actor,
    now: datetime,
    ended_at: datetime | None = None,
    message: str = "",
) -> Allocation | None:
    """Give back all that a run held: only for what is confirmed gone. Twice is a no-op.

    `ended_at` is when the end was seen; without it the run ended when it was last seen alive, so nobody is billed
    for what did not run. A run that was never active is billed nothing.
    """
    allocation = mark_ending(session, attempt=attempt, reason=reason, actor=actor, now=now, message=message)
    if allocation is None or allocation.state == AllocationState.ENDED:
        return allocation
    move(allocation, AllocationState.ENDED)
    if allocation.started_at is None:
        allocation.ended_at = allocation.admitted_at
        allocation.metered = True
    else:
        seen_at = allocation.seen_at or allocation.started_at
        end = floor_second(min(ended_at, now)) if ended_at is not None else seen_at
        allocation.ended_at = max(end, seen_at, allocation.started_at)
    session.flush()
    give_back(session, allocation)
    reason_kept = allocation.end_reason or reason
    failed = reason_kept in FAILURES
    environments.change(
        session,
        allocation.environment,
        EnvironmentState.ERROR if failed else EnvironmentState.STOPPED,
        now=now,
        message=message or allocation.environment.message,
        reason=reason_kept.value,
    )
    session.flush()
    record(session, actor=actor, action="allocation.release", entity="allocation", entity_id=allocation.id, now=now,
           reason=reason_kept.value, ended_at=allocation.ended_at.isoformat())  # fmt: skip
    return allocation


def give_back(session: Session, allocation: Allocation) -> None:
    """Return host room, slots and ports of an ended run."""
    held = Resources(
        allocation.gpu_model,
        allocation.gpu_slots,
        allocation.gpu_millis,
        allocation.cpu_millis,
        allocation.memory_bytes,
    )
    placement.give_back(session, host_id=allocation.host_id, held=held)
    session.execute(
        update(AllocationSlot)
        .where(AllocationSlot.allocation_id == allocation.id, AllocationSlot.open)
        .values(open=False)
        .execution_options(synchronize_session=False)
    )
    out_of_work = (
        select(GpuSlot.id)
        .join(AllocationSlot, AllocationSlot.slot_id == GpuSlot.id)
        .where(AllocationSlot.allocation_id == allocation.id, ~GpuSlot.usable)
    )
    if held.gpu_slots and session.scalar(out_of_work.limit(1)) is not None:  # it counted as usable while it was held
        inventory.recount(session, host_id=allocation.host_id)
    ports.give_back(session, allocation_id=allocation.id)
    session.execute(delete(Deadline).where(Deadline.allocation_id == allocation.id))


@dataclass(frozen=True)
class Snapshot:
    """An open run as the reconciler compares it."""

    id: int
    attempt: str
    state: AllocationState
    user_name: str
    server_name: str
    admitted_at: datetime
    started_at: datetime | None
    seen_at: datetime | None
    ending_at: datetime | None
    host: str = ""


def open_runs(session: Session) -> list[Snapshot]:
    """All open allocations with the hub's names for their servers."""
    rows: Iterable[Any] = session.execute(
        select(
            Allocation.id,
            Allocation.attempt,
            Allocation.state,
            User.name,
            Environment.server_name,
            Allocation.admitted_at,
            Allocation.started_at,
            Allocation.seen_at,
            Allocation.ending_at,
            Host.name,
        )
        .join(Host, Host.id == Allocation.host_id)
        .join(User, User.id == Allocation.user_id)
        .join(Environment, Environment.id == Allocation.environment_id)
        .where(Allocation.state != ENDED)
        .order_by(Allocation.id)
    )
    return [Snapshot(*row) for row in rows]


@dataclass(frozen=True)
class Due:
    """A run whose time is over."""

    attempt: str
    user_name: str
    server_name: str
    reason: EndReason
    message: str


def due(session: Session, *, now: datetime) -> list[Due]:
    """Runs that have reached a deadline and whose end has not begun, the longest overdue first."""
    rows = session.execute(
        select(Allocation.attempt, User.name, Environment.server_name, Deadline.reason, Deadline.message)
        .join(Deadline, Deadline.allocation_id == Allocation.id)
        .join(User, User.id == Allocation.user_id)
        .join(Environment, Environment.id == Allocation.environment_id)
        .where(Deadline.at <= now, Allocation.state.in_([AllocationState.ADMITTED, AllocationState.ACTIVE]))
        .order_by(Deadline.at)
    )
    first: dict[str, Due] = {}
    for row in rows:
        first.setdefault(row.attempt, Due(*row))
    return list(first.values())


@dataclass(frozen=True)
class Ending:
    """When a run will be stopped, and why."""

    at: datetime
    reason: EndReason
    message: str
    """An English sentence, which `words` translates."""


def deadlines(session: Session, *, allocation_ids: Collection[int]) -> dict[int, Ending]:
    """The earliest deadline of each of these runs that has one."""
    latest_first = (
        select(Deadline.allocation_id, Deadline.at, Deadline.reason, Deadline.message)
        .where(Deadline.allocation_id.in_(allocation_ids))
        .order_by(Deadline.at.desc(), Deadline.reason.desc())
    )
    return {number: Ending(at, reason, message) for number, at, reason, message in session.execute(latest_first)}


def first_deadline(column: Any) -> Any:
    """A column of the earliest deadline of the allocation that a statement reads."""
    first = select(column).where(Deadline.allocation_id == Allocation.id).order_by(Deadline.at, Deadline.reason)
    return first.limit(1).correlate(Allocation).scalar_subquery()


def known_ids(session: Session, *, allocation_ids: Collection[int]) -> set[int]:
    """Which of these ids ever were allocations of this hub."""
    if not allocation_ids:
        return set()
    return set(session.scalars(select(Allocation.id).where(Allocation.id.in_(allocation_ids))))


def forget_attempts(session: Session, *, before: datetime) -> int:
    """Drop claims and tombstones of starts that cannot be on their way any more."""
    rows: Any = session.execute(Attempt.__table__.delete().where(Attempt.at < before))  # type: ignore[attr-defined]
    return int(rows.rowcount)
