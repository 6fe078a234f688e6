"""The ticks: sync (users, groups, hosts), reconcile (what should run against what runs), meter (the ledger).

Facts are fetched first, then one transaction decides, then the process is acted on, then one transaction writes what
is now certain. Each tick holds a lease in the database, so that two copies do each thing once."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol, TypeVar

from sqlalchemy import Engine, update

from .clients import processes
from .clients.box import Box
from .db import begin
from .domain import (
    allocations,
    budgets,
    environments,
    idempotency,
    inventory,
    keys,
    metering,
    users,
    volumes,
    workspaces,
)
from .domain.allocations import Due, Snapshot
from .domain.audit import SYSTEM, record
from .domain.ports import insert_ignoring
from .errors import RemoteGPUError
from .observed import Host, HubUser, Part, Run, Server
from .orm import AllocationState, EndReason, TickLease
from .runtime import Runtime, utcnow

T = TypeVar("T")
log = logging.getLogger("remotegpu")

TICK_SECONDS = 60
LEASE_SECONDS = 120
"""Longer than any tick takes."""
RETRY_SECONDS = 2.0
SYNC_SECONDS = 20
BATCH = 50
"""Runs that are read at once."""
FEW = 5
"""Rows that a transaction of a tick makes or changes: on SQLite nobody else can write meanwhile, the hub included, so
it must be over within 20 ms."""
MOST_SLICES = 24
"""Rows that a transaction of metering writes, for the same reason."""
SETTLING = timedelta(seconds=5)
"""Facts of the hub and of the process table are this much apart at most."""
AT_ONCE = 16
"""Runs that are put right side by side: an end can take half a minute, and the next ones run on meanwhile."""
END_GRACE = timedelta(minutes=2)
"""How long the hub is left to end a run by itself: longer than any stop takes."""
ATTEMPTS_KEPT = timedelta(days=1)
REFUSED_KEPT = timedelta(minutes=10)
"""How far back refusals are looked at: a hub that is away for longer keeps the empty entries."""


class Site(Protocol):
    """Where runs live: this machine, or a cluster. What it cannot tell it raises as Unavailable, never leaves out."""

    @property
    def pool(self) -> str | None:
        """The one pool of its hosts; None where it lists every host of the hub, whatever pools there were."""

    @property
    def hosts_changed(self) -> asyncio.Event | None:
        """Set when what the hosts have may have changed, where the site tells such news."""

    @property
    def runs_changed(self) -> asyncio.Event | None:
        """Set when a run may have ended."""

    async def why_gone(self, allocation_id: int, *, host: str) -> tuple[str, str]:
        """Why nothing of a run is there any more: one of `orm.EndReason`, and a sentence or nothing."""

    async def hosts(self) -> list[Host]: ...

    async def runs(self) -> list[Run]:
        """Whatever wears this hub's mark, running or not."""

    async def stop(self, allocation_id: int) -> bool:
        """End a run. True only when nothing of it is left."""

    async def parts(self) -> list[Part]:
        """Whatever else wears this hub's mark."""

    async def remove_volumes(self, volume_ids: Collection[int]) -> None:
        """Remove volumes that were given up."""

    async def write_keys(self, keys: Mapping[int, str]) -> None:
        """Let the owners of runs log in with these `authorized_keys`, by allocation."""

    def output(
        self, allocation_id: int, *, tail: int, follow: bool, since: datetime | None = None
    ) -> AsyncIterator[str]:
        """The last lines that a run printed, then each one as it comes; none from before `since`, to the second.

        Raises: NotFound, Conflict while it has not begun, Invalid where times are not kept, Unavailable.
        """

    async def tidy(self, *, running: Collection[int]) -> None:
        """Forget what old runs printed."""

    async def close(self) -> None: ...


def box(runtime: Runtime) -> Box:
    """This machine, as the hub's settings describe it."""
    settings = runtime.settings
    return Box(
        hub_id=settings.hub_id,
        host_name=settings.host_name,
        reserve_cpu_millis=settings.reserve_cpu_millis,
        reserve_memory_bytes=settings.reserve_memory_bytes,
        shares=settings.gpu_shares,
        simulated_gpus=settings.simulated_gpus,
        other_users=settings.other_users,
        output_folder=settings.output_folder,
    )


