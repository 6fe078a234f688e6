"""What happened, in the order in which it is told, and the webhooks that are told of it."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from .base import NO_REUSE, PREFIX, Base, HasId, not_negative, one_of


class EventKind(StrEnum):
    """What can happen."""

    CREATING = "environment.creating"
    STARTED = "environment.started"
    STOPPING = "environment.stopping"
    STOPPED = "environment.stopped"
    FAILED = "environment.failed"
    DELETED = "environment.deleted"
    DEADLINE = "environment.deadline"
    SPARED = "environment.spared"
    QUOTA = "quota.threshold"
    BUDGET = "budget.threshold"


class DeliveryState(StrEnum):
    WAITING = "waiting"
    DELIVERED = "delivered"
    GIVEN_UP = "given up"


UNTOLD: dict[str, Any] = {
    "postgresql_where": text("number IS NULL"), "sqlite_where": text("number IS NULL")
}  # fmt: skip
WAITING: dict[str, Any] = {
    "postgresql_where": text("state = 'waiting'"), "sqlite_where": text("state = 'waiting'")
}  # fmt: skip


class Event(HasId, Base):
    """Something that happened, written in the transaction in which it did."""

    __tablename__ = PREFIX + "events"
    number: Mapped[int | None] = mapped_column(unique=True)
    """Its place in the order of telling, and its id for everybody outside; given once it is committed. Ids are given
    before: of two transactions the later one may commit first, and who reads on from its id would miss the other."""
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(40))
    """One of `EventKind`."""
    workspace_id: Mapped[int | None] = mapped_column(index=True)
    user_id: Mapped[int | None] = mapped_column(index=True)
    environment_id: Mapped[int | None]
    """Ids without foreign keys, as in the audit log: every start writes here, and nothing they name is ever removed."""
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """Plain facts: names, the reason, percent."""
    __table_args__ = (Index("ix_remotegpu_events_untold", "id", **UNTOLD), NO_REUSE)


class Told(Base):
    """Which step of a limit or budget was told last, so that each crossing is told once."""

    __tablename__ = PREFIX + "thresholds"
    what: Mapped[str] = mapped_column(String(200), primary_key=True)
    """Such as `workspace 7 gpus`, and with its month where it counts a month: `budget 7 2026-11`."""
    percent: Mapped[int]
    at: Mapped[datetime]


class Webhook(HasId, Base):
    """An address that is told of events by a signed POST."""

    __tablename__ = PREFIX + "webhooks"
    url: Mapped[str] = mapped_column(String(2000))
    kinds: Mapped[list[Any]] = mapped_column(default=list)
    """Of `EventKind`."""
    active: Mapped[bool] = mapped_column(default=True)
    salt: Mapped[str] = mapped_column(String(64))
    """From this and a key that is in no table comes the secret of the signatures."""
    check_of_secret: Mapped[str] = mapped_column(String(64))
    """Tells whether the key is still the one under which the receiver was given its secret."""
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        Index(
            "uq_remotegpu_webhooks_live",
            "url",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        NO_REUSE,
    )


class Delivery(HasId, Base):
    """One event on its way to one webhook, with how it went last."""

    __tablename__ = PREFIX + "deliveries"
    webhook_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "webhooks.id"))
    event_id: Mapped[int | None] = mapped_column(ForeignKey(PREFIX + "events.id"))
    """None: a test."""
    state: Mapped[DeliveryState] = mapped_column(one_of(DeliveryState), default=DeliveryState.WAITING)
    tries: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(index=True)
    next_try_at: Mapped[datetime]
    give_up_at: Mapped[datetime]
    last_try_at: Mapped[datetime | None]
    last_status: Mapped[int | None]
    """HTTP status of the last answer."""
    last_error: Mapped[str] = mapped_column(String(200), default="")
    webhook: Mapped[Webhook] = relationship()
    event: Mapped[Event | None] = relationship()
    __table_args__ = (
        Index(None, "event_id", "webhook_id", unique=True),
        Index(None, "webhook_id", "id"),
        Index("ix_remotegpu_deliveries_waiting", "webhook_id", "next_try_at", **WAITING),
        *not_negative(["tries"]),
        NO_REUSE,
    )
