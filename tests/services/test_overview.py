"""What the overview of admins counts, and what it calls attention to."""

from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import Engine, select, update

from remotegpu_hub.db import begin
from remotegpu_hub.orm import EndReason, Gpu, HostStatus, TickLease
from remotegpu_hub.services.pages import View
from remotegpu_hub.services.workspaces import hub_overview, overview
from tests.gpu_hubs import GpuHub
from tests.worlds import A100, World, gpus, host, without

from .test_audit_pages import NASTY, call, see

VIEW = View("en", currency="CNY")


def read(world: World, view: View = VIEW) -> overview.Overview:
    with begin(world.engine, read_only=True) as session:
        return overview.read(session, view, now=world.now)


def tick(world: World, *names: str) -> None:
    with begin(world.engine) as session:
        for name in names:
            session.merge(TickLease(name=name, holder="x", expires_at=world.now, last_done_at=world.now))


def test_every_gpu_is_counted_once_and_holders_by_what_they_hold(engine: Engine, now: datetime):
    world = World(engine, now).furnish()
    world.workspace("vision", owner="alice", display_name=NASTY)
    world.run("bob", server="a", gpus=3)
    world.run("alice", "vision", server="b", gpus=1)
    world.run("alice", "vision", server="c")
    one = host("host-1")
    broken = replace(one.gpus[7], healthy=False)
    foreign = replace(one.gpus[6], foreign=True)
    world.see(
        replace(one, gpus=(*one.gpus[:6], foreign, broken)), host("l40", 2, gpus=gpus(2, model="L40", prefix="L"))
    )
    with begin(engine) as session:
        session.execute(update(overview.Host).where(overview.Host.name == "l40").values(status=HostStatus.MAINTENANCE))
    found = read(world)
    assert [(one.model, one.total, one.counts) for one in found.stacks] == [
        (A100, 16, {"held": 4, "free": 10, "foreign": 1, "bad": 1, "off": 0}),
        ("L40", 2, {"held": 0, "free": 0, "foreign": 0, "bad": 0, "off": 2}),
    ]
    assert sum(width for _, _, width in found.stacks[0].parts) == 100
    assert found.all_gpus.total == 18
    assert [(one.name, one.runs, one.gpu_millis, one.percent) for one in found.users] == [
        ("bob", 1, 3000, 100.0), ("alice", 2, 1000, 100 / 3)
    ]  # fmt: skip
    assert [(one.name, one.path) for one in found.workspaces] == [("lab", "spaces/lab"), (NASTY, "spaces/vision")]
    assert (found.running, found.per_hour) == (3, sum(run.price_per_hour for run in world.open_runs()))
    assert found.states == {"running": 3}
    with begin(engine, read_only=True) as session:
        told = hub_overview.HubShown.model_validate(hub_overview.read_hub_overview(call(session, world.now)))
    assert told.gpus.model_dump() == {"held": 4, "free": 10, "foreign": 1, "broken": 1, "off": 2, "total": 18}
    assert [(one.model, one.total) for one in told.models] == [(A100, 16), ("L40", 2)]
    assert told.environments == {"running": 3, "creating": 0, "stopping": 0, "stopped": 0, "error": 0}
    assert [(one.name, one.display_name, one.runs) for one in told.workspaces] == [
        ("lab", "lab", 1), ("vision", NASTY, 2)
    ]  # fmt: skip
    assert (told.runs, told.per_hour_micros) == (found.running, found.per_hour)
    concerns = {(one.kind, one.urgent, one.message) for one in told.concerns}
    assert concerns == {(one.kind, one.level == "bad", one.says) for one in found.concerns}
    assert ("gpu_error", True, "GPU 7 of host-1 is in error.") in concerns


def test_what_needs_a_hand_is_named_with_where_it_is_mended(engine: Engine, now: datetime):
    world = World(engine, now).furnish(hosts=4)
    tick(world, "sync", "reconcile", "meter", "of another kind")
    assert read(world).concerns == []
    world.budget("lab", 20)
    stuck = world.run("bob", server="stuck", gpus=1)
    failed = world.run("alice", server="failed")
    lost = world.run("alice", server="big", cpu=32_000).host_id
    world.mark_ending(stuck.attempt)
    world.pass_time(hours=2)
    world.release(failed.attempt, EndReason.OOM_KILLED)
    world.see(replace(host("host-4"), online=False))
    three = host("host-3")
    world.see(replace(without(three, "host-3-GPU-5"), gpus=(replace(three.gpus[0], healthy=False), *three.gpus[1:5])))
    with begin(engine) as session:
        session.execute(update(overview.Host).where(overview.Host.id == lost).values(cpu_millis=1))
    found = read(world)
    told = {one.says: one for one in found.concerns}
    ids = dict(world.read(select(Gpu.uuid, Gpu.id)))
    expected = {
        "The tick sync is late: the service workspaces does it, and tells why in the hub's log.": "",
        "host-4 is offline. Environments that hold something there: 0.": "gpus?search=host-4",
        "GPU 0 of host-3 is in error.": f"gpus?search=host-3&focus={ids['host-3-GPU-0']}",
        "GPU 5 of host-3 is missing.": f"gpus?search=host-3&focus={ids['host-3-GPU-5']}",
        "failed of alice ended by an error: it ran out of memory": f"admin/audit?entity=allocation&which={failed.id}",
    }
    assert {says: told[says].path for says in expected} == expected
    assert any(says.startswith("stuck of bob cannot be ended on host-") for says in told)
    assert any("holds more than it has" in says for says in told)
    assert any(says.startswith("lab has spent") and told[says].path == "spaces/lab" for says in told)
    assert any("was not seen for a while" in says for says in told)
    assert sum("is late" in says for says in told) == 4
    world.see(*(host(f"host-{number}") for number in range(1, 5)))
    world.now += timedelta(days=3)
    tick(world, "sync", "reconcile", "meter")
    later = read(world).concerns
    assert not any("ended by an error" in one.says or "of another kind" in one.says for one in later)


def test_an_admin_sees_the_overview_and_nobody_else_does(hub: GpuHub):
    page = see(hub, "admin", "admin", language="zh")
    assert page.status_code == 200, page.text
    assert "按型号统计的 GPU" in page.text
    assert A100 in page.text
    assert see(hub, "bob", "admin").status_code == 403
