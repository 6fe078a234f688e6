"""`remotegpu hosts` and `remotegpu gpus`: the machines, what is held of them, and taking them out for repair."""

from typing import Any

from ..errors import RemoteGPUError
from ..units import show_bytes, show_thousandths
from .asking import Asking, missing
from .command import Text, option, whole
from .stop import Refused, Usage
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


class HostsList(Asking):
    name = "list"
    description = "List the hosts with what is held of them."

    def run(self) -> None:
        rows = self.every("hosts")
        self.show_rows("hosts", rows, HOST_COLUMNS, empty="No host was seen yet: they appear once the hub runs.")


class _HostStatus(Asking):
    words = ("HOST",)
    wanted = ""
    told = ""

    def run(self) -> None:
        row = self.ask("PATCH", "hosts/{host}", body={"status": self.wanted}, host=self.need(0)).value
        self.show_one("host", row, f"{row['name']} is {row['status']}: {self.told}")


class HostsMaintenance(_HostStatus):
    name = "maintenance"
    description = "Take a host out for maintenance: nothing new starts there, and what runs there goes on."
    wanted = "maintenance"
    told = "nothing new starts there, and what runs there goes on."


class HostsOnline(_HostStatus):
    name = "online"
    description = "Put a host back to work. One that is not there goes offline again at the next look at it."
    wanted = "online"
    told = "environments may start there."


class HostsDrain(Asking):
    name = "drain"
    words = ("HOST",)
    description = "Take a host out for maintenance, and end what runs there after a while, in which its users can save."
    examples = "remotegpu hosts drain gpu-box --minutes 60"
    minutes = option(Text(help="How long what runs there may go on. Required; 0 is now."), "minutes", "MINUTES")

    def run(self) -> None:
        if self.minutes is None:
            raise Usage(f"--minutes is missing: how long may go on what runs there? Try `{self.path} --help`.")
        body = {"grace_seconds": 60 * whole(self.minutes, "--minutes")}
        row = self.ask("POST", "hosts/{host}/drain", body=body, host=self.need(0)).value
        count, end = row["environments"], short(row["ends_at"])
        told = f"{count} environments there end at {end}." if count else "Nothing runs there."
        self.show_one("drain", row, f"Nothing new starts on {row['host']}. {told}")


class Hosts(HostsList):
    name = "hosts"
    description = "The machines that environments run on. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (HostsList, "list them with what is held"),
        "maintenance": (HostsMaintenance, "take one out"),
        "drain": (HostsDrain, "take one out, and end what runs there after a while"),
        "online": (HostsOnline, "put one back to work"),
    }


class GpusList(Asking):
    name = "list"
    description = "List the GPUs with their slots and who holds them."
    host = option(Text(help="Only those of this host."), "host", "NAME")

    def run(self) -> None:
        if self.host is not None:
            rows = self.every("hosts/{host}/gpus", host=self.host)
        else:
            rows = sorted(self.every("gpus"), key=lambda row: (row["host"], row["index"]))
        self.show_rows("gpus", rows, GPU_COLUMNS, empty="There are no GPUs.")


class _GpuStatus(Asking):
    words = ("GPU",)
    examples = "remotegpu gpus maintenance gpu-box:0\nremotegpu gpus maintenance GPU-5f1c…"
    wanted = ""
    told = ""

    def run(self) -> None:
        try:
            row = self._set(self.need(0))
        except RemoteGPUError as error:
            if not (missing(error, "The GPU") or missing(error, "The host")):
                raise
            raise Refused(
                f"The GPU {self.need(0)} was not found: name it as HOST:INDEX or by its UUID; `remotegpu gpus` lists "
                "them."
            ) from None
        self.show_one("gpu", row, f"GPU {row['index']} of {row['host']} is {row['condition']}: {self.told}")

    def _set(self, gpu: str) -> Any:
        """Name it by HOST:INDEX where that is what was typed, else by its UUID."""
        body = {"status": self.wanted}
        host, colon, index = gpu.rpartition(":")
        if colon and index.isascii() and index.isdecimal():
            return self.ask("PATCH", "hosts/{host}/gpus/{index}", body=body, host=host, index=index).value
        return self.ask("PATCH", "gpus/{uuid}", body=body, uuid=gpu).value


class GpusMaintenance(_GpuStatus):
    name = "maintenance"
    description = "Take a GPU out for maintenance: it is not given out any more, and who holds it keeps it."
    wanted = "maintenance"
    told = "it is not given out any more, and who holds it keeps it."


class GpusAvailable(_GpuStatus):
    name = "available"
    description = "Give a GPU out again. One in error goes back to error at the next look at it."
    wanted = "available"
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
