"""Taking a host out of work: what runs there ends after a grace period, and nothing new comes."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select

from remotegpu_hub import db
from remotegpu_hub.domain import allocations, inventory
from remotegpu_hub.domain.inventory import DRAINED, Drained
from remotegpu_hub.errors import NoCapacity, NotFound
from remotegpu_hub.orm import Allocation, Deadline, EndReason, Event, Host, HostStatus, Role

from ..worlds import ADMIN, World, at_once, host


@pytest.fixture
def world(world: World) -> World:
    """Two hosts, of which only `host-1` gives anything."""
    world.see(host("host-2", 0, cpu_millis=0))
    return world


def drain(world: World, name: str = "host-1", **grace: float) -> Drained:
    with db.begin(world.engine) as session:
        return inventory.drain(session, name=name, grace=timedelta(**grace), actor=ADMIN, now=world.now)


def put_back(world: World, name: str = "host-1") -> Host:
    with db.begin(world.engine) as session:
        return inventory.set_host_status(session, name=name, status=HostStatus.ONLINE, actor=ADMIN, now=world.now)


def deadlines(world: World) -> dict[tuple[int, EndReason], Any]:
    return {(one.allocation_id, one.reason): (one.at, one.message) for one in world.read(select(Deadline))}


def due(world: World) -> list[tuple[str, EndReason, str]]:
    with db.begin(world.engine, read_only=True) as session:
        return [(one.attempt, one.reason, one.message) for one in allocations.due(session, now=world.now)]


def test_what_runs_on_a_drained_host_ends_in_time_and_nothing_new_comes(world: World):
    runs = [world.run(server="runs", gpus=1), world.admit("alice", server="on its way")]
    ending = world.run("alice", server="ends by itself")
    world.mark_ending(ending.attempt)
    found = drain(world, hours=4)
    assert (found.runs, found.ends_at, found.host.status) == (2, world.now + timedelta(hours=4), HostStatus.MAINTENANCE)
    assert deadlines(world) == {(run.id, EndReason.DRAINED): (found.ends_at, DRAINED) for run in runs}
    with pytest.raises(NoCapacity):
        world.admit(server="new")
    assert due(world) == []
    world.pass_time(hours=4)
    assert sorted(due(world)) == sorted((run.attempt, EndReason.DRAINED, DRAINED) for run in runs)
    detail = world.audit("host.drain")[-1].detail
    assert detail == {"name": "host-1", "grace_seconds": 4 * 3600, "runs": 2}
    for run in (*runs, ending):
        world.release(run.attempt, EndReason.DRAINED)
    assert deadlines(world) == {}
    world.check()


def test_of_two_drains_the_later_one_counts(world: World):
    run = world.run()
    drain(world, hours=24)
    world.pass_time(hours=1)
    drain(world, hours=0)
    assert deadlines(world) == {(run.id, EndReason.DRAINED): (world.now, DRAINED)}
    assert [attempt for attempt, *_ in due(world)] == [run.attempt]
    drain(world, hours=1)
    assert due(world) == []
    assert len(world.audit("host.status")) == 1, "its status changed once"


def test_back_to_work_spares_what_has_not_begun_to_end_and_keeps_other_deadlines(world: World):
    spared, left = world.run("bob", server="a"), world.run("bob", server="b")
    drain(world, hours=1)
    world.mark_ending(left.attempt, EndReason.DRAINED)
    world.member("lab", "bob", Role.ADMIN)
    assert (spared.id, EndReason.DRAINED) in deadlines(world), "a change of the member does not undo the drain"
    world.remove("lab", "bob")
    assert put_back(world).status == HostStatus.ONLINE
    assert world.audit("host.status")[-1].detail["spared"] == 1
    told = world.read(select(Event).where(Event.kind == "environment.spared").order_by(Event.id))
    assert told[-1].environment_id == spared.environment_id
    assert told[-1].detail["reason"] == "drained"
    reasons = {reason for run, reason in deadlines(world) if run == spared.id}
    assert reasons == {EndReason.ADMIN}, "who was removed from the workspace still has to end"
    assert "spared" not in world.audit("host.status")[-2].detail
    world.admit("alice", server="new")


def test_an_unknown_host_is_not_drained(world: World):
    with pytest.raises(NotFound):
        drain(world, "x")


@pytest.fixture
def busy(database_url: str) -> Iterator[Engine]:
    opened = db.open_engine(database_url, pool_size=20)
    yield opened
    opened.dispose()


def test_a_run_admitted_at_the_same_moment_is_found_or_refused(busy: Engine, now: datetime):
    world = World(busy, now).furnish(hosts=1)
    world.crowd(12, workspace="lab")
    for _ in range(3):
        starts = [world.prepare(f"user-{number}") for number in range(12)]

        def race(number: int, starts: Any = starts) -> Any:
            return drain(world, hours=1) if number == 6 else world.start(starts[number])

        results = at_once(12, race)
        admitted = {one.id for one in results if isinstance(one, Allocation)}
        assert {type(one).__name__ for one in results} <= {"Allocation", "NoCapacity", "Drained"}
        assert {run for run, _ in deadlines(world)} == admitted
        for run in world.open_runs():
            world.release(run.attempt)
        put_back(world)
        world.check()
