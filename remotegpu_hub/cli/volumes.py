"""`remotegpu volumes`: storage that outlives runs, and giving it up."""

from typing import Any

from traitlets import Bool

from ..units import show_bytes
from .asking import Asking
from .command import Text, option, whole
from .stop import Usage
from .tables import Column

COLUMNS = [
    Column("VOLUME", "id", right=True),
    Column("KIND", "kind"),
    Column("WORKSPACE", "workspace"),
    Column("USER", lambda row: row["user"] or "all members"),
    Column("SIZE", lambda row: show_bytes(row["size_bytes"]), right=True),
]
PATH = "volumes/{id}"


class VolumesList(Asking):
    name = "list"
    description = "List the volumes that you may see; they count against the storage quotas."
    examples = "remotegpu volumes\nremotegpu volumes list --workspace vision"
    workspace = option(Text(help="Those of this workspace: what it shares, and homes."), "workspace", "NAME")

    def run(self) -> None:
        rows = sorted(self._rows(), key=lambda row: (row["workspace"], row["kind"], row["user"] or ""))
        self.show_rows("volumes", rows, COLUMNS, empty="There are no volumes.")

    def _rows(self) -> list[dict[str, Any]]:
        if self.workspace is not None:
            return self.every("workspaces/{workspace}/volumes", workspace=self.workspace)
        found = self.allowed(lambda: self.every("all-volumes"))
        return self.every("volumes") if found is None else found


class VolumesDelete(Asking):
    name = "delete"
    words = ("VOLUME",)
    description = (
        "Give a volume up, with all that is in it: your own home, what a workspace of yours shares, or as an admin of "
        "the hub any. Nobody can get it back. The cluster's storage is freed by the next reconcile; the next start "
        "makes a new, empty one."
    )
    examples = "remotegpu volumes delete 17 --yes"
    yes = option(Bool(False, help="Really: what is in the volume is lost."), "yes")

    def run(self) -> None:
        number = str(whole(self.need(0), "VOLUME"))
        if not self.yes:
            raise Usage(f"What is in volume {number} would be lost. Add --yes if that is meant.")
        row = self.read(PATH, id=number)
        self.ask("DELETE", PATH, id=number)
        self.show_one("volume", row, f"Volume {number} is given up.")


class Volumes(VolumesList):
    name = "volumes"
    description = "Storage that outlives runs, on a cluster. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (VolumesList, "list them"),
        "delete": (VolumesDelete, "give one up with all that is in it"),
    }
