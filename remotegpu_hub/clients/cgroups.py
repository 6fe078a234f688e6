"""Control groups of local runs: they bound cores and memory where the hub may write them, and tell every process of a
run, whatever it did to its environ, session or parent.

A run's group is a child of the hub's own group, so a run never gets more than the hub has, in version 2 and in each
version 1 hierarchy that is mounted. Where none can be written, `create` says so: the run is counted, not enforced.
"""

import contextlib
import logging
import os
import re
import select
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

PREFIX: Final = "remotegpu-"
OWN_LEAF: Final = "remotegpu-own"
"""Version 2 lets no group hold both processes and limited children: the hub's own processes move into this child."""
PERIOD_MICROSECONDS: Final = 100_000
LEAST_QUOTA_MICROSECONDS: Final = 1_000
"""The kernel refuses less than a millisecond a period."""


@dataclass(frozen=True)
class Hierarchy:
    """One mounted tree of groups, at the place where the hub itself stands."""

    version: int
    controllers: frozenset[str]
    directory: Path


@dataclass(frozen=True)
class Group:
    """What was made for a run: `procs` are the files to join before exec, `enforced` is a part of {cpu, memory}."""

    name: str
    procs: tuple[str, ...] = ()
    enforced: frozenset[str] = frozenset()

    @property
    def tracked(self) -> bool:
        """Whether the group names every process of the run."""
        return bool(self.procs)


def name_of(hub_id: str, allocation_id: int) -> str:
    """The group's name of an allocation of this hub."""
    return f"{PREFIX}{hub_id}-{allocation_id}"


def hierarchies() -> list[Hierarchy]:
    """Find the mounted hierarchies that bound or freeze processes, the hub's own place in each, writable or not."""
    own = _own_paths()
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind not in {"cgroup", "cgroup2"}:
            continue
        root, mount = (re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), part) for part in left.split(" ")[3:5])
        if kind == "cgroup2":
            place = _place(mount, root, own.get("", "/"))
            if place.name == OWN_LEAF:
                place = place.parent
            known = _read(place / "cgroup.controllers").split()
            found.append(Hierarchy(2, frozenset(known), place))
            continue
        useful = frozenset(options.split(",")) & {"cpu", "memory", "freezer"}
        if useful:
            found.append(Hierarchy(1, useful, _place(mount, root, own.get(min(useful), "/"))))
    return found


def available() -> bool:
    """Whether groups can be made at all, tried for real: permission bits tell a superuser nothing."""
    group = create(f"{PREFIX}probe-{os.getpid()}", cpu_millis=None, memory_bytes=None)
    remove(group.name)
    return group.tracked


def create(name: str, cpu_millis: int | None, memory_bytes: int | None) -> Group:
    """Make the group in every hierarchy that can be written, and bound it; again is harmless. None is no bound.

    A bound is a cap, not a share: a run never takes more than its price covers. Never raises for want of rights:
    look at `enforced` and `tracked`.
    """
    procs: list[str] = []
    enforced: set[str] = set()
    for tree in hierarchies():
        directory = tree.directory / name
        try:
            if tree.version == 2:
                _hand_down(tree)
            directory.mkdir(exist_ok=True)
        except OSError as error:
            log.debug("No control group at %s: %s", directory, error)
            continue
        if not os.access(directory / "cgroup.procs", os.W_OK):
            with contextlib.suppress(OSError):
                directory.rmdir()
            continue
        procs.append(str(directory / "cgroup.procs"))
        if cpu_millis is not None and _bound_cpu(directory, tree, cpu_millis):
            enforced.add("cpu")
        if memory_bytes is not None and _bound_memory(directory, tree, memory_bytes):
            enforced.add("memory")
    return Group(name, tuple(procs), frozenset(enforced))


def join(procs: Sequence[str]) -> None:
    """Move the calling process into a group; call it in the child before exec, while it still has the hub's rights."""
    for path in procs:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"0")
        finally:
            os.close(descriptor)


def names(hub_id: str) -> dict[int, str]:
    """Every group of this hub that exists now, by allocation."""
    return {number: directory.name for directory, number in _groups(f"{PREFIX}{hub_id}-")}


def members(hub_id: str) -> dict[int, set[int]]:
    """The processes in every group of this hub, by allocation, in one look at each hierarchy."""
    found: dict[int, set[int]] = {}
    for directory, number in _groups(f"{PREFIX}{hub_id}-"):
        found.setdefault(number, set()).update(_pids_at(directory))
    return found


def pids(name: str) -> set[int]:
    """The processes of a group and of the groups below it, in every hierarchy; none when there is no such group."""
    return {pid for directory in _directories(name) for pid in _pids_at(directory)}


def kill(name: str, *, timeout_seconds: float = 5.0) -> bool:
    """Kill what is in the group, also what forks meanwhile; True when it was seen empty."""
    deadline = time.monotonic() + timeout_seconds
    frozen = [d / "freezer.state" for d in _directories(name) if (d / "freezer.state").exists()]
    while pids(name):
        if time.monotonic() > deadline:
            return False
        for directory in _directories(name):
            _write(directory / "cgroup.kill", "1")
        # Frozen processes neither fork nor end, so no pid in the list can pass to somebody else meanwhile.
        for state in frozen:
            _freeze(state, until=min(deadline, time.monotonic() + 0.5))
        _kill_each(name)
        for state in frozen:
            _write(state, "THAWED")
        time.sleep(0.005)
    return True


