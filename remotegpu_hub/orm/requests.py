"""What users ask for and are answered."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, CheckConstraint, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from .base import NO_REUSE, PREFIX, Base, HasId, one_of
from .people import QuotaScope, User, Workspace


class RequestState(StrEnum):
    OPEN = "open"
    APPROVED = "approved"
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"


class QuotaRequest(HasId, Base):
    """Somebody's wish for higher limits: for themselves, for a workspace, or for themselves inside one."""

    __tablename__ = PREFIX + "quota_requests"
    scope: Mapped[QuotaScope] = mapped_column(one_of(QuotaScope))
    asker_id: Mapped[int] = mapped_column(ForeignKey(PREFIX + "users.id"), index=True)
    workspace_id: Mapped[int | None] = mapped_column(ForeignKey(PREFIX + "workspaces.id"))
    wanted: Mapped[dict[str, Any]]
    """Limits as `quotas.describe` spells them: by resource, slots by `gpu:MODEL`, `unlimited` as the word."""
    reason: Mapped[str] = mapped_column(String(1000))
    needed_until: Mapped[datetime | None]
    """Told to who decides; nothing ends by itself then."""
    state: Mapped[RequestState] = mapped_column(one_of(RequestState), default=RequestState.OPEN)
    granted: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What an approval changed, spelt as `wanted`."""
    answer: Mapped[str] = mapped_column(String(1000), default="")
    created_at: Mapped[datetime]
    decided_at: Mapped[datetime | None]
    decided_by: Mapped[str | None] = mapped_column(String(255))
    """An actor of the audit log."""
    asker: Mapped[User] = relationship()
    workspace: Mapped[Workspace | None] = relationship()
    __table_args__ = (
        Index(
            "uq_remotegpu_quota_requests_open",
            "scope",
            "asker_id",
            text("coalesce(workspace_id, 0)"),
            unique=True,
            sqlite_where=text("state = 'open'"),
            postgresql_where=text("state = 'open'"),
        ),
        Index(None, "state", "id"),
        Index(None, "workspace_id"),
        CheckConstraint("scope IN ('user', 'workspace', 'member')", name="scope_is_somebodys"),
        CheckConstraint("(scope = 'user') = (workspace_id IS NULL)", name="scope_names_workspace"),
        CheckConstraint("(state = 'open') = (decided_at IS NULL)", name="decided_when_not_open"),
        NO_REUSE,
    )
