"""Users, workspaces, members, and what they may hold."""

from datetime import datetime
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from .base import NO_REUSE, PREFIX, Base, HasId, not_negative, one_of


class WorkspaceKind(StrEnum):
    PERSONAL = "personal"
    TEAM = "team"
    ENTERPRISE = "enterprise"


class WorkspaceStatus(StrEnum):
    ACTIVE = "active"
    ARCHIVED = "archived"


class Role(StrEnum):
    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


class MemberStatus(StrEnum):
    ACTIVE = "active"
    INVITED = "invited"
    SUSPENDED = "suspended"


class QuotaScope(StrEnum):
    USER = "user"
    WORKSPACE = "workspace"
    MEMBER = "member"
    USER_DEFAULT = "user-default"
    WORKSPACE_DEFAULT = "workspace-default"


class BudgetAction(StrEnum):
    WARN = "warn"
    REFUSE = "refuse"
    STOP = "stop"


class User(HasId, Base):
    """A hub user under an id of our own, so that a renamed one keeps and a re-created one inherits nothing."""

    __tablename__ = PREFIX + "users"
    hub_user_id: Mapped[int]
    hub_created: Mapped[str] = mapped_column(String(40))
    """When the hub made the user, opaque: SQLite gives the numeric id of a deleted user to the next one."""
    name: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        Index(
            "uq_remotegpu_users_hub_user_id_live",
            "hub_user_id",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        Index(None, "name"),
        NO_REUSE,
    )


class SshKey(HasId, Base):
    """A public key with which its user may log in where an environment has a port for SSH."""

    __tablename__ = PREFIX + "ssh_keys"
    user_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "users.id"))
    name: Mapped[str] = mapped_column(String(100))
    public_key: Mapped[str] = mapped_column(String(2000))
    """Kind and base64, as `authorized_keys` takes them."""
    fingerprint: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        Index(
            "uq_remotegpu_ssh_keys_live",
            "user_id",
            "fingerprint",
            unique=True,
            sqlite_where=text("deleted_at IS NULL"),
            postgresql_where=text("deleted_at IS NULL"),
        ),
        NO_REUSE,
    )


class Workspace(HasId, Base):
    """The team that owns environments, quotas, a budget and invoices. `~user` is a person's own."""

    __tablename__ = PREFIX + "workspaces"
    name: Mapped[str] = mapped_column(String(64), unique=True)
    display_name: Mapped[str] = mapped_column(String(255))
    kind: Mapped[WorkspaceKind] = mapped_column(one_of(WorkspaceKind))
    status: Mapped[WorkspaceStatus] = mapped_column(one_of(WorkspaceStatus), default=WorkspaceStatus.ACTIVE)
    owner_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "users.id"), index=True)
    hub_group: Mapped[str | None] = mapped_column(String(255), unique=True)
    """When set, membership follows this hub group."""
    time_zone: Mapped[str] = mapped_column(String(64), default="UTC")
    """IANA name; months of the budget and of invoices begin at its midnight."""
    created_at: Mapped[datetime]
    owner: Mapped[User] = relationship()
    __table_args__ = (NO_REUSE,)


class Member(Base):
    __tablename__ = PREFIX + "workspace_members"
    workspace_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "workspaces.id"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "users.id"), primary_key=True, index=True)
    role: Mapped[Role] = mapped_column(one_of(Role))
    status: Mapped[MemberStatus] = mapped_column(one_of(MemberStatus), default=MemberStatus.ACTIVE)
    from_group: Mapped[bool] = mapped_column(default=False)
    """Came with the linked hub group, and leaves with it."""
    created_at: Mapped[datetime]
    invited_until: Mapped[datetime | None]
    """Of an invited one: until when it may be accepted; NULL is for good."""
    invited_by: Mapped[str | None] = mapped_column(String(255))
    """Of an invited one: the actor's name, as the audit log has it."""
    workspace: Mapped[Workspace] = relationship()
    user: Mapped[User] = relationship()
    __table_args__ = (
        CheckConstraint(
            "status = 'invited' OR (invited_until IS NULL AND invited_by IS NULL)", name="invitation_is_open"
        ),
    )


QUOTA_RESOURCES = ("gpu_millis", "cpu_millis", "memory_bytes", "storage_bytes", "environments", "gpu_hours")


class Quota(HasId, Base):
    """What one scope may hold at once, and GPU hours a month. NULL inherits the default row of its level."""

    __tablename__ = PREFIX + "quotas"
    scope: Mapped[QuotaScope] = mapped_column(one_of(QuotaScope))
    workspace_id: Mapped[int | None] = mapped_column(ForeignKey(PREFIX + "workspaces.id"))
    user_id: Mapped[int | None] = mapped_column(ForeignKey(PREFIX + "users.id"))
    gpu_millis: Mapped[int | None]
    cpu_millis: Mapped[int | None]
    memory_bytes: Mapped[int | None]
    storage_bytes: Mapped[int | None]
    environments: Mapped[int | None]
    gpu_hours: Mapped[int | None]
    models: Mapped[list["QuotaModel"]] = relationship(cascade="all, delete-orphan", order_by="QuotaModel.model")
    __table_args__ = (
        Index(
            "uq_remotegpu_quotas_scope",
            "scope",
            text("coalesce(workspace_id, 0)"),
            text("coalesce(user_id, 0)"),
            unique=True,
        ),
        Index(None, "user_id"),
        Index(None, "workspace_id"),
        *not_negative(QUOTA_RESOURCES),
        NO_REUSE,
    )


class QuotaModel(Base):
    """Slots of one GPU model that a quota allows; a model without a row is bounded by `gpu_millis` alone."""

    __tablename__ = PREFIX + "quota_gpu_models"
    quota_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "quotas.id", ondelete="CASCADE"), primary_key=True)
    model: Mapped[str] = mapped_column(String(80), primary_key=True)
    slots: Mapped[int]
    __table_args__ = tuple(not_negative(["slots"]))


class Budget(Base):
    """Money that a workspace may spend in a calendar month of its time zone."""

    __tablename__ = PREFIX + "budgets"
    workspace_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "workspaces.id"), primary_key=True)
    amount: Mapped[int]
    """Millionths of the hub's currency."""
    warn_percent: Mapped[int] = mapped_column(default=80)
    action: Mapped[BudgetAction] = mapped_column(one_of(BudgetAction), default=BudgetAction.REFUSE)
    __table_args__ = tuple(not_negative(["amount", "warn_percent"]))
