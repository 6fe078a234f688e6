"""What happened, for whoever listens: written in the transaction in which it did, told in one order once that is
committed, kept for a week."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Select, bindparam, delete, false, func, insert, or_, select, update
from sqlalchemy.orm import Session

from ..orm import Allocation, Deadline, Delivery, EndReason, Environment, Event, EventKind, Told, User, Workspace

KEPT: Final = timedelta(days=7)
MONTHS_KEPT: Final = timedelta(days=70)
"""What was told of a month is of no use once the month is over everywhere."""

_append = insert(Event).inline()


def record(
    session: Session,
    *,
    kind: EventKind,
    now: datetime,
    workspace_id: int | None,
    user_id: int | None = None,
    environment_id: int | None = None,
    **detail: Any,
) -> None:
    """Append one event; what is None in the detail is left out. One plain INSERT, since every start makes some."""
    session.connection().execute(
        _append,
        {
            "at": now,
            "kind": kind.value,
            "workspace_id": workspace_id,
            "user_id": user_id,
            "environment_id": environment_id,
            "detail": {name: value for name, value in detail.items() if value not in (None, "")},
        },
    )


def of_environment(
    session: Session, environment: Environment, kind: EventKind, *, now: datetime, **detail: Any
) -> None:
    """Append what happened to an environment."""
    record(
        session, kind=kind, now=now, workspace_id=environment.workspace_id, user_id=environment.user_id,
        environment_id=environment.id, name=environment.display_name, server_name=environment.server_name, **detail,
    )  # fmt: skip


def of_deadline(
    session: Session, environment: Environment, *, at: datetime, reason: str, message: str, now: datetime
) -> None:
    """Append that an environment will be stopped, before it is."""
    of_environment(
        session, environment, EventKind.DEADLINE, now=now, stops_at=at.isoformat(), reason=reason, message=message
    )  # fmt: skip


def spare(session: Session, *runs: Any, reason: EndReason, now: datetime) -> int:
    """Take the end that was announced for this reason back, of the runs that fit all of `runs`, and append that their
    environments will not be stopped after all. How many there were."""
    gone = session.scalars(
        delete(Deadline)
        .where(Deadline.allocation_id.in_(select(Allocation.id).where(*runs)), Deadline.reason == reason)
        .returning(Deadline.allocation_id)
        .execution_options(synchronize_session=False)
    ).all()
    if gone:
        theirs = select(Environment).join(Allocation, Allocation.environment_id == Environment.id)
        for one in session.scalars(theirs.where(Allocation.id.in_(gone)).order_by(Environment.id)):
            of_environment(session, one, EventKind.SPARED, now=now, reason=reason.value)
    return len(gone)


@dataclass(frozen=True)
class Happened:
    """An event as it is told, with names as they are now."""

    id: int
    """Its number."""
    at: datetime
    kind: str
    workspace: str | None
    user: str | None
    environment_id: int | None
    detail: dict[str, Any]
    workspace_id: int | None
    user_id: int | None

    @property
    def plain(self) -> dict[str, Any]:
        """What anybody outside is told of it."""
        names = ("id", "kind", "workspace", "user", "environment_id", "detail")
        return {"at": self.at.isoformat(), **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class Sight:
    """Whose events somebody may see: their own, and those of the workspaces in which they are a member."""

    user_id: int | None = None
    workspace_ids: frozenset[int] = frozenset()
    everything: bool = False

    def sees(self, event: Happened) -> bool:
        return (
            self.everything
            or (event.user_id is not None and event.user_id == self.user_id)
            or event.workspace_id in self.workspace_ids
        )

    def clause(self) -> Any:
        """The same as a condition on rows of `Event`."""
        if self.everything:
            return Event.number.is_not(None)
        mine = [Event.user_id == self.user_id] if self.user_id is not None else []
        return or_(false(), *mine, Event.workspace_id.in_(self.workspace_ids))


_columns: Select[Any] = (
    select(
        Event.number, Event.at, Event.kind, Workspace.name, User.name, Event.environment_id, Event.detail,
        Event.workspace_id, Event.user_id,
    )
    .outerjoin(Workspace, Workspace.id == Event.workspace_id)
    .outerjoin(User, User.id == Event.user_id)
)  # fmt: skip


def told(session: Session, *, after: int, sight: Sight, limit: int) -> list[Happened]:
    """What was told since this number, in order."""
    query = _columns.where(Event.number > after, sight.clause()).order_by(Event.number).limit(limit)
    return [Happened(*row) for row in session.execute(query)]


def of_ids(session: Session, ids: Iterable[int]) -> dict[int, Happened]:
    """Events by the id of their row."""
    rows = session.execute(_columns.add_columns(Event.id).where(Event.id.in_(list(ids))))
    return {row[-1]: Happened(*row[:-1]) for row in rows}


def newest(session: Session) -> int:
    """The number that was told last; 0 before the first."""
    return session.scalar(select(func.max(Event.number))) or 0


_untold = select(Event.id).where(Event.number.is_(None)).order_by(Event.id).limit(bindparam("most"))


def untold(session: Session, *, limit: int) -> list[int]:
    """Rows that are committed and have no number yet, in the order in which they were begun."""
    return list(session.scalars(_untold, {"most": limit}))


def number(session: Session, ids: Collection[int]) -> None:
    """Put these rows at the end of the order. Only one process does, under a lease; if two did, the unique number
    would end one of the transactions."""
    last = newest(session)
    rows = [{"row": row, "place": place} for place, row in enumerate(sorted(ids), last + 1)]
    session.connection().execute(
        update(Event).where(Event.id == bindparam("row"), Event.number.is_(None)).values(number=bindparam("place")),
        rows,
    )


def forget(session: Session, *, now: datetime, limit: int) -> int:
    """Drop some of what is older than a week, deliveries first; the newest event stays, so that numbers only grow.
    Returns how many rows went."""
    before = now - KEPT
    old = select(Delivery.id).where(Delivery.created_at < before).order_by(Delivery.created_at).limit(limit)
    gone: Any = session.execute(delete(Delivery).where(Delivery.id.in_(old)))
    if gone.rowcount:
        return int(gone.rowcount)
    kept = select(func.max(Event.number)).scalar_subquery()
    first = select(Event.id, Event.at, Event.number).order_by(Event.id).limit(limit).subquery()
    past = select(first.c.id).where(first.c.at < before, first.c.number < kept)
    gone = session.execute(
        delete(Event).where(Event.id.in_(past), ~select(Delivery.id).where(Delivery.event_id == Event.id).exists())
    )
    if not gone.rowcount:
        session.execute(delete(Told).where(Told.at < now - MONTHS_KEPT, Told.what.like("% ____-__")))
    return int(gone.rowcount)
