"""What `remotegpu doctor` looks at outside the database's tables: versions, the configuration, files, control groups,
the processes of open runs, and what has the hub's mark on the cluster. Nothing is changed."""

import asyncio
import os
import shutil
import subprocess
import sys
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from traitlets import TraitError

from .. import workers
from ..clients import cgroups, processes
from ..db import begin
from ..domain import allocations
from ..errors import RemoteGPUError
from ..hub import wiring
from ..orm import PREFIX, AllocationState, TickLease
from ..runtime import Runtime
from . import database
from .database import Place
from .findings import Findings, ok, problem, some, warn

OLDEST_NODE = 20
OLDEST_POSTGRESQL = 15
SEEN_AGO = timedelta(minutes=3)
"""The reconciler comes each minute: what is older than this was not repaired."""
REMOTE_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "glusterfs", "gpfs", "beegfs", "afs", "ocfs2"}
)


def check_versions() -> Findings:
    """Whether Python, JupyterHub and Node are of versions that were tried."""
    yield ok("python", sys.version.split()[0])
    try:
        found = version("jupyterhub")
    except PackageNotFoundError:
        yield problem("jupyterhub", "not installed for this Python.")
    else:
        tried = (6, 1) <= tuple(int(part) for part in found.split(".")[:2]) < (7, 0)
        yield ok("jupyterhub", found) if tried else problem("jupyterhub", f"{found}: 6.1 or newer, below 7, is needed.")
    node = _node()
    if node is None:
        yield warn("node", "not found: JupyterHub's proxy (configurable-http-proxy) needs it, if it runs here.")
    elif int(node.lstrip("v").split(".")[0]) < OLDEST_NODE:
        yield warn("node", f"{node}: {OLDEST_NODE} or newer is needed for JupyterHub's proxy.")
    else:
        yield ok("node", node.lstrip("v"))


def _node() -> str | None:
    path = shutil.which("node")
    if path is None:
        return None
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = said.strip()
    return said if said.lstrip("v").split(".")[0].isdecimal() else None


def check_configuration(place: Place) -> Findings:
    """Whether `configure(c)` stands in the hub's configuration, and nothing after it took its work away."""
    config = place.config
    if config is None:
        yield warn("configuration", "none was found: name the hub's with --config to have it checked.")
        return
    if not config.RemoteGPUMixin.get("runtime_file"):
        yield problem("configuration", f"{place.config_path} does not call configure(c): it belongs on the last line.")
        return
    from jupyterhub.app import JupyterHub

    try:
        hub = JupyterHub(config=config)  # made, not started: it reads the values as the hub would
        told = [problem("configuration", sentence) for sentence in wiring.overwritten(hub)]
    except TraitError as error:
        told = [problem("configuration", str(error))]
    yield from told
    if not told:
        yield ok("configuration", f"{place.config_path} ends with configure(c).")
    if config.RemoteGPU.get("insecure_demo"):
        yield warn("configuration", "insecure_demo is on: everybody runs as the hub's own user, without isolation.")


def check_running(place: Place, engine: Engine | None) -> Findings:
    """Whether the hub ran with this configuration, and its services tick."""
    path = Path(database.runtime_file(place.config))
    if place.running is None:
        why = "cannot be read by this user" if path.exists() else "is not there: the hub has not started here yet"
        yield warn("hub", f"{path} {why}.")
        return
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        yield problem("hub", f"{path} holds the database's URL and others can read it: `chmod 600` it.")
    if place.running.db_url != place.url:
        other = database.shown(place.running.db_url)
        yield problem("hub", f"it was started with the database {other}, not {place.shown}, named by {place.source}.")
    elif engine is not None:
        with begin(engine, read_only=True) as session:
            ticks = hub_ticks(session)
        if ticks:
            yield ok("hub", "its services run and tick.")
        else:
            yield warn("hub", "it does not run now: nothing is reconciled or metered.")


def hub_ticks(session: Session) -> bool:
    """Whether a process of this machine other than this one, so a service of the hub, took a lease and lives."""
    me = workers.holder()
    holders = [lease.holder for lease in session.query(TickLease) if lease.holder != me]
    return any(processes.is_alive(holder.rpartition(" ")[2]) for holder in holders)


def check_database(place: Place, engine: Engine) -> Findings:
    """Whether the database is of a kind, on a disk and in a mode that hold."""
    with engine.connect().execution_options(read_only=True) as connection:
        if engine.dialect.name == "postgresql":
            number = int(connection.scalar(text("SHOW server_version_num")) or 0) // 10000
            if number < OLDEST_POSTGRESQL:
                yield problem("database", f"PostgreSQL {number} is too old: {OLDEST_POSTGRESQL} or newer is needed.")
            else:
                yield ok("database", f"PostgreSQL {number} at {place.shown}; its tables are current.")
            return
        mode = str(connection.scalar(text("PRAGMA journal_mode")))
    path = place.sqlite_file
    yield ok("database", f"SQLite in {path}; its tables are current.")
    if mode.lower() == "wal":
        yield ok("wal", "on.")
    else:
        yield problem("wal", f"off (the mode is {mode}): stop the hub and start it again, it sets WAL first.")
    if path is None:
        return
    kind = filesystem(path)
    if kind in REMOTE_FILESYSTEMS or kind.startswith("fuse."):
        yield problem("disk", f"{path} is on {kind}: SQLite loses data there. Move it to a local disk.")
    else:
        yield ok("disk", f"local ({kind}).")
    if path.stat().st_mode & 0o007:
        yield warn("database", f"every user of this machine can read {path}: `chmod 600` it.")


