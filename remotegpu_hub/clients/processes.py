"""The process table of this machine: the truth about local runs. It reads `/proc`, keeps nothing and knows no
allocation beyond its number.

Every process of a run starts with two env vars, the mark of `environment`. Children that drop their env vars are found
as descendants, by the session that the run opened, and by the run's control group where one exists.
A process that dropped its env vars, opened a session of its own *and* lost its parent is found only by the control
group, or, where none can be made, while the server lives and was started with `adopt_orphans`. A server killed from
outside (for want of memory, say) sets such a process free: nothing here can find it, only its use of a GPU shows.
"""

import ctypes
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from .. import errors
from ..observed import Run
from . import cgroups

log = logging.getLogger(__name__)

ALLOCATION_VARIABLE: Final = "REMOTEGPU_ALLOCATION_ID"
HUB_VARIABLE: Final = "REMOTEGPU_HUB"
_ALLOCATION: Final = re.compile(rb"\0" + ALLOCATION_VARIABLE.encode() + rb"=(\d{1,18})\0")
_NEEDED_CAPABILITIES: Final = {"CAP_SYS_PTRACE": 19, "CAP_KILL": 5}
_PR_SET_CHILD_SUBREAPER: Final = 36
_LIBC: Final = ctypes.CDLL(None)
KILL_SECONDS: Final = 10.0
"""How long killed processes may take to go: one that waits for a disk or a driver is not killed at once."""
LOOK_SECONDS: Final = 0.5
FREEZE_ROUNDS: Final = 50
LISTINGS: Final = 3
_DEAD_STATES: Final = frozenset(b"ZXx")
_GONE: Final = (FileNotFoundError, ProcessLookupError, PermissionError)
"""What `/proc` answers for a process that ended or is hidden."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that is never taken for another: a reused pid has a later start."""

    pid: int
    start: int
    """Clock ticks since boot."""

    @property
    def mark(self) -> str:
        """What is stored: `pid:start:boot`, unlike any other process of any boot."""
        return f"{self.pid}:{self.start}:{_boot()}"


Found = Callable[[Process, int], None]


@dataclass(frozen=True, slots=True)
class _Row:
    """A living process as `/proc/PID/stat` tells it."""

    process: Process
    parent: int
    session: int
    leader_dead: bool
    """The first thread ended while others go on: the kernel shows a zombie, but it works and holds GPUs."""


@dataclass(frozen=True)
class Table:
    """One look at all living processes, with the tree of every run of one hub."""

    trees: Mapping[int, frozenset[Process]]
    """Living processes by allocation."""
    oldest: Mapping[int, Process]


def environment(hub_id: str, allocation_id: int) -> dict[str, str]:
    """The env vars that mark a run of this hub."""
    return {HUB_VARIABLE: hub_id, ALLOCATION_VARIABLE: str(allocation_id)}


def adopt_orphans() -> None:
    """Keep orphaned descendants below the calling process; call it in the child before exec.

    It lasts over exec and makes the server their parent, where else they would fall to the system's first process and
    out of sight. Costs one system call. The price: what ends as an orphan stays a zombie until the server ends.
    """
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def blindness() -> str | None:
    """Why runs of other system users cannot be watched by this process; None when they can."""
    has = _capabilities()
    missing = [name for name, bit in _NEEDED_CAPABILITIES.items() if not has >> bit & 1]
    if not missing:
        return None
    return (
        f"Processes of other system users cannot be read or stopped here: {' and '.join(missing)} missing. "
        "Run the hub and its services as root, or let everybody run as the hub's own user."
    )


def read(hub_id: str, known: Mapping[Process, int] | None = None, found: Found | None = None) -> Table:
    """Look at every process once. `known` adds processes that were seen in a tree before, by allocation.

    `found` is told of marked processes and of children of known ones as soon as they are read: one that replaces itself
    by a child every few milliseconds is gone when the look is over.
    """
    rows: dict[int, _Row] = {}
    owners: dict[int, int] = {}
    protected = _protected()
    old = {process.pid: owner for process, owner in (known or {}).items() if alive(process)}
    wanted = b"\0" + HUB_VARIABLE.encode() + b"=" + hub_id.encode() + b"\0"
    for pid in _pids():
        row = _row(pid)
        if row is None:
            continue
        rows[pid] = row
        text = _environ(row)
        match = _ALLOCATION.search(text) if wanted in text else None
        owner = int(match[1]) if match else old.get(row.parent)
        if owner is not None and pid not in protected:
            owners[pid] = owner
            if found:
                found(row.process, owner)
    for allocation_id, pids in cgroups.members(hub_id).items():
        old.update(dict.fromkeys(pids, allocation_id))
    for pid, owner in old.items():
        if pid in rows and pid not in protected:
            owners.setdefault(pid, owner)
    _spread(rows, owners, protected)
    trees: dict[int, set[Process]] = {}
    for pid, owner in owners.items():
        trees.setdefault(owner, set()).add(rows[pid].process)
    oldest = {owner: _oldest(tree, rows) for owner, tree in trees.items()}
    return Table({owner: frozenset(tree) for owner, tree in trees.items()}, oldest)


