"""A budget that stops: once it is spent, what costs something ends after a while, is told so, and is spared in time."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from remotegpu_hub import db
from remotegpu_hub.domain import allocations, budgets, inventory, workspaces
from remotegpu_hub.orm import Allocation, BudgetAction, Deadline, EndReason, Event
from remotegpu_hub.units import GIB

from ..worlds import ADMIN, World

FULL = {"gpus": 1, "cpu": 4000, "memory": 8 * GIB}
"""Costs 16 an hour."""
STOP = BudgetAction.STOP


def follow(world: World) -> tuple[int, int]:
    """As the service does each minute: how many runs an end was announced to, and how many were spared."""
    with db.begin(world.engine, read_only=True) as session:
        found = budgets.plan(session, now=world.now)
    with db.begin(world.engine) as session:
        for space, runs in found.spare.items():
            budgets.spare(session, workspace_id=space, allocation_ids=runs, now=world.now)
        for space, runs in found.announce.items():
            budgets.announce(session, workspace_id=space, allocation_ids=runs, now=world.now)
    return sum(map(len, found.announce.values())), sum(map(len, found.spare.values()))


def deadlines(world: World) -> dict[tuple[int, EndReason], tuple[datetime, str]]:
    return {(one.allocation_id, one.reason): (one.at, one.message) for one in world.read(select(Deadline))}


def due(world: World) -> list[tuple[str, EndReason, str]]:
    with db.begin(world.engine, read_only=True) as session:
        return [(one.attempt, one.reason, one.message) for one in allocations.due(session, now=world.now)]


def test_what_costs_something_ends_an_hour_after_the_money_is_spent_and_is_told_before(world: World):
    world.workspace("other", owner="bob")
    world.budget("lab", 16, STOP)
    world.budget("other", 1000, STOP)
    run = world.run(server="costs", **FULL)
    starting = world.admit("alice", server="on its way", cpu=1000)
    ending = world.run("alice", server="ends by itself", cpu=1000)
    world.run("bob", "other", server="elsewhere", **FULL)
    world.mark_ending(ending.attempt)
    free = world.run("bob", server="free")
    with db.begin(world.engine) as session:
        session.execute(update(Allocation).where(Allocation.id == free.id).values(price_per_hour=0))
    world.pass_time(minutes=40)
    assert follow(world) == (0, 0)
    world.pass_time(minutes=20)
    assert follow(world) == (2, 0)
    told = (world.now + timedelta(hours=1), budgets.SPENT)
    assert deadlines(world) == {(run.id, EndReason.BUDGET): told, (starting.id, EndReason.BUDGET): told}
    heard = world.read(select(Event).where(Event.kind == "environment.deadline").order_by(Event.id))
    assert [(one.environment_id, one.user_id, one.detail["stops_at"]) for one in heard] == [
        (one.environment_id, one.user_id, told[0].isoformat()) for one in (run, starting)
    ]
    assert (heard[0].detail["reason"], heard[0].detail["message"]) == ("budget", budgets.SPENT)
    assert world.audit("budget.stop")[-1].detail == {"runs": 2, "ends_at": told[0].isoformat()}
    world.pass_time(minutes=1)
    assert follow(world) == (0, 0), "it is said once"
    with db.begin(world.engine, read_only=True) as session:
        found = allocations.deadlines(session, allocation_ids=[run.id])[run.id]
        assert (found.reason, found.message) == (EndReason.BUDGET, budgets.SPENT)
    world.pass_time(minutes=58, seconds=59)
    assert due(world) == []
    world.pass_time(seconds=1)
    assert sorted(due(world)) == sorted((one.attempt, EndReason.BUDGET, budgets.SPENT) for one in (run, starting))


def remove(world: World) -> None:
    with db.begin(world.engine) as session:
        lab = workspaces.by_name(session, name="lab")
        budgets.remove(session, workspace=lab, actor=ADMIN, now=world.now)


def next_month(world: World) -> None:
    """Its first second, in which nothing was spent yet."""
    world.now = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("change", "looked"),
    [
        pytest.param(lambda world: world.budget("lab", 100, STOP), 0, id="a larger budget"),
        pytest.param(lambda world: world.budget("lab", 1), 0, id="one that only refuses"),
        pytest.param(lambda world: world.budget("lab", 1, BudgetAction.WARN), 0, id="one that warns"),
        pytest.param(remove, 0, id="none"),
        pytest.param(next_month, 1, id="another month"),
    ],
)
def test_where_there_is_money_again_in_time_it_goes_on(world: World, change: Callable[[World], Any], looked: int):
    """`looked`: how many the next look spares; the others were spared when the budget was changed."""
    world.budget("lab", 1, STOP)
    run, left = world.run(server="spared", **FULL), world.run(server="ending", **FULL)
    world.pass_time(minutes=30)
    assert follow(world) == (2, 0)
    with db.begin(world.engine) as session:
        inventory.drain(session, name="host-1", grace=timedelta(days=99), actor=ADMIN, now=world.now)
        inventory.drain(session, name="host-2", grace=timedelta(days=99), actor=ADMIN, now=world.now)
    world.mark_ending(left.attempt, EndReason.BUDGET)
    world.budget("lab", 2, STOP)
    assert world.audit("budget.spare") == [], "a budget that is larger but spent spares nothing"
    change(world)
    assert len(world.audit("budget.spare")) == 1 - looked
    assert follow(world) == (0, looked)
    assert [key for key in deadlines(world) if key[0] == run.id] == [(run.id, EndReason.DRAINED)]
    assert (left.id, EndReason.BUDGET) in deadlines(world), "whose end has begun is not spared"
    assert world.audit("budget.spare")[-1].detail == {"runs": 1}
    told = world.read(select(Event).where(Event.kind == "environment.spared"))
    assert [(one.environment_id, one.user_id, one.detail["reason"]) for one in told] == [
        (run.environment_id, run.user_id, "budget")
    ]
    assert follow(world) == (0, 0)


def test_what_began_to_end_or_ended_since_the_look_is_left_alone(world: World):
    world.budget("lab", 0, BudgetAction.WARN)
    runs = [world.run(server=name, **FULL) for name in ("ending", "ended")]
    world.budget("lab", 0, STOP)
    with db.begin(world.engine, read_only=True) as session:
        found = budgets.plan(session, now=world.now)
    assert [sorted(one) for one in found.announce.values()] == [[run.id for run in runs]]
    world.mark_ending(runs[0].attempt)
    world.end(runs[1].attempt)
    with db.begin(world.engine) as session:
        (space,) = found.announce
        budgets.announce(session, workspace_id=space, allocation_ids=found.announce[space], now=world.now)
    assert deadlines(world) == {}
    assert world.audit("budget.stop") == []
