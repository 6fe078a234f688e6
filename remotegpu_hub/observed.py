"""What clients see of the world, as frozen values that the street takes. Nothing here knows where it was read."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final


@dataclass(frozen=True)
class Slot:
    """One thing that can be held of a GPU."""

    model: str
    """The slot's own model name: `A100-80GB`, `A100-80GB/4` for a share of four."""
    gpu_millis: int = 1000


COUNTED: Final = "#"
"""In the name of a device that goes by number alone, `RESOURCE#NUMBER`, since a device plugin only counts: which one a
run holds nobody can tell."""


@dataclass(frozen=True)
class Gpu:
    """A device as its driver (or the simulation) tells it."""

    index: int
    uuid: str
    model: str
    memory_mib: int
    healthy: bool = True
    foreign: bool = False
    """Somebody outside our allocations runs on it now."""
    slots: tuple[Slot, ...] = ()


@dataclass(frozen=True)
class Host:
    """A machine with what it offers, after the reserve for the system."""

    name: str
    pool: str
    cpu_millis: int
    memory_bytes: int
    foreign_cpu_millis: int = 0
    """Held by others than our allocations, out of the same amount."""
    foreign_memory_bytes: int = 0
    gpus: tuple[Gpu, ...] = ()
    simulated: bool = False
    online: bool = True
    address: str = "127.0.0.1"
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A process tree or pod that carries the mark of an allocation."""

    allocation_id: int
    mark: str
    """Identity that is never reused: `pid:start` of the oldest process, or a pod's uid."""
    alive: bool = True
    """It was seen to run."""
    over: bool = False
    """It certainly runs no more. Neither: it has not begun, or nobody can tell, since its node is silent."""
    ended_at: datetime | None = None
    """When it ended, as the system that ran it says."""
    reason: str = ""
    """Why it ended or is about to, one of `orm.EndReason`, where that is known."""
    message: str = ""
    """The same for people: an English sentence that `words` translates."""
    gpu_uuids: tuple[str, ...] = ()
    """The devices that it was given, where whatever runs it tells."""


@dataclass(frozen=True)
class Part:
    """What carries this hub's mark beside processes and pods. It is of a run or is a volume; of neither where its mark
    is no number."""

    name: str
    """As people look for it: `services/NAME`."""
    allocation_id: int | None = None
    volume_id: int | None = None


@dataclass(frozen=True)
class Server:
    """What the hub says of one server of one user. Its REST API tells names, never the numeric id."""

    user_name: str
    server_name: str
    ready: bool
    """It runs and answers."""
    pending: bool
    """It is starting or stopping now."""


@dataclass(frozen=True)
class HubUser:
    """A row of the hub's own users table."""

    hub_user_id: int
    name: str
    created: str
    """Opaque; tells a re-created user with a reused id from the one before."""
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reply:
    """What a receiver said: a status, or why there is none."""

    status: int | None
    error: str
    """Empty when it took the event."""
    said: str = ""
    """The beginning of its answer."""
    milliseconds: int = 0

    @property
    def taken(self) -> bool:
        return not self.error
