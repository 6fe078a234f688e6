"""Workspaces and their members. A linked workspace follows its hub group; `~user` is a person's own."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Any, Final
from zoneinfo import available_timezones

from sqlalchemy import exists, func, insert, literal, select
from sqlalchemy.orm import Session, contains_eager

from ..errors import Conflict, Invalid, NotFound
from ..observed import HubUser
from ..orm import (
    ENDED,
    Allocation,
    AllocationState,
    Budget,
    Deadline,
    EndReason,
    Environment,
    Member,
    MemberStatus,
    Quota,
    QuotaScope,
    Role,
    User,
    Workspace,
    WorkspaceKind,
    WorkspaceStatus,
)
from . import events, users
from .audit import SYSTEM, Actor, record
from .events import Sight

_NAME = re.compile(r"[a-z][a-z0-9-]{1,61}[a-z0-9]")
UNSET: Any = object()
LEAVING_GRACE = timedelta(hours=1)
"""How long what runs of a removed or suspended member goes on: time to save a result."""
MAY_NOT_START: Final = "Its user may start nothing in its workspace any more."
"""What is told of a run that ends for it."""


def check_display_name(text: str) -> str:
    """A name in any script, one line, at most 100 characters. Raises: Invalid."""
    text = text.strip()
    if not 1 <= len(text) <= 100 or not text.isprintable():
        raise Invalid("A display name has 1 to 100 printable characters.")
    return text


def create(
    session: Session,
    *,
    name: str,
    display_name: str,
    owner: User,
    actor: Actor,
    now: datetime,
    kind: WorkspaceKind = WorkspaceKind.TEAM,
    hub_group: str | None = None,
    time_zone: str = "UTC",
) -> Workspace:
    """Make a workspace with its owner as first member. Raises: Invalid, Conflict when the name is taken."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            "{value} cannot be a workspace's name: write 3 to 63 of a-z, 0-9 and -, beginning with a letter.",
            value=name,
        )
    if time_zone not in available_timezones():
        raise Invalid("{value} is not a time zone: write one such as Asia/Shanghai.", value=time_zone)
    if session.scalar(select(exists().where(Workspace.name == name))):
        raise Conflict("There is a workspace named {name} already.", name=name)
    _check_group(session, hub_group)
    return _insert(
        session,
        Workspace(
            name=name,
            display_name=check_display_name(display_name),
            owner_id=owner.id,
            kind=kind,
            hub_group=hub_group,
            time_zone=time_zone,
            created_at=now,
        ),
        owner,
        actor,
        now,
    )


def _insert(session: Session, workspace: Workspace, owner: User, actor: Actor, now: datetime) -> Workspace:
    session.add(workspace)
    session.flush()
    session.add(Member(workspace_id=workspace.id, user_id=owner.id, role=Role.OWNER, created_at=now))
    session.flush()
    record(session, actor=actor, action="workspace.create", entity="workspace", entity_id=workspace.id, now=now,
           name=workspace.name, owner=owner.name)  # fmt: skip
    return workspace


def personal_name(user: User) -> str:
    """The reserved name `~user`; a hub user name is longer than ours only beyond 62 characters."""
    return "~" + user.name[:62]


