"""Storage that outlives runs: a home for each user in each workspace, and one that a workspace shares. A size only ever
grows; it counts against the storage quota until the volume is deleted."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from ..errors import Conflict, NotFound
from ..orm import DELETED, ENDED, Allocation, Environment, User, Volume, VolumeKind, Workspace
from .audit import Actor, record

Sizes = Mapping[VolumeKind, int]
"""Bytes that a volume of each kind has at least; what is not named is not made."""


def of_run(session: Session, *, user_id: int, workspace_id: int) -> dict[VolumeKind, Volume]:
    """The volumes that a run of this user in this workspace sees."""
    rows = session.scalars(
        select(Volume).where(
            Volume.workspace_id == workspace_id,
            or_(Volume.user_id == user_id, Volume.user_id.is_(None)),
            Volume.deleted_at.is_(None),
        )
    )
    return {volume.kind: volume for volume in rows}


@dataclass(frozen=True)
class Home:
    """A user's home in a workspace, which all environments that they keep there see."""

    volume_id: int
    size_bytes: int
    environments: int
    """How many those are, whether they run or not."""


def homes(session: Session, *, user_id: int) -> dict[int, Home]:
    """A user's homes by the id of the workspace."""
    kept = (
        select(func.count())
        .select_from(Environment)
        .where(
            Environment.user_id == Volume.user_id, Environment.workspace_id == Volume.workspace_id,
            Environment.state != DELETED,
        )
        .scalar_subquery()
    )  # fmt: skip
    rows = session.execute(
        select(Volume.workspace_id, Volume.id, Volume.size_bytes, kept).where(
            Volume.user_id == user_id, Volume.deleted_at.is_(None)
        )
    )
    return {workspace_id: Home(*facts) for workspace_id, *facts in rows}


def lacking(there: Mapping[VolumeKind, Volume], sizes: Sizes) -> dict[VolumeKind, int]:
    """Bytes that are still to be made of each kind."""
    missing = {kind: size - (there[kind].size_bytes if kind in there else 0) for kind, size in sizes.items()}
    return {kind: size for kind, size in missing.items() if size > 0}


def ensure(
    session: Session,
    *,
    user_id: int,
    workspace_id: int,
    there: Mapping[VolumeKind, Volume],
    sizes: Sizes,
    actor: Actor,
    now: datetime,
) -> None:
    """Make what is missing and let grow what is too small. The quota was checked, with user and workspace locked."""
    for kind in lacking(there, sizes):
        volume = there.get(kind)
        if volume is None:
            owner = user_id if kind == VolumeKind.HOME else None
            volume = Volume(
                kind=kind, workspace_id=workspace_id, user_id=owner, size_bytes=sizes[kind], created_at=now
            )  # fmt: skip
            session.add(volume)
        before = {"size_bytes": volume.size_bytes} if volume.id else None
        volume.size_bytes = sizes[kind]
        session.flush()
        record(session, actor=actor, action="volume.size", entity="volume", entity_id=volume.id, now=now,
               before=before, after={"size_bytes": sizes[kind]}, kind=kind.value)  # fmt: skip


def delete(session: Session, *, volume_id: int, actor: Actor, now: datetime) -> Volume:
    """Give a volume up, with all that is in it. Raises: NotFound, Conflict while a run sees it.

    The lock on its user, or on the workspace that shares it, is the one that admissions take: who came before has a run
    that is found here, who comes after makes a volume of their own.
    """
    volume = _live(session.get(Volume, volume_id))
    owner = select(User.id).where(User.id == volume.user_id)
    if volume.user_id is None:
        owner = select(Workspace.id).where(Workspace.id == volume.workspace_id)
    session.execute(owner.with_for_update(key_share=True))
    volume = _live(session.get(Volume, volume_id, with_for_update=True, populate_existing=True))
    seen = select(Allocation.id).where(Allocation.workspace_id == volume.workspace_id, Allocation.state != ENDED)
    if volume.user_id is not None:
        seen = seen.where(Allocation.user_id == volume.user_id)
    if session.scalar(seen.limit(1)) is not None:
        raise Conflict("An environment that runs uses the volume: stop it first.")
    volume.deleted_at = now
    session.flush()
    record(session, actor=actor, action="volume.delete", entity="volume", entity_id=volume.id, now=now)
    return volume


def _live(volume: Volume | None) -> Volume:
    if volume is None or volume.deleted_at is not None:
        raise NotFound("The volume")
    return volume


def known(session: Session, *, volume_ids: Collection[int]) -> dict[int, bool]:
    """Which of these ids ever were volumes of this hub, and whether each was given up."""
    if not volume_ids:
        return {}
    rows = session.execute(select(Volume.id, Volume.deleted_at).where(Volume.id.in_(volume_ids)))
    return {volume_id: deleted_at is not None for volume_id, deleted_at in rows}
