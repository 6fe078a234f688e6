"""Creations that are asked for twice under one key are made once (the header Idempotency-Key)."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import delete
from sqlalchemy.orm import Session

from ..orm import Answered

KEPT: Final = timedelta(hours=24)
UNDER_WAY: Final = 0
"""Status of what was begun, and is done outside of a transaction: nobody knows yet how it went."""


@dataclass(frozen=True)
class Said:
    """What was answered, and to which request."""

    request: str
    status: int
    body: str


def find(session: Session, *, owner: str, key: str) -> Said | None:
    """What the first request under this key was answered."""
    row = session.get(Answered, (owner, key))
    return Said(row.request, row.status, row.body) if row is not None else None


def keep(session: Session, *, owner: str, key: str, request: str, status: int, body: str, now: datetime) -> None:
    """Remember an answer, in the transaction that made what it tells. Of two at once one fails at the primary key."""
    session.add(Answered(owner=owner, key=key, request=request, status=status, body=body, at=now))
    session.flush()


def finish(session: Session, *, owner: str, key: str, status: int, body: str) -> None:
    """Remember how it went with what was under way."""
    row = session.get(Answered, (owner, key))
    if row is not None:
        row.status, row.body = status, body
        session.flush()


def drop(session: Session, *, owner: str, key: str) -> None:
    """It was not done: the key is good for another try."""
    session.execute(delete(Answered).where(Answered.owner == owner, Answered.key == key))


def forget(session: Session, *, now: datetime) -> None:
    """Drop what nobody repeats any more."""
    session.execute(delete(Answered).where(Answered.at < now - KEPT))
