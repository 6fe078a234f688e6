"""Invitations into a workspace: a member row that has no rights until the invited user accepts.

Each verb locks the workspace before the row, so of an acceptance and a taking back at once one comes first, and the
other is told what became of it.
"""

from datetime import datetime, timedelta

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from ..errors import Conflict, Invalid, NotFound
from ..orm import Member, MemberStatus, Role, User, Workspace, WorkspaceKind, WorkspaceStatus
from . import workspaces
from .audit import Actor, record

DEFAULT_DAYS = 14
MOST_DAYS = 365


def invite(
    session: Session,
    *,
    workspace: Workspace,
    user: User,
    role: Role,
    actor: Actor,
    now: datetime,
    days: int = DEFAULT_DAYS,
) -> Member:
    """Ask a user into a workspace; one whose invitation ran out is asked anew.

    Raises: Invalid; Conflict for members, for who is invited already, and where nobody can be invited.
    """
    if not 1 <= days <= MOST_DAYS:
        raise Invalid("An invitation holds for 1 to {most} days.", most=MOST_DAYS)
    workspaces.lock(session, workspace)
    _check_takes_members(session, workspace)
    if workspace.hub_group is not None:
        raise Conflict(
            "Who belongs to {name} follows the hub's group {group}. Ask an admin of the hub to put {user} into it.",
            name=workspace.name,
            group=workspace.hub_group,
            user=user.name,
        )
    member = workspaces.locked_member(session, workspace, user)
    if member is not None and member.status != MemberStatus.INVITED:
        raise Conflict("{user} is in {name} already: change role or status there.", user=user.name, name=workspace.name)
    if member is not None and not ran_out(member, now=now):
        raise Conflict("{user} is invited already. Take that invitation back first to change it.", user=user.name)
    if member is None:
        member = Member(workspace_id=workspace.id, user_id=user.id, role=role, created_at=now)
        session.add(member)
    member.role, member.status, member.created_at = role, MemberStatus.INVITED, now
    member.invited_until, member.invited_by = now + timedelta(days=days), actor.name
    session.flush()
    record(session, actor=actor, action="invitation.create", entity="workspace", entity_id=workspace.id, now=now,
           user=user.name, role=role, until=member.invited_until.isoformat())  # fmt: skip
    return member


def accept(session: Session, *, workspace: Workspace, user: User, actor: Actor, now: datetime) -> Member:
    """Become what the invitation says. Raises: NotFound; Conflict when it ran out or the workspace is archived."""
    member = _invited(session, workspace, user)
    _check_takes_members(session, workspace)
    if ran_out(member, now=now):
        raise Conflict("This invitation to {name} ran out. Ask for a new one.", name=workspace.name)
    member.created_at = now
    return workspaces.put_member(session, workspace=workspace, user=user, role=member.role, actor=actor, now=now)


def decline(session: Session, *, workspace: Workspace, user: User, actor: Actor, now: datetime) -> None:
    """Say no; one may be invited again. Raises: NotFound."""
    _end(session, _invited(session, workspace, user), user, "invitation.decline", actor, now)


def take_back(session: Session, *, workspace: Workspace, user: User, actor: Actor, now: datetime) -> None:
    """Make an open invitation void. Raises: NotFound; Conflict when it was accepted meanwhile."""
    workspaces.lock(session, workspace)
    member = workspaces.locked_member(session, workspace, user)
    if member is not None and member.status != MemberStatus.INVITED:
        raise Conflict("{user} is a member of {name} by now: take them out there.", user=user.name, name=workspace.name)
    _end(session, _invited(session, workspace, user), user, "invitation.take_back", actor, now)


def _end(session: Session, member: Member, user: User, action: str, actor: Actor, now: datetime) -> None:
    workspace_id, role = member.workspace_id, member.role
    session.delete(member)
    session.flush()
    record(session, actor=actor, action=action, entity="workspace", entity_id=workspace_id, now=now,
           user=user.name, role=role)  # fmt: skip


def _invited(session: Session, workspace: Workspace, user: User) -> Member:
    workspaces.lock(session, workspace)
    member = workspaces.locked_member(session, workspace, user)
    if member is None or member.status != MemberStatus.INVITED:
        raise NotFound("The invitation")
    return member


def _check_takes_members(session: Session, workspace: Workspace) -> None:
    session.refresh(workspace)  # it is locked now, and may have been archived before
    if workspace.kind == WorkspaceKind.PERSONAL:
        raise Conflict("A personal workspace is its user's own: it has no other members and no settings.")
    if workspace.status != WorkspaceStatus.ACTIVE:
        raise Conflict("The workspace {name} is archived: nobody can join it.", name=workspace.name)


def ran_out(member: Member, *, now: datetime) -> bool:
    """Whether it is too late to accept."""
    return member.invited_until is not None and member.invited_until <= now


def open_of(session: Session, *, user: User, now: datetime) -> list[Member]:
    """What the user can accept now, the newest first, each with its workspace."""
    return list(session.scalars(to(user, now=now).order_by(Member.created_at.desc(), Member.workspace_id)))


def to(user: User, *, now: datetime) -> Select[Member]:
    """What the user can accept now, in no order."""
    return (
        select(Member)
        .join(Member.workspace)
        .where(
            Member.user_id == user.id,
            Member.status == MemberStatus.INVITED,
            or_(Member.invited_until.is_(None), Member.invited_until > now),
            Workspace.status == WorkspaceStatus.ACTIVE,
        )
    )


def of_workspace(session: Session, *, workspace: Workspace) -> list[Member]:
    """Who is invited, also where it ran out, the newest first."""
    return list(session.scalars(into(workspace).order_by(Member.created_at.desc(), Member.user_id)))


def into(workspace: Workspace) -> Select[Member]:
    """Who is invited, also where it ran out, in no order."""
    return (
        select(Member)
        .join(Member.user)
        .where(Member.workspace_id == workspace.id, Member.status == MemberStatus.INVITED, User.deleted_at.is_(None))
    )
