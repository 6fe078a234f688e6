"""This machine as a place where runs live: one host, and processes."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ..errors import Invalid
from ..observed import Host, Part, Run
from . import nvml, outputs, processes

STOP_GRACE_SECONDS: Final = 5.0
POOL: Final = "local"


@dataclass(frozen=True)
class Box:
    """The one host of a hub without a cluster."""

    hub_id: str
    host_name: str
    reserve_cpu_millis: int
    reserve_memory_bytes: int
    shares: Mapping[str, int]
    simulated_gpus: Sequence[dict[str, Any]]
    other_users: bool
    """Runs belong to system users of their own."""
    output_folder: str = ""

    pool = POOL
    hosts_changed = None
    runs_changed = None

    async def why_gone(self, allocation_id: int, *, host: str) -> tuple[str, str]:
        """A process that is gone ended; nobody tells how."""
        return "exited", ""

    async def hosts(self) -> list[Host]:
        return [await asyncio.to_thread(self._host)]

    def _host(self) -> Host:
        return nvml.observe_local(
            host_name=self.host_name,
            pool=POOL,
            reserve_cpu_millis=self.reserve_cpu_millis,
            reserve_memory_bytes=self.reserve_memory_bytes,
            shares=self.shares,
            simulated=self.simulated_gpus,
            hub_id=self.hub_id,
        )

    async def runs(self) -> list[Run]:
        return await asyncio.to_thread(processes.runs, self.hub_id, other_users=self.other_users)

    async def stop(self, allocation_id: int) -> bool:
        """End a run's whole tree. True when nothing of it is left."""
        return await asyncio.to_thread(
            processes.stop_tree, self.hub_id, allocation_id, grace_seconds=STOP_GRACE_SECONDS,
            other_users=self.other_users,
        )  # fmt: skip

    async def parts(self) -> list[Part]:
        """None: a run is its processes, and homes of this machine are its system users' own."""
        return []

    async def remove_volumes(self, volume_ids: Collection[int]) -> None:
        """Nothing: there are none."""

    async def write_keys(self, keys: Mapping[int, str]) -> None:
        """Nothing: people log in to this machine by its own sshd."""

    def output(
        self, allocation_id: int, *, tail: int, follow: bool, since: datetime | None = None
    ) -> AsyncIterator[str]:
        """What it printed stands in a file. Raises: Invalid where it is asked when: nobody wrote that down."""
        if since is not None:
            raise Invalid("What is printed on this machine carries no times: leave `since` out, and use `tail`.")
        return outputs.lines(self.output_folder, allocation_id, tail=tail, follow=follow)

    async def tidy(self, *, running: Collection[int]) -> None:
        await asyncio.to_thread(outputs.tidy, self.output_folder, running=running)

    async def close(self) -> None:
        """Nothing is open."""
