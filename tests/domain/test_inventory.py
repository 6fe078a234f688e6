"""Hosts and GPUs as they come, go and change under what is held."""

from dataclasses import replace

import pytest

from remotegpu_hub import db, observed
from remotegpu_hub.domain import inventory
from remotegpu_hub.errors import NoCapacity, NotFound
from remotegpu_hub.orm import GpuStatus, HostStatus
from remotegpu_hub.units import GIB

from ..worlds import A100, ADMIN, HOST_CPU_MILLIS, World, gpus, host, without

ONE = host("host-1")


@pytest.fixture
def world(world: World) -> World:
    """Only `host-1` is online."""
    world.see(replace(host("host-2"), online=False))
    return world


def stock(world: World) -> dict[str, tuple[int, int, int]]:
    with db.begin(world.engine, read_only=True) as session:
        return {one.model: (one.free, one.usable, one.hosts_free) for one in inventory.stock(session)}


def gpu_state(world: World, uuid: str) -> tuple[str, bool, bool]:
    with db.begin(world.engine, read_only=True) as session:
        gpu = next(one.gpu for one in inventory.holders(session) if one.gpu.uuid == uuid)
        return gpu.status.value, gpu.missing, gpu.foreign


def changed(**columns: object) -> observed.Host:
    """`host-1` with its first GPU changed."""
    return replace(ONE, gpus=(replace(ONE.gpus[0], **columns), *ONE.gpus[1:]))  # type: ignore[arg-type]


def test_what_is_seen_is_in_stock(world: World):
    assert stock(world) == {A100: (8, 8, 1)}
    with db.begin(world.engine, read_only=True) as session:
        (model,) = inventory.stock(session)
        assert (model.memory_mib, model.gpu_millis, model.simulated) == (81920, 1000, False)
        assert inventory.known_models(session) == {A100}
        assert {one.name: (one.gpu_millis, one.status) for one in inventory.hosts(session)} == {
            "host-1": (8000, HostStatus.ONLINE),
            "host-2": (8000, HostStatus.OFFLINE),
        }


def test_a_second_sync_changes_nothing(world: World):
    world.admit(gpus=3)
    before, entries = world.counters(), len(world.audit())
    world.see(ONE)
    world.see(ONE)
    assert (world.counters(), len(world.audit())) == (before, entries)


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (without(ONE, "host-1-GPU-0"), ("available", True, False)),
        (changed(healthy=False), ("error", False, False)),
        (changed(foreign=True), ("available", False, True)),
    ],
    ids=["missing", "error", "foreign"],
)
@pytest.mark.parametrize("held", [False, True], ids=["free", "held"])
def test_a_gpu_that_cannot_be_used_is_not_given_until_it_is_back(
    world: World, seen: observed.Host, state: tuple, held: bool
):
    first = world.run("alice", gpus=1) if held else None
    world.see(seen)
    assert gpu_state(world, "host-1-GPU-0") == state
    world.check()
    if first is not None:
        assert [one.gpu.uuid for one in world.allocation(first.attempt).slots] == ["host-1-GPU-0"], "it keeps it"
        world.end(first.attempt)
        world.check()
    assert stock(world) == {A100: (7, 7, 1)}
    with pytest.raises(NoCapacity):
        world.admit(server="all", gpus=8)
    run = world.admit(server="seven", gpus=7)
    assert "host-1-GPU-0" not in {one.gpu.uuid for one in run.slots}
    world.see(ONE)
    assert gpu_state(world, "host-1-GPU-0") == ("available", False, False)
    assert [one.gpu.uuid for one in world.admit(server="last", gpus=1).slots] == ["host-1-GPU-0"]
    world.check()