def site_of(runtime: Runtime) -> Site:
    """Where this hub's runs live."""
    settings = runtime.settings
    if settings.local:
        return box(runtime)
    import kubernetes.aio  # tens of megabytes: only where there is a cluster
    from kubernetes.aio import client, config  # noqa: F401 - loaded, so that the module has them

    from .clients.cluster import Cluster

    return Cluster(
        kubernetes.aio,
        hub_id=settings.hub_id,
        namespace=settings.namespace,
        pools=runtime.pools,
        grace_seconds=settings.stop_grace_seconds,
    )


class Fault(StrEnum):
    """What the reconciler found wrong with a run."""

    GHOST = "ghost"
    """Admitted, nothing runs, nobody waits."""
    ORPHAN = "orphan"
    """Runs, but the hub does not know of it."""
    ENDED = "ended"
    """It was active and nothing of it runs any more."""
    UNFINISHED = "unfinished"
    """Its end began and was not finished."""
    LEAKED = "leaked"
    """Runs although its allocation ended, or something of it is left."""
    UNKNOWN = "unknown"
    """Carries our mark with what is no number that this database ever gave: told, not touched."""


@dataclass(frozen=True)
class Repair:
    """One thing to put right."""

    fault: Fault
    allocation_id: int | None
    """None: it is no run's."""
    attempt: str = ""
    reason: EndReason = EndReason.GHOST
    message: str = ""
    ended_at: datetime | None = None
    """When the run ended, where whatever ran it tells."""
    gone: Snapshot | None = None
    """The run of which nothing is there any more, so that only its site can tell why."""
    parts: tuple[str, ...] = ()
    """What there is beside its process or pod, where nothing should be."""

    def __str__(self) -> str:
        run = "" if self.allocation_id is None else f"run {self.allocation_id}"
        return ", ".join(filter(None, (run, *self.parts)))


def holder() -> str:
    """This process, told from any other one before or after it."""
    return f"{socket.gethostname()} {processes.mark_of(os.getpid())}"


def _is_dead(holder: str) -> bool:
    """A process of this machine that ended; of other machines nothing is known."""
    machine, _, mark = holder.rpartition(" ")
    return machine == socket.gethostname() and not processes.is_alive(mark)


def take_lease(engine: Engine, *, name: str, holder: str, seconds: float, not_since: datetime, now: datetime) -> bool:
    """Take the right to run a tick, unless another process has it or did it since `not_since`. Who dies with it loses
    it at once on the same machine, elsewhere when it expires."""
    with begin(engine) as session:
        session.execute(
            insert_ignoring(session, TickLease),
            {"name": name, "holder": "", "expires_at": now - timedelta(seconds=1), "last_done_at": None},
        )
        lease = session.get_one(TickLease, name, with_for_update=True)
        taken = lease.expires_at > now and lease.holder != holder and not _is_dead(lease.holder)
        if taken or (lease.last_done_at is not None and lease.last_done_at > not_since):
            return False
        lease.holder, lease.expires_at = holder, now + timedelta(seconds=seconds)
        return True


def end_lease(engine: Engine, *, name: str, holder: str, now: datetime) -> None:
    """Give the right back and note that the tick was done."""
    with begin(engine) as session:
        session.execute(
            update(TickLease)
            .where(TickLease.name == name, TickLease.holder == holder)
            .values(expires_at=now, last_done_at=now)
        )


def give_back(engine: Engine, *, holder: str, now: datetime) -> None:
    """Give back whatever right this process still has, as its last act: the next one may be on another machine, and
    would wait until they expire."""
    with begin(engine) as session:
        session.execute(
            update(TickLease).where(TickLease.holder == holder, TickLease.expires_at > now).values(expires_at=now)
        )


