"""Many at once: never more than allowed, never a deadlock, nothing lost. The full counts run under `-m prove`."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy import Engine, select

from remotegpu_hub import db
from remotegpu_hub.domain import allocations, inventory, users, volumes, workspaces
from remotegpu_hub.domain.audit import Actor
from remotegpu_hub.errors import Abandoned, Conflict, NoCapacity, QuotaExceeded, Refused
from remotegpu_hub.orm import EndReason, HostStatus, PortMapping, QuotaScope, Role, Volume, VolumeKind
from remotegpu_hub.units import GIB

from ..worlds import A100, ADMIN, World, at_once, host, without

THREADS = 64


def prove(full: int, ordinary: int) -> pytest.MarkDecorator:
    """Run a test for few rounds each day, and for the full count under `-m prove`."""
    return pytest.mark.parametrize(
        "rounds", [pytest.param(ordinary, id="some"), pytest.param(full, id="full", marks=pytest.mark.prove)]
    )


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine with a connection for each thread."""
    opened = db.open_engine(database_url, pool_size=THREADS, max_overflow=8, pool_timeout=120)
    yield opened
    opened.dispose()


@pytest.fixture
def world(engine: Engine, now: datetime) -> World:
    return World(engine, now).furnish()


def end_all(world: World) -> None:
    for run in world.open_runs():
        world.end(run.attempt)


@prove(50, 1)
def test_sixty_four_starts_for_sixteen_gpus_and_a_quota_of_ten(
    world: World, rounds: int, record_property: Callable[[str, object], None]
):
    world.quota(QuotaScope.WORKSPACE, workspace="lab", gpu_millis=10_000)
    world.crowd(THREADS, workspace="lab")
    starts = [world.prepare(f"user-{number}", gpus=1) for number in range(THREADS)]
    for _ in range(rounds):
        results = at_once(THREADS, lambda number: world.start(starts[number]))
        kinds = Counter(type(one).__name__ for one in results)
        assert kinds == {"Allocation": 10, "QuotaExceeded": 54}
        world.check()
        end_all(world)
        world.check()
    assert sum(world.counters()[f"host-{number} {A100}"][1] for number in (1, 2)) == 0
    record_property("rounds of 64", rounds)
    record_property("admitted in each", 10)


@prove(50, 1)
def test_starts_of_many_workspaces_take_every_gpu_and_not_one_more(world: World, rounds: int):
    """Without a common lock above them, all contend for the hosts themselves; sizes and policies differ."""
    world.see(*(host(f"host-{number}", 2) for number in range(1, 9)))
    world.crowd(THREADS)
    starts = [
        world.prepare(f"user-{number}", f"space-{number}", gpus=1 + (number % 4 == 0)) for number in range(THREADS)
    ]
    for _ in range(rounds):
        results = at_once(THREADS, lambda number: world.start(starts[number]))
        assert {type(one).__name__ for one in results} == {"Allocation", "NoCapacity"}
        assert sum(len(run.slots) for run in world.open_runs()) == 16
        world.check()
        end_all(world)


@prove(20, 1)
def test_starts_and_ends_and_syncs_and_status_changes_at_once_keep_the_sums(world: World, rounds: int):
    machines = [host(f"host-{number}", 4) for number in range(1, 5)]
    world.see(*machines)
    world.crowd(10)
    chance = random.Random(2)

    def live(number: int) -> None:
        for _ in range(4):
            try:
                run = world.run(f"user-{number}", f"space-{number}", gpus=chance.choice([2, 3]), ports=("ssh",))
            except NoCapacity:
                continue
            world.seen(run)
            world.mark_ending(run.attempt)
            world.end(run.attempt)

    def disturb(number: int) -> None:
        machine = chance.choice(machines)
        world.see(without(machine, machine.gpus[number % 4].uuid))
        with db.begin(world.engine) as session:
            for status in (HostStatus.MAINTENANCE, HostStatus.ONLINE):
                inventory.set_host_status(session, name=machine.name, status=status, actor=ADMIN, now=world.now)
        world.see(*machines)

    for _ in range(rounds):
        results = at_once(14, lambda number: live(number) if number < 10 else disturb(number))
        assert results == [None] * 14
        assert world.open_runs() == []
        world.check()


