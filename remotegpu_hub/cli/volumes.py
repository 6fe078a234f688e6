"""`remotegpu volumes`: storage that outlives runs, and giving it up."""

from typing import Any

from sqlalchemy import select
from traitlets import Bool

from ..domain import volumes
from ..orm import User, Volume, Workspace
from ..runtime import utcnow
from ..units import iso, show_bytes
from .command import Command, option, whole
from .stop import Usage
from .tables import Column

COLUMNS = [
    Column("VOLUME", "id", right=True),
    Column("KIND", "kind"),
    Column("WORKSPACE", "workspace"),
    Column("USER", lambda row: row["user"] or "all members"),
    Column("SIZE", lambda row: show_bytes(row["size_bytes"]), right=True),
]


def plain_volume(volume: Volume, workspace: str, user: str | None) -> dict[str, Any]:
    """A volume for programs."""
    return {
        "id": volume.id, "kind": volume.kind.value, "workspace": workspace, "user": user,
        "size_bytes": volume.size_bytes, "created_at": iso(volume.created_at),
    }  # fmt: skip


class VolumesList(Command):
    name = "list"
    description = "List the volumes that are there; they count against the storage quotas."

    def run(self) -> None:
        with self.transaction(read_only=True) as session:
            query = (
                select(Volume, Workspace.name, User.name)
                .join(Workspace, Workspace.id == Volume.workspace_id)
                .outerjoin(User, User.id == Volume.user_id)
                .where(Volume.deleted_at.is_(None))
                .order_by(Workspace.name, Volume.kind, User.name)
            )
            rows = [plain_volume(*row) for row in session.execute(query)]
        self.show_rows("volumes", rows, COLUMNS, empty="There are no volumes.")


class VolumesDelete(Command):
    name = "delete"
    words = ("VOLUME",)
    description = (
        "Give a volume up, with all that is in it. Nobody can get it back. The cluster's storage is freed by the next "
        "reconcile; the next start makes a new, empty one."
    )
    examples = "remotegpu volumes delete 17 --yes"
    yes = option(Bool(False, help="Really: what is in the volume is lost."), "yes")

    def run(self) -> None:
        number = whole(self.need(0), "VOLUME")
        if not self.yes:
            raise Usage(f"What is in volume {number} would be lost. Add --yes if that is meant.")
        with self.transaction() as session:
            volume = volumes.delete(session, volume_id=number, actor=self.actor, now=utcnow())
            row = {"id": volume.id, "kind": volume.kind.value, "size_bytes": volume.size_bytes}
        self.show_one("volume", row, f"Volume {number} is given up.")


class Volumes(VolumesList):
    name = "volumes"
    description = "Storage that outlives runs, on a cluster. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (VolumesList, "list them"),
        "delete": (VolumesDelete, "give one up with all that is in it"),
    }
