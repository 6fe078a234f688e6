"""The ticks on a real database with real processes: what is wrong is put right, what is right is left alone."""

import asyncio
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub import orm as hub_orm
from sqlalchemy import select
from sqlalchemy.orm import Session

from remotegpu_hub import clients, workers
from remotegpu_hub.clients import processes
from remotegpu_hub.db import begin
from remotegpu_hub.domain import inventory
from remotegpu_hub.errors import Denied, NotFound, Unavailable
from remotegpu_hub.observed import Server
from remotegpu_hub.orm import (
    Allocation,
    AllocationState,
    AuditEntry,
    Budget,
    Deadline,
    EndReason,
    Gpu,
    Host,
    HostStatus,
    Member,
    Quota,
    QuotaScope,
    Role,
    TickLease,
    User,
    Workspace,
)
from remotegpu_hub.runtime import Runtime, Settings
from remotegpu_hub.workers import Fault, every, reconcile, sync
from tests.worlds import A100, ADMIN, World, host

POLITE = "import time; time.sleep(1000)"
DEAF = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; open({0!r}, 'w'); time.sleep(1000)"
PEOPLE = ("alice", "bob", "carol", "dave", "erin", "frank")


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class Box:
    """A machine with a database of the hub and us, where runs are real processes."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.runtime = Runtime(
            Settings(
                db_url=url, hub_id=f"test{uuid.uuid4().hex[:8]}", host_name="box",
                hub_started_at=(now() - timedelta(minutes=10)).isoformat(),
                simulated_gpus=[{"model": A100, "memory_mib": 81920, "count": 2}],
                personal_quota={"cpu_millis": 1000, "memory_bytes": 2**30, "environments": 1}, personal_budget=5_000_000,
                **settings,
            )
        )  # fmt: skip
        self.started: list[subprocess.Popen[bytes]] = []
        hub_orm.Base.metadata.create_all(self.runtime.engine)

    def hub(self, *, add: tuple[str, ...] = (), remove: tuple[str, ...] = (), group: str = "") -> None:
        """Change the hub's own tables as the hub does."""
        with Session(self.runtime.engine) as session, session.begin():
            for name in remove:
                session.delete(session.query(hub_orm.User).filter_by(name=name).one())
            session.flush()
            users = [hub_orm.User(name=name) for name in add]
            session.add_all(users)
            if group:
                session.add(hub_orm.Group(name=group, users=users))

    def furnish(self) -> World:
        """Everybody in one workspace, an hour ago, on a host with GPUs."""
        self.hub(add=PEOPLE)
        self.sync()
        world = World(self.runtime.engine, now() - timedelta(hours=1))
        world.workspace("lab", owner="alice", members=dict.fromkeys(PEOPLE[1:], Role.MEMBER))
        world.quota(QuotaScope.USER_DEFAULT)
        world.quota(QuotaScope.WORKSPACE_DEFAULT)
        for resource in (f"gpu:{A100}", "cpu", "memory"):
            world.price(resource, 12)
        world.image()
        world.see(host("host-1"), pool="elsewhere")
        return world

    def process(self, allocation_id: int, program: str = POLITE) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", program],
            env={"PATH": os.environ["PATH"], **processes.environment(self.runtime.settings.hub_id, allocation_id)},
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        self.started.append(process)
        return process

    def wait_for(self, *allocation_ids: int) -> None:
        """Until exactly these runs can be seen."""
        for _ in range(500):
            seen = {run.allocation_id for run in processes.runs(self.runtime.settings.hub_id)}
            if seen == set(allocation_ids):
                return
            asyncio.run(asyncio.sleep(0.02))
        raise AssertionError(f"{seen} run, not {allocation_ids}")

    def sync(self) -> None:
        asyncio.run(sync(self.runtime, workers.box(self.runtime)))

    def reconcile(self, *servers: Server) -> dict[int, Fault]:
        async def answer() -> list[Server]:
            return list(servers)

        return {
            one.allocation_id: one.fault
            for one in asyncio.run(reconcile(self.runtime, answer, workers.box(self.runtime)))
        }

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        self.runtime.engine.dispose()


