"""Routes of invitations: an owner or admin asks a hub user in, who accepts or declines."""

from datetime import datetime
from typing import Any

from pydantic import Field
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, selectinload

from ...domain import invitations, users, workspaces
from ...errors import NotFound
from ...orm import Member, Role, Workspace
from ..api import Call, Needs, Route, Shape
from ..paging import Paging, page
from .spaces import check_rank


class InvitationShown(Shape):
    workspace: str
    workspace_display_name: str
    user: str
    role: Role
    invited_by: str | None
    invited_at: datetime
    until: datetime | None = Field(description="It can be accepted before this; null: for good.")
    ran_out: bool


class NewInvitation(Shape):
    user: str = Field(max_length=255, description="A user of the hub.")
    role: Role = Role.MEMBER
    days: int = Field(
        invitations.DEFAULT_DAYS,
        ge=1,
        le=invitations.MOST_DAYS,
        strict=True,
        description="How long it can be accepted.",
    )


def shown(call: Call, member: Member) -> dict[str, Any]:
    return {
        "workspace": member.workspace.name,
        "workspace_display_name": member.workspace.display_name,
        "user": member.user.name,
        "role": member.role,
        "invited_by": member.invited_by,
        "invited_at": member.created_at,
        "until": member.invited_until,
        "ran_out": invitations.ran_out(member, now=call.now),
    }


def list_invitations(call: Call) -> Any:
    return _listed(call, invitations.into(call.space), Member.user_id)


def _listed(call: Call, query: Select[Any], other: InstrumentedAttribute[int]) -> Any:
    """The newest first; of one moment, by the `other` side."""
    query = query.options(selectinload(Member.workspace), selectinload(Member.user))
    sorts = {"created_at": (Member.created_at, other)}
    return page(
        call.session, query, call.query, sorts=sorts, sort="-created_at", shown=lambda one: shown(call, one)
    )  # fmt: skip


def create_invitation(call: Call) -> Any:
    given: NewInvitation = call.body
    check_rank(call, given.role, None)
    member = invitations.invite(
        call.session,
        workspace=call.space,
        user=users.by_name(call.session, name=given.user),
        role=given.role,
        days=given.days,
        actor=call.actor,
        now=call.now,
    )
    return shown(call, member)


def take_back_invitation(call: Call) -> None:
    workspaces.lock(call.session, call.space)
    user = users.by_name(call.session, name=call.path["user"])
    check_rank(call, None, workspaces.locked_member(call.session, call.space, user))
    invitations.take_back(call.session, workspace=call.space, user=user, actor=call.actor, now=call.now)


def list_my_invitations(call: Call) -> Any:
    return _listed(call, invitations.to(call.caller.person, now=call.now), Member.workspace_id)


def accept_invitation(call: Call) -> None:
    invitations.accept(
        call.session, workspace=_inviting(call), user=call.caller.person, actor=call.actor, now=call.now
    )  # fmt: skip


def decline_invitation(call: Call) -> None:
    invitations.decline(
        call.session, workspace=_inviting(call), user=call.caller.person, actor=call.actor, now=call.now
    )  # fmt: skip


def _inviting(call: Call) -> Workspace:
    """The workspace of the path, unknown to who is not invited. Raises: NotFound."""
    try:
        return workspaces.by_name(call.session, name=call.path["workspace"])
    except NotFound:
        raise NotFound("The invitation") from None


ROUTES = [
    Route("GET", "workspaces/{workspace}/invitations", "List who is invited, newest first", Needs.MANAGER,
          list_invitations, answers=InvitationShown, query=Paging, listing=True),
    Route("POST", "workspaces/{workspace}/invitations", "Invite a user of the hub; its admins only as member or viewer",
          Needs.MANAGER, create_invitation, answers=InvitationShown, body=NewInvitation, status=201),
    Route("DELETE", "workspaces/{workspace}/invitations/{user}", "Take an invitation back", Needs.MANAGER,
          take_back_invitation),
    Route("GET", "invitations", "List invitations that you can accept", Needs.SELF, list_my_invitations,
          answers=InvitationShown, query=Paging, listing=True),
    Route("POST", "invitations/{workspace}/accept", "Accept an invitation", Needs.SELF, accept_invitation),
    Route("POST", "invitations/{workspace}/decline", "Decline an invitation", Needs.SELF, decline_invitation),
]  # fmt: skip
