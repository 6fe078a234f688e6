from itertools import product

import pytest

from remotegpu_hub import db
from remotegpu_hub.domain import allocations, environments
from remotegpu_hub.errors import Abandoned, Conflict, IllegalMove
from remotegpu_hub.orm import Allocation, AllocationState, EndReason, Environment, EnvironmentState

from ..worlds import World

ALLOCATION_MOVES = {
    ("admitted", "active"),
    ("admitted", "ending"),
    ("active", "ending"),
    ("ending", "ended"),
}
ENVIRONMENT_MOVES = {
    ("creating", "running"),
    ("creating", "stopping"),
    ("creating", "stopped"),
    ("creating", "error"),
    ("running", "stopping"),
    ("running", "stopped"),
    ("running", "error"),
    ("stopping", "stopped"),
    ("stopping", "error"),
    ("stopped", "creating"),
    ("stopped", "deleted"),
    ("error", "creating"),
    ("error", "deleted"),
}


@pytest.mark.parametrize(("before", "after"), product(AllocationState, repeat=2), ids=str)
def test_a_run_moves_by_its_table_only(before: AllocationState, after: AllocationState):
    run = Allocation(state=before)
    if (before, after) in ALLOCATION_MOVES:
        allocations.move(run, after)
        assert run.state == after
    else:
        with pytest.raises(IllegalMove, match=f"The run cannot go from {before} to {after}"):
            allocations.move(run, after)
        assert run.state == before


@pytest.mark.parametrize(("before", "after"), product(EnvironmentState, repeat=2), ids=str)
def test_an_environment_moves_by_its_table_only(before: EnvironmentState, after: EnvironmentState):
    environment = Environment(state=before, message="")
    if before == EnvironmentState.DELETED:
        environments.move(environment, after)
        assert environment.state == before, "the end of a run finds its environment deleted: that is no error"
    elif before == after or (before, after) in ENVIRONMENT_MOVES:
        environments.move(environment, after, message="why" * 1000)
        assert (environment.state, len(environment.message)) == (after, 2000)
    else:
        with pytest.raises(IllegalMove):
            environments.move(environment, after)
        assert environment.state == before


def states(world: World, attempt: str) -> tuple[str, str]:
    run = world.allocation(attempt)
    return run.state.value, run.environment.state.value


def test_a_life_is_admitted_active_ending_ended(world: World):
    run = world.admit(gpus=1, attempt="a")
    assert states(world, "a") == ("admitted", "creating")
    world.pass_time(seconds=5.7)
    assert world.activate("a").started_at == run.admitted_at.replace(second=6), "rounded up: it ran from then on"
    assert states(world, "a") == ("active", "running")
    world.pass_time(minutes=1)
    world.activate("a")
    world.mark_ending("a", EndReason.IDLE)
    assert states(world, "a") == ("ending", "stopping")
    world.mark_ending("a", EndReason.USER)
    ended = world.end("a")
    assert ended is not None
    assert states(world, "a") == ("ended", "stopped")
    assert (ended.end_reason, ended.ended_at) == (EndReason.IDLE, world.now.replace(microsecond=0))
    world.pass_time(minutes=1)
    world.end("a")
    world.mark_ending("a")
    after = world.allocation("a")
    assert after.ended_at == ended.ended_at, "ending twice is a no-op"
    actions = [entry.action for entry in world.audit() if entry.entity == "allocation"]
    assert actions == ["allocation.admit", "allocation.activate", "allocation.ending", "allocation.release"]
    world.check()


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (EndReason.USER, "stopped"),
        (EndReason.EXITED, "stopped"),
        (EndReason.FAILED, "error"),
        (EndReason.TIMEOUT, "error"),
        (EndReason.GHOST, "error"),
        (EndReason.ORPHAN, "error"),
    ],
)
def test_the_reason_decides_what_the_environment_shows(world: World, reason: EndReason, state: str):
    run = world.run()
    world.release(run.attempt, reason)
    assert states(world, run.attempt) == ("ended", state)
    assert world.run().environment_id == run.environment_id, "it may be started again"


