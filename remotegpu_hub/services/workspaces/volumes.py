"""Routes of volumes: storage that outlives runs, and giving it up."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from ...domain import volumes
from ...errors import Denied, NotFound
from ...orm import Member, MemberStatus, Role, User, Volume, VolumeKind, Workspace
from ..api import Call, Needs, Route, Shape
from ..paging import Paging, named, page


class VolumeShown(Shape):
    id: int
    kind: VolumeKind = Field(description="`home`: of one user in one workspace; `shared`: of all members of one.")
    workspace: str
    user: str | None = Field(description="Null: it is shared.")
    size_bytes: int = Field(description="Counts against the storage quotas as long as it is there.")
    created_at: datetime


class VolumesAsked(Paging):
    sort: Literal["id", "-id"] = "id"
    kind: VolumeKind | None = None


def shown(session: Session, rows: Sequence[Volume]) -> list[dict[str, Any]]:
    """With names: two more statements, however many they are."""
    spaces = named(session, Workspace, (one.workspace_id for one in rows))
    users = named(session, User, (one.user_id for one in rows))
    return [
        {
            "id": one.id, "kind": one.kind, "workspace": spaces[one.workspace_id].name,
            "user": users[one.user_id].name if one.user_id is not None else None, "size_bytes": one.size_bytes,
            "created_at": one.created_at,
        }
        for one in rows
    ]  # fmt: skip


def _listed(call: Call, *which: Any) -> Any:
    asked: VolumesAsked = call.query
    query = select(Volume).where(Volume.deleted_at.is_(None), *which)
    if asked.kind is not None:
        query = query.where(Volume.kind == asked.kind)
    rows, following = page(
        call.session, query, asked, sorts={"id": (Volume.id,)}, sort=asked.sort, shown=lambda one: one
    )  # fmt: skip
    return shown(call.session, rows), following


def list_volumes(call: Call) -> Any:
    return _listed(call, Volume.user_id == call.caller.person.id)


def list_all_volumes(call: Call) -> Any:
    return _listed(call)


def list_volumes_of_workspace(call: Call) -> Any:
    return _listed(call, Volume.workspace_id == call.space.id)


def _find(call: Call) -> tuple[Volume, bool]:
    """The volume of the path, and whether the caller may give it up. Raises: NotFound where they may not see it."""
    found = call.session.get(Volume, call.number("id"))
    if found is None or found.deleted_at is not None:
        raise NotFound("The volume")
    if call.caller.hub_admin:
        return found, True
    user = call.caller.person
    role = call.session.scalar(
        select(Member.role).where(
            Member.workspace_id == found.workspace_id, Member.user_id == user.id, Member.status == MemberStatus.ACTIVE
        )
    )
    if role is None and found.user_id != user.id:
        raise NotFound("The volume")
    return found, found.user_id == user.id or (found.kind == VolumeKind.SHARED and role == Role.OWNER)


def read_volume(call: Call) -> Any:
    return shown(call.session, [_find(call)[0]])[0]


def delete_volume(call: Call) -> None:
    found, may = _find(call)
    if not may and found.kind == VolumeKind.HOME:
        raise Denied("Only its user, or an admin of the hub, gives up a home.")
    if not may:
        raise Denied("Only an owner of the workspace, or an admin of the hub, gives up what its members share.")
    volumes.delete(call.session, volume_id=found.id, actor=call.actor, now=call.now)


ROUTES = [
    Route("GET", "volumes", "List your homes, one in each workspace where you ran something", Needs.SELF, list_volumes,
          answers=VolumeShown, query=VolumesAsked, listing=True),
    Route("GET", "all-volumes", "List everybody's volumes", Needs.HUB_ADMIN, list_all_volumes, answers=VolumeShown,
          query=VolumesAsked, listing=True),
    Route("GET", "workspaces/{workspace}/volumes", "List the volumes of a workspace: what it shares, and its homes",
          Needs.MEMBER, list_volumes_of_workspace, answers=VolumeShown, query=VolumesAsked, listing=True),
    Route("GET", "volumes/{id}", "Read a volume", Needs.SELF, read_volume, answers=VolumeShown),
    Route("DELETE", "volumes/{id}", "Give it up with all that is in it; the cluster's storage is freed a little later",
          Needs.SELF, delete_volume),
]  # fmt: skip
