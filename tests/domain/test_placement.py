from collections import Counter
from dataclasses import replace

import pytest

from remotegpu_hub import db
from remotegpu_hub.domain import inventory
from remotegpu_hub.domain.environments import Rules
from remotegpu_hub.domain.placement import LeastLoaded, Pack, Policy, Spread
from remotegpu_hub.errors import HostReason, NoCapacity
from remotegpu_hub.orm import GpuStatus, HostStatus
from remotegpu_hub.units import GIB

from ..worlds import A100, ADMIN, HOST_CPU_MILLIS, HOST_MEMORY_BYTES, World, gpus, host


def where(world: World, policy: type[Policy], *, count: int, **wanted: object) -> Counter[str]:
    world.rules = replace(world.rules, policy=policy())
    return Counter(world.admit("bob", server=f"s-{world.number()}", **wanted).host.name for _ in range(count))


@pytest.mark.parametrize(
    ("policy", "count", "wanted", "spots"),
    [
        (LeastLoaded, 4, {"gpus": 2}, [2, 2]),
        (Pack, 4, {"gpus": 2}, [4]),
        (Pack, 5, {"gpus": 2}, [4, 1]),
        (Spread, 4, {"gpus": 2}, [2, 2]),
    ],
    ids=["least-loaded", "pack", "pack-overflows", "spread"],
)
def test_equal_hosts_are_filled_by_the_policy(
    world: World, policy: type[Policy], count: int, wanted: dict, spots: list[int]
):
    assert [runs for _host, runs in where(world, policy, count=count, **wanted).most_common()] == spots
    world.check()


@pytest.mark.parametrize(("policy", "spot"), [(LeastLoaded, "host-2"), (Pack, "host-1"), (Spread, "host-1")], ids=str)
def test_policies_differ_where_load_and_number_of_runs_differ(world: World, policy: type[Policy], spot: str):
    """One large run on one host, two tiny ones on the other."""
    tiny = {"server": "tiny", "gpus": 1, "cpu": 1, "memory": 2**26}
    large = world.admit("alice", gpus=6, cpu=32000, memory=256 * GIB)
    for user in ("alice", "bob"):
        run = world.admit(user, **tiny)
        assert run.host.name != large.host.name
    names = {"host-1": large.host.name, "host-2": run.host.name}
    assert set(where(world, policy, count=1, gpus=1, cpu=1000)) == {names[spot]}


def test_the_score_weighs_cpu_memory_and_gpus(world: World):
    run = world.admit(gpus=4, cpu=HOST_CPU_MILLIS // 4, memory=HOST_MEMORY_BYTES // 2)
    assert world.counters()[run.host.name][-1] == round(1e9 * (0.4 * 0.25 + 0.4 * 0.5 + 0.2 * 0.5))
    entry = world.audit("allocation.admit")[-1]
    assert entry.detail["policy"] == "least-loaded"
    assert entry.detail["host"] == run.host.name
    world.release(run.attempt)
    assert world.counters()[run.host.name][-1] == 0


def test_gpu_hosts_are_kept_for_those_who_need_gpus(world: World):
    world.see(host("cpu-only", 0, cpu_millis=2000))
    assert world.admit(server="a").host.name == "cpu-only"
    assert world.admit(server="b", gpus=1).host.name != "cpu-only"
    assert world.admit(server="c").host.name == "cpu-only"
    assert world.admit(server="d").host.name != "cpu-only", "a full one leaves only these"


def reasons(world: World, **wanted: object) -> dict[str, HostReason]:
    with pytest.raises(NoCapacity) as caught:
        world.admit(server="refused", **wanted)
    return {one.host: one for one in caught.value.hosts}


def test_a_refusal_explains_each_host(world: World):
    taken = world.admit("alice", gpus=6, cpu=1, memory=2**26).host.name
    free = {"host-1": "host-2", "host-2": "host-1"}[taken]
    world.see(host("host-3", 0), host("host-4", cpu_millis=8000), host("host-5", gpus=gpus(8, model="H100")))
    with db.begin(world.engine) as session:
        inventory.set_host_status(session, name=free, status=HostStatus.MAINTENANCE, actor=ADMIN, now=world.now)
    assert reasons(world, gpus=8, cpu=9000) == {
        taken: HostReason(taken, f"gpu:{A100}", 2, 8),
        "host-4": HostReason("host-4", "cpu", 8000, 8000),
        free: HostReason(free, "status", 0, 0, "maintenance"),
    }


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"gpus": 8, "memory": HOST_MEMORY_BYTES + 1}, ("memory", HOST_MEMORY_BYTES, HOST_MEMORY_BYTES)),
        ({"memory": HOST_MEMORY_BYTES + 1}, ("memory", HOST_MEMORY_BYTES, HOST_MEMORY_BYTES)),
        ({"cpu": HOST_CPU_MILLIS + 1}, ("cpu", HOST_CPU_MILLIS, HOST_CPU_MILLIS)),
    ],
    ids=["memory-beside-gpus", "memory", "cpu"],
)
def test_what_no_host_has_is_named(world: World, wanted: dict, reason: tuple):
    assert reasons(world, **wanted) == {name: HostReason(name, *reason) for name in ("host-1", "host-2")}


def test_only_the_nearest_hosts_are_explained_and_the_rest_counted(world: World):
    world.see(*(host(f"host-{number}", 1) for number in range(3, 12)))
    with pytest.raises(NoCapacity) as caught:
        world.admit(gpus=8, cpu=HOST_CPU_MILLIS + 1)
    assert len(caught.value.hosts) == 8
    assert [one.host for one in caught.value.hosts[:2]] == ["host-1", "host-2"]
    assert caught.value.facts["more"] == 3


@pytest.mark.parametrize("status", [HostStatus.MAINTENANCE, HostStatus.OFFLINE])
def test_nothing_is_placed_on_a_host_that_is_not_online(world: World, status: HostStatus):
    for name in ("host-1", "host-2"):
        with db.begin(world.engine) as session:
            inventory.set_host_status(session, name=name, status=status, actor=ADMIN, now=world.now)
    assert {one.status for one in reasons(world, gpus=1).values()} == {status.value}
    assert {one.status for one in reasons(world).values()} == {status.value}
    assert world.audit("host.status")[-1].detail == {
        "name": "host-2",
        "before": {"status": "online"},
        "after": {"status": status.value},
    }


def test_a_gpu_in_maintenance_is_not_given_and_its_holder_keeps_it(world: World):
    run = world.admit(gpus=8)
    with db.begin(world.engine) as session:
        inventory.set_gpu_status(
            session, uuid=run.slots[0].gpu.uuid, status=GpuStatus.MAINTENANCE, actor=ADMIN, now=world.now
        )
    assert len(world.allocation(run.attempt).slots) == 8
    world.check()
    world.release(run.attempt)
    assert world.admit(server="next", gpus=8).host.name != run.host.name
    assert reasons(world, gpus=8)[run.host.name] == HostReason(run.host.name, f"gpu:{A100}", 7, 7)
    world.check()


def test_a_policy_of_ones_own_is_used(world: World):
    class ByName(Policy):
        name = "by-name"

        def order(self) -> object:
            return inventory.Host.name.desc()

    world.rules = Rules(policy=ByName())
    assert world.admit(gpus=1).host.name == "host-2"
