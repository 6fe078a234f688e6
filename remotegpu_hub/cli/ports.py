"""`remotegpu ports`: which outside addresses lead into which environments."""

from typing import Any

from traitlets import Bool

from ..orm import PortService
from .asking import Asking
from .command import Text, chosen, option
from .tables import Column, short

COLUMNS = [
    Column("ENVIRONMENT", "environment_id", right=True),
    Column("NAME", "environment"),
    Column("USER", "user"),
    Column("WORKSPACE", "workspace"),
    Column("SERVICE", "service"),
    Column("ADDRESS", "address"),
    Column("OUTSIDE", "external_port", right=True),
    Column("INSIDE", "internal_port", right=True),
    Column("URL", "url"),
    Column("SINCE", lambda row: short(row["since"])),
]


class Ports(Asking):
    name = "ports"
    description = (
        "List the port mappings that you may see, newest first: yours, or everybody's for admins of the hub. A port is "
        "asked for when an environment starts, and given back when it ends; `remotegpu environments access` tells what "
        "to paste."
    )
    examples = "remotegpu ports\nremotegpu ports --service ssh --closed --json"
    service = option(Text(help="Only those of this service."), "service", "SERVICE", values=PortService)
    closed = option(Bool(False, help="Those that were given back, instead of those that are open."), "closed")

    def run(self) -> None:
        query = {
            "service": chosen(PortService, self.service, "--service"), "open": False if self.closed else None,
        }  # fmt: skip
        self.show_rows("ports", self._rows(query), COLUMNS, empty="There are no such ports.")

    def _rows(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        found = self.allowed(lambda: self.every("all-ports", query=query))
        return self.every("ports", query=query) if found is None else found