def ensure_personal(
    session: Session, *, user: User, now: datetime, quota: dict[str, int | None], budget: int | None
) -> Workspace:
    """Give a user the personal workspace, with its configured quota and budget, and let it follow a rename."""
    own = select(Workspace).where(Workspace.owner_id == user.id, Workspace.kind == WorkspaceKind.PERSONAL)
    workspace = session.scalar(own)
    name = personal_name(user)
    if workspace is not None and workspace.name == name:
        return workspace
    session.execute(select(User.id).where(User.id == user.id).with_for_update(key_share=True))
    workspace = session.scalar(own.execution_options(populate_existing=True))  # another request may have made it now
    if workspace is not None and workspace.name == name:
        return workspace
    _free_name(session, name, now)
    if workspace is not None:
        before = {"name": workspace.name, "display_name": workspace.display_name}
        workspace.name, workspace.display_name = name, user.name[:100]
        session.flush()
        record(session, actor=SYSTEM, action="workspace.renamed", entity="workspace", entity_id=workspace.id, now=now,
               before=before, after={"name": name, "display_name": workspace.display_name})  # fmt: skip
        return workspace
    workspace = _insert(
        session,
        Workspace(name=name, display_name=user.name[:100], owner_id=user.id, kind=WorkspaceKind.PERSONAL,
                  time_zone="UTC", created_at=now),
        user,
        SYSTEM,
        now,
    )  # fmt: skip
    session.add(Quota(scope=QuotaScope.WORKSPACE, workspace_id=workspace.id, **quota))
    if budget is not None:
        session.add(Budget(workspace_id=workspace.id, amount=budget))
    session.flush()
    record(session, actor=SYSTEM, action="quota.put", entity="workspace", entity_id=workspace.id, now=now,
           after={**quota, "budget": budget})  # fmt: skip
    return workspace


def lacking_personal(session: Session) -> list[User]:
    """Live users without a personal workspace of their present name."""
    own = (Workspace.owner_id == User.id) & (Workspace.kind == WorkspaceKind.PERSONAL)
    rows = session.execute(select(User, Workspace.name).outerjoin(Workspace, own).where(User.deleted_at.is_(None)))
    return [user for user, name in rows if name != personal_name(user)]


def _free_name(session: Session, name: str, now: datetime) -> None:
    """Move a deleted or renamed user's personal workspace out of the way; it keeps its records under its id."""
    other = session.scalar(select(Workspace).where(Workspace.name == name))
    if other is None:
        return
    other.name = f"{name[:48]}#{other.id}"
    owner = session.get_one(User, other.owner_id)
    if owner.deleted_at is not None:
        other.status = WorkspaceStatus.ARCHIVED
    session.flush()
    record(session, actor=SYSTEM, action="workspace.renamed", entity="workspace", entity_id=other.id, now=now,
           before={"name": name}, after={"name": other.name})  # fmt: skip


def by_name(session: Session, *, name: str) -> Workspace:
    """Find a workspace. Raises: NotFound."""
    workspace = session.scalar(select(Workspace).where(Workspace.name == name))
    if workspace is None:
        raise NotFound(f"The workspace {name}")
    return workspace


def update_settings(
    session: Session,
    *,
    workspace: Workspace,
    actor: Actor,
    now: datetime,
    display_name: str | None = None,
    time_zone: str | None = None,
    hub_group: Any = UNSET,
) -> Workspace:
    """Change what an owner or admin may change. Raises: Invalid; Conflict when the group is linked elsewhere."""
    before = {"display_name": workspace.display_name, "time_zone": workspace.time_zone,
              "hub_group": workspace.hub_group}  # fmt: skip
    if display_name is not None:
        workspace.display_name = check_display_name(display_name)
    if time_zone is not None:
        if time_zone not in available_timezones():
            raise Invalid("{value} is not a time zone: write one such as Asia/Shanghai.", value=time_zone)
        workspace.time_zone = time_zone
    if hub_group is not UNSET and hub_group != workspace.hub_group:
        _check_group(session, hub_group)
        workspace.hub_group = hub_group
    session.flush()
    after = {"display_name": workspace.display_name, "time_zone": workspace.time_zone,
             "hub_group": workspace.hub_group}  # fmt: skip
    record(session, actor=actor, action="workspace.update", entity="workspace", entity_id=workspace.id, now=now,
           before=before, after=after)  # fmt: skip
    return workspace


def _check_group(session: Session, hub_group: str | None) -> None:
    taken = hub_group and session.scalar(select(Workspace.name).where(Workspace.hub_group == hub_group))
    if taken:
        raise Conflict("The group {group} is linked to the workspace {name}.", group=hub_group, name=taken)


