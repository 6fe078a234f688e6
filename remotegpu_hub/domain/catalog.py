"""Images and flavors: what may be chosen, by whom."""

from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from ..errors import Conflict
from ..orm import Flavor, Image, ImageStatus, User, Visibility, Workspace, locked
from .audit import Actor, record

T = TypeVar("T")


def put_image(
    session: Session,
    *,
    reference: str,
    display_name: str,
    actor: Actor,
    now: datetime,
    digest: str | None = None,
    **columns: Any,
) -> Image:
    """Add an image to the catalogue, or bring the known one to these columns."""
    image: Image | None = session.scalar(
        locked(select(Image).where(Image.reference == reference, func.coalesce(Image.digest, "") == (digest or "")))
    )
    wanted = {"display_name": display_name, **columns}
    if image is not None and image.status == ImageStatus.RETIRED:
        wanted["status"] = ImageStatus.ACTIVE
    if image is None:
        image = Image(reference=reference, digest=digest, **wanted)
        session.add(image)
        before: dict[str, Any] = {}
    else:
        before = {name: getattr(image, name) for name in wanted}
        if before == wanted:
            return image
        for name, value in wanted.items():
            setattr(image, name, value)
    session.flush()
    record(session, actor=actor, action="image.put", entity="image", entity_id=image.id, now=now,
           before=before, after=wanted, reference=reference)  # fmt: skip
    return image


def retire_digests(session: Session, *, reference: str, digest: str | None, actor: Actor, now: datetime) -> None:
    """Retire what the same reference meant before: an environment that has it takes the new one when it starts."""
    for image in session.scalars(
        select(Image).where(
            Image.reference == reference,
            func.coalesce(Image.digest, "") != (digest or ""),
            Image.status.not_in([ImageStatus.BLOCKED, ImageStatus.RETIRED]),
        )
    ):
        image.status = ImageStatus.RETIRED
        record(session, actor=actor, action="image.retire", entity="image", entity_id=image.id, now=now,
               reference=reference, digest=image.digest)  # fmt: skip
    session.flush()


def put_flavor(
    session: Session,
    *,
    name: str,
    display_name: str,
    gpu_model: str | None,
    gpu_slots: int,
    cpu_millis: int,
    memory_bytes: int,
    actor: Actor,
    now: datetime,
    workspace: Workspace | None = None,
    new: bool = False,
) -> Flavor:
    """Add a flavor, or bring the known one to these numbers; environments that chose it keep theirs until edited.

    Raises: Conflict when it should be `new` and the name is taken.
    """
    wanted = {
        "display_name": display_name,
        "gpu_model": gpu_model,
        "gpu_slots": gpu_slots,
        "cpu_millis": cpu_millis,
        "memory_bytes": memory_bytes,
        "workspace_id": workspace.id if workspace else None,
        "retired": False,
    }
    flavor: Flavor | None = session.scalar(locked(select(Flavor).where(Flavor.name == name)))
    if flavor is None:
        flavor = Flavor(name=name, **wanted)
        session.add(flavor)
        before: dict[str, Any] = {}
    elif new:
        raise Conflict("There is a flavor named {name} already.", name=name)
    else:
        before = {key: getattr(flavor, key) for key in wanted}
        if before == wanted:
            return flavor
        for key, value in wanted.items():
            setattr(flavor, key, value)
    session.flush()
    record(session, actor=actor, action="flavor.put", entity="flavor", entity_id=flavor.id, now=now,
           before=before, after=wanted, name=name)  # fmt: skip
    return flavor


def retire_flavor(session: Session, *, flavor: Flavor, actor: Actor, now: datetime) -> None:
    """Let nobody choose it any more; environments that chose it keep their numbers. Twice is a no-op."""
    session.scalar(locked(select(Flavor).where(Flavor.id == flavor.id)))
    if flavor.retired:
        return
    flavor.retired = True
    session.flush()
    record(session, actor=actor, action="flavor.retire", entity="flavor", entity_id=flavor.id, now=now,
           name=flavor.name)  # fmt: skip


def images_for(session: Session, *, user: User, workspace: Workspace | None) -> list[Image]:
    """Images this user may run in this workspace: public, the workspace's and the user's own, none blocked; in the
    order in which they came to the catalogue."""
    return list(
        session.scalars(
            select(Image)
            .where(
                Image.status.not_in([ImageStatus.BLOCKED, ImageStatus.RETIRED]),
                or_(
                    Image.visibility == Visibility.PUBLIC,
                    (Image.visibility == Visibility.WORKSPACE)
                    & (Image.workspace_id == (workspace.id if workspace else None)),
                    (Image.visibility == Visibility.PRIVATE) & (Image.owner_id == user.id),
                ),
            )
            .order_by(Image.id)
        )
    )


def flavors_for(session: Session, *, workspace: Workspace | None) -> list[Flavor]:
    """Flavors that may be chosen in this workspace, cheapest kind first."""
    return list(
        session.scalars(
            select(Flavor)
            .where(
                ~Flavor.retired,
                or_(Flavor.workspace_id.is_(None), Flavor.workspace_id == (workspace.id if workspace else None)),
            )
            .order_by(Flavor.gpu_slots, Flavor.gpu_model, Flavor.cpu_millis, Flavor.name)
        )
    )
