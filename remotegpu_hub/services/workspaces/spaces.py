"""Routes of workspaces and their members."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from ...domain import users, workspaces
from ...errors import Conflict, Denied, NotFound
from ...orm import Member, MemberStatus, Role, Workspace, WorkspaceKind, WorkspaceStatus
from ..api import Call, Needs, Paging, Route, Shape, page


class WorkspaceShown(Shape):
    name: str
    display_name: str
    kind: WorkspaceKind
    status: WorkspaceStatus
    owner: str
    hub_group: str | None = Field(description="Membership follows this group of the hub.")
    time_zone: str = Field(description="IANA name; months begin at its midnight.")
    created_at: datetime


class WorkspacesAsked(Paging):
    sort: Literal["name", "-name", "created_at", "-created_at"] = "name"
    search: str | None = Field(None, max_length=100, description="In the name or the display name.")
    status: WorkspaceStatus | None = None
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


class MemberShown(Shape):
    user: str
    role: Role
    status: MemberStatus
    from_group: bool
    created_at: datetime


class MemberEdit(Shape):
    role: Role
    status: Literal["active", "suspended"] = "active"


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
    if asked.search:
        query = query.where(
            Workspace.name.icontains(asked.search, autoescape=True)
            | Workspace.display_name.icontains(asked.search, autoescape=True)
        )
    sorts = {"name": (Workspace.name,), "created_at": (Workspace.created_at, Workspace.id)}
    return page(call.session, query, asked, sorts=sorts, sort=asked.sort, shown=shown)


def create_workspace(call: Call) -> Any:
    given: NewWorkspace = call.body
    made = workspaces.create(
        call.session,
        name=given.name,
        display_name=given.display_name,
        owner=users.by_name(call.session, name=given.owner),
        kind=WorkspaceKind(given.kind),
        hub_group=given.hub_group,
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
    workspaces.update_settings(
        call.session, workspace=call.space, display_name=given.display_name, time_zone=given.time_zone,
        actor=call.actor, now=call.now,
    )  # fmt: skip
    return shown(call.space)


def archive_workspace(call: Call) -> Any:
    _no_personal(call)
    workspaces.archive(call.session, workspace=call.space, actor=call.actor, now=call.now)
    return shown(call.space)


def list_members(call: Call) -> Any:
    return [member_shown(one) for one in workspaces.members(call.session, workspace=call.space)], None


def _member(call: Call) -> Member | None:
    if call.locked:
        workspaces.lock(call.session, call.space)
        call.afresh()
    name = call.path["user"]
    return next((one for one in workspaces.members(call.session, workspace=call.space) if one.user.name == name), None)


def read_member(call: Call) -> Any:
    member = _member(call)
    if member is None:
        raise NotFound("The member")
    return member_shown(member)


def put_member(call: Call) -> Any:
    given: MemberEdit = call.body
    _no_personal(call)
    workspaces.lock(call.session, call.space)
    _check_rank(call, given.role)
    member = workspaces.put_member(
        call.session,
        workspace=call.space,
        user=users.by_name(call.session, name=call.path["user"]),
        role=given.role,
        status=MemberStatus(given.status),
        actor=call.actor,
        now=call.now,
    )
    return member_shown(member)


def remove_member(call: Call) -> None:
    _no_personal(call)
    workspaces.lock(call.session, call.space)
    _check_rank(call, None)
    user = users.by_name(call.session, name=call.path["user"])
    workspaces.remove_member(call.session, workspace=call.space, user=user, actor=call.actor, now=call.now)


def leave_workspace(call: Call) -> None:
    _no_personal(call)
    workspaces.remove_member(
        call.session, workspace=call.space, user=call.caller.person, actor=call.actor, now=call.now
    )  # fmt: skip


def _check_rank(call: Call, wanted: Role | None) -> None:
    """An admin of a workspace touches neither owners nor admins, and makes nobody one. Raises: Denied."""
    if call.caller.hub_admin or call.role == Role.OWNER:
        return
    high = (Role.OWNER, Role.ADMIN)
    present = _member(call)
    if wanted in high or (present is not None and present.role in high):
        raise Denied("Only an owner of {name} changes who is owner or admin of it.", name=call.space.name)


def _no_personal(call: Call) -> None:
    if call.space.kind == WorkspaceKind.PERSONAL:
        raise Conflict("A personal workspace is its user's own: it has no other members and no settings.")


ROUTES = [
    Route("GET", "workspaces", "List workspaces", Needs.SELF, list_workspaces, answers=WorkspaceShown,
          query=WorkspacesAsked, listing=True),
    Route("POST", "workspaces", "Make a workspace", Needs.HUB_ADMIN, create_workspace, answers=WorkspaceShown,
          body=NewWorkspace, status=201),
    Route("GET", "workspaces/{workspace}", "Read a workspace", Needs.MEMBER, read_workspace, answers=WorkspaceShown,
          etag=True),
    Route("PATCH", "workspaces/{workspace}", "Change its display name or time zone", Needs.MANAGER, edit_workspace,
          answers=WorkspaceShown, body=WorkspaceEdit, etag=True, shows=read_workspace),
    Route("POST", "workspaces/{workspace}/archive", "Close it for new starts", Needs.OWNER, archive_workspace,
          answers=WorkspaceShown),
    Route("POST", "workspaces/{workspace}/leave", "Leave it", Needs.MEMBER, leave_workspace),
    Route("GET", "workspaces/{workspace}/members", "List members, owners first", Needs.MEMBER, list_members,
          answers=MemberShown, listing=True),
    Route("GET", "workspaces/{workspace}/members/{user}", "Read a member", Needs.MEMBER, read_member,
          answers=MemberShown, etag=True),
    Route("PUT", "workspaces/{workspace}/members/{user}", "Add a member, or change role and status", Needs.MANAGER,
          put_member, answers=MemberShown, body=MemberEdit, etag=True, shows=read_member),
    Route("DELETE", "workspaces/{workspace}/members/{user}", "Take a member out; what they run ends an hour later",
          Needs.MANAGER, remove_member, shows=read_member),
]  # fmt: skip