def runs(hub_id: str, *, other_users: bool = False) -> list[Run]:
    """Every run of this hub of which a process lives, by allocation.

    The mark is that of the oldest process: the server while it lives, later its oldest survivor.
    With `other_users` runs belong to system users of their own.

    Raises: Unavailable when those cannot be read: then nothing may be concluded from what is missing here.
    """
    _need_sight(other_users)
    return [Run(allocation_id, process.mark) for allocation_id, process in sorted(read(hub_id).oldest.items())]


def processes(hub_id: str, allocation_id: int, *, other_users: bool = False) -> list[Process]:
    """The living processes of one run, oldest first. Raises: Unavailable like `runs`."""
    _need_sight(other_users)
    return sorted(read(hub_id).trees.get(allocation_id, ()), key=lambda process: (process.start, process.pid))


def mark_of(pid: int) -> str:
    """The mark of a living process. Raises: NotFound."""
    row = _row(pid)
    if row is None:
        raise errors.NotFound(f"Process {pid}")
    return row.process.mark


def is_alive(mark: str) -> bool:
    """Whether exactly this process lives, not a later one with its pid or one of another boot. A zombie is gone."""
    process = parse_mark(mark)
    return process is not None and alive(process)


def parse_mark(mark: str) -> Process | None:
    """The process that a mark means; None for a mark of another boot or of another kind."""
    match = re.fullmatch(r"(\d{1,10}):(\d{1,19}):([0-9a-f]{8})", mark)
    if match is None or match[3] != _boot():
        return None
    return Process(int(match[1]), int(match[2]))


def alive(process: Process) -> bool:
    """Whether this process still lives."""
    row = _row(process.pid)
    return row is not None and row.process == process


def stop_tree(
    hub_id: str,
    allocation_id: int,
    *,
    grace_seconds: float,
    other_users: bool = False,
    known: Iterable[Process] = (),
) -> bool:
    """End every process of a run; True only when two looks in a row found none.

    First SIGINT to the oldest, so that a server can end its kernels in order; then SIGTERM to all; each gets up to
    `grace_seconds`. What is left is frozen first, until a look finds nothing new, and then killed: nothing forks away.
    False when something is left that does not end, or that this process may not signal: try again later.
    `known` are processes seen in the tree before the server itself was stopped, if it was: with it goes the bond to
    descendants that dropped everything else.

    Raises: Unavailable when processes of other users cannot be read.
    """
    _need_sight(other_users)
    name = cgroups.name_of(hub_id, allocation_id)
    seen = dict.fromkeys(known, allocation_id)

    def look(found: Found | None = None) -> list[Process]:
        table = read(hub_id, seen, found)
        seen.update(dict.fromkeys(table.trees.get(allocation_id, ()), allocation_id))
        oldest = table.oldest.get(allocation_id)
        return sorted(table.trees.get(allocation_id, ()), key=lambda process: process != oldest)

    for number, everybody in ((signal.SIGINT, False), (signal.SIGTERM, True)):
        tree = look()
        if not everybody:
            tree = tree[:1]
        for process in tree:
            send(process, number)
        _wait(tree, look, seconds=grace_seconds)
    deadline = time.monotonic() + KILL_SECONDS
    while (tree := look()) or (tree := look()):
        if time.monotonic() > deadline:
            log.error("%d processes of allocation %d do not end: %s", len(tree), allocation_id, tree[:10])
            return False
        cgroups.kill(name, timeout_seconds=1.0)
        _kill(allocation_id, look)
        _wait(tree, look, seconds=1.0)
    cgroups.remove(name)
    return True