@prove(300, 10)
def test_a_release_beside_its_start_leaves_nothing_held(world: World, rounds: int):
    outcomes: Counter[str] = Counter()
    for number in range(rounds):
        attempt = f"raced-{number}"

        def race(who: int, attempt: str = attempt) -> object:
            return world.admit(gpus=1, attempt=attempt) if who else world.end(attempt)

        released, admitted = at_once(2, race)
        assert isinstance(admitted, Abandoned) or released is not None
        outcomes[type(admitted).__name__] += 1
        assert world.open_runs() == []
    world.check()
    assert set(outcomes) <= {"Abandoned", "Allocation"}


@prove(50, 4)
def test_two_starts_of_one_environment_give_one_run(world: World, rounds: int):
    for number in range(rounds):
        results = at_once(4, lambda _, number=number: world.admit(gpus=1, server=f"train-{number}"))
        assert sorted(type(one).__name__ for one in results) == ["Allocation", *["Conflict"] * 3]
        assert "runs already" in str(next(one for one in results if isinstance(one, Conflict)))
        (run,) = world.open_runs()
        world.end(run.attempt)
    world.check()


@prove(20, 1)
def test_no_port_is_given_twice_and_a_full_range_refuses_the_rest(world: World, rounds: int):
    world.see(*(host(f"host-{number}", 0) for number in range(1, 5)))
    world.crowd(30)
    world.rules.port_ranges["ssh"] = range(22000, 22020)  # type: ignore[index]
    both = (("ssh", "tensorboard"), ("tensorboard", "ssh"))
    starts = [world.prepare(f"user-{number}", f"space-{number}", ports=both[number % 2]) for number in range(30)]
    for _ in range(rounds):
        results = at_once(30, lambda number: world.start(starts[number]))
        given = world.read(select(PortMapping.external_port).where(PortMapping.open))
        assert len(given) == len(set(given)) == 40
        assert sum(isinstance(one, Refused) for one in results) == 10
        end_all(world)


@prove(30, 2)
def test_two_meters_write_each_slice_once(world: World, rounds: int):
    for name in ("left", "right"):
        world.workspace(name, owner="alice")
    for _ in range(rounds):
        runs = [
            world.run("alice", space, server=f"{space}-{world.number()}", gpus=1)
            for space in ("left", "right", "right", "left")
        ]
        world.pass_time(hours=2, minutes=13)
        world.seen(*runs)
        ids = [run.id for run in runs]
        halves = [ids[:2], ids[2:], ids, ids[::-1]]
        at_once(4, lambda number, halves=halves: world.meter(*halves[number]))
        world.check()
        for run in runs:
            world.end(run.attempt)
        at_once(4, lambda number, halves=halves: world.meter(*halves[number]))
        world.check()
        seconds = sum(one.quantity for one in world.records() if one.subject_id in ids and one.resource != "cpu")
        assert seconds == 4 * 7980 * (1 + 2**30)


@prove(30, 1)
def test_members_change_while_they_start_without_a_deadlock(world: World, rounds: int):
    def promote(role: Role) -> None:
        with db.begin(world.engine) as session:
            workspaces.put_member(
                session,
                workspace=workspaces.by_name(session, name="lab"),
                user=users.by_name(session, name="bob"),
                role=role,
                actor=ADMIN,
                now=world.now,
            )

    def work(number: int) -> object:
        if number < 4:
            return promote([Role.OWNER, Role.MEMBER][number % 2])
        if number < 8:
            world.user(f"new-{world.number()}")
        return world.admit("bob", server=f"s-{number}", cpu=1)

    for _ in range(rounds):
        results = at_once(16, work)
        assert {type(one).__name__ for one in results} == {"NoneType", "Allocation"}
        end_all(world)
    world.check()


@prove(20, 2)
def test_owners_who_leave_at_once_leave_one_behind(world: World, rounds: int):
    for _ in range(rounds):
        world.member("lab", "alice", Role.OWNER)
        world.member("lab", "bob", Role.OWNER)
        results = at_once(2, lambda number: world.member("lab", ("alice", "bob")[number], Role.MEMBER))
        assert sorted(type(one).__name__ for one in results) == ["Conflict", "NoneType"]


