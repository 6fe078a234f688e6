"""Hosts, GPUs and the slots that can be held; images and flavors that can be chosen."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Float, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from .base import NO_REUSE, PREFIX, Base, HasId, not_negative, one_of


class HostStatus(StrEnum):
    ONLINE = "online"
    OFFLINE = "offline"
    MAINTENANCE = "maintenance"


class GpuStatus(StrEnum):
    AVAILABLE = "available"
    MAINTENANCE = "maintenance"
    ERROR = "error"


class Visibility(StrEnum):
    PUBLIC = "public"
    WORKSPACE = "workspace"
    PRIVATE = "private"


class ImageStatus(StrEnum):
    ACTIVE = "active"
    DEPRECATED = "deprecated"
    BLOCKED = "blocked"
    RETIRED = "retired"
    """The same reference means another digest now."""


class Host(HasId, Base):
    """A machine. `used` is what open allocations hold, `foreign` what others were seen to use; used above capacity
    is possible (reality shrinks) and shown as overcommitted, so no CHECK forbids it."""

    __tablename__ = PREFIX + "hosts"
    name: Mapped[str] = mapped_column(String(253), unique=True)
    pool: Mapped[str] = mapped_column(String(64))
    address: Mapped[str] = mapped_column(String(253))
    status: Mapped[HostStatus] = mapped_column(one_of(HostStatus), default=HostStatus.ONLINE)
    simulated: Mapped[bool] = mapped_column(default=False)
    cpu_millis: Mapped[int]
    memory_bytes: Mapped[int]
    gpu_millis: Mapped[int] = mapped_column(default=0)
    used_cpu_millis: Mapped[int] = mapped_column(default=0)
    used_memory_bytes: Mapped[int] = mapped_column(default=0)
    used_gpu_millis: Mapped[int] = mapped_column(default=0)
    used_environments: Mapped[int] = mapped_column(default=0)
    foreign_cpu_millis: Mapped[int] = mapped_column(default=0)
    foreign_memory_bytes: Mapped[int] = mapped_column(default=0)
    score: Mapped[float] = mapped_column(Float, default=0.0)
    """0.4·cpu + 0.4·memory + 0.2·gpu of what is used, 0 to 1: the key of the placement policies."""
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    last_seen_at: Mapped[datetime]
    __table_args__ = (
        Index("ix_remotegpu_hosts_status_score", "status", "score"),
        Index("ix_remotegpu_hosts_status_used_environments", "status", "used_environments"),
        *not_negative(["used_cpu_millis", "used_memory_bytes", "used_gpu_millis", "used_environments"]),
        NO_REUSE,
    )


class HostModel(Base):
    """How many slots of a model a host has and how many are held: one guarded UPDATE takes them."""

    __tablename__ = PREFIX + "host_models"
    model: Mapped[str] = mapped_column(String(80), primary_key=True)
    host_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "hosts.id"), primary_key=True, index=True)
    gpu_millis: Mapped[int]
    """Fraction of a GPU that one slot of the model is."""
    usable: Mapped[int] = mapped_column(default=0)
    """Slots on available GPUs that nobody outside uses, held or not; and held ones of other GPUs that have a name."""
    used: Mapped[int] = mapped_column(default=0)
    """Slots held by open allocations, usable or not."""
    __table_args__ = (
        Index(
            "ix_remotegpu_host_models_free",
            "model",
            "host_id",
            sqlite_where=text("used < usable"),
            postgresql_where=text("used < usable"),
        ),
        *not_negative(["gpu_millis", "usable", "used"]),
    )


class Gpu(HasId, Base):
    __tablename__ = PREFIX + "gpus"
    host_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "hosts.id"))
    index: Mapped[int]
    uuid: Mapped[str] = mapped_column(String(80))
    model: Mapped[str] = mapped_column(String(80))
    memory_mib: Mapped[int]
    status: Mapped[GpuStatus] = mapped_column(one_of(GpuStatus), default=GpuStatus.AVAILABLE)
    foreign: Mapped[bool] = mapped_column(default=False)
    """A process outside our allocations uses it now."""
    missing: Mapped[bool] = mapped_column(default=False)
    """Known from before, not seen by the last sync."""
    host: Mapped[Host] = relationship()
    slots: Mapped[list["GpuSlot"]] = relationship(order_by="GpuSlot.ordinal", back_populates="gpu")
    __table_args__ = (Index("uq_remotegpu_gpus_host_uuid", "host_id", "uuid", unique=True), NO_REUSE)


class GpuSlot(HasId, Base):
    """One thing that can be held: a whole GPU, a MIG slice, or a share."""

    __tablename__ = PREFIX + "gpu_slots"
    gpu_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "gpus.id"))
    host_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "hosts.id"))
    ordinal: Mapped[int]
    model: Mapped[str] = mapped_column(String(80))
    gpu_millis: Mapped[int]
    usable: Mapped[bool] = mapped_column(default=True)
    """Its GPU is available, present and not used by others, and it is not retired by a new split."""
    retired: Mapped[bool] = mapped_column(default=False)
    gpu: Mapped[Gpu] = relationship(back_populates="slots")
    __table_args__ = (
        Index("uq_remotegpu_gpu_slots_gpu_model_ordinal", "gpu_id", "model", "ordinal", unique=True),
        Index(
            "ix_remotegpu_gpu_slots_usable",
            "host_id",
            "model",
            sqlite_where=text("usable = 1"),  # spelt as SQLAlchemy asks for it
            postgresql_where=text("usable"),
        ),
        *not_negative(["gpu_millis"]),
        NO_REUSE,
    )


class Image(HasId, Base):
    """Something that may be run. A local image has no digest; its command stands in the configuration."""

    __tablename__ = PREFIX + "images"
    reference: Mapped[str] = mapped_column(String(512))
    digest: Mapped[str | None] = mapped_column(String(80))
    display_name: Mapped[str] = mapped_column(String(255))
    framework: Mapped[str | None] = mapped_column(String(80))
    cuda_version: Mapped[str | None] = mapped_column(String(20))
    python_version: Mapped[str | None] = mapped_column(String(20))
    size_bytes: Mapped[int | None]
    category: Mapped[str] = mapped_column(String(40), default="official")
    visibility: Mapped[Visibility] = mapped_column(one_of(Visibility), default=Visibility.PUBLIC)
    workspace_id: Mapped[int | None] = mapped_column(ForeignKey(PREFIX + "workspaces.id"))
    owner_id: Mapped[int | None] = mapped_column(ForeignKey(PREFIX + "users.id"))
    status: Mapped[ImageStatus] = mapped_column(one_of(ImageStatus), default=ImageStatus.ACTIVE)
    scan: Mapped[dict[str, Any]] = mapped_column(default=dict)
    __table_args__ = (
        Index("uq_remotegpu_images_reference_digest", "reference", text("coalesce(digest, '')"), unique=True),
        NO_REUSE,
    )


class Flavor(HasId, Base):
    """A named preset of resources. The price is always the sum of resources × prices, never the flavor's own."""

    __tablename__ = PREFIX + "flavors"
    name: Mapped[str] = mapped_column(String(64), unique=True)
    display_name: Mapped[str] = mapped_column(String(255))
    gpu_model: Mapped[str | None] = mapped_column(String(80))
    gpu_slots: Mapped[int] = mapped_column(default=0)
    cpu_millis: Mapped[int]
    memory_bytes: Mapped[int]
    workspace_id: Mapped[int | None] = mapped_column(ForeignKey(PREFIX + "workspaces.id"))
    """Only this workspace may use it; NULL is everybody."""
    retired: Mapped[bool] = mapped_column(default=False)
    __table_args__ = (*not_negative(["gpu_slots", "cpu_millis", "memory_bytes"]), NO_REUSE)
