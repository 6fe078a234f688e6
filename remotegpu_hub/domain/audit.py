"""Who changed what, for whom, with the values before and after."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from ..orm import AuditEntry


@dataclass(frozen=True)
class Actor:
    """Who acts: a hub user, `service:NAME`, `cli:USER` or `system`; `acted_as` is whom an admin acts for."""

    name: str
    acted_as: str | None = None
    request_id: str | None = None
    address: str | None = None


SYSTEM = Actor("system")
_append = insert(AuditEntry).inline()


def record(
    session: Session,
    *,
    actor: Actor,
    action: str,
    entity: str,
    entity_id: int | None,
    now: datetime,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    **detail: Any,
) -> None:
    """Append one entry. Of `before` and `after` only what differs is kept."""
    if before is not None and after is not None:
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        before = {key: value for key, value in before.items() if key in changed}
        after = {key: value for key, value in after.items() if key in changed}
    if before:
        detail["before"] = before
    if after:
        detail["after"] = after
    session.connection().execute(
        _append,
        {
            "at": now,
            "actor": actor.name,
            "acted_as": actor.acted_as,
            "action": action,
            "entity": entity,
            "entity_id": entity_id,
            "detail": detail,
            "request_id": actor.request_id,
            "address": actor.address,
        },
    )
