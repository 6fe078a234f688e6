"""What members used by day: the same sums as the ledger's, cut at the midnights of the workspace's zone."""

from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import func, select

from remotegpu_hub import db
from remotegpu_hub.domain import billing, workspaces
from remotegpu_hub.domain.billing import Days
from remotegpu_hub.orm import MemberMonth, Role

from ..worlds import World


def by_day(world: World, month: str | None = None, name: str = "lab") -> Days:
    with db.begin(world.engine, read_only=True) as session:
        space = workspaces.by_name(session, name=name)
        found = billing.by_day(session, workspace=space, month=month, now=world.now)
        whole = billing.usage_of(session, workspace=space, month=month, now=world.now)
        assert {one.user: sum(one.amounts) for one in found.members} == whole.by_user
        return found


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("UTC", {"2026-11-22": 2, "2026-11-23": 20}),
        ("Asia/Shanghai", {"2026-11-23": 18, "2026-11-24": 4}),
        ("America/New_York", {"2026-11-22": 7, "2026-11-23": 15}),
    ],
)
def test_hours_fall_on_the_days_of_the_workspaces_zone(world: World, zone: str, expected: dict[str, int]):
    world.workspace("afar", owner="alice", members={"bob": Role.MEMBER}, time_zone=zone)
    world.now = datetime(2026, 11, 22, 22, tzinfo=UTC)
    run = world.run("bob", "afar", gpus=2)
    world.pass_time(hours=12)
    world.seen(run)
    world.meter()
    world.pass_time(hours=10)  # not written yet
    found = by_day(world, name="afar")
    (bob,) = found.members
    hours = {str(day): time / 3_600_000 / 2 for day, time in zip(found.days, bob.gpu_times, strict=True) if time}
    assert hours == expected
    assert all((amount > 0) == (time > 0) for amount, time in zip(bob.amounts, bob.gpu_times, strict=True))


def test_a_month_shows_everybody_who_used_something_and_sums_to_what_quotas_count(world: World):
    runs = [world.run("alice", gpus=1), world.run("bob", cpu=4000)]
    world.pass_time(hours=30)
    world.seen(*runs)
    world.end(runs[0].attempt)
    world.pass_time(hours=2)
    world.meter()
    found = by_day(world)
    assert [one.user for one in found.members] == ["alice", "bob"], "the most expensive first"
    assert len(found.days) == world.now.day
    counted = world.read(select(func.sum(MemberMonth.gpu_time)).where(MemberMonth.month == "2026-11"))
    assert counted == [sum(found.members[0].gpu_times)] == [30 * 3_600_000]


def test_a_day_of_twenty_five_hours_and_months_before_and_after(world: World):
    world.workspace("afar", owner="alice", time_zone="America/New_York")
    world.now = datetime(2026, 11, 1, 4, tzinfo=UTC)  # midnight there; clocks go back in two hours
    run = world.run("alice", "afar", gpus=1)
    world.pass_time(hours=25)
    world.seen(run)
    world.end(run.attempt)
    world.meter()
    world.pass_time(days=40)
    found = by_day(world, "2026-11", "afar")
    assert len(found.days) == 30
    assert found.members[0].gpu_times == (25 * 3_600_000, *[0] * 29)
    assert by_day(world, "2026-10", "afar").members == ()
    assert by_day(world, "2027-03", "afar").days == ()
    assert by_day(world, name="afar").days[-1] == (world.now - timedelta(hours=5)).date() != date(2026, 11, 30)
