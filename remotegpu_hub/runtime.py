"""What each of our processes works with: the operator's settings and an engine. The hub's process writes them to a
file that only its user can read; services find it by path, since their env vars are stored in clear by the hub."""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Engine

from .clients import networks, pools
from .clients.pools import Pool
from .db import open_engine
from .domain import ports
from .domain.environments import Rules
from .domain.placement import POLICIES
from .observed import Host
from .orm import VolumeKind

P = ParamSpec("P")
T = TypeVar("T")

RETRIES = (60.0, 300.0, 1800.0, 7200.0, 21600.0)
"""Seconds: a minute, five, half an hour, two hours, and then six again and again."""
RUNTIME_VARIABLE = "REMOTEGPU_RUNTIME"
"""Env var of our services that holds the path of the file."""


@dataclass(frozen=True)
class Settings:
    """What the operator configured, plain enough to be written as JSON. The manual is `options.RemoteGPU`."""

    db_url: str
    db_kwargs: dict[str, Any] = field(default_factory=dict)
    hub_id: str = ""
    """Tells this hub's processes and pods from those of another hub on the same machine or cluster."""
    hub_started_at: str = ""
    """When the hub's process read its configuration, ISO 8601: a start from before cannot be on its way any more. The
    kernel's time of the process itself is rounded to a second, too coarse to part it from the hub before."""
    hub_process: str = ""
    """Mark of the hub's process: a service whose parent is another one must not answer."""
    insecure_demo: bool = False
    currency: str = "USD"
    policy: str = "least-loaded"
    port_ranges: dict[str, list[int]] = field(default_factory=dict)
    ingress: dict[str, Any] = field(default_factory=dict)
    """As `c.RemoteGPU.ingress` says; empty for none."""
    max_gpus: int = 8
    default_cpu_millis: int = 1000
    default_memory_bytes: int = 2 * 2**30
    personal_quota: dict[str, int | None] = field(default_factory=dict)
    personal_budget: int | None = None
    host_name: str = "localhost"
    reserve_cpu_millis: int = 0
    reserve_memory_bytes: int = 0
    gpu_shares: dict[str, int] = field(default_factory=dict)
    simulated_gpus: list[dict[str, Any]] = field(default_factory=list)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    other_users: bool = False
    """Runs belong to system users of their own."""
    output_folder: str = ""
    """Where runs that are processes of this machine print to, a file each."""
    local: bool = True
    """Environments are processes of this machine; else pods of a cluster."""
    namespace: str = "default"
    """Of the cluster, where the pods live."""
    pools: list[dict[str, Any]] = field(default_factory=list)
    home_bytes: int = 0
    """Size of a home volume; 0 for none."""
    shared_bytes: int = 0
    """Size of a workspace's volume; 0 for none."""
    shared_storage_class: str = ""
    ssh_user: str = ""
    """Whom a user logs in as by SSH; empty: under the hub user's own name."""
    stop_grace_seconds: int = 1
    """What a pod's processes get between being asked to end and being killed, whoever ends it."""
    webhook_key: str = ""
    """From which the secrets of webhooks are made; the same after each restart."""
    webhook_pauses: list[float] = field(default_factory=lambda: list(RETRIES))
    """Seconds between the tries of a delivery."""
    webhook_networks: list[str] = field(default_factory=list)
    """Where webhooks may go besides public and private addresses."""
    proxies: list[str] = field(default_factory=list)
    """Addresses of proxies in front of the hub's own, which tell who was before them."""
    start_grace_seconds: int = 180
    """Start time-out, HTTP time-out and a minute: an older start that nobody waits for is a ghost."""

    @property
    def started(self) -> datetime:
        return datetime.fromisoformat(self.hub_started_at)

    @property
    def rules(self) -> Rules:
        """What every admission obeys."""
        return Rules(
            policy=POLICIES[self.policy](),
            port_ranges={name: range(first, last + 1) for name, (first, last) in self.port_ranges.items()},
            ingress=ports.Ingress(self.ingress["host"], self.ingress["path"], bool(self.ingress["tls_secret"]))
            if self.ingress
            else None,
            max_gpus=self.max_gpus,
            single_models=pools.single_models(pools.read(self.pools)),
            default_cpu_millis=self.default_cpu_millis,
            default_memory_bytes=self.default_memory_bytes,
            port_address="" if self.local else ports.ANY_NODE,
            volumes={
                kind: size
                for kind, size in ((VolumeKind.HOME, self.home_bytes), (VolumeKind.SHARED, self.shared_bytes))
                if size
            },
        )


class Runtime:
    """Settings, an engine made on first use, and threads for database work."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.hosts_written: dict[str, Host] = {}
        """What this process last wrote of each host."""

    @classmethod
    def read(cls, path: str) -> "Runtime":
        """Read the file that the hub's process wrote."""
        return cls(Settings(**json.loads(Path(path).read_text())))

    def write(self, path: str) -> None:
        """Write the file for our other processes, never readable by others, whole or not at all."""
        partial = f"{path}.{os.getpid()}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self.settings), file)
        Path(partial).replace(path)

    @cached_property
    def engine(self) -> Engine:
        return open_engine(self.settings.db_url, **self.settings.db_kwargs)

    @cached_property
    def pools(self) -> list[Pool]:
        """The cluster's pools, first match first."""
        return pools.read(self.settings.pools)

    @cached_property
    def webhook_networks(self) -> list[networks.Network]:
        return networks.read(self.settings.webhook_networks)

    @cached_property
    def rules(self) -> Rules:
        return self.settings.rules

    @cached_property
    def threads(self) -> ThreadPoolExecutor:
        """Our own, so that slow database work never fills the hub's."""
        return ThreadPoolExecutor(max_workers=8, thread_name_prefix="remotegpu")

    def close(self) -> None:
        """Give back what was opened; what it is asked for later is opened anew."""
        if "threads" in self.__dict__:
            self.__dict__.pop("threads").shutdown()
        if "engine" in self.__dict__:
            self.__dict__.pop("engine").dispose()

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run blocking work in one of our threads; the future goes on even if nobody waits for it any more."""
        return self.threads.submit(work, *args, **kwargs)


def utcnow() -> datetime:
    """The one clock that the doors read."""
    return datetime.now(UTC)