def remove(name: str, *, timeout_seconds: float = 1.0) -> bool:
    """Remove an empty group; True when none is left. A group with processes stays: the kernel keeps it."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        left = False
        for directory in _directories(name):
            for below, _, _ in os.walk(directory, topdown=False):
                try:
                    os.rmdir(below)
                except FileNotFoundError:
                    continue
                except OSError:
                    left = True
        if not left or pids(name) or time.monotonic() > deadline:
            return not left
        time.sleep(0.01)


def _own_paths() -> dict[str, str]:
    """The hub's own path by controller; the empty name is version 2."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _place(mount: str, root: str, own: str) -> Path:
    """Where the hub's own group lies in the file system; containers may show only a part of the hierarchy."""
    if root != "/" and (own == root or own.startswith(root + "/")):
        own = own[len(root) :]
    place = Path(mount + own)
    return place if ".." not in place.parts and place.is_dir() else Path(mount)


def _hand_down(tree: Hierarchy) -> None:
    """Let children of the hub's own version 2 group have bounds. Best effort: tracking works without."""
    wanted = [c for c in ("cpu", "memory") if c in tree.controllers]
    control = tree.directory / "cgroup.subtree_control"
    missing = set(wanted) - set(_read(control).split())
    if not missing:
        return
    text = " ".join(f"+{c}" for c in sorted(missing))
    if _write(control, text) or not _delegated(tree.directory):
        return
    leaf = tree.directory / OWN_LEAF
    with contextlib.suppress(OSError):
        leaf.mkdir(exist_ok=True)
        for pid in sorted(_pids_of(tree.directory)):
            _write(leaf / "cgroup.procs", str(pid))
    if not _write(control, text):
        log.warning("%s cannot bound cores and memory of its children; runs are counted, not enforced.", tree.directory)


def _delegated(directory: Path) -> bool:
    """Whether somebody gave this group to us: systemd's `Delegate=yes`, or a container's own root."""
    for attribute in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(directory, attribute) == b"1":
                return True
    return _own_paths().get("") in {"/", f"/{OWN_LEAF}"}


def _bound_cpu(directory: Path, tree: Hierarchy, cpu_millis: int) -> bool:
    quota = max(LEAST_QUOTA_MICROSECONDS, cpu_millis * PERIOD_MICROSECONDS // 1000)
    if tree.version == 2:
        return _write(directory / "cpu.max", f"{quota} {PERIOD_MICROSECONDS}")
    return _write(directory / "cpu.cfs_period_us", str(PERIOD_MICROSECONDS)) and _write(
        directory / "cpu.cfs_quota_us", str(quota)
    )


def _bound_memory(directory: Path, tree: Hierarchy, memory_bytes: int) -> bool:
    """Bound memory and, where the kernel accounts it, keep the run out of swap, which would only hide the bound."""
    if tree.version == 2:
        bounded = _write(directory / "memory.max", str(memory_bytes))
        _write(directory / "memory.swap.max", "0")
        return bounded
    memory, both = directory / "memory.limit_in_bytes", directory / "memory.memsw.limit_in_bytes"
    # Memory may never exceed memory with swap: lowering goes in this order, raising in the other.
    bounded = _write(memory, str(memory_bytes))
    _write(both, str(memory_bytes))
    return bounded or _write(memory, str(memory_bytes))


def _groups(start: str) -> Iterator[tuple[Path, int]]:
    """Every group whose name is this and a number, with the number."""
    for tree in hierarchies():
        with contextlib.suppress(OSError):
            for entry in os.listdir(tree.directory):
                number = entry.removeprefix(start)
                if entry.startswith(start) and number.isdecimal():
                    yield tree.directory / entry, int(number)


def _directories(name: str) -> list[Path]:
    return [d for d in (tree.directory / name for tree in hierarchies()) if d.is_dir()]


def _pids_at(directory: Path) -> Iterator[int]:
    for below, _, _ in os.walk(directory):
        yield from _pids_of(Path(below))


def _pids_of(directory: Path) -> set[int]:
    """The group's own processes; 0 stands for one that this pid namespace cannot see."""
    return {int(line) for line in _read(directory / "cgroup.procs").split() if line != "0"}


def _kill_each(name: str) -> None:
    for pid in pids(name):
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(pid)
            try:
                # Open first, look again, then signal: the descriptor can only mean the process that was looked at.
                if pid in pids(name):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def _freeze(state: Path, *, until: float) -> None:
    while _write(state, "FROZEN") and _read(state).strip() != "FROZEN" and time.monotonic() < until:
        select.select([], [], [], 0.002)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, text: str) -> bool:
    """Write an existing control file; False when it is missing or refuses."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        log.debug("%s refuses %s: %s", path, text, error)
        return False
    finally:
        os.close(descriptor)
    return True
