"""Environments as processes of this machine: one GPU box without Kubernetes."""

import asyncio
import os
import pwd
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil
from jupyterhub.spawner import LocalProcessSpawner
from traitlets import Float, Unicode

from ..clients import cgroups, outputs, processes
from ..errors import Denied, Unavailable
from .spawner import Held, RemoteGPUMixin, Run

OURS = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES")


class LocalSpawner(RemoteGPUMixin, LocalProcessSpawner):  # type: ignore[misc]
    """Starts JupyterLab as a process of the system user of the same name, with the GPUs that the run holds.

    CUDA_VISIBLE_DEVICES is a convention, not isolation: a user who unsets it sees every GPU of the machine.
    """

    clear_grace_seconds = Float(
        5.0,
        help="""Seconds that what is left of a stopped environment (kernels, their children) gets between an interrupt,
        a request to end, and being killed. Default 5: long enough to write a file, short for the next user.""",
    ).tag(config=True)

    same_inside = True
    system_users: ClassVar[bool] = True
    _held: Held | None = None
    _group: cgroups.Group | None = None
    _tree: Sequence[processes.Process] = ()

    async def prepare(self, held: Held) -> None:
        if self.system_users and not _has_account(self.user.name):
            raise Denied(
                "There is no system account {name} on this machine. Ask a hub admin to make one.", name=self.user.name
            )
        image = self.runtime.settings.images[held.image]
        name = cgroups.name_of(self.runtime.settings.hub_id, held.allocation_id)
        self._held = held
        self.cmd = list(image["cmd"])
        self.args = list(image.get("args", []))
        self.port = 0
        self._group = await asyncio.wrap_future(
            self.runtime.submit(cgroups.create, name, held.cpu_millis, held.memory_bytes)
        )

    def knows(self, image: str) -> bool:
        """The catalogue keeps an image whose command left the configuration."""
        return image in self.runtime.settings.images

    @property
    def enforced(self) -> bool:  # type: ignore[override]
        return _cgroups_work()

    def get_env(self) -> dict[str, str]:
        """The hub's env vars, then the run's own: whatever was set before, the GPUs are those that are held."""
        env: dict[str, str] = super().get_env()
        held = self._held
        if held is None:
            return env
        image = self.runtime.settings.images[held.image]
        env.update({str(name): str(value) for name, value in image.get("env", {}).items()})
        env.update(processes.environment(self.runtime.settings.hub_id, held.allocation_id))
        env["REMOTEGPU_WORKSPACE"] = held.workspace
        env["REMOTEGPU_ENVIRONMENT_ID"] = str(held.environment_id)
        for name in OURS:
            env.pop(name, None)
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        env["CUDA_VISIBLE_DEVICES"] = ",".join(held.gpu_uuids)
        if held.simulated:
            env["REMOTEGPU_SIMULATED_GPUS"] = "1"
        for port in held.ports:
            env[f"REMOTEGPU_PORT_{port.service.upper()}"] = str(port.external)
        return env

    def make_preexec_fn(self, name: str) -> Callable[[], None] | None:
        """Print to the run's file, join its control group and keep orphans in sight, while the child still has the
        hub's rights."""
        become_user = self.user_preexec(name)
        procs = self._group.procs if self._group else ()
        folder, run = self.runtime.settings.output_folder, self._held

        def preexec() -> None:
            if run is not None:
                outputs.redirect(folder, run.allocation_id)
            cgroups.join(procs)
            processes.adopt_orphans()
            if become_user is not None:
                become_user()

        return preexec

    def user_preexec(self, name: str) -> Callable[[], None] | None:
        """What makes the child the user's own."""
        switch: Callable[[], None] | None = super().make_preexec_fn(name)
        return switch

    async def mark(self) -> str:
        return processes.mark_of(self.pid)

    async def busy_ports(self) -> frozenset[int]:
        ranges = self.runtime.rules.port_ranges
        if not ranges:
            return frozenset()

        def listening() -> frozenset[int]:
            return frozenset(
                connection.laddr.port
                for connection in psutil.net_connections(kind="tcp")
                if connection.status == psutil.CONN_LISTEN
            )

        busy: frozenset[int] = await asyncio.wrap_future(self.runtime.submit(listening))
        return busy

    async def stop(self, now: bool = False) -> None:
        """Look at the whole tree first: with the server goes the bond to descendants that dropped their marks."""
        run, settings = self._run, self.runtime.settings
        if run is not None and run.allocation_id:
            self._tree = await asyncio.wrap_future(
                self.runtime.submit(
                    processes.processes, settings.hub_id, run.allocation_id, other_users=settings.other_users
                )
            )
        await super().stop(now)

    async def clear(self, run: Run) -> bool:
        """Stop the whole tree, found by its mark. The server itself is gone by now or could not be stopped."""
        settings, known = self.runtime.settings, self._tree

        def end() -> bool:
            return processes.stop_tree(
                settings.hub_id, run.allocation_id, grace_seconds=self.clear_grace_seconds,
                other_users=settings.other_users, known=known,
            )  # fmt: skip

        gone: bool = await asyncio.wrap_future(self.runtime.submit(end))
        self._tree = [] if gone else known
        return gone

    async def poll(self) -> int | None:
        """A saved pid counts only with its start time: after a restart it may be somebody else's."""
        try:
            if self.proc is None and self.pid and self._run is not None and not processes.is_alive(self._run.mark):
                self.clear_state()
        except Unavailable as error:  # nothing has ended because it cannot be looked at
            self.log.warning("%s: it is not known whether it runs: %s", self._log_name, error)
            return None
        return await super().poll()

    async def _signal(self, sig: int) -> bool:
        if self.proc is None and self._run is not None and not processes.is_alive(self._run.mark):
            return False
        alive: bool = await super()._signal(sig)
        return alive


class DemoSpawner(LocalSpawner):
    """Runs everybody as the hub's own user: no isolation at all. For `make demo` and tests."""

    home_root = Unicode(help="Folder under which every user gets a home. Default: `homes` in the hub's folder.").tag(
        config=True
    )
    system_users = False

    @property
    def home(self) -> Path:
        return Path(self.home_root or "homes").resolve() / str(self.user.id)

    def user_preexec(self, name: str) -> Callable[[], None] | None:
        home = self.home
        home.mkdir(parents=True, exist_ok=True, mode=0o700)

        def enter() -> None:
            os.chdir(home)

        return enter

    def user_env(self, env: dict[str, str]) -> dict[str, str]:
        env["USER"] = self.user.name
        env["HOME"] = str(self.home)
        env["SHELL"] = "/bin/bash"
        return env

    async def move_certs(self, paths: Any) -> Any:
        return paths


def _has_account(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


_tried: list[bool] = []


def _cgroups_work() -> bool:
    if not _tried:
        _tried.append(cgroups.available())
    return _tried[0]
