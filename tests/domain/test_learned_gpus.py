"""A device plugin only counts devices: which ones a run was given is learned while it runs."""

from sqlalchemy import select

from remotegpu_hub.db import begin
from remotegpu_hub.domain import allocations
from remotegpu_hub.orm import AllocationSlot
from tests.worlds import World


def test_devices_that_were_only_counted_are_learned_once(world: World) -> None:
    run, other = world.run("bob", gpus=2), world.run("alice", gpus=1)
    with begin(world.engine, read_only=True) as session:
        assert allocations.without_learned_gpus(session) == {run.id, other.id}
    for told in (["GPU-real-1", "GPU-real-2"], ["GPU-other"]):
        with begin(world.engine) as session:
            allocations.learn_gpus(session, uuids={run.id: told})
    learned = world.read(select(AllocationSlot.observed_uuid).where(AllocationSlot.allocation_id == run.id))
    assert sorted(learned) == ["GPU-real-1", "GPU-real-2"]
    world.end(other.attempt)
    with begin(world.engine, read_only=True) as session:
        assert allocations.without_learned_gpus(session) == set()