@pytest.fixture
def box(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    monkeypatch.setattr(clients.box, "STOP_GRACE_SECONDS", 0.3)
    made = Box(database_url)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a command of the same process silenced before."""
    caplog.set_level(logging.INFO, logger="remotegpu")


def ready(name: str) -> Server:
    return Server(name, "", ready=True, pending=False)


@pytest.mark.parametrize(
    "error", [Unavailable("away"), Denied("no rights"), NotFound("That")], ids=lambda one: one.code
)
def test_users_are_followed_whatever_the_site_cannot_tell(box: Box, error: Exception) -> None:
    box.hub(add=("zoe",))
    site = workers.box(box.runtime)

    async def no_hosts() -> list[Any]:
        raise error

    object.__setattr__(site, "hosts", no_hosts)
    asyncio.run(sync(box.runtime, site))
    with Session(box.runtime.engine) as session:
        assert session.scalar(select(User.name)) == "zoe"
        assert session.scalar(select(Host)) is None, "no host was taken from nowhere"


def test_one_look_puts_every_kind_of_wrong_right(box: Box, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    world = box.furnish()
    well, orphan, dead = (world.run(name, gpus=1) for name in ("alice", "bob", "carol"))
    ghost = world.admit("dave", gpus=1)
    unfinished, leaked = world.run("erin", gpus=1), world.run("frank", gpus=1)
    world.mark_ending(unfinished.attempt, EndReason.USER)
    world.end(leaked.attempt)
    unknown = 999_999
    for one in (well.id, orphan.id, leaked.id, unknown):
        box.process(one)
    deaf = tmp_path / "deaf"
    box.process(unfinished.id, DEAF.format(str(deaf)))
    box.wait_for(well.id, orphan.id, leaked.id, unknown, unfinished.id)
    while not deaf.exists():
        asyncio.run(asyncio.sleep(0.01))

    assert box.reconcile(ready("alice"), ready("carol")) == {
        orphan.id: Fault.ORPHAN, dead.id: Fault.ENDED, ghost.id: Fault.GHOST, unfinished.id: Fault.UNFINISHED,
        leaked.id: Fault.LEAKED, unknown: Fault.UNKNOWN,
    }  # fmt: skip

    box.wait_for(well.id, unknown)
    assert [run.id for run in world.open_runs()] == [well.id]
    reasons = {run.id: world.allocation(run.attempt).end_reason for run in (orphan, dead, ghost, unfinished, leaked)}
    assert reasons == {
        orphan.id: EndReason.ORPHAN, dead.id: EndReason.EXITED, ghost.id: EndReason.GHOST,
        unfinished.id: EndReason.USER, leaked.id: EndReason.USER,
    }  # fmt: skip
    told = {entry.entity_id: entry.detail["fault"] for entry in world.audit("allocation.repair")}
    assert {int(key): value for key, value in told.items()} == {
        orphan.id: "orphan", dead.id: "ended", ghost.id: "ghost", unfinished.id: "unfinished", leaked.id: "leaked"
    }  # fmt: skip
    assert f"run {unknown} is unknown" in caplog.text
    world.check()
    assert box.reconcile(ready("alice")) == {unknown: Fault.UNKNOWN}, "a second look finds nothing new"


def test_a_run_that_is_seen_alive_is_charged_up_to_then(box: Box) -> None:
    world = box.furnish()
    run = world.run("alice", gpus=1)
    box.process(run.id)
    box.wait_for(run.id)
    before = now()
    assert workers.meter(box.runtime) == 0, "nobody has seen it since it began"
    assert box.reconcile(ready("alice")) == {}
    assert world.allocation(run.attempt).seen_at >= before
    assert workers.meter(box.runtime) > 0
    ends = [record.end for record in world.records()]
    assert run.started_at < max(ends) <= world.allocation(run.attempt).seen_at


def test_what_cannot_be_stopped_keeps_what_it_holds(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    world = box.furnish()
    run = world.run("alice", gpus=1)
    box.process(run.id)
    box.wait_for(run.id)
    monkeypatch.setattr(workers.processes, "stop_tree", lambda *_given, **_named: False)
    assert box.reconcile() == {run.id: Fault.ORPHAN}
    (held,) = world.open_runs()
    assert (held.id, held.state) == (run.id, AllocationState.ENDING)
    assert world.audit("allocation.repair") == []
    world.check()
    monkeypatch.undo()
    assert box.reconcile() == {run.id: Fault.UNFINISHED}
    assert world.open_runs() == []
    assert world.allocation(run.attempt).end_reason == EndReason.ORPHAN, "the first reason stays"


def test_an_end_that_takes_long_holds_up_no_other(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    world = box.furnish()
    first, second, third = (world.run(name, gpus=1) for name in ("alice", "bob", "carol"))
    asked: list[int] = []
    all_asked = asyncio.Event()

    async def stop(_site: object, allocation_id: int) -> bool:
        asked.append(allocation_id)
        if len(asked) == 3:
            all_asked.set()
        if allocation_id == second.id:
            raise Unavailable("The second one cannot be asked for.")
        async with asyncio.timeout(20):
            await all_asked.wait()
        return True

    monkeypatch.setattr(clients.box.Box, "stop", stop)
    with pytest.raises(Unavailable, match="second one"):
        box.reconcile()
    assert sorted(asked) == [first.id, second.id, third.id]
    assert [one.id for one in world.open_runs()] == [second.id]
    world.check()


def due_now(world: World, *names: str) -> list[Allocation]:
    """A run of each of these users, whose time is over."""
    runs = [world.run(name, gpus=1) for name in names]
    with begin(world.engine) as session:
        session.add_all(
            Deadline(allocation_id=run.id, reason=EndReason.BUDGET, at=now() - timedelta(seconds=60 - number),
                     message="It is over.")
            for number, run in enumerate(runs)
        )  # fmt: skip
    return runs


def test_what_is_due_is_stopped_side_by_side(box: Box) -> None:
    world = box.furnish()
    runs = due_now(world, "alice", "bob", "carol")
    asked: list[str] = []
    all_asked = asyncio.Event()

    async def stop(user: str, _server: str) -> None:
        asked.append(user)
        if len(asked) == 3:
            all_asked.set()
        if user == "bob":
            raise Unavailable("The hub does not answer.")
        async with asyncio.timeout(20):
            await all_asked.wait()

    assert asyncio.run(workers.stop_due(box.runtime, stop)) == 3
    assert sorted(asked) == ["alice", "bob", "carol"]
    assert [world.allocation(run.attempt).end_reason for run in runs] == [EndReason.BUDGET] * 3


def test_the_next_run_of_a_server_whose_last_one_was_due_goes_on(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended by itself and was started anew while others were stopped."""
    monkeypatch.setattr(workers, "AT_ONCE", 1)
    world = box.furnish()
    _first, over = due_now(world, "alice", "bob")
    asked: list[str] = []

    async def stop(user: str, _server: str) -> None:
        asked.append(user)
        world.end(over.attempt)
        world.run("bob", gpus=1)

    asyncio.run(workers.stop_due(box.runtime, stop))
    assert asked == ["alice"]
    assert [one.state for one in world.open_runs()] == [AllocationState.ENDING, AllocationState.ACTIVE]


def test_without_the_hubs_word_nothing_is_decided(box: Box) -> None:
    world = box.furnish()
    run = world.run("alice", gpus=1)

    async def silent() -> list[Server]:
        raise Unavailable("The hub does not answer.")

    with pytest.raises(Unavailable):
        asyncio.run(reconcile(box.runtime, silent, workers.box(box.runtime)))
    assert [one.state for one in world.open_runs()] == [AllocationState.ACTIVE]
    assert world.allocation(run.attempt).seen_at == run.seen_at


def test_the_run_of_a_deleted_user_is_ended_though_the_name_was_given_again(box: Box) -> None:
    world = box.furnish()
    run = world.run("bob", gpus=1)
    box.process(run.id)
    box.wait_for(run.id)
    box.hub(remove=("bob",))
    box.hub(add=("bob",))
    box.sync()
    new = world.run("bob", "~bob")
    box.process(new.id)
    box.wait_for(run.id, new.id)
    assert box.reconcile(ready("bob")) == {run.id: Fault.ORPHAN}, "the server is the new one's"
    assert [one.id for one in world.open_runs()] == [new.id]
    box.wait_for(new.id)
    world.check()


def test_the_first_sync_makes_users_their_own_workspaces_and_the_host(box: Box) -> None:
    box.hub(add=("alice", "bob"))
    box.sync()
    world = World(box.runtime.engine, now())
    assert sorted(world.read(select(User.name))) == ["alice", "bob"]
    assert sorted(world.read(select(Workspace.name))) == ["~alice", "~bob"]
    assert world.read(select(Quota.cpu_millis).where(Quota.workspace_id.is_not(None))) == [1000, 1000]
    assert world.read(select(Budget.amount)) == [5_000_000, 5_000_000]
    assert world.read(select(Host.name, Host.simulated)) == [("box", True)]
    assert len(world.read(select(Gpu.id))) == 2
    facts = [select(Member.workspace_id, Member.user_id), select(Gpu.id), select(AuditEntry.id)]
    before = world.counters(), [world.read(fact) for fact in facts]
    box.sync()
    assert (world.counters(), [world.read(fact) for fact in facts]) == before, "nothing twice"


def test_a_host_that_is_kept_as_what_it_is_not_is_put_right_though_it_did_not_change(box: Box) -> None:
    """By an admin, or by another process that wrote later what it had seen before; not only in its turn."""
    site, world = workers.box(box.runtime), World(box.runtime.engine, now())
    many = [host(f"host-{number:02}", 0) for number in range(30)]
    many[25] = replace(many[25], online=False)

    async def hosts() -> list[Any]:
        return many

    object.__setattr__(site, "hosts", hosts)
    asyncio.run(sync(box.runtime, site))
    with begin(box.runtime.engine) as session:
        inventory.set_host_status(session, name="host-25", status=HostStatus.ONLINE, actor=ADMIN, now=now())
        inventory.set_host_status(session, name="host-07", status=HostStatus.MAINTENANCE, actor=ADMIN, now=now())
    world.see(replace(many[20], online=False))
    asyncio.run(sync(box.runtime, site))
    kept = dict(world.read(select(Host.name, Host.status).where(Host.status != HostStatus.ONLINE)))
    assert kept == {"host-25": HostStatus.OFFLINE, "host-07": HostStatus.MAINTENANCE}


def test_sync_follows_who_comes_and_goes(box: Box) -> None:
    box.hub(add=("alice", "bob"))
    box.sync()
    box.hub(remove=("bob",), add=("carol",))
    box.sync()
    world = World(box.runtime.engine, now())
    assert sorted(world.read(select(User.name).where(User.deleted_at.is_(None)))) == ["alice", "carol"]
    box.hub(remove=("carol",))
    box.hub(add=("carol",))
    box.sync()
    carols = world.read(select(User.id, User.deleted_at).where(User.name == "carol"))
    assert sorted(deleted is None for _id, deleted in carols) == [False, True], "a new one, who inherits nothing"


def test_sync_fills_a_workspace_that_is_linked_to_a_group(box: Box) -> None:
    box.hub(add=("alice",))
    box.sync()
    world = World(box.runtime.engine, now())
    world.workspace("lab", owner="alice", hub_group="physicists")
    box.hub(add=("bob", "carol"), group="physicists")
    box.sync()
    rows = (
        select(User.name).join(Member, Member.user_id == User.id).join(Workspace, Workspace.id == Member.workspace_id)
    )
    assert sorted(world.read(rows.where(Workspace.name == "lab"))) == ["alice", "bob", "carol"]


# every


async def ticking(runtime: Any, name: str, tick: Any, until: Any, *, copies: int = 1, seconds: float = 0.02) -> None:
    tasks = [asyncio.create_task(every(runtime, name, seconds, tick)) for _ in range(copies)]
    try:
        async with asyncio.timeout(30):
            while not until():
                assert not any(task.done() for task in tasks), "a tick ended its loop"
                await asyncio.sleep(0.01)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_errors_in_between_never_end_the_ticks(
    box: Box, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "RETRY_SECONDS", 0.01)
    script: list[Exception | None] = [
        Unavailable("The hub does not answer."), None, ValueError("a bug"), None, OSError("disk"), None, None,
    ]  # fmt: skip
    left = list(script)

    async def tick() -> None:
        error = left.pop(0) if left else None
        if error:
            raise error

    await ticking(box.runtime, "test", tick, lambda: not left)
    told = [
        (one.levelno, type(one.exc_info[1]) if one.exc_info else None)
        for one in caplog.records
        if one.name == "remotegpu"
    ]
    assert told == [(logging.WARNING, None), (logging.ERROR, ValueError), (logging.ERROR, OSError)]
    assert "The hub does not answer." in caplog.text


async def test_a_database_that_is_away_is_waited_for(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "RETRY_SECONDS", 0.01)
    away = Runtime(Settings(db_url="sqlite:////proc/none/here.sqlite"))
    asked = []

    class Flaky:
        @property
        def engine(self) -> Any:
            asked.append(1)
            return away.engine if len(asked) < 4 else box.runtime.engine

    done = []

    async def tick() -> None:
        done.append(1)

    await ticking(Flaky(), "test", tick, lambda: done)
    assert len(asked) >= 4


async def test_two_copies_never_tick_at_once(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "RETRY_SECONDS", 0.02)
    names = iter(["elsewhere 1:1:a", "elsewhere 2:1:a"])
    monkeypatch.setattr(workers, "holder", lambda: next(names))
    inside, most, done = 0, 0, 0

    async def tick() -> None:
        nonlocal inside, most, done
        inside, most = inside + 1, max(most, inside + 1)
        await asyncio.sleep(0.03)
        inside, done = inside - 1, done + 1

    await ticking(box.runtime, "test", tick, lambda: done >= 6, copies=2)
    assert most == 1


async def test_a_done_tick_is_noted_and_its_lease_is_free(box: Box) -> None:
    done = []

    async def tick() -> None:
        done.append(1)

    def noted() -> bool:
        rows = World(box.runtime.engine, now()).read(select(TickLease.last_done_at).where(TickLease.name == "test"))
        return bool(done and rows and rows[0])

    await ticking(box.runtime, "test", tick, noted, seconds=60)
    assert done == [1], "once in its period"
    later = datetime.now(UTC) + timedelta(seconds=1)
    assert workers.take_lease(
        box.runtime.engine, name="test", holder="elsewhere 9:9:a", seconds=60, not_since=later, now=later
    )


def test_metering_loses_nobody_between_batches(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that go on are read again in each pass, and never twice in one."""
    world = box.furnish()
    runs = [world.run(name, gpus=1) for name in PEOPLE]
    world.pass_time(minutes=50)
    for run in runs[::2]:
        world.end(run.attempt)
    monkeypatch.setattr(workers, "BATCH", 1)
    asked = []
    real = workers.metering.meter
    monkeypatch.setattr(
        workers, "metering",
        SimpleNamespace(
            unmetered=workers.metering.unmetered,
            meter=lambda session, **given: asked.append(given["allocation_ids"]) or real(session, **given),
        ),
    )  # fmt: skip
    workers.meter(box.runtime)
    assert asked == [[run.id] for run in runs]
    asked.clear()
    assert workers.meter(box.runtime) == 0
    assert asked == [[run.id] for run in runs[1::2]], "what is over for good is not looked at again"
    world.check()