@pytest.mark.parametrize(("names", "free"), [("host-1-GPU", 6), ("nvidia.com/gpu#", 5)], ids=["named", "only counted"])
def test_a_held_gpu_that_is_taken_out_takes_no_free_one_along(world: World, names: str, free: int):
    """Of devices that are only counted nobody knows which one is held: there the free ones are one fewer."""
    world.see(replace(ONE, gpus=tuple(replace(one, uuid=f"{names}-{one.index}") for one in ONE.gpus)))
    run = world.run("alice", gpus=2)
    held = world.allocation(run.attempt).slots[0].gpu.uuid
    with db.begin(world.engine) as session:
        inventory.set_gpu_status(session, uuid=held, status=GpuStatus.MAINTENANCE, actor=ADMIN, now=world.now)
    world.check()
    assert stock(world)[A100][0] == free
    with pytest.raises(NoCapacity):
        world.admit(server="more", gpus=free + 1)
    rest = world.admit(server="rest", gpus=free)
    world.release(rest.attempt)
    world.end(run.attempt)
    assert stock(world) == {A100: (7, 7, 1)}
    world.check()


def test_maintenance_of_a_gpu_survives_syncs_and_an_error_of_the_device(world: World):
    with db.begin(world.engine) as session:
        inventory.set_gpu_status(session, uuid="host-1-GPU-0", status=GpuStatus.MAINTENANCE, actor=ADMIN, now=world.now)
    for seen in (ONE, changed(healthy=False), ONE):
        world.see(seen)
        assert gpu_state(world, "host-1-GPU-0")[0] == "maintenance"
    assert world.audit("gpu.status")[-1].detail == {
        "uuid": "host-1-GPU-0",
        "before": {"status": "available"},
        "after": {"status": "maintenance"},
    }
    with db.begin(world.engine) as session:
        gpu = inventory.set_gpu_status(
            session, uuid="host-1-GPU-0", status=GpuStatus.AVAILABLE, actor=ADMIN, now=world.now
        )
        for verb in (
            lambda: inventory.set_gpu_status(session, uuid="x", status=gpu.status, actor=ADMIN, now=world.now),
            lambda: inventory.set_host_status(session, name="x", status=HostStatus.ONLINE, actor=ADMIN, now=world.now),
        ):
            with pytest.raises(NotFound):
                verb()
    assert (gpu.uuid, gpu.status) == ("host-1-GPU-0", "available"), "the row can be read after its transaction"
    assert stock(world) == {A100: (8, 8, 1)}


def test_a_new_split_waits_for_the_holders_of_the_old_one(world: World):
    share = f"{A100}/4"
    world.price(f"gpu:{share}", 4)
    run = world.run(gpus=1)
    split = replace(ONE, gpus=(*gpus(1, prefix="host-1-GPU", shares=4), *ONE.gpus[1:]))
    world.see(split)
    assert stock(world) == {A100: (7, 8, 1)}, "the split GPU gives nothing while it is held as a whole"
    with pytest.raises(NoCapacity):
        world.admit(server="share", model=share, gpus=1)
    world.check()
    world.end(run.attempt)
    assert stock(world) == {A100: (7, 7, 1), share: (4, 4, 1)}, "at once, not with the next sync"
    parts = world.admit(server="share", model=share, gpus=3)
    assert {one.gpu.uuid for one in parts.slots} == {"host-1-GPU-0"}
    world.see(ONE)
    assert share not in stock(world)
    assert stock(world)[A100] == (7, 7, 1)
    world.release(parts.attempt)
    assert stock(world) == {A100: (8, 8, 1)}
    world.check()


def test_capacity_below_what_is_held_is_shown_as_overcommitted_and_gives_nothing_more(world: World):
    run = world.admit(gpus=2, cpu=32_000, memory=256 * GIB)
    world.see(replace(ONE, cpu_millis=16_000, gpus=ONE.gpus[4:]))
    counters = world.counters()
    assert counters["host-1"][1:5] == (32_000, 256 * GIB, 2000, 1)
    with db.begin(world.engine, read_only=True) as session:
        shrunk = inventory.hosts(session)[0]
        assert shrunk.used_cpu_millis > shrunk.cpu_millis
    with pytest.raises(NoCapacity) as caught:
        world.admit(server="more", cpu=1)
    assert (caught.value.hosts[0].resource, caught.value.hosts[0].free) == ("cpu", 0)
    world.check()
    world.release(run.attempt)
    world.admit(server="more", gpus=4)
    world.check()


