"""`remotegpu hosts` and `remotegpu gpus`: the machines, what is held of them, and taking them out for repair."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from .. import plain
from ..domain import inventory
from ..orm import Gpu, GpuStatus, Host, HostStatus
from ..runtime import utcnow
from ..units import show_bytes, show_thousandths
from .command import Command, Text, option
from .stop import Refused
from .tables import Column, Row, short


def _of(kind: str) -> Any:
    show = show_bytes if kind == "memory_bytes" else show_thousandths

    def cell(row: Row) -> str:
        return f"{show(row[f'used_{kind}'])} of {show(row[kind])}"

    return cell


HOST_COLUMNS = [
    Column("HOST", lambda row: row["name"] + (" (simulated)" if row["simulated"] else "")),
    Column("POOL", "pool"),
    Column("STATUS", lambda row: row["status"] + (", overcommitted" if row["overcommitted"] else "")),
    Column("GPUS USED", _of("gpu_millis"), right=True),
    Column("CORES USED", _of("cpu_millis"), right=True),
    Column("MEMORY USED", _of("memory_bytes"), right=True),
    Column("RUNNING", "environments", right=True),
    Column("LAST SEEN", lambda row: short(row["last_seen_at"])),
]
GPU_COLUMNS = [
    Column("HOST", lambda row: row["host"] + (" (simulated)" if row["simulated"] else "")),
    Column("GPU", "index", right=True),
    Column("UUID", "uuid"),
    Column("MODEL", "model"),
    Column("MEMORY", lambda row: show_bytes(row["memory_mib"] * 2**20), right=True),
    Column("STATUS", "condition"),
    Column("SLOTS", lambda row: _slots(row["slots"])),
]


def _slots(slots: list[dict[str, Any]]) -> str:
    held = [slot["user"] or f"run {slot['allocation_id']}" for slot in slots if slot["allocation_id"] is not None]
    free = sum(slot["usable"] and slot["allocation_id"] is None for slot in slots)
    who = f", held by {', '.join(held)}" if held else ""
    return f"{free} of {len(slots)} free{who}"


class HostsList(Command):
    name = "list"
    description = "List the hosts with what is held of them."

    def run(self) -> None:
        with self.transaction(read_only=True) as session:
            rows = [plain.host(host) for host in inventory.hosts(session)]
        self.show_rows("hosts", rows, HOST_COLUMNS, empty="No host was seen yet: they appear once the hub runs.")


class _HostStatus(Command):
    words = ("HOST",)
    wanted = HostStatus.ONLINE
    told = ""

    def run(self) -> None:
        with self.transaction() as session:
            host = inventory.set_host_status(
                session, name=self.need(0), status=self.wanted, actor=self.actor, now=utcnow()
            )
            row = plain.host(host)
        self.show_one("host", row, f"{row['name']} is {row['status']}: {self.told}")


class HostsMaintenance(_HostStatus):
    name = "maintenance"
    description = "Take a host out for maintenance: nothing new starts there, and what runs there goes on."
    wanted = HostStatus.MAINTENANCE
    told = "nothing new starts there, and what runs there goes on."


class HostsOnline(_HostStatus):
    name = "online"
    description = "Put a host back to work. One that is not there goes offline again at the next look at it."
    wanted = HostStatus.ONLINE
    told = "environments may start there."


class Hosts(HostsList):
    name = "hosts"
    description = "The machines that environments run on. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (HostsList, "list them with what is held"),
        "maintenance": (HostsMaintenance, "take one out"),
        "online": (HostsOnline, "put one back to work"),
    }


class GpusList(Command):
    name = "list"
    description = "List the GPUs with their slots and who holds them."
    host = option(Text(help="Only those of this host."), "host", "NAME")

    def run(self) -> None:
        with self.transaction(read_only=True) as session:
            rows = plain.gpus(session, host=self.host)
        self.show_rows("gpus", rows, GPU_COLUMNS, empty="There are no GPUs.")


class _GpuStatus(Command):
    words = ("GPU",)
    examples = "remotegpu gpus maintenance gpu-box:0\nremotegpu gpus maintenance GPU-5f1c…"
    wanted = GpuStatus.AVAILABLE
    told = ""

    def run(self) -> None:
        with self.transaction() as session:
            uuid = _uuid(session, self.need(0))
            inventory.set_gpu_status(session, uuid=uuid, status=self.wanted, actor=self.actor, now=utcnow())
            row = plain.gpus(session, uuid=uuid)[0]
        self.show_one("gpu", row, f"GPU {row['index']} of {row['host']} is {row['condition']}: {self.told}")


def _uuid(session: Session, name: str) -> str:
    """A GPU is named by its UUID, or by HOST:INDEX. Raises: Refused."""
    host, colon, index = name.rpartition(":")
    if session.scalar(select(Gpu.id).where(Gpu.uuid == name)) is not None:
        return name
    if colon and index.isdecimal():
        query = select(Gpu.uuid).join(Host, Host.id == Gpu.host_id)
        found = session.scalar(query.where(Host.name == host, Gpu.index == int(index), ~Gpu.missing))
        if found is not None:
            return found
    raise Refused(f"The GPU {name} was not found: name it as HOST:INDEX or by its UUID; `remotegpu gpus` lists them.")


class GpusMaintenance(_GpuStatus):
    name = "maintenance"
    description = "Take a GPU out for maintenance: it is not given out any more, and who holds it keeps it."
    wanted = GpuStatus.MAINTENANCE
    told = "it is not given out any more, and who holds it keeps it."


class GpusAvailable(_GpuStatus):
    name = "available"
    description = "Give a GPU out again. One in error goes back to error at the next look at it."
    wanted = GpuStatus.AVAILABLE
    told = "it is given out again."


class Gpus(GpusList):
    name = "gpus"
    description = (
        "The GPUs, their slots and who holds them. GPU is written HOST:INDEX, or as its UUID. Without a command: list "
        "them."
    )
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (GpusList, "list them with their holders"),
        "maintenance": (GpusMaintenance, "take one out"),
        "available": (GpusAvailable, "give one out again"),
    }