async def every(
    runtime: Runtime,
    name: str,
    seconds: float,
    tick: Callable[[], Awaitable[object]],
    news: asyncio.Event | None = None,
    lease_seconds: float = LEASE_SECONDS,
) -> None:
    """Run a tick now and then every so many seconds, never two at once over all processes, and not again where another
    copy just did it. Never ends by an error. `news` brings the next one forward, though not by everything. The
    lease lasts longer than the tick may take: for so long the others wait when its machine dies."""
    me = holder()
    first = True
    while True:
        now = utcnow()
        hurry = news is not None and news.is_set()
        not_since = now if first or hurry else now - timedelta(seconds=seconds / 2)
        if news is not None:
            news.clear()
        try:
            if await asyncio.to_thread(
                take_lease, runtime.engine, name=name, holder=me, seconds=lease_seconds, not_since=not_since, now=now
            ):
                await tick()
                await asyncio.to_thread(end_lease, runtime.engine, name=name, holder=me, now=utcnow())
                first = False
        except RemoteGPUError as error:
            cause = str(getattr(error.__cause__, "orig", None) or error.__cause__ or "").partition("\n")[0]
            log.warning("%s: %s%s", name, error, f" ({cause})" if cause else "")
        except Exception:
            log.exception("%s failed; it will be tried again", name)
        if news is None or first:
            await asyncio.sleep(RETRY_SECONDS if first else seconds)
        else:
            await asyncio.sleep(RETRY_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), max(seconds - RETRY_SECONDS, 0))


async def sync(runtime: Runtime, site: Site) -> None:
    """Follow the hub's users and groups, what the hosts have, and who may log in by SSH.

    Raises: Unavailable when the database cannot be asked; of a site that cannot, the hosts stay as they were.
    """
    try:
        hosts = await site.hosts()
    except RemoteGPUError as error:  # nor what it does not allow or does not have
        log.warning("the hosts stay as they were last seen: %s", error)
        await asyncio.to_thread(_sync_people, runtime)
        return
    await asyncio.to_thread(_sync_people, runtime)
    await asyncio.to_thread(_sync_hosts, runtime, site.pool, hosts)
    wanted = await asyncio.to_thread(_keys, runtime)
    if wanted:
        await site.write_keys(wanted)


def _keys(runtime: Runtime) -> dict[int, str]:
    with begin(runtime.engine, read_only=True) as session:
        return keys.of_runs(session)


def _sync_people(runtime: Runtime) -> None:
    settings, now = runtime.settings, utcnow()
    hub_users = _follow_users(runtime, now)
    with begin(runtime.engine, read_only=True) as session:
        lacking = workspaces.lacking_personal(session)
    for few in _few(lacking):
        with begin(runtime.engine) as session:
            for user in few:
                workspaces.ensure_personal(
                    session, user=user, now=now, quota=settings.personal_quota, budget=settings.personal_budget
                )
    with begin(runtime.engine) as session:
        workspaces.follow_groups(session, hub_users=hub_users, now=now)


def _sync_hosts(runtime: Runtime, pool: str | None, hosts: Sequence[Host]) -> None:
    """Write what changed since this process wrote it last, or is kept otherwise, a few hosts at a time, and which ones
    are gone; and the few that were not written for the longest, whose sums are made anew by it."""
    now = utcnow()
    known = runtime.hosts_written
    with begin(runtime.engine, read_only=True) as session:
        wrong = inventory.differing(session, online={host.name: host.online for host in hosts})
    there = {host.name: host for host in hosts}
    right = [name for name in known if name in there and known[name] == there[name] and name not in wrong]
    changed = [there[name] for name in sorted(there.keys() - set(right))]
    longest = [there[name] for name in right[:FEW]]
    for few in _few([*changed, *longest]):
        with begin(runtime.engine) as session:
            inventory.sync(session, hosts=few, now=now)
        for host in few:
            known.pop(host.name, None)
            known[host.name] = host
    with begin(runtime.engine) as session:
        inventory.seen(session, names=[host.name for host in hosts if host.online], now=now)
        inventory.miss(session, pool=pool, seen=list(there), now=now)
    for name in known.keys() - there.keys():
        del known[name]


def _follow_users(runtime: Runtime, now: datetime) -> list[HubUser]:
    """Bring our users to the hub's and return the hub's."""
    with begin(runtime.engine, read_only=True) as session:
        hub_users = users.hub_users(session)
        gone, changed = users.differences(session, hub_users=hub_users)
    for leaving in _few(gone):
        with begin(runtime.engine) as session:
            retired = users.sync(session, gone=leaving, changed=(), now=now)
            workspaces.retire_owned(session, users=retired, now=now)
    for coming in _few(changed):
        with begin(runtime.engine) as session:
            users.sync(session, gone=(), changed=coming, now=now)
    return hub_users