def filesystem(path: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """The kind of file system on which a path lies: that of the longest mount point above it, the last of equals."""
    best, kind = "", "unknown"
    real = str(path.resolve())
    for line in Path(mounts).read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = left.split(" ")[4].encode().decode("unicode_escape")
        if (real + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
            best, kind = point, right.split(" ")[0]
    return kind


def check_control_groups() -> Findings:
    """Whether this machine can hold runs to their cores and memory. Rights are looked at; nothing is made."""
    bounded: set[str] = set()
    for tree in cgroups.hierarchies():
        if os.access(tree.directory, os.W_OK):
            bounded |= tree.controllers & {"cpu", "memory"}
    if bounded == {"cpu", "memory"}:
        yield ok("limits", "cores and memory of runs can be enforced by control groups, for who runs this.")
        return
    counted = " and ".join(sorted({"cpu": "cores", "memory": "memory"}[one] for one in {"cpu", "memory"} - bounded))
    yield warn("limits", f"{counted} of runs: counted, not enforced. Control groups cannot be written here.")


def check_runs(place: Place, engine: Engine, now: datetime) -> Findings:
    """Whether every open run of this machine really runs, and nothing runs that is not held."""
    settings = place.settings
    if settings is None or not settings.local:
        return
    with begin(engine, read_only=True) as session:
        open_runs = allocations.open_runs(session)
    try:
        alive = {run.allocation_id for run in processes.runs(settings.hub_id, other_users=settings.other_users)}
    except RemoteGPUError as error:
        yield warn("runs", str(error))
        return
    gone, stuck = [], []
    for one in open_runs:
        name = f"{one.id} of {one.user_name}"
        since = max(moment for moment in (one.admitted_at, one.started_at, one.ending_at) if moment is not None)
        if since > now - SEEN_AGO:
            continue
        if one.state == AllocationState.ENDING:
            stuck.append(name)
        elif one.id not in alive:
            gone.append(name)
    leaked = sorted(alive - {one.id for one in open_runs})
    advice = "`remotegpu reconcile` repairs it."
    if gone:
        yield problem("runs", f"held, but nothing of them runs: {some(gone)}. {advice}")
    if stuck:
        yield problem("runs", f"stopping for longer than 3 minutes, and hold all they held: {some(stuck)}. {advice}")
    if leaked:
        yield problem("runs", f"run, but are not held: {some([str(one) for one in leaked])}. {advice}")
    if not (gone or stuck or leaked):
        yield ok("runs", f"{len(open_runs)} held, and as the processes are.")


_LAST_GIVEN = {
    "postgresql": "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence(:name, 'id')::regclass), 0)",
    "sqlite": "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = :name",
}
"""The last number that the database gave to a row of a table."""


def check_numbers(place: Place, engine: Engine) -> Findings:
    """Whether something on the cluster has a number that the database has still to give: the next run or volume of that
    number would meet it."""
    settings = place.settings
    if settings is None or settings.local:
        return
    try:
        worn = asyncio.run(_numbers_worn(Runtime(settings)))
    except RemoteGPUError as error:
        yield warn("numbers", str(error))
        return
    with engine.connect().execution_options(read_only=True) as connection:
        given = {
            name: int(connection.scalar(text(_LAST_GIVEN[engine.dialect.name]), {"name": PREFIX + name}) or 0)
            for name in worn
        }
    early = [f"{name} {number}" for name in worn for number in sorted(worn[name]) if number > given[name]]
    if early:
        highest = ", ".join(f"{name} {max(worn[name] | {given[name]})}" for name in worn)
        told = f"the cluster has what the database has still to give, as after a backup was restored: {some(early)}."
        advice = f"The highest are {highest}: see *Restore a backup* in the admin guide."
        yield problem("numbers", f"{told} {advice}")
    else:
        yield ok("numbers", "the database gave all those that the cluster has.")


async def _numbers_worn(runtime: Runtime) -> dict[str, set[int]]:
    """Those of runs and of volumes that whatever has this hub's mark wears, by the name of their table."""
    site = workers.site_of(runtime)
    try:
        runs, parts = await site.runs(), await site.parts()
    finally:
        await site.close()
    of_runs = {run.allocation_id for run in runs} | {part.allocation_id for part in parts if part.allocation_id}
    return {"allocations": of_runs, "volumes": {part.volume_id for part in parts if part.volume_id}}
