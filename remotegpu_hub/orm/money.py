"""Prices, the append-only ledger, and the running sums of each month.

The ledger's keys: a usage row is unique by (subject, resource, start, price), so metering twice, late, or from two
workers writes the same rows once. A hash chain per workspace will stand in a table of its own (workspace, sequence,
record, hash), appended by the worker that closes a month: then metering never waits for a chain's tail, and a
billing record stays exactly as it was written.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, literal_column, text
from sqlalchemy.orm import Mapped, mapped_column

from .base import NO_REUSE, PREFIX, Base, HasId, not_negative, one_of


class SubjectKind(StrEnum):
    ALLOCATION = "allocation"
    VOLUME = "volume"


class RecordKind(StrEnum):
    USAGE = "usage"
    CREDIT = "credit"
    CORRECTION = "correction"


USAGE: Any = literal_column("'usage'")
"""Written out, for conditions that a partial index is to serve."""


class Price(HasId, Base):
    """What a unit of a resource costs from an instant on; old prices are kept."""

    __tablename__ = PREFIX + "prices"
    resource: Mapped[str] = mapped_column(String(100))
    unit_price: Mapped[int]
    """Millionths per GPU-hour, core-hour or GiB-hour."""
    effective_from: Mapped[datetime]
    __table_args__ = (
        Index("uq_remotegpu_prices_resource_effective_from", "resource", "effective_from", unique=True),
        *not_negative(["unit_price"]),
        NO_REUSE,
    )


class BillingRecord(HasId, Base):
    """An immutable charge for a quantity of a resource over `[start, end)`. Triggers refuse UPDATE and DELETE."""

    __tablename__ = PREFIX + "billing_records"
    workspace_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "workspaces.id"))
    user_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "users.id"))
    environment_id: Mapped[int | None] = mapped_column(ForeignKey(PREFIX + "environments.id"))
    subject_kind: Mapped[SubjectKind] = mapped_column(one_of(SubjectKind))
    subject_id: Mapped[int]
    resource: Mapped[str] = mapped_column(String(100))
    quantity: Mapped[int]
    """Slot-seconds, milli-core-seconds or byte-seconds."""
    price_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "prices.id"))
    unit_price: Mapped[int]
    amount: Mapped[int]
    """Millionths; negative on credits."""
    start: Mapped[datetime]
    end: Mapped[datetime]
    kind: Mapped[RecordKind] = mapped_column(one_of(RecordKind), default=RecordKind.USAGE)
    corrects_id: Mapped[int | None] = mapped_column(ForeignKey(PREFIX + "billing_records.id"))
    written_at: Mapped[datetime]
    __table_args__ = (
        Index(
            "uq_remotegpu_billing_records_usage",
            "subject_kind",
            "subject_id",
            "resource",
            "start",
            "price_id",
            unique=True,
            sqlite_where=text("kind = 'usage'"),
            postgresql_where=text("kind = 'usage'"),
        ),
        Index(
            "ix_remotegpu_billing_records_no_usage",
            "subject_kind",
            "subject_id",
            sqlite_where=text("kind <> 'usage'"),
            postgresql_where=text("kind <> 'usage'"),
        ),
        Index("ix_remotegpu_billing_records_workspace_start", "workspace_id", "start"),
        CheckConstraint('start < "end"', name="period_not_empty"),
        CheckConstraint("(kind = 'correction') = (corrects_id IS NOT NULL)", name="correction_names_what"),
        NO_REUSE,
    )


class MemberMonth(Base):
    """Sums of one user's records in one month of a workspace, kept in the transaction that writes them: an admission
    reads a few rows, however much ran before it."""

    __tablename__ = PREFIX + "member_months"
    workspace_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "workspaces.id"), primary_key=True)
    month: Mapped[str] = mapped_column(String(7), primary_key=True)
    """`2026-11`, a calendar month of the workspace's time zone."""
    user_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "users.id"), primary_key=True)
    amount: Mapped[int] = mapped_column(default=0)
    """Millionths of the hub's currency."""
    gpu_time: Mapped[int] = mapped_column(default=0)
    """Milli-GPU-seconds."""
    __table_args__ = (Index(None, "user_id", "month"),)
