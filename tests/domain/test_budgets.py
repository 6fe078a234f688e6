from datetime import UTC, datetime, timedelta

import pytest

from remotegpu_hub import db
from remotegpu_hub.domain import billing, budgets, workspaces
from remotegpu_hub.domain.budgets import BudgetStatus
from remotegpu_hub.errors import BudgetExceeded, Invalid
from remotegpu_hub.orm import BudgetAction
from remotegpu_hub.units import GIB, MICROS, Money

from ..worlds import ADMIN, World


def status(world: World, name: str = "lab") -> BudgetStatus:
    with db.begin(world.engine, read_only=True) as session:
        space = workspaces.by_name(session, name=name)
        found = budgets.status_of(session, workspace=space, now=world.now)
        assert found is not None
        usage = billing.usage_of(session, workspace=space, month=None, now=world.now)
        assert abs(usage.total - found.spent) <= 6, "the page of the month and the budget tell the same"
        return found


def test_the_months_of_many_are_what_each_one_tells_of_itself(world: World):
    world.workspace("tokyo", owner="bob", time_zone="Asia/Tokyo")
    world.workspace("empty", owner="bob")
    for name in ("lab", "tokyo", "empty"):
        world.budget(name, 1000)
    world.now = datetime(2026, 11, 30, 13, 0, tzinfo=UTC)
    old = world.run("bob", "tokyo", server="before-the-month", **FULL)
    world.run("bob", "lab", server="runs", **FULL)
    world.pass_time(hours=2, minutes=7, seconds=13)
    world.seen(*world.open_runs())
    world.meter()
    world.pass_time(minutes=11)
    world.end(old.attempt)
    world.admit("bob", "lab", server="not yet", cpu=1000)
    with db.begin(world.engine, read_only=True) as session:
        spaces = [workspaces.by_name(session, name=name) for name in ("lab", "tokyo", "empty")]
        found = budgets.months(session, workspaces=spaces, now=world.now)
        assert budgets.months(session, workspaces=[], now=world.now) == {}
    told = {space.id: status(world, space.name) for space in spaces}
    assert {key: (one.spent, one.per_hour) for key, one in found.items()} == {
        key: (one.spent, one.per_hour) for key, one in told.items()
    }
    assert [bool(found[space.id].spent) for space in spaces] == [True, True, False]


FULL = {"gpus": 1, "cpu": 4000, "memory": 8 * GIB}
"""Costs 12 + 4 × 0.5 + 8 × 0.25 = 16 an hour."""


def test_a_budget_refuses_at_its_amount_with_the_running_part_included(world: World):
    world.budget("lab", 16)
    run = world.run(server="first", **FULL)
    world.pass_time(minutes=59, seconds=59)
    world.admit("bob", server="just-in-time")
    world.end(world.open_runs()[-1].attempt)
    world.pass_time(seconds=1)
    assert world.records() == []
    with pytest.raises(BudgetExceeded) as caught:
        world.admit("bob", server="late")
    assert caught.value.facts == {"workspace": "lab", "month": "2026-11", "spent": 16 * MICROS, "amount": 16 * MICROS}
    world.end(run.attempt)
    assert status(world).spent == 16 * MICROS, "ended and not metered yet is spent too"
    world.meter()
    assert status(world).spent == 16 * MICROS
    with pytest.raises(BudgetExceeded):
        world.admit("bob", server="late")


def test_what_was_admitted_and_never_ran_costs_nothing(world: World):
    world.budget("lab", 1)
    run = world.admit(**FULL)
    world.pass_time(hours=5)
    assert status(world).spent == 0
    world.release(run.attempt)
    world.meter()
    assert status(world).spent == 0


def test_a_ghost_is_charged_up_to_where_it_was_seen(world: World):
    world.budget("lab", 100)
    run = world.run(**FULL)
    world.pass_time(minutes=30)
    world.seen(run)
    world.pass_time(hours=3)
    world.release(run.attempt)
    assert status(world).spent == 8 * MICROS


@pytest.mark.parametrize(
    ("amount", "action", "wanted", "starts"),
    [
        (0, BudgetAction.REFUSE, {"gpus": 1}, False),
        (0, BudgetAction.STOP, {"gpus": 1}, False),
        (0, BudgetAction.WARN, {"gpus": 1}, True),
        (0.000001, BudgetAction.REFUSE, {"gpus": 1}, True),
    ],
    ids=["spent", "spent-stop", "warn", "one-millionth-left"],
)
def test_only_a_spent_budget_that_refuses_refuses(
    world: World, amount: float, action: BudgetAction, wanted: dict, starts: bool
):
    world.budget("lab", amount, action)
    if starts:
        world.admit(**wanted)
    else:
        with pytest.raises(BudgetExceeded, match="The budget of lab for 2026-11 is spent"):
            world.admit(**wanted)


def test_what_costs_nothing_starts_with_a_spent_budget(world: World):
    for resource in ("cpu", "memory"):
        world.price(resource, 0, at=world.now)
    world.budget("lab", 0)
    world.admit()


def test_a_budget_is_of_its_workspace_and_begins_anew_at_its_midnight(world: World):
    world.workspace("shanghai", owner="bob", time_zone="Asia/Shanghai")
    world.budget("shanghai", 16)
    world.now = datetime.fromisoformat("2026-11-30T15:30:00+00:00")
    run = world.run("bob", "shanghai", server="old", **FULL)
    world.pass_time(minutes=29, seconds=59)
    before = status(world, "shanghai")
    assert (before.month, before.spent) == ("2026-11", 16 * MICROS * 1799 // 3600)
    world.pass_time(minutes=15, seconds=1)
    after = status(world, "shanghai")
    assert (after.month, after.spent, after.per_hour) == ("2026-12", 4 * MICROS, 16 * MICROS), "November is not counted"
    assert after.month_end.isoformat() == "2026-12-31T16:00:00+00:00"
    world.admit("bob", "lab")
    world.end(run.attempt)
    world.meter()
    assert status(world, "shanghai").spent == 4 * MICROS


@pytest.mark.parametrize(
    ("amount", "per_hour", "more", "seconds"),
    [(100, 10, 0, 36000), (100, 0, 0, None), (100, 5, 5, 36000), (-5, 10, 0, 0), (100_000, 1, 0, None)],
    ids=["runs", "nothing-runs", "with-this", "over", "outlasts-the-month"],
)
def test_it_is_told_how_long_the_money_lasts(now: datetime, amount: int, per_hour: int, more: int, seconds: int | None):
    month_end = now + timedelta(days=7)
    month = BudgetStatus("lab", "2026-11", month_end, amount, 0, per_hour, 80, BudgetAction.REFUSE)
    wanted = None if seconds is None else now + timedelta(seconds=seconds)
    assert budgets.lasts_until(month, more_per_hour=more, now=now) == wanted


def test_setting_a_budget_is_checked_and_audited(world: World):
    world.budget("lab", 10)
    world.budget("lab", 20)
    assert world.audit("budget.put")[-1].detail == {
        "before": {"amount": 10 * MICROS},
        "after": {"amount": 20 * MICROS},
    }
    with db.begin(world.engine) as session:
        lab = workspaces.by_name(session, name="lab")
        for amount, percent in ((-1, 80), (1, 101), (1, -1)):
            with pytest.raises(Invalid):
                budgets.put(
                    session, workspace=lab, amount=Money(amount), warn_percent=percent, actor=ADMIN, now=world.now
                )
