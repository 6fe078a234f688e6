"""Routes of workspaces and their members."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from ...domain import users, workspaces
from ...errors import Conflict, Denied
from ...orm import ENDED, Allocation, Member, MemberStatus, Role, User, Workspace, WorkspaceKind, WorkspaceStatus
from ..api import Call, Needs, Route, Shape
from ..paging import Paging, page


class WorkspaceShown(Shape):
    name: str
    display_name: str
    kind: WorkspaceKind
    status: WorkspaceStatus
    owner: str
    hub_group: str | None = Field(description="Membership follows this group of the hub.")
    time_zone: str = Field(description="IANA name; months begin at its midnight.")
    created_at: datetime


class WorkspaceListed(WorkspaceShown):
    members: int = Field(description="That are active.")
    running: int = Field(description="Environments that hold something now.")


class WorkspacesAsked(Paging):
    sort: Literal["name", "-name", "created_at", "-created_at"] = "name"
    search: str | None = Field(None, max_length=100, description="In the name or the display name.")
    status: WorkspaceStatus | None = None
    kind: WorkspaceKind | None = None
    mine: bool = Field(True, description="Only those that the caller is a member of; all: hub admins.")


class NewWorkspace(Shape):
    name: str = Field(max_length=63)
    display_name: str = Field(max_length=100)
    owner: str = Field(max_length=255, description="A user of the hub.")
    kind: Literal["team", "enterprise"] = "team"
    hub_group: str | None = Field(None, max_length=255)
    time_zone: str = Field("UTC", max_length=64)


class WorkspaceEdit(Shape):
    display_name: str | None = Field(None, max_length=100)
    time_zone: str | None = Field(None, max_length=64)
    hub_group: str | None = Field(None, max_length=255, description="Hub admins only; null unlinks it.")


class MemberShown(Shape):
    user: str
    role: Role
    status: MemberStatus
    from_group: bool
    created_at: datetime


class MembersAsked(Paging):
    sort: Literal["user", "-user"] = "user"
    search: str | None = Field(None, max_length=100, description="In the user's name.")
    role: Role | None = None


class MemberEdit(Shape):
    role: Role
    status: Literal["active", "suspended"] = "active"

    @field_validator("status", mode="before")
    @classmethod
    def _no_invitation(cls, value: Any) -> Any:
        if value == MemberStatus.INVITED:
            raise PydanticCustomError(
                "invited",
                "nobody is made invited like this; send an invitation, with `remotegpu invitations send` or its route",
            )
        return value


def shown(workspace: Workspace) -> dict[str, Any]:
    return {
        "name": workspace.name,
        "display_name": workspace.display_name,
        "kind": workspace.kind,
        "status": workspace.status,
        "owner": workspace.owner.name,
        "hub_group": workspace.hub_group,
        "time_zone": workspace.time_zone,
        "created_at": workspace.created_at,
    }


def listed(session: Session, found: Sequence[Workspace]) -> list[dict[str, Any]]:
    """With how many are members and what runs: two more statements, however many they are."""
    ids = [one.id for one in found]
    members = workspaces.count_members(session, workspace_ids=ids)
    held = select(Allocation.workspace_id, func.count()).where(Allocation.state != ENDED)
    running = dict(
        session.execute(held.where(Allocation.workspace_id.in_(ids)).group_by(Allocation.workspace_id)).tuples().all()
    )
    return [
        {**shown(one), "members": members.get(one.id, 0), "running": running.get(one.id, 0)} for one in found
    ]  # fmt: skip


def member_shown(member: Member) -> dict[str, Any]:
    return {
        "user": member.user.name,
        "role": member.role,
        "status": member.status,
        "from_group": member.from_group,
        "created_at": member.created_at,
    }


def list_workspaces(call: Call) -> Any:
    asked: WorkspacesAsked = call.query
    query = select(Workspace).options(selectinload(Workspace.owner))
    if not asked.mine and not call.caller.hub_admin:
        raise Denied("Only an admin of the hub sees workspaces of others.")
    if asked.mine:
        mine = select(Member.workspace_id).where(
            Member.user_id == call.caller.person.id, Member.status == MemberStatus.ACTIVE
        )
        query = query.where(Workspace.id.in_(mine))
    if asked.status is not None:
        query = query.where(Workspace.status == asked.status)
    if asked.kind is not None:
        query = query.where(Workspace.kind == asked.kind)
    if asked.search:
        query = query.where(fits(asked.search))
    sorts = {"name": (Workspace.name,), "created_at": (Workspace.created_at, Workspace.id)}
    found, following = page(call.session, query, asked, sorts=sorts, sort=asked.sort, shown=lambda one: one)
    return listed(call.session, found), following


def fits(search: str) -> Any:
    """Workspaces by their name or display name."""
    return Workspace.name.icontains(search, autoescape=True) | Workspace.display_name.icontains(search, autoescape=True)


def create_workspace(call: Call) -> Any:
    given: NewWorkspace = call.body
    made = workspaces.create(
        call.session,
        name=given.name,
        display_name=given.display_name,
        owner=users.named(call.session, name=given.owner, now=call.now),
        kind=WorkspaceKind(given.kind),
        hub_group=given.hub_group or None,
        time_zone=given.time_zone,
        actor=call.actor,
        now=call.now,
    )
    return shown(made)


def read_workspace(call: Call) -> Any:
    if call.locked:
        workspaces.lock(call.session, call.space)
        call.afresh()
    return shown(call.space)


def edit_workspace(call: Call) -> Any:
    given: WorkspaceEdit = call.body
    _no_personal(call)
    group = workspaces.UNSET
    if "hub_group" in given.model_fields_set:
        group = given.hub_group or None
        if not call.caller.hub_admin and group != call.space.hub_group:
            raise Denied("Only an admin of the hub links a workspace to a group.")
    workspaces.update_settings(
        call.session, workspace=call.space, display_name=given.display_name, time_zone=given.time_zone,
        hub_group=group, actor=call.actor, now=call.now,
    )  # fmt: skip
    return shown(call.space)


def archive_workspace(call: Call) -> Any:
    _no_personal(call)
    workspaces.archive(call.session, workspace=call.space, actor=call.actor, now=call.now)
    return shown(call.space)


def reopen_workspace(call: Call) -> Any:
    _no_personal(call)
    workspaces.reopen(call.session, workspace=call.space, actor=call.actor, now=call.now)
    return shown(call.space)


def list_members(call: Call) -> Any:
    asked: MembersAsked = call.query
    mine = (Member.workspace_id == call.space.id, Member.status != MemberStatus.INVITED)
    query = select(User).join(Member, Member.user_id == User.id).where(*mine, User.deleted_at.is_(None))
    if asked.role is not None:
        query = query.where(Member.role == asked.role)
    if asked.search:
        query = query.where(User.name.icontains(asked.search, autoescape=True))
    sorts = {"user": (User.name, User.id)}
    found, following = page(call.session, query, asked, sorts=sorts, sort=asked.sort, shown=lambda one: one)
    rows = call.session.scalars(select(Member).where(*mine, Member.user_id.in_([one.id for one in found])))
    by_id = {one.user_id: one for one in rows}  # without who left meanwhile
    return [member_shown(by_id[one.id]) for one in found if one.id in by_id], following


def read_member(call: Call) -> Any:
    if call.locked:
        workspaces.lock(call.session, call.space)
        call.afresh()
    return member_shown(workspaces.member_named(call.session, workspace=call.space, name=call.path["user"]))


def put_member(call: Call) -> Any:
    given: MemberEdit = call.body
    _no_personal(call)
    workspaces.lock(call.session, call.space)
    user = users.named(call.session, name=call.path["user"], now=call.now)
    check_rank(call, given.role, workspaces.locked_member(call.session, call.space, user))
    member = workspaces.put_member(
        call.session,
        workspace=call.space,
        user=user,
        role=given.role,
        status=MemberStatus(given.status),
        actor=call.actor,
        now=call.now,
    )
    return member_shown(member)


def remove_member(call: Call) -> None:
    _no_personal(call)
    workspaces.lock(call.session, call.space)
    member = workspaces.member_named(call.session, workspace=call.space, name=call.path["user"])
    check_rank(call, None, member)
    user = member.user
    workspaces.remove_member(call.session, workspace=call.space, user=user, actor=call.actor, now=call.now)


def leave_workspace(call: Call) -> None:
    _no_personal(call)
    workspaces.remove_member(
        call.session, workspace=call.space, user=call.caller.person, actor=call.actor, now=call.now
    )  # fmt: skip


def check_rank(call: Call, wanted: Role | None, present: Member | None) -> None:
    """An admin of a workspace touches neither owners nor admins, and makes nobody one. Raises: Denied."""
    if call.caller.hub_admin or call.role == Role.OWNER:
        return
    high = (Role.OWNER, Role.ADMIN)
    if wanted in high or (present is not None and present.role in high):
        raise Denied("Only an owner of {name} changes who is owner or admin of it.", name=call.space.name)


def check_may_limit(call: Call, space: Workspace, own: Role | None, limited: Role | None) -> None:
    """An admin of a workspace limits neither owners nor admins there, so neither themselves. Raises: Denied."""
    if own == Role.ADMIN and limited in (Role.OWNER, Role.ADMIN) and not call.caller.hub_admin:
        raise Denied("Only an owner of {name} sets limits of its owners and admins.", name=space.name)


def _no_personal(call: Call) -> None:
    if call.space.kind == WorkspaceKind.PERSONAL:
        raise Conflict("A personal workspace is its user's own: it has no other members and no settings.")


ROUTES = [
    Route("GET", "workspaces", "List workspaces", Needs.SELF, list_workspaces, answers=WorkspaceListed,
          query=WorkspacesAsked, listing=True),
    Route("POST", "workspaces", "Make a workspace", Needs.HUB_ADMIN, create_workspace, answers=WorkspaceShown,
          body=NewWorkspace, status=201),
    Route("GET", "workspaces/{workspace}", "Read a workspace", Needs.MEMBER, read_workspace, answers=WorkspaceShown,
          etag=True),
    Route("PATCH", "workspaces/{workspace}", "Change its display name, time zone or hub group", Needs.MANAGER,
          edit_workspace, answers=WorkspaceShown, body=WorkspaceEdit, etag=True, shows=read_workspace),
    Route("POST", "workspaces/{workspace}/archive", "Close it for new starts", Needs.OWNER, archive_workspace,
          answers=WorkspaceShown, etag=True, shows=read_workspace),
    Route("POST", "workspaces/{workspace}/reopen", "Let an archived one start environments again", Needs.OWNER,
          reopen_workspace, answers=WorkspaceShown, etag=True, shows=read_workspace),
    Route("POST", "workspaces/{workspace}/leave", "Leave it", Needs.MEMBER, leave_workspace),
    Route("GET", "workspaces/{workspace}/members", "List members by name", Needs.MEMBER, list_members,
          answers=MemberShown, query=MembersAsked, listing=True),
    Route("GET", "workspaces/{workspace}/members/{user}", "Read a member", Needs.MEMBER, read_member,
          answers=MemberShown, etag=True),
    Route("PUT", "workspaces/{workspace}/members/{user}", "Add a member, or change role and status", Needs.MANAGER,
          put_member, answers=MemberShown, body=MemberEdit, etag=True, shows=read_member),
    Route("DELETE", "workspaces/{workspace}/members/{user}", "Take a member out; what they run ends an hour later",
          Needs.MANAGER, remove_member, shows=read_member, shown_as=MemberShown),
]  # fmt: skip
