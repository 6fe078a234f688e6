"""Environments, their runs (allocations), and the ports and slots that a run holds."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, literal_column, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from .base import NO_REUSE, PREFIX, Base, HasId, not_negative, one_of
from .inventory import Gpu, GpuSlot, Host, Image
from .people import User, Workspace


class EnvironmentState(StrEnum):
    CREATING = "creating"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"
    DELETED = "deleted"


class AllocationState(StrEnum):
    ADMITTED = "admitted"
    ACTIVE = "active"
    ENDING = "ending"
    ENDED = "ended"


class EndReason(StrEnum):
    """Why a run ended; kept for each."""

    USER = "user"
    ADMIN = "admin"
    EXITED = "exited"
    FAILED = "failed"
    TIMEOUT = "timeout"
    GHOST = "ghost"
    ORPHAN = "orphan"
    IDLE = "idle"
    BUDGET = "budget"
    QUOTA = "quota"
    EVICTED = "evicted"
    OOM_KILLED = "oom_killed"
    NODE_LOST = "node_lost"
    POD_DELETED = "pod_deleted"
    IMAGE_PULL_FAILED = "image_pull_failed"
    UNSCHEDULABLE = "unschedulable"
    DRAINED = "drained"


class PortService(StrEnum):
    SSH = "ssh"
    JUPYTER = "jupyter"
    VSCODE = "vscode"
    TENSORBOARD = "tensorboard"
    CUSTOM = "custom"


ENDED: Any = literal_column("'ended'")
STOPPED: Any = literal_column("'stopped'")
DELETED: Any = literal_column("'deleted'")
"""States written out, for conditions: a plan with a parameter in their place could not use the partial indexes, so the
server would plan anew at each call."""
OPEN = text("state <> 'ended'")
IS_OPEN: dict[str, Any] = {"postgresql_where": text("open"), "sqlite_where": text("open = 1")}
IS_LIVE: dict[str, Any] = {"postgresql_where": text("state <> 'deleted'"), "sqlite_where": text("state <> 'deleted'")}
IS_BUSY: dict[str, Any] = {
    f"{dialect}_where": text("state <> 'stopped' AND state <> 'deleted'") for dialect in ("postgresql", "sqlite")
}
UNMETERED: dict[str, Any] = {"postgresql_where": text("NOT metered"), "sqlite_where": text("metered = 0")}
"""Predicates of indexes, each in the very form in which SQLAlchemy asks that database: SQLite uses a partial index only
where the condition is spelt alike."""


class Environment(HasId, Base):
    """A user's kept definition, which is one named server of the hub ('' is the default server)."""

    __tablename__ = PREFIX + "environments"
    user_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "users.id"))
    server_name: Mapped[str] = mapped_column(String(255))
    display_name: Mapped[str] = mapped_column(String(255))
    workspace_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "workspaces.id"))
    image_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "images.id"))
    flavor: Mapped[str | None] = mapped_column(String(64))
    gpu_model: Mapped[str | None] = mapped_column(String(80))
    gpu_slots: Mapped[int] = mapped_column(default=0)
    cpu_millis: Mapped[int]
    memory_bytes: Mapped[int]
    ports: Mapped[list[Any]] = mapped_column(default=list)
    """Requested port services, such as `["tensorboard", "ssh"]`."""
    state: Mapped[EnvironmentState] = mapped_column(one_of(EnvironmentState), default=EnvironmentState.STOPPED)
    message: Mapped[str] = mapped_column(String(2000), default="")
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    user: Mapped[User] = relationship()
    workspace: Mapped[Workspace] = relationship()
    image: Mapped[Image] = relationship()
    __table_args__ = (
        Index(
            "uq_remotegpu_environments_live",
            "user_id",
            "server_name",
            unique=True,
            **IS_LIVE,
        ),
        Index(None, "workspace_id", "id"),
        Index("ix_remotegpu_environments_busy", "state", **IS_BUSY),
        Index("ix_remotegpu_environments_live_name", "display_name", "id", **IS_LIVE),
        Index("ix_remotegpu_environments_live_name_of_workspace", "workspace_id", "display_name", "id", **IS_LIVE),
        CheckConstraint("(gpu_slots = 0) = (gpu_model IS NULL)", name="gpus_have_a_model"),
        *not_negative(["gpu_slots", "cpu_millis", "memory_bytes"]),
        NO_REUSE,
    )