@prove(20, 3)
def test_a_new_user_who_comes_twice_at_once_is_made_once(world: World, rounds: int):
    def come(number: int) -> int:
        with db.begin(world.engine) as session:
            user = users.ensure(session, hub_user=world_user, now=world.now)
            space = workspaces.ensure_personal(session, user=user, now=world.now, quota={"gpu_millis": 0}, budget=1)
            return space.id

    for _ in range(rounds):
        number = world.number()
        world_user = users.HubUser(number, f"user-{number}", "2026")
        assert len(set(at_once(6, come))) == 1


@prove(20, 3)
def test_archiving_beside_starts_leaves_nothing_running_in_a_closed_workspace(world: World, now: datetime, rounds: int):
    for number in range(rounds):
        name = f"space-{number}"
        world.workspace(name, owner="alice")

        def work(who: int, name: str = name) -> object:
            if who:
                return world.admit("alice", name, server=f"{name}-{who}", cpu=1)
            with db.begin(world.engine) as session:
                workspaces.archive(
                    session, workspace=workspaces.by_name(session, name=name), actor=ADMIN, now=world.now
                )
            return "archived"

        results = at_once(4, work)
        running = [one for one in results[1:] if not isinstance(one, Exception)]
        assert (results[0] == "archived") == (running == [])
        end_all(world)


def test_two_ends_of_one_run_are_one_end(world: World):
    run = world.run(gpus=1)
    world.pass_time(minutes=1)
    at_once(6, lambda number: world.end(run.attempt) if number % 2 else world.mark_ending(run.attempt))
    world.end(run.attempt)
    assert [one.action for one in world.audit() if one.entity_id == run.id and one.action == "allocation.release"] == [
        "allocation.release"
    ]
    world.check()


@prove(20, 2)
def test_sightings_and_metering_at_once_do_not_wait_for_each_other_in_a_circle(world: World, rounds: int):
    runs = [world.run("bob", server=f"s-{number}", cpu=1, memory=2**26) for number in range(20)]
    for _ in range(rounds):
        world.pass_time(minutes=31)
        order = list(runs)

        def work(number: int, order: list = order) -> None:
            if number % 2:
                world.meter()
            else:
                world.seen(*random.Random(number).sample(order, len(order)))

        assert at_once(8, work) == [None] * 8
    world.check()


def test_a_refusal_holds_nothing_whatever_was_taken_before_it(world: World):
    """The attempt, the environment, the host's room and the slots all go back with the transaction."""
    world.rules.port_ranges["ssh"] = range(22000, 22001)  # type: ignore[index]
    world.admit("alice", ports=("ssh",))
    before = world.counters()
    with pytest.raises(Refused, match="No port is free for ssh"):
        world.admit("bob", gpus=2, ports=("ssh",), attempt="again")
    with pytest.raises(QuotaExceeded):
        world.quota(QuotaScope.USER, user="bob", gpu_millis=1000)
        world.admit("bob", gpus=2, attempt="again")
    assert world.counters() == before
    world.admit("bob", gpus=1, attempt="again")
    with db.begin(world.engine) as session:
        allocations.release(session, attempt="again", reason=EndReason.USER, actor=ADMIN, now=world.now)
    world.check()


@pytest.mark.parametrize("kind", list(VolumeKind))
def test_a_volume_is_not_given_up_under_a_start_that_is_on_its_way(world: World, kind: VolumeKind):
    world.rules = replace(world.rules, volumes={kind: GIB})
    world.end(world.run("bob").attempt)
    (number,) = world.read(select(Volume.id))
    start = world.prepare("bob")

    def give_up() -> None:
        with db.begin(world.engine) as session:
            volumes.delete(session, volume_id=number, actor=ADMIN, now=world.now)

    with ThreadPoolExecutor(1) as thread:
        with db.begin(world.engine) as session:
            allocations.admit(
                session, user=start.user, server_name=start.server, wish=start.wish, attempt="on its way",
                rules=world.rules, actor=Actor("bob"), now=world.now,
            )  # fmt: skip
            asked = thread.submit(give_up)
            wait([asked], timeout=0.5)
        with pytest.raises(Conflict, match="stop it first"):
            asked.result(30)
    end_all(world)
    give_up()
    assert world.read(select(Volume.deleted_at)) != [None]
