"""Find the users that a command line names."""

from datetime import datetime

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from ..domain import users
from ..errors import NotFound
from ..orm import User


def user(session: Session, name: str, *, now: datetime) -> User:
    """Find a user by name, also one whom the hub has and we have not met yet. Raises: NotFound."""
    try:
        return users.by_name(session, name=name)
    except NotFound:
        if not hub_has_tables(session):
            raise
    for one in users.hub_users(session):
        if one.name == name:
            return users.ensure(session, hub_user=one, now=now)
    raise NotFound(f"The user {name}")


def hub_has_tables(session: Session) -> bool:
    """Whether the hub has ever started on this database."""
    tables = inspect(session.connection())
    return all(tables.has_table(name) for name in ("users", "groups", "user_group_map", "spawners"))