def send(process: Process, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it is gone or belongs to somebody else."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        # The descriptor is fixed to whoever has the pid now; only then is it asked who that is.
        if not alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        log.error("Process %d may not be stopped by user %d.", process.pid, os.geteuid())
        return False
    finally:
        os.close(descriptor)
    return True


def _kill(allocation_id: int, look: Callable[[Found], list[Process]]) -> None:
    """Freeze until nothing new appears, then kill."""
    frozen: set[Process] = set()

    def freeze(process: Process, owner: int) -> None:
        if owner == allocation_id and process not in frozen:
            send(process, signal.SIGSTOP)
            frozen.add(process)

    for _ in range(FREEZE_ROUNDS):
        before = len(frozen)
        for process in look(freeze):
            freeze(process, allocation_id)
        if len(frozen) == before:
            break
    for process in frozen:
        send(process, signal.SIGKILL)


def _wait(tree: list[Process], look: Callable[[], list[Process]], *, seconds: float) -> None:
    """Wait for these to end, while noting what they leave behind: a whole look costs more than asking for a few."""
    deadline = time.monotonic() + seconds
    next_look = time.monotonic() + LOOK_SECONDS
    while any(alive(process) for process in tree) and time.monotonic() < deadline:
        time.sleep(0.02)
        if time.monotonic() > next_look:
            look()
            next_look = time.monotonic() + LOOK_SECONDS


def _need_sight(other_users: bool) -> None:
    if other_users and (reason := blindness()):
        raise errors.Unavailable("{reason}", reason=reason)


def _spread(rows: Mapping[int, _Row], owners: dict[int, int], protected: frozenset[int]) -> None:
    """Add descendants, and members of sessions that a run opened, until nothing more is found."""
    children: dict[int, list[int]] = {}
    sessions: dict[int, list[int]] = {}
    for pid, row in rows.items():
        children.setdefault(row.parent, []).append(pid)
        sessions.setdefault(row.session, []).append(pid)
    own_session = os.getsid(0)
    todo = list(owners)
    while todo:
        pid = todo.pop()
        found: Iterable[int] = children.get(pid, ())
        session, since = rows[pid].session, rows[pid].process.start
        if session != own_session:
            members = sessions[session]
            # The run opened it when its leader is in the tree, or when the leader ended and nobody in it is older.
            younger = (p in owners or rows[p].process.start >= since for p in members)
            if session in owners or (session not in rows and all(younger)):
                found = [*found, *members]
        for other in found:
            if other not in owners and other not in protected:
                owners[other] = owners[pid]
                todo.append(other)


def _oldest(tree: set[Process], rows: Mapping[int, _Row]) -> Process:
    """The process that began the tree; of two in the same clock tick, the one whose parent is outside."""
    inside = {process.pid for process in tree}
    return min(tree, key=lambda process: (process.start, rows[process.pid].parent in inside, process.pid))


def _protected() -> frozenset[int]:
    """The caller, its ancestors and the system's first processes: never part of a run, whatever they carry."""
    line = {0, 1, 2}
    pid = os.getpid()
    while pid not in line:
        line.add(pid)
        row = _row(pid)
        pid = row.parent if row else 0
    return frozenset(line)


def _pids() -> Iterator[int]:
    """Every process, the newest first, then those that began meanwhile: the young are the ones that move."""
    read: set[int] = set()
    for _ in range(LISTINGS):
        try:
            names = os.listdir("/proc")
        except OSError as error:
            raise _unreadable(error) from error
        fresh = {int(name) for name in names if name.isdecimal()} - read
        yield from sorted(fresh, reverse=True)
        read |= fresh


def _row(pid: int) -> _Row | None:
    """Read one process; None when it is gone, or a zombie that nothing lives of."""
    text = _slurp(f"/proc/{pid}/stat")
    if not text:
        return None
    # The name in parentheses may hold spaces and parentheses itself.
    fields = text[text.rindex(b")") + 2 :].split()
    dead = fields[0][0] in _DEAD_STATES
    if dead and not (int(fields[17]) > 1 and any(_living_threads(pid))):
        return None
    return _Row(Process(pid, int(fields[19])), int(fields[1]), int(fields[3]), dead)


def _living_threads(pid: int) -> Iterator[str]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except _GONE:
        return
    for thread in threads:
        text = _slurp(f"/proc/{pid}/task/{thread}/stat")
        if text and text[text.rindex(b")") + 2] not in _DEAD_STATES:
            yield thread


def _environ(row: _Row) -> bytes:
    """The env vars that the process was started with, each between two NULs; empty where they cannot be read."""
    pid = row.process.pid
    if not row.leader_dead:
        return b"\0" + _slurp(f"/proc/{pid}/environ") + b"\0"
    for thread in _living_threads(pid):
        if text := _slurp(f"/proc/{pid}/task/{thread}/environ"):
            return b"\0" + text + b"\0"
    return b""


def _slurp(path: str) -> bytes:
    """Read a small file of `/proc` in as few system calls as can be; empty when the process is gone or hidden.

    Raises: Unavailable when it could not be read for another reason, such as too many open files here: a process that
    this one cannot look at has not ended.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = part = os.read(descriptor, 65536)
            while len(part) == 65536:
                part = os.read(descriptor, 65536)
                text += part
            return text
        finally:
            os.close(descriptor)
    except _GONE:
        return b""
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> errors.Unavailable:
    return errors.Unavailable("The process table cannot be read: {reason}.", reason=error.strerror or repr(error))


def _capabilities() -> int:
    """The effective capabilities of this process, as bits."""
    match = re.search(rb"CapEff:\s*([0-9a-f]+)", _slurp("/proc/self/status"))
    return int(match[1], 16) if match else 0


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