def archive(session: Session, *, workspace: Workspace, actor: Actor, now: datetime) -> None:
    """Close a workspace for new starts. One that is archived stays as it is. Raises: Conflict while environments run
    in it."""
    lock(session, workspace)
    session.refresh(workspace)
    if workspace.status == WorkspaceStatus.ARCHIVED:
        return
    running = session.scalar(select(exists().where(Allocation.workspace_id == workspace.id, Allocation.state != ENDED)))
    if running:
        raise Conflict("Environments of {name} are running. Stop them first.", name=workspace.name)
    workspace.status = WorkspaceStatus.ARCHIVED
    session.flush()
    record(session, actor=actor, action="workspace.archive", entity="workspace", entity_id=workspace.id, now=now,
           name=workspace.name)  # fmt: skip


def reopen(session: Session, *, workspace: Workspace, actor: Actor, now: datetime) -> None:
    """Let an archived workspace start environments again, with the members, limits and budget that it had. One that is
    open stays as it is."""
    lock(session, workspace)
    session.refresh(workspace)
    if workspace.status != WorkspaceStatus.ARCHIVED:
        return
    workspace.status = WorkspaceStatus.ACTIVE
    session.flush()
    record(session, actor=actor, action="workspace.reopen", entity="workspace", entity_id=workspace.id, now=now,
           name=workspace.name)  # fmt: skip


def put_member(
    session: Session,
    *,
    workspace: Workspace,
    user: User,
    role: Role,
    actor: Actor,
    now: datetime,
    status: MemberStatus = MemberStatus.ACTIVE,
    from_group: bool = False,
) -> Member:
    """Add a member, or change role and status. Raises: Invalid for an invitation, which has a verb of its own and an
    end; Conflict when the last owner would go."""
    if status == MemberStatus.INVITED:
        raise Invalid(
            "Nobody is made invited like this: invite {user} on the page, or with `remotegpu invitations send`.",
            user=user.name,
        )
    lock(session, workspace)
    member = locked_member(session, workspace, user)
    before: dict[str, Any] = {}
    if member is None:
        member = Member(workspace_id=workspace.id, user_id=user.id, role=role, status=status,
                        from_group=from_group, created_at=now)  # fmt: skip
        session.add(member)
    else:
        before = {"role": member.role, "status": member.status}
        if member.role == Role.OWNER and (role != Role.OWNER or status != MemberStatus.ACTIVE):
            _keep_an_owner(session, workspace, user)
        member.role, member.status = role, status
        member.invited_until = member.invited_by = None
    session.flush()
    may_run = status == MemberStatus.ACTIVE and role != Role.VIEWER
    _end_or_keep_runs(session, workspace, user, keep=may_run, now=now)
    record(session, actor=actor, action="member.put", entity="workspace", entity_id=workspace.id, now=now,
           before=before, after={"role": role, "status": status}, user=user.name)  # fmt: skip
    return member


def remove_member(session: Session, *, workspace: Workspace, user: User, actor: Actor, now: datetime) -> None:
    """Take a member out. Raises: NotFound; Conflict when it is the last owner."""
    lock(session, workspace)
    member = locked_member(session, workspace, user)
    if member is None:
        raise NotFound(f"The member {user.name}")
    if member.role == Role.OWNER and member.status != MemberStatus.INVITED:
        _keep_an_owner(session, workspace, user)
    role = member.role
    session.delete(member)
    session.flush()
    _end_or_keep_runs(session, workspace, user, keep=False, now=now)
    record(session, actor=actor, action="member.remove", entity="workspace", entity_id=workspace.id, now=now,
           before={"role": role}, user=user.name)  # fmt: skip


