"""Every change leaves an entry: who, as whom, what, before and after, by which request."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import select

from remotegpu_hub import db
from remotegpu_hub.domain import allocations, audit, catalog, environments, inventory, users, workspaces
from remotegpu_hub.domain.audit import SYSTEM, Actor
from remotegpu_hub.errors import RemoteGPUError
from remotegpu_hub.orm import EndReason, GpuStatus, HostStatus, QuotaScope, Role, User, WorkspaceStatus

from ..worlds import A100, World, host

HER = Actor("alice", acted_as="bob", request_id="r-7", address="192.0.2.1")


def street(verb: Callable[..., object]) -> Callable[[World], None]:
    """Call a verb in a transaction of its own, as `HER`."""

    def call(world: World) -> None:
        with db.begin(world.engine) as session:
            verb(session, {"actor": HER, "now": world.now})

    return call


def lab(session):
    return workspaces.by_name(session, name="lab")


def bob(session) -> User:
    return users.by_name(session, name="bob")


def reopen(session, workspace, **facts) -> None:
    workspace.status = WorkspaceStatus.ARCHIVED
    session.flush()
    workspaces.reopen(session, workspace=workspace, **facts)


CHANGES: dict[str, Callable[[World], object]] = {
    "user.seen": lambda world: world.user("dave"),
    "user.deleted": street(lambda s, _: users.retire(s, user=bob(s), now=_["now"])),
    "workspace.create": street(
        lambda s, facts: workspaces.create(s, name="new", display_name="New", owner=bob(s), **facts)
    ),
    "workspace.update": street(
        lambda s, facts: workspaces.update_settings(s, workspace=lab(s), display_name="x", **facts)
    ),
    "workspace.archive": street(lambda s, facts: workspaces.archive(s, workspace=lab(s), **facts)),
    "workspace.reopen": street(lambda s, facts: reopen(s, lab(s), **facts)),
    "member.put": street(
        lambda s, facts: workspaces.put_member(s, workspace=lab(s), user=bob(s), role=Role.ADMIN, **facts)
    ),
    "member.remove": street(lambda s, facts: workspaces.remove_member(s, workspace=lab(s), user=bob(s), **facts)),
    "quota.put": lambda world: world.quota(QuotaScope.USER, user="bob", gpu_millis=1),
    "budget.put": lambda world: world.budget("lab", 5),
    "price.put": lambda world: world.price("storage", 1),
    "image.put": lambda world: world.image("local:new"),
    "flavor.put": street(
        lambda s, facts: catalog.put_flavor(
            s, name="f", display_name="F", gpu_model=A100, gpu_slots=1, cpu_millis=1, memory_bytes=1, **facts
        )
    ),
    "flavor.retire": street(
        lambda s, facts: catalog.retire_flavor(
            s,
            flavor=catalog.put_flavor(
                s, name="f", display_name="F", gpu_model=None, gpu_slots=0, cpu_millis=1, memory_bytes=1, **facts
            ),
            **facts,
        )
    ),
    "host.drain": street(lambda s, facts: inventory.drain(s, name="host-1", grace=timedelta(hours=1), **facts)),
    "host.found": lambda world: world.see(host("new")),
    "host.status": street(
        lambda s, facts: inventory.set_host_status(s, name="host-1", status=HostStatus.MAINTENANCE, **facts)
    ),
    "gpu.status": street(
        lambda s, facts: inventory.set_gpu_status(s, uuid="host-1-GPU-0", status=GpuStatus.MAINTENANCE, **facts)
    ),
    "allocation.admit": lambda world: world.admit(),
    "allocation.activate": lambda world: world.activate(world.admit().attempt),
    "allocation.ending": lambda world: world.mark_ending(world.admit().attempt),
    "allocation.release": lambda world: world.release(world.admit().attempt),
}


@pytest.mark.parametrize("action", CHANGES)
def test_every_change_is_told(world: World, action: str):
    before = len(world.audit(action))
    CHANGES[action](world)
    (entry,) = world.audit(action)[before:]
    assert entry.at == world.now
    assert entry.entity == {"member": "workspace", "budget": "workspace"}.get(
        action.split(".", maxsplit=1)[0], action.split(".", maxsplit=1)[0]
    )
    if entry.actor == HER.name:
        assert (entry.acted_as, entry.request_id, entry.address) == ("bob", "r-7", "192.0.2.1")


def test_a_change_that_fails_leaves_no_entry(world: World):
    before = len(world.audit())
    with pytest.raises(RemoteGPUError):
        world.admit(gpus=1, cpu=10**9)
    assert len(world.audit()) == before


def test_putting_the_same_image_and_flavor_again_is_no_change(world: World):
    CHANGES["flavor.put"](world)
    before = len(world.audit())
    CHANGES["flavor.put"](world)
    world.image()
    assert len(world.audit()) == before
    world.image(size_bytes=5)
    assert world.audit("image.put")[-1].detail == {
        "reference": "local:python",
        "before": {"size_bytes": None},
        "after": {"size_bytes": 5},
    }


def test_only_what_differs_is_kept_and_the_end_of_a_run_tells_why(world: World):
    with db.begin(world.engine) as session:
        audit.record(
            session, actor=SYSTEM, action="test", entity="test", entity_id=None, now=world.now,
            before={"a": 1, "b": 2, "gone": 3}, after={"a": 1, "b": 4, "new": None}, why="because",
        )  # fmt: skip
    entry = world.audit("test")[0]
    assert (entry.actor, entry.detail) == (
        "system",
        {"before": {"b": 2, "gone": 3}, "after": {"b": 4}, "why": "because"},
    )
    run = world.run()
    with db.begin(world.engine) as session:
        allocations.release(
            session, attempt=run.attempt, reason=EndReason.GHOST, actor=SYSTEM, now=world.now, message="gone"
        )
    assert world.audit("allocation.release")[-1].detail == {"reason": "ghost", "ended_at": world.now.isoformat()}
    assert world.allocation(run.attempt).environment.message == "gone"


def test_deleted_and_renamed_environments_are_told_of_their_user(world: World):
    run = world.run(server="a")
    world.end(run.attempt)
    user_id = world.read(select(User.id).where(User.name == "bob"))[0]
    with db.begin(world.engine) as session:
        environments.rename(session, user_id=user_id, before="a", after="b", actor=HER, now=world.now)
        environments.delete(session, user_id=user_id, server_name="b", actor=HER, now=world.now)
    assert [(entry.action, entry.entity_id) for entry in world.audit()][-2:] == [
        ("environment.rename", run.environment_id),
        ("environment.delete", run.environment_id),
    ]