class Attempt(Base):
    """One start of an environment. The row is inserted by admit or, before it could, by release (then it is a
    tombstone): the primary key makes the two wait for each other, so a late start can never hold anything."""

    __tablename__ = PREFIX + "attempts"
    attempt: Mapped[str] = mapped_column(String(36), primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    released: Mapped[bool] = mapped_column(default=False)


class Allocation(HasId, Base):
    """One run of an environment: what it holds, from when to when. Periods are whole seconds, half-open."""

    __tablename__ = PREFIX + "allocations"
    environment_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "environments.id"))
    attempt: Mapped[str] = mapped_column(String(36), unique=True)
    workspace_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "workspaces.id"))
    user_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "users.id"))
    host_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "hosts.id"))
    gpu_model: Mapped[str | None] = mapped_column(String(80))
    gpu_slots: Mapped[int]
    gpu_millis: Mapped[int]
    cpu_millis: Mapped[int]
    memory_bytes: Mapped[int]
    image_reference: Mapped[str] = mapped_column(String(512))
    image_digest: Mapped[str | None] = mapped_column(String(80))
    price_per_hour: Mapped[int]
    """Millionths an hour for everything held, at the prices of the admission."""
    prices: Mapped[dict[str, Any]]
    """Unit prices at the admission, by resource."""
    mark: Mapped[str | None] = mapped_column(String(80))
    """Identity of the process tree or pod, learned when it runs."""
    state: Mapped[AllocationState] = mapped_column(one_of(AllocationState), default=AllocationState.ADMITTED)
    requested_at: Mapped[datetime]
    admitted_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    seen_at: Mapped[datetime | None]
    """Last moment at which it was seen alive."""
    ending_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    """When the run ended: billing stops here, also where the release came later."""
    metered_until: Mapped[datetime | None]
    """End of the last slice on the ledger."""
    metered: Mapped[bool] = mapped_column(default=False)
    """Ended, and all of it is on the ledger."""
    end_reason: Mapped[EndReason | None] = mapped_column(one_of(EndReason))
    environment: Mapped[Environment] = relationship()
    workspace: Mapped[Workspace] = relationship()
    user: Mapped[User] = relationship()
    host: Mapped[Host] = relationship()
    slots: Mapped[list["AllocationSlot"]] = relationship(order_by="AllocationSlot.slot_id")
    ports: Mapped[list["PortMapping"]] = relationship(order_by="PortMapping.id", back_populates="allocation")
    __table_args__ = (
        Index("uq_remotegpu_allocations_open", "environment_id", unique=True, sqlite_where=OPEN, postgresql_where=OPEN),
        Index("ix_remotegpu_allocations_open_host", "host_id", sqlite_where=OPEN, postgresql_where=OPEN),
        Index(None, "environment_id", "id"),
        Index("ix_remotegpu_allocations_unmetered_workspace", "workspace_id", **UNMETERED),
        Index("ix_remotegpu_allocations_unmetered_user", "user_id", **UNMETERED),
        CheckConstraint("(state = 'ended') = (ended_at IS NOT NULL)", name="ended_has_an_end"),
        CheckConstraint("started_at IS NULL OR ended_at IS NULL OR started_at <= ended_at", name="ends_after_start"),
        *not_negative(["gpu_slots", "gpu_millis", "cpu_millis", "memory_bytes", "price_per_hour"]),
        NO_REUSE,
    )


class Deadline(Base):
    """When an open run will be stopped, and why. Of several the earliest counts."""

    __tablename__ = PREFIX + "deadlines"
    allocation_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "allocations.id"), primary_key=True)
    reason: Mapped[EndReason] = mapped_column(one_of(EndReason), primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    message: Mapped[str] = mapped_column(String(2000))
    """An English sentence without facts, which `words` translates."""


class AllocationSlot(Base):
    __tablename__ = PREFIX + "allocation_slots"
    allocation_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "allocations.id"), primary_key=True)
    slot_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "gpu_slots.id"), primary_key=True)
    open: Mapped[bool] = mapped_column(default=True)
    observed_uuid: Mapped[str | None] = mapped_column(String(80))
    slot: Mapped[GpuSlot] = relationship()
    __table_args__ = (
        Index(
            "uq_remotegpu_allocation_slots_open",
            "slot_id",
            unique=True,
            **IS_OPEN,
        ),
    )

    @property
    def gpu(self) -> Gpu:
        return self.slot.gpu


class PortMapping(HasId, Base):
    """An outside way into a port of an environment."""

    __tablename__ = PREFIX + "port_mappings"
    allocation_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "allocations.id"), index=True)
    service: Mapped[PortService] = mapped_column(one_of(PortService))
    protocol: Mapped[str] = mapped_column(String(4), default="tcp")
    address: Mapped[str] = mapped_column(String(253))
    internal_port: Mapped[int]
    external_port: Mapped[int]
    url: Mapped[str | None] = mapped_column(String(512))
    open: Mapped[bool] = mapped_column(default=True)
    allocation: Mapped[Allocation] = relationship(back_populates="ports")
    __table_args__ = (
        Index(
            "uq_remotegpu_port_mappings_open",
            "address",
            "protocol",
            "external_port",
            unique=True,
            **IS_OPEN,
        ),
        CheckConstraint("external_port BETWEEN 1 AND 65535", name="external_port_exists"),
        CheckConstraint("internal_port BETWEEN 1 AND 65535", name="internal_port_exists"),
        NO_REUSE,
    )


class VolumeKind(StrEnum):
    HOME = "home"
    """Of one user in one workspace."""
    SHARED = "shared"
    """Of a workspace."""


class Volume(HasId, Base):
    """Storage that outlives runs. Its size counts against the storage quota as long as it is there, and only grows."""

    __tablename__ = PREFIX + "volumes"
    kind: Mapped[VolumeKind] = mapped_column(one_of(VolumeKind))
    workspace_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "workspaces.id"))
    user_id: Mapped[int | None] = mapped_column(ForeignKey(PREFIX + "users.id"), index=True)
    size_bytes: Mapped[int]
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        Index(
            "uq_remotegpu_volumes_live",
            "workspace_id",
            text("coalesce(user_id, 0)"),
            "kind",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        CheckConstraint("(kind = 'home') = (user_id IS NOT NULL)", name="homes_have_a_user"),
        *not_negative(["size_bytes"]),
        NO_REUSE,
    )