def _end_or_keep_runs(session: Session, workspace: Workspace, user: User, *, keep: bool, now: datetime) -> None:
    """Give what runs of somebody who may start nothing here any more a deadline, or take it back."""
    theirs = (
        Allocation.workspace_id == workspace.id,
        Allocation.user_id == user.id,
        Allocation.state.in_([AllocationState.ADMITTED, AllocationState.ACTIVE]),
    )
    if keep:
        events.spare(session, *theirs, reason=EndReason.ADMIN, now=now)
        return
    told = (Deadline.reason == EndReason.ADMIN) & (Deadline.allocation_id == Allocation.id)
    ends_at = now + LEAVING_GRACE
    runs = select(
        Allocation.id,
        literal(EndReason.ADMIN, Deadline.reason.type),
        literal(ends_at, Deadline.at.type),
        literal(MAY_NOT_START, Deadline.message.type),
    ).where(*theirs, ~exists().where(told).correlate(Allocation))
    given = insert(Deadline).from_select(["allocation_id", "reason", "at", "message"], runs)
    ids = session.scalars(given.returning(Deadline.allocation_id)).all()
    if not ids:
        return
    ending = select(Environment).join(Allocation, Allocation.environment_id == Environment.id)
    for one in session.scalars(ending.where(Allocation.id.in_(ids)).order_by(Environment.id)):
        events.of_deadline(session, one, at=ends_at, reason=EndReason.ADMIN.value, message=MAY_NOT_START, now=now)


def lock(session: Session, workspace: Workspace) -> None:
    """Keep starts and other changes of the workspace away; members are locked after it, as starts do."""
    session.execute(select(Workspace.id).where(Workspace.id == workspace.id).with_for_update(key_share=True))


