"""Who did what, who may tick, and the few facts that the whole hub shares."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .base import NO_REUSE, PREFIX, Base, HasId


class AuditEntry(HasId, Base):
    __tablename__ = PREFIX + "audit_log"
    at: Mapped[datetime] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(String(255))
    """Hub user, `service:NAME`, `cli:USER` or `system`."""
    acted_as: Mapped[str | None] = mapped_column(String(255))
    """For whom, where an admin acts for a user."""
    action: Mapped[str] = mapped_column(String(64))
    entity: Mapped[str] = mapped_column(String(40))
    entity_id: Mapped[int | None]
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
    """`before` and `after` of what changed, and reasons."""
    request_id: Mapped[str | None] = mapped_column(String(64))
    address: Mapped[str | None] = mapped_column(String(64))
    __table_args__ = (
        Index("ix_remotegpu_audit_log_entity", "entity", "entity_id", "at"),
        *(Index(f"ix_remotegpu_audit_log_{name}_at", name, "at") for name in ("action", "actor", "entity")),
        NO_REUSE,
    )


class TickLease(Base):
    """Which process may run a tick until when."""

    __tablename__ = PREFIX + "tick_leases"
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    holder: Mapped[str] = mapped_column(String(100))
    expires_at: Mapped[datetime]
    last_done_at: Mapped[datetime | None]


class Fact(Base):
    """One value for the whole hub, such as its currency, written once by `init`."""

    __tablename__ = PREFIX + "facts"
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))


class Answered(Base):
    """What a creation answered under an Idempotency-Key, so that its repetition makes nothing twice."""

    __tablename__ = PREFIX + "answered"
    owner: Mapped[str] = mapped_column(String(255), primary_key=True)
    key: Mapped[str] = mapped_column(String(100), primary_key=True)
    request: Mapped[str] = mapped_column(String(64))
    """SHA-256 of method, path and body."""
    status: Mapped[int]
    body: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(index=True)