@pytest.mark.parametrize("how", ["told", "not seen in its pool", "not seen at all"])
def test_a_host_that_goes_offline_keeps_what_it_holds_and_gives_nothing(world: World, how: str):
    run = world.run(gpus=2)
    if how == "told":
        world.see(replace(ONE, online=False))
    elif how == "not seen at all":
        with db.begin(world.engine) as session:
            inventory.miss(session, pool=None, seen=[], now=world.now)
    else:
        world.see(host("elsewhere", 0, pool="other", cpu_millis=1), pool="other")
        world.see(pool="local")
    assert stock(world) == {}
    with pytest.raises(NoCapacity) as caught:
        world.admit(server="more", gpus=1)
    assert {one.status for one in caught.value.hosts} == {"offline"}
    assert world.counters()[f"host-1 {A100}"] == (8, 2)
    world.end(run.attempt)
    world.see(ONE)
    assert stock(world) == {A100: (8, 8, 1)}
    world.check()


def test_a_sync_does_not_end_maintenance(world: World):
    with db.begin(world.engine) as session:
        inventory.set_host_status(session, name="host-1", status=HostStatus.MAINTENANCE, actor=ADMIN, now=world.now)
    world.see(ONE)
    assert stock(world) == {}


def test_an_unhealthy_count_is_repaired_by_the_next_sync(world: World):
    run = world.admit(gpus=2)
    with db.begin(world.engine) as session:
        row = inventory.hosts(session)[0]
        row.used_cpu_millis, row.used_gpu_millis, row.used_environments, row.score = 7, 7, 7, 7.0
    world.see(ONE)
    assert world.counters()["host-1"][1:5] == (1000, GIB, 2000, 1)
    world.check()
    world.release(run.attempt)
    assert world.counters()["host-1"][1:] == (0, 0, 0, 0, 0)


def test_what_others_use_of_a_host_is_not_given(world: World):
    with db.begin(world.engine) as session:
        inventory.hosts(session)[0].foreign_cpu_millis = HOST_CPU_MILLIS - 1000
    world.admit(server="fits", cpu=1000)
    with pytest.raises(NoCapacity) as caught:
        world.admit(server="more", cpu=1)
    assert caught.value.hosts[0].resource == "cpu"


def test_every_slot_is_told_with_its_holder(world: World):
    world.see(replace(ONE, gpus=(*gpus(1, prefix="host-1-GPU", shares=2), *ONE.gpus[1:2])))
    world.price(f"gpu:{A100}/2", 6)
    run = world.admit("alice", gpus=1, model=f"{A100}/2")
    with db.begin(world.engine, read_only=True) as session:
        table = [
            (one.host.name, one.gpu.index, one.slot.ordinal, one.slot.model, one.allocation_id, one.user)
            for one in inventory.holders(session)
            if one.host.name == "host-1" and not one.gpu.missing
        ]
    assert table == [
        ("host-1", 0, 0, f"{A100}/2", run.id, "alice"),
        ("host-1", 0, 1, f"{A100}/2", None, None),
        ("host-1", 1, 0, A100, None, None),
    ]


def test_what_the_door_has_loaded_stays_readable_after_a_sync(world: World):
    with db.begin(world.engine) as session:
        before = inventory.hosts(session)
        inventory.sync(session, hosts=[replace(ONE, gpus=ONE.gpus[:4])], now=world.now)
        inventory.sync(session, hosts=[ONE], now=world.now)
    assert [(one.name, one.gpu_millis) for one in before] == [("host-1", 8000), ("host-2", 8000)]
