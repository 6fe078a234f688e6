"""Routes of the audit log."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import select

from ...orm import AuditEntry
from ..api import LARGEST, Call, Moment, Needs, Route, Shape
from ..paging import Paging, page


class EntryShown(Shape):
    id: int
    at: datetime
    actor: str
    acted_as: str | None
    action: str
    entity: str
    entity_id: int | None
    detail: dict[str, Any]
    request_id: str | None
    address: str | None


class AuditAsked(Paging):
    sort: Literal["-at", "at"] = "-at"
    actor: str | None = Field(None, max_length=255)
    action: str | None = Field(None, max_length=64, description="Such as `quota.put`.")
    entity: str | None = Field(None, max_length=40)
    entity_id: int | None = Field(None, ge=1, le=LARGEST)
    since: Moment | None = Field(None, description="With its zone, such as 2026-11-01T00:00:00Z.")
    until: Moment | None = None


def list_audit(call: Call) -> Any:
    asked: AuditAsked = call.query
    query = select(AuditEntry)
    for column, wanted in (
        (AuditEntry.actor, asked.actor), (AuditEntry.action, asked.action), (AuditEntry.entity, asked.entity),
        (AuditEntry.entity_id, asked.entity_id),
    ):  # fmt: skip
        if wanted is not None:
            query = query.where(column == wanted)
    if asked.since is not None:
        query = query.where(AuditEntry.at >= asked.since)
    if asked.until is not None:
        query = query.where(AuditEntry.at < asked.until)
    sorts = {"at": (AuditEntry.at, AuditEntry.id)}
    return page(call.session, query, asked, sorts=sorts, sort=asked.sort, shown=lambda one: one)


ROUTES = [
    Route("GET", "audit", "Who changed what, newest first", Needs.HUB_ADMIN, list_audit, answers=EntryShown,
          query=AuditAsked, listing=True),
]  # fmt: skip