def _few(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """A few of them at a time."""
    return (rows[start : start + FEW] for start in range(0, len(rows), FEW))


def compare(
    open_runs: Collection[Snapshot],
    runs: Collection[Run],
    servers: Collection[Server],
    *,
    names: Mapping[int, tuple[str, str]],
    ended_ids: Collection[int],
    looked_at: datetime,
    hub_started: datetime,
    start_grace: timedelta,
    parts: Collection[Part] = (),
    volume_ids: Collection[int] = (),
) -> list[Repair]:
    """Decide what to put right, from one look at the database, at the processes and at the hub.

    A start counts as on its way while the hub says that its server is pending and it is younger than the grace, or
    while it is younger and this hub's process began it: one that an earlier hub began cannot be on its way any more.
    `names` are user and server of each open run from before the hub was asked: what was renamed or began meanwhile
    is left for the next look. Of two runs under one name the hub means the newer; a re-created user has the other.
    `ended_ids` and `volume_ids` are the numbers of runs and volumes that this database ever gave, as far as they were
    seen.
    """
    found = {run.allocation_id: run for run in runs}
    known = {(server.user_name, server.server_name): server for server in servers}
    newest = {(one.user_name, one.server_name): one.id for one in sorted(open_runs, key=lambda one: one.id)}
    repairs = []
    for one in open_runs:
        name = (one.user_name, one.server_name)
        server = known.get(name) if newest[name] == one.id else None
        run = found.get(one.id)
        lives = run is not None and not run.over
        pending = server is not None and server.pending and _at_it(one, lives, looked_at, start_grace)
        newer_than_facts = (one.started_at or one.admitted_at) > looked_at - SETTLING
        if pending or newer_than_facts or names.get(one.id) != name:
            continue
        if one.state == AllocationState.ENDING:
            repairs.append(_ended(Fault.UNFINISHED, one, run))
        elif one.state == AllocationState.ADMITTED:
            on_its_way = one.admitted_at > hub_started and one.admitted_at > looked_at - start_grace
            if not on_its_way and not (server is not None and server.ready and lives):
                repairs.append(Repair(Fault.GHOST, one.id, one.attempt, EndReason.GHOST))
        elif not lives:
            repairs.append(_ended(Fault.ENDED, one, run))
        elif server is None or not server.ready:
            repairs.append(Repair(Fault.ORPHAN, one.id, one.attempt, EndReason.ORPHAN))
    held = {one.id for one in open_runs}
    beside: dict[int, list[str]] = {}
    for part in parts:
        if part.allocation_id is not None:
            beside.setdefault(part.allocation_id, []).append(part.name)
        elif part.volume_id not in volume_ids:
            repairs.append(Repair(Fault.UNKNOWN, None, parts=(part.name,)))
    for allocation_id in sorted((found.keys() | beside.keys()) - held):
        fault = Fault.LEAKED if allocation_id in ended_ids else Fault.UNKNOWN
        repairs.append(Repair(fault, allocation_id, parts=tuple(beside.get(allocation_id, ()))))
    return repairs


def _ended(fault: Fault, one: Snapshot, run: Run | None) -> Repair:
    """An end with the reason that whatever ran it tells."""
    if run is None:
        return Repair(fault, one.id, one.attempt, EndReason.EXITED, gone=one if fault == Fault.ENDED else None)
    reason, message = run.reason or EndReason.EXITED, run.message if run.over else ""
    return Repair(fault, one.id, one.attempt, EndReason(reason), message, run.ended_at if run.over else None)


def _at_it(one: Snapshot, lives: bool, looked_at: datetime, start_grace: timedelta) -> bool:
    """Whether the hub can still be at work on a run whose server it calls pending. One that lost its own database in
    the middle of a stop says so until it is restarted, and would hold the GPUs as long."""
    if one.state == AllocationState.ADMITTED:
        return one.admitted_at > looked_at - start_grace
    if one.state == AllocationState.ENDING:
        return one.ending_at is not None and one.ending_at > looked_at - END_GRACE
    return lives or (one.seen_at is not None and one.seen_at > looked_at - END_GRACE)


async def reconcile(runtime: Runtime, servers: Callable[[], Awaitable[list[Server]]], site: Site) -> list[Repair]:
    """Compare and repair once. Without the hub's word and the site's nothing is decided.

    Raises: Unavailable when hub, site or database cannot be asked.
    """
    names = await asyncio.to_thread(_names, runtime)
    known = await servers()
    looked_at = utcnow()
    runs, parts = await site.runs(), await site.parts()
    repairs, given_up = await asyncio.to_thread(_compare, runtime, names, known, runs, parts, looked_at)
    at_work = asyncio.Semaphore(AT_ONCE)

    async def put_right(repair: Repair) -> None:
        async with at_work:
            await _repair(runtime, await _explained(repair, site), site)

    ended = await asyncio.gather(*map(put_right, repairs), return_exceptions=True)
    for error in ended:
        if error is not None:
            raise error
    await asyncio.to_thread(_forget, runtime, looked_at)
    if given_up:
        await site.remove_volumes(given_up)
    await site.tidy(running=[run.allocation_id for run in runs])
    return repairs


def _names(runtime: Runtime) -> dict[int, tuple[str, str]]:
    """User and server of each open run, as the hub calls them now."""
    _follow_users(runtime, utcnow())
    with begin(runtime.engine, read_only=True) as session:
        return {one.id: (one.user_name, one.server_name) for one in allocations.open_runs(session)}


def _compare(
    runtime: Runtime,
    names: Mapping[int, tuple[str, str]],
    servers: list[Server],
    runs: list[Run],
    parts: list[Part],
    looked_at: datetime,
) -> tuple[list[Repair], set[int]]:
    """What to put right, and the volumes that were given up and are still there."""
    settings = runtime.settings
    _follow_users(runtime, looked_at)
    alive = [run.allocation_id for run in runs if run.alive]
    with begin(runtime.engine) as session:
        allocations.seen(session, allocation_ids=alive, at=looked_at)
    with begin(runtime.engine, read_only=True) as session:
        unknown = allocations.without_learned_gpus(session)
    for few in _few([run for run in runs if run.gpu_uuids and run.allocation_id in unknown]):
        with begin(runtime.engine) as session:
            allocations.learn_gpus(session, uuids={run.allocation_id: run.gpu_uuids for run in few})
    with begin(runtime.engine, read_only=True) as session:
        open_runs = allocations.open_runs(session)
        marked = {run.allocation_id for run in runs} | {part.allocation_id for part in parts if part.allocation_id}
        ended_ids = allocations.known_ids(session, allocation_ids=marked)
        claimed = {part.volume_id for part in parts if part.volume_id is not None}
        gone = volumes.known(session, volume_ids=claimed)
    repairs = compare(
        open_runs,
        runs,
        servers,
        names=names,
        ended_ids=ended_ids,
        looked_at=looked_at,
        hub_started=settings.started,
        start_grace=timedelta(seconds=settings.start_grace_seconds),
        parts=parts,
        volume_ids=gone,
    )
    return repairs, {volume_id for volume_id, deleted in gone.items() if deleted}


async def _explained(repair: Repair, site: Site) -> Repair:
    if repair.gone is None or repair.allocation_id is None:
        return repair
    reason, message = await site.why_gone(repair.allocation_id, host=repair.gone.host)
    return replace(repair, reason=EndReason(reason), message=message)


async def _repair(runtime: Runtime, repair: Repair, site: Site) -> None:
    if repair.fault == Fault.UNKNOWN or repair.allocation_id is None:
        log.warning("%s is unknown to the database, and is left alone", repair)
        return
    log.warning("%s is %s: repairing", repair, repair.fault)
    if repair.attempt:
        await asyncio.to_thread(_mark_ending, runtime, repair)
    if not await site.stop(repair.allocation_id):
        log.error("run %s could not be stopped; it keeps what it holds", repair.allocation_id)
        return
    await asyncio.to_thread(_release, runtime, repair)


def _mark_ending(runtime: Runtime, repair: Repair) -> None:
    with begin(runtime.engine) as session:
        allocations.mark_ending(
            session, attempt=repair.attempt, reason=repair.reason, actor=SYSTEM, now=utcnow(), message=repair.message
        )


def _release(runtime: Runtime, repair: Repair) -> None:
    with begin(runtime.engine) as session:
        if repair.attempt:
            allocations.release(
                session, attempt=repair.attempt, reason=repair.reason, actor=SYSTEM, now=utcnow(),
                ended_at=repair.ended_at, message=repair.message,
            )  # fmt: skip
        record(session, actor=SYSTEM, action="allocation.repair", entity="allocation",
               entity_id=repair.allocation_id, now=utcnow(), fault=repair.fault.value)  # fmt: skip


def _forget(runtime: Runtime, looked_at: datetime) -> None:
    """Drop old attempts."""
    with begin(runtime.engine) as session:
        allocations.forget_attempts(session, before=looked_at - ATTEMPTS_KEPT)
        idempotency.forget(session, now=looked_at)


def follow_budgets(runtime: Runtime) -> None:
    """Announce the end of what costs something where a budget that stops is spent, and take it back where it is not any
    more, a few runs at a time.

    Raises: Unavailable when the database cannot be asked.
    """
    now = utcnow()
    with begin(runtime.engine, read_only=True) as session:
        plan = budgets.plan(session, now=now)
    for verb, wanted in ((budgets.spare, plan.spare), (budgets.announce, plan.announce)):
        for workspace_id, runs in wanted.items():
            for few in _few(runs):
                with begin(runtime.engine) as session:
                    verb(session, workspace_id=workspace_id, allocation_ids=few, now=now)


async def stop_due(runtime: Runtime, stop: Callable[[str, str], Awaitable[object]]) -> int:
    """Stop what has reached its deadline, several side by side: the reason is kept first, then the hub is asked. Where
    the hub does not do it, the reconciler finds an end that was not finished. Returns how many.

    The hub knows servers by name alone: a run that has ended by itself meanwhile may have a successor that nobody wants
    to stop, so each is looked at just before.

    Raises: Unavailable when the database cannot be asked.
    """
    late = await asyncio.to_thread(_begin_to_end, runtime)
    at_work = asyncio.Semaphore(AT_ONCE)

    async def end(one: Due) -> None:
        async with at_work:
            if not await asyncio.to_thread(_holds, runtime, one):
                return
            try:
                await stop(one.user_name, one.server_name)
            except RemoteGPUError as error:
                log.warning(
                    "%s of %s was not stopped by the hub: %s", one.server_name or "server", one.user_name, error
                )

    for error in await asyncio.gather(*map(end, late), return_exceptions=True):
        if error is not None:
            raise error
    return len(late)


def _holds(runtime: Runtime, one: Due) -> bool:
    with begin(runtime.engine, read_only=True) as session:
        run = allocations.by_attempt(session, attempt=one.attempt)
        return run is not None and run.state != AllocationState.ENDED


def _begin_to_end(runtime: Runtime) -> list[Due]:
    with begin(runtime.engine, read_only=True) as session:
        late = allocations.due(session, now=utcnow())
    for few in _few(late):
        with begin(runtime.engine) as session:
            for one in few:
                allocations.mark_ending(
                    session, attempt=one.attempt, reason=one.reason, actor=SYSTEM, now=utcnow(), message=one.message
                )
    return late


async def forget_refused(runtime: Runtime, forget: Callable[[str, str], Awaitable[object]]) -> None:
    """Remove from the hub what was refused as a new environment in the last minutes.

    Raises: Unavailable when hub or database cannot be asked.
    """

    def refused() -> set[tuple[str, str]]:
        with begin(runtime.engine, read_only=True) as session:
            return environments.refused_new(session, since=utcnow() - REFUSED_KEPT)

    for user_name, server_name in await asyncio.to_thread(refused):
        await forget(user_name, server_name)


def meter(runtime: Runtime) -> int:
    """Write what is over to the ledger, in short transactions. Returns the rows written."""
    after, written = 0, 0
    while True:
        with begin(runtime.engine, read_only=True) as session:
            runs = metering.unmetered(session, after=after, limit=BATCH)
        if not runs:
            return written
        while runs:
            with begin(runtime.engine) as session:
                done = metering.meter(session, allocation_ids=runs, now=utcnow(), most=MOST_SLICES)
            written += done.written
            after, runs = runs[-1], done.left