def locked_member(session: Session, workspace: Workspace, user: User) -> Member | None:
    """The membership, or an invitation, as it is now; nobody else changes it until the transaction ends."""
    return session.scalar(
        select(Member)
        .where(Member.workspace_id == workspace.id, Member.user_id == user.id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )


def _keep_an_owner(session: Session, workspace: Workspace, leaving: User) -> None:
    others = session.scalar(
        select(
            exists().where(
                Member.workspace_id == workspace.id,
                Member.user_id != leaving.id,
                Member.role == Role.OWNER,
                Member.status == MemberStatus.ACTIVE,
                User.id == Member.user_id,
                User.deleted_at.is_(None),
            )
        )
    )
    if not others:
        raise Conflict("{name} needs an owner. Make somebody else an owner first.", name=workspace.name)


def members(session: Session, *, workspace: Workspace) -> list[Member]:
    """All members with their users, owners first; but for whom the hub no longer has, whose usage keeps their name."""
    here = (Member.workspace_id == workspace.id, User.deleted_at.is_(None))
    rows = session.scalars(select(Member).join(Member.user).where(*here))
    order = list(Role)
    return sorted(rows, key=lambda one: (order.index(one.role), one.user.name))


def count_members(session: Session, *, workspace_ids: Collection[int]) -> dict[int, int]:
    """How many active members, whom the hub has, each of these workspaces has; who has none is left out."""
    counted = (
        select(Member.workspace_id, func.count())
        .join(Member.user)
        .where(
            Member.workspace_id.in_(workspace_ids), Member.status == MemberStatus.ACTIVE, User.deleted_at.is_(None)
        )
        .group_by(Member.workspace_id)
    )  # fmt: skip
    return dict(session.execute(counted).tuples().all())


def member_named(session: Session, *, workspace: Workspace, name: str) -> Member:
    """The member who has this name in the hub; who is only invited is none. Raises: NotFound."""
    member = session.scalar(
        select(Member)
        .join(Member.user)
        .where(
            Member.workspace_id == workspace.id, Member.status != MemberStatus.INVITED, User.name == name,
            User.deleted_at.is_(None),
        )
    )  # fmt: skip
    if member is None:
        raise NotFound("The member")
    return member


def role_of(session: Session, *, workspace_id: int, user_id: int) -> Role | None:
    """The role of an active member; None of everybody else."""
    return session.scalar(
        select(Member.role).where(
            Member.workspace_id == workspace_id, Member.user_id == user_id, Member.status == MemberStatus.ACTIVE
        )
    )


def sights(session: Session, *, user_ids: Collection[int]) -> dict[int, Sight]:
    """Whose events each of these users may see now, in two statements for all of them. Who is left out is gone."""
    people = users.currents(session, ids=user_ids)
    memberships = select(Member.user_id, Member.workspace_id).where(
        Member.user_id.in_([number for number, admin in people.items() if not admin]),
        Member.status == MemberStatus.ACTIVE,
    )
    spaces: dict[int, set[int]] = defaultdict(set)
    for user_id, workspace_id in session.execute(memberships):
        spaces[user_id].add(workspace_id)
    return {number: Sight(number, frozenset(spaces[number]), everything=admin) for number, admin in people.items()}


def of_user(session: Session, *, user: User) -> list[Member]:
    """The user's active memberships of active workspaces, teams first, each with its workspace."""
    rows = session.scalars(
        select(Member)
        .join(Member.workspace)
        .where(
            Member.user_id == user.id,
            Member.status == MemberStatus.ACTIVE,
            Workspace.status == WorkspaceStatus.ACTIVE,
        )
        .options(contains_eager(Member.workspace))
    )
    return sorted(
        rows,
        key=lambda one: (one.workspace.kind == WorkspaceKind.PERSONAL, one.role == Role.VIEWER, one.workspace.name),
    )


def follow_groups(session: Session, *, hub_users: Iterable[HubUser], now: datetime) -> None:
    """Bring the members of linked workspaces to their hub groups: who joined becomes a member, who came with the
    group leaves with it; roles given by hand stay."""
    linked = list(session.scalars(select(Workspace).where(Workspace.hub_group.is_not(None))))
    if not linked:
        return
    rows = {user.hub_user_id: user for user in session.scalars(select(User).where(User.deleted_at.is_(None)))}
    in_group: dict[str, set[int]] = {}
    for one in hub_users:
        for group in one.groups:
            if one.hub_user_id in rows:
                in_group.setdefault(group, set()).add(rows[one.hub_user_id].id)
    by_id = {user.id: user for user in rows.values()}
    for workspace in linked:
        wanted = in_group.get(str(workspace.hub_group), set())
        current = {m.user_id: m for m in session.scalars(select(Member).where(Member.workspace_id == workspace.id))}
        for user_id in wanted - current.keys():
            put_member(session, workspace=workspace, user=by_id[user_id], role=Role.MEMBER, actor=SYSTEM, now=now,
                       from_group=True)  # fmt: skip
        for user_id in wanted & current.keys():
            if current[user_id].status == MemberStatus.INVITED:  # the group is the answer; the role was given by hand
                put_member(session, workspace=workspace, user=by_id[user_id], role=current[user_id].role, actor=SYSTEM,
                           now=now)  # fmt: skip
        for user_id, member in current.items():
            if member.from_group and user_id not in wanted and member.role != Role.OWNER:
                user = by_id.get(user_id) or session.get_one(User, user_id)
                remove_member(session, workspace=workspace, user=user, actor=SYSTEM, now=now)


def retire_owned(session: Session, *, users: Iterable[User], now: datetime) -> None:
    """Archive the personal workspaces of users whom the hub no longer has."""
    ids = [user.id for user in users]
    owned = session.scalars(
        select(Workspace).where(
            Workspace.owner_id.in_(ids),
            Workspace.kind == WorkspaceKind.PERSONAL,
            Workspace.status == WorkspaceStatus.ACTIVE,
        )
    )
    for workspace in owned.all():
        workspace.status = WorkspaceStatus.ARCHIVED
        session.flush()
        record(session, actor=SYSTEM, action="workspace.archive", entity="workspace", entity_id=workspace.id, now=now,
               name=workspace.name)  # fmt: skip
