"""Hub users under ids of our own. The hub's tables are read here, never written; no hook of the hub tells of a
rename or a deletion, so they are compared at each admission and each sync."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime

from sqlalchemy import bindparam, column, inspect, select, table, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ..errors import NotFound
from ..observed import HubUser
from ..orm import DELETED, Environment, EnvironmentState, EventKind, QuotaRequest, RequestState, User
from . import events
from .audit import SYSTEM, record

_users = table("users", column("id"), column("name"), column("created"), column("admin"))
_groups = table("groups", column("id"), column("name"))
_group_map = table("user_group_map", column("user_id"), column("group_id"))


def hub_users(session: Session) -> list[HubUser]:
    """Read all users of the hub with their groups."""
    groups: dict[int, set[str]] = defaultdict(set)
    membership = select(_group_map.c.user_id, _groups.c.name).join_from(
        _group_map, _groups, _groups.c.id == _group_map.c.group_id
    )
    for user_id, name in session.execute(membership):
        groups[user_id].add(name)
    return [
        HubUser(row.id, row.name, str(row.created), frozenset(groups[row.id]))
        for row in session.execute(select(_users).order_by(_users.c.id))
    ]


def hub_user(session: Session, *, hub_user_id: int) -> HubUser:
    """Read one user of the hub as it is now, without groups. Raises: NotFound."""
    row = session.execute(select(_users).where(_users.c.id == hub_user_id)).first()
    if row is None:
        raise NotFound("The user")
    return HubUser(row.id, row.name, str(row.created))


def is_hub_admin(session: Session, *, user: User) -> bool:
    """Whether the hub calls the user an admin now."""
    return bool(session.scalar(select(_users.c.admin).where(_users.c.id == user.hub_user_id)))


def live(session: Session, *, hub_user_id: int) -> User | None:
    """Our live row for a numeric id of the hub."""
    return session.scalar(select(User).where(User.hub_user_id == hub_user_id, User.deleted_at.is_(None)))


def ensure(session: Session, *, hub_user: HubUser, now: datetime) -> User:
    """Find our row for a hub user, following a rename; a re-created user gets a new one and inherits nothing."""
    user = live(session, hub_user_id=hub_user.hub_user_id)
    if user is not None and user.hub_created != hub_user.created:
        retire(session, user=user, now=now)
        user = None
    if user is None:
        user = _insert(session, hub_user, now)
    if user.name != hub_user.name:
        record(
            session,
            actor=SYSTEM,
            action="user.renamed",
            entity="user",
            entity_id=user.id,
            now=now,
            before={"name": user.name},
            after={"name": hub_user.name},
        )
        user.name = hub_user.name
        session.flush()
    return user


def _insert(session: Session, hub_user: HubUser, now: datetime) -> User:
    """Make our row, or find the one that another request made at the same moment."""
    user = User(hub_user_id=hub_user.hub_user_id, hub_created=hub_user.created, name=hub_user.name, created_at=now)
    try:
        with session.begin_nested():
            session.add(user)
            session.flush()
    except IntegrityError:
        other = live(session, hub_user_id=hub_user.hub_user_id)
        if other is None:
            raise
        return other
    record(session, actor=SYSTEM, action="user.seen", entity="user", entity_id=user.id, now=now, name=user.name)
    return user


def retire(session: Session, *, user: User, now: datetime) -> None:
    """Mark a user whom the hub no longer has; environments and open requests go with it, the ledger stays."""
    user.deleted_at = now
    for one in session.scalars(select(Environment).where(Environment.user_id == user.id, Environment.state != DELETED)):
        events.of_environment(session, one, EventKind.DELETED, now=now)
    session.execute(
        update(Environment)
        .where(Environment.user_id == user.id, Environment.state != DELETED)
        .values(state=EnvironmentState.DELETED, deleted_at=now)
    )
    session.execute(
        update(QuotaRequest)
        .where(QuotaRequest.asker_id == user.id, QuotaRequest.state == RequestState.OPEN)
        .values(state=RequestState.WITHDRAWN, decided_at=now, decided_by=SYSTEM.name)
    )
    session.flush()
    record(session, actor=SYSTEM, action="user.deleted", entity="user", entity_id=user.id, now=now, name=user.name)


def differences(session: Session, *, hub_users: Iterable[HubUser]) -> tuple[list[User], list[HubUser]]:
    """Our rows of users whom the hub no longer has, and users of the hub who are new, re-created or renamed."""
    current = {one.hub_user_id: one for one in hub_users}
    known = {user.hub_user_id: user for user in session.scalars(select(User).where(User.deleted_at.is_(None)))}

    def same(seen: HubUser | None, user: User | None) -> bool:
        return seen is not None and user is not None and seen.created == user.hub_created

    gone = [user for hub_user_id, user in known.items() if not same(current.get(hub_user_id), user)]
    changed = []
    for hub_user_id, seen in current.items():
        user = known.get(hub_user_id)
        if user is None or not same(seen, user) or user.name != seen.name:
            changed.append(seen)
    return gone, changed


def sync(session: Session, *, gone: Iterable[User], changed: Iterable[HubUser], now: datetime) -> list[User]:
    """Follow what `differences` told, or a part of it. Returns those that were retired."""
    rows = [session.get_one(User, user.id, with_for_update={"key_share": True}) for user in gone]
    retired = [user for user in rows if user.deleted_at is None]
    for user in retired:
        retire(session, user=user, now=now)
    for seen in changed:
        ensure(session, hub_user=seen, now=now)
    return retired


def by_name(session: Session, *, name: str) -> User:
    """Find the live user of this name. Raises: NotFound."""
    user = session.scalar(select(User).where(User.name == name, User.deleted_at.is_(None)))
    if user is None:
        raise NotFound(f"The user {name}")
    return user


def currents(session: Session, *, ids: Collection[int]) -> dict[int, bool]:
    """Whom of these, by our ids, the hub has now, under whatever name, and whether it calls them an admin."""
    query = (
        select(_users.c.created, _users.c.admin, User.id, User.hub_created)
        .join(User, (User.hub_user_id == _users.c.id) & User.deleted_at.is_(None))
        .where(User.id.in_(ids))
    )
    return {row.id: bool(row.admin) for row in session.execute(query) if row.hub_created == str(row.created)}


def named(session: Session, *, name: str, now: datetime) -> User:
    """Find the live user of this name, also one whom the hub has and no sync has seen yet. Raises: NotFound."""
    try:
        return by_name(session, name=name)
    except NotFound:
        if not hub_has_tables(session):
            raise
    row = session.execute(select(_users).where(_users.c.name == name)).first()
    if row is None:
        raise NotFound(f"The user {name}")
    return ensure(session, hub_user=HubUser(row.id, row.name, str(row.created)), now=now)


def hub_has_tables(session: Session) -> bool:
    """Whether the hub has ever started on this database."""
    tables = inspect(session.connection())
    return all(tables.has_table(name) for name in ("users", "groups", "user_group_map", "spawners"))


def current(session: Session, *, name: str) -> User:
    """Find our row of whoever has this name in the hub now: since the last sync it may have passed to somebody else.

    Raises: NotFound, also for who was not seen here yet.
    """
    row = session.execute(_current, {"current": name}).first()
    if row is None or row.User.hub_created != str(row.created):
        raise NotFound(f"The user {name}")
    user: User = row.User
    return user


_current = (
    select(User, _users.c.created)
    .join(_users, _users.c.id == User.hub_user_id)
    .where(_users.c.name == bindparam("current"), User.deleted_at.is_(None))
)