def test_a_start_that_was_given_up_before_its_admission_holds_nothing(world: World):
    assert world.mark_ending("late") is None
    with pytest.raises(Abandoned):
        world.admit(attempt="late", gpus=1)
    assert world.release("later") is None
    with pytest.raises(Abandoned):
        world.admit(attempt="later", gpus=1)
    assert world.open_runs() == []


def test_a_start_that_was_given_up_after_its_admission_is_never_active(world: World):
    world.admit(attempt="a")
    world.mark_ending("a", EndReason.TIMEOUT)
    for _ in range(2):
        with pytest.raises(Abandoned):
            world.activate("a")
        world.release("a")
    with pytest.raises(Abandoned):
        world.activate("never-admitted")


def test_one_attempt_is_admitted_once(world: World):
    world.admit(attempt="a")
    with pytest.raises(Abandoned):
        world.admit(attempt="a", server="other")


@pytest.mark.parametrize("ending", [False, True], ids=["running", "stopping"])
def test_an_environment_runs_once_at_a_time(world: World, ending: bool):
    run = world.run()
    if ending:
        world.mark_ending(run.attempt)
    with pytest.raises(Conflict, match="still stopping" if ending else "runs already"):
        world.admit()
    world.end(run.attempt)
    world.admit()


@pytest.mark.parametrize(
    ("started", "seen", "told", "ended"),
    [
        (None, None, 60, 0),
        (10, None, None, 10),
        (10, 40, None, 40),
        (10, 40, 30, 40),
        (10, 40, 55, 55),
        (10, 40, 500, 60),
        (10, 10, 5, 10),
    ],
    ids=[
        "never-active",
        "never-seen",
        "last-seen",
        "told-before-seen",
        "told",
        "told-in-the-future",
        "told-before-start",
    ],
)
def test_a_run_ends_where_its_end_was_seen_or_where_it_was_last_seen_alive(
    world: World, started: int | None, seen: int | None, told: int | None, ended: int
):
    """Seconds after the admission; the release comes at 60."""
    begin = world.now
    run = world.admit(attempt="a")
    if started is not None:
        world.pass_time(seconds=started)
        world.activate("a")
    if seen is not None and started is not None:
        world.pass_time(seconds=seen - started)
        world.seen(run)
    world.now = begin
    moment = None if told is None else world.pass_time(seconds=told)
    world.now = begin
    world.pass_time(seconds=60)
    over = world.release("a", ended_at=moment)
    assert over is not None
    assert over.ended_at is not None
    assert (over.ended_at - begin).total_seconds() == ended
    assert over.metered == (started is None)


def test_a_sighting_never_goes_back_and_says_nothing_of_who_does_not_run(world: World):
    run, waiting = world.run(server="a"), world.admit(server="b")
    world.pass_time(minutes=2)
    world.seen(run, waiting)
    world.pass_time(minutes=-1)
    world.seen(run)
    assert world.allocation(run.attempt).seen_at == run.started_at.replace(minute=2)  # type: ignore[union-attr]
    assert world.allocation(waiting.attempt).seen_at is None
    world.pass_time(minutes=5)
    world.mark_ending(run.attempt)
    world.seen(run)
    assert world.allocation(run.attempt).seen_at == world.now, "it is billed while it is ending"
    world.release(run.attempt)
    world.pass_time(minutes=1)
    world.seen(run)
    assert world.allocation(run.attempt).seen_at != world.now


def test_old_tombstones_are_forgotten_and_young_ones_kept(world: World):
    world.release("old")
    world.pass_time(days=1)
    world.release("young")
    with db.begin(world.engine) as session:
        assert allocations.forget_attempts(session, before=world.now) == 1
    with pytest.raises(Abandoned):
        world.admit(attempt="young")
    world.admit(attempt="old")
