"""The ledger: canonical slices, the same whoever writes them and whenever."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError

from remotegpu_hub import db
from remotegpu_hub.domain import billing, metering, workspaces
from remotegpu_hub.orm import Allocation, MemberMonth
from remotegpu_hub.units import GIB, MICROS, charge, seconds_between

from ..worlds import A100, World

Row = tuple[str, str, str, int, int]


def at(clock: str, day: str = "2026-11-23") -> datetime:
    return datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=UTC)


def rows(world: World, resource: str = "cpu") -> list[tuple[str, str, int]]:
    """Start, end and amount of the records of one resource."""
    return [
        (f"{one.start:%d %H:%M:%S}", f"{one.end:%d %H:%M:%S}", one.amount)
        for one in world.records()
        if one.resource == resource
    ]


def run_at(world: World, clock: str, day: str = "2026-11-23", **wanted: object) -> Allocation:
    world.now = at(clock, day)
    return world.run(**wanted)


def see(world: World, run: Allocation, clock: str, day: str = "2026-11-23") -> None:
    world.now = at(clock, day)
    world.seen(run)


def end(world: World, run: Allocation, clock: str, day: str = "2026-11-23") -> None:
    world.now = at(clock, day)
    world.end(run.attempt)


def test_slices_are_cut_at_utc_hours_and_at_the_end_of_the_run(world: World):
    run = run_at(world, "10:15:10", cpu=2000)
    see(world, run, "12:00:00")
    world.meter()
    assert rows(world) == [("23 10:15:10", "23 11:00:00", 747222), ("23 11:00:00", "23 12:00:00", 1_000_000)]
    see(world, run, "12:30:00")
    assert world.meter() == 0, "the slice of this hour is not over"
    assert not world.allocation(run.attempt).metered
    end(world, run, "12:30:30")
    assert world.meter() == 2
    assert rows(world)[-1] == ("23 12:00:00", "23 12:30:30", charge("cpu", 2000 * 1830, MICROS // 2))
    assert world.allocation(run.attempt).metered
    assert world.meter() == 0
    world.check()


def test_nothing_is_written_that_was_not_seen_alive(world: World):
    run = run_at(world, "10:15:10")
    see(world, run, "10:59:59")
    world.now = at("15:00:00")
    assert world.meter() == 0
    see(world, run, "11:00:00")
    assert world.meter() == 2
    world.now = at("16:00:00")
    world.release(run.attempt)
    world.meter()
    assert rows(world) == [("23 10:15:10", "23 11:00:00", 373611)]


def test_a_new_price_cuts_every_resource_of_the_run_and_only_of_that_run(world: World):
    run = run_at(world, "10:00:00", gpus=1, cpu=4000, memory=GIB)
    plain = world.run("alice", cpu=4000)
    world.price(f"gpu:{A100}", 24, at=at("10:30:00"))
    world.price("cpu", 1, at=at("10:45:00"))
    world.price("gpu:H100", 99, at=at("10:50:00"))
    end(world, run, "11:00:00")
    world.end(plain.attempt)
    world.meter()
    gpu = [(f"{r.start:%H:%M}", r.unit_price, r.amount) for r in world.records() if r.resource == f"gpu:{A100}"]
    assert gpu == [
        ("10:00", 12 * MICROS, 6 * MICROS),
        ("10:30", 24 * MICROS, 6 * MICROS),
        ("10:45", 24 * MICROS, 6 * MICROS),
    ]
    mine = [(f"{r.start:%H:%M}", r.amount) for r in world.records() if r.resource == "cpu" and r.subject_id == run.id]
    assert mine == [("10:00", MICROS), ("10:30", MICROS // 2), ("10:45", MICROS)]
    other = [f"{r.start:%H:%M}" for r in world.records() if r.resource == "cpu" and r.subject_id == plain.id]
    assert other == ["10:00", "10:45"]
    world.check()


def test_a_price_change_of_a_resource_that_is_not_held_cuts_nothing_however_often_it_is_metered(world: World):
    world.now = at("10:00:00")
    world.price("gpu:H100", 99, at=at("10:30:00"))
    run = world.run()
    see(world, run, "10:30:00")
    assert world.meter() == 0
    see(world, run, "11:00:00")
    world.meter()
    assert rows(world) == [("23 10:00:00", "23 11:00:00", 500_000)]


@pytest.mark.parametrize(
    ("zone", "cut"),
    [("Asia/Shanghai", "30 16:00:00"), ("Asia/Kolkata", "30 18:30:00"), ("America/St_Johns", "01 03:30:00")],
    ids=["shanghai", "half-an-hour-east", "half-an-hour-west"],
)
def test_months_end_at_midnight_of_the_workspace(world: World, zone: str, cut: str):
    world.workspace("away", owner="bob", time_zone=zone)
    month_end = datetime.strptime(f"2026-{'11' if cut.startswith('30') else '12'}-{cut}", "%Y-%m-%d %H:%M:%S")
    world.now = month_end.replace(tzinfo=UTC) - timedelta(minutes=25)
    run = world.run("bob", "away", cpu=1000)
    world.now = month_end.replace(tzinfo=UTC) + timedelta(minutes=15)
    world.end(run.attempt)
    world.meter()
    found = rows(world)
    assert cut in {stop for _start, stop, _amount in found}
    assert dict(world.read(select(MemberMonth.month, MemberMonth.amount).order_by(MemberMonth.month))) == {
        "2026-11": sum(one.amount for one in world.records() if one.end <= month_end.replace(tzinfo=UTC)),
        "2026-12": sum(one.amount for one in world.records() if one.start >= month_end.replace(tzinfo=UTC)),
    }
    with db.begin(world.engine, read_only=True) as session:
        space = workspaces.by_name(session, name="away")
        totals = [
            billing.usage_of(session, workspace=space, month=f"2026-{n}", now=world.now).written for n in (11, 12)
        ]
    assert totals == [
        row[1] for row in world.read(select(MemberMonth.month, MemberMonth.amount).order_by(MemberMonth.month))
    ]
    world.check()


def test_metering_often_late_or_anew_writes_the_same_rows(world: World):
    """Three equal runs: one metered each few minutes, one once at the end, one again from its start."""
    world.now = at("09:58:30")
    often, late, anew = (world.run("bob", server=name, gpus=1, cpu=333, memory=3 * GIB + 7) for name in "abc")
    world.price("cpu", 0.7, at=at("10:20:10"))
    world.price("memory", 0.1, at=at("11:00:00"))
    while world.now < at("12:46:00"):
        world.pass_time(minutes=7)
        world.seen(often, late, anew)
        world.meter(often.id, anew.id)
    world.now = at("12:50:41")
    for run in (often, late, anew):
        world.end(run.attempt)
    world.meter(often.id, anew.id)
    count = len(world.records())
    with db.begin(world.engine) as session:
        again = update(Allocation).where(Allocation.id == anew.id)
        session.execute(again.values(metered_until=None, metered=False))
    assert world.meter(anew.id) == 0
    assert len(world.records()) == count
    world.pass_time(days=40)
    world.meter()
    ledgers: dict[int, list[tuple]] = {run.id: [] for run in (often, late, anew)}
    for one in world.records():
        ledgers[one.subject_id].append((one.resource, one.start, one.end, one.quantity, one.price_id, one.amount))
    assert ledgers[often.id] == ledgers[late.id] == ledgers[anew.id]
    seconds = seconds_between(at("09:58:30"), at("12:50:41"))
    sums = {
        name: sum(row[3] for row in ledgers[late.id] if row[0] == name) for name in (f"gpu:{A100}", "cpu", "memory")
    }
    assert sums == {f"gpu:{A100}": seconds, "cpu": 333 * seconds, "memory": (3 * GIB + 7) * seconds}
    world.check()


def test_the_running_part_is_computed_when_asked(world: World):
    run = run_at(world, "10:00:00", gpus=1, cpu=1000, memory=GIB)
    see(world, run, "11:00:00")
    world.meter()
    world.now = at("11:30:00")
    with db.begin(world.engine, read_only=True) as session:
        parts = metering.running(session, allocation=world.allocation(run.attempt), now=world.now)
        assert {(one.resource, one.amount) for one in parts} == {
            (f"gpu:{A100}", 6 * MICROS),
            ("cpu", MICROS // 4),
            ("memory", MICROS // 8),
        }
        month = billing.usage_of(session, workspace=workspaces.by_name(session, name="lab"), month=None, now=world.now)
    assert (month.month, month.currency, month.written, month.running) == (
        "2026-11",
        "USD",
        int(12.75 * MICROS),
        int(6.375 * MICROS),
    )
    assert month.by_user == {"bob": month.total}
    assert set(month.by_resource) == {f"gpu:{A100}", "cpu", "memory"}
    waiting = world.admit(server="waiting")
    with db.begin(world.engine, read_only=True) as session:
        assert metering.running(session, allocation=waiting, now=world.now) == []


def test_a_run_of_no_time_costs_nothing_and_is_done(world: World):
    run = world.run()
    world.end(run.attempt)
    assert world.meter() == 0
    assert world.allocation(run.attempt).metered


def test_runs_are_metered_in_batches(world: World):
    runs = [world.run(server=str(number)) for number in range(5)]
    with db.begin(world.engine, read_only=True) as session:
        first = metering.unmetered(session, after=0, limit=3)
        rest = metering.unmetered(session, after=first[-1], limit=3)
    assert first + rest == [run.id for run in runs]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE remotegpu_billing_records SET amount = amount + 1",
        "DELETE FROM remotegpu_billing_records",
        "UPDATE remotegpu_billing_records SET written_at = written_at",
    ],
    ids=["update", "delete", "update-of-nothing"],
)
def test_the_ledger_is_append_only_for_everybody(world: World, statement: str):
    end(world, run_at(world, "10:00:00"), "10:30:00")
    world.meter()
    before = [(one.id, one.amount) for one in world.records()]
    with pytest.raises(IntegrityError, match="append-only"), db.begin(world.engine) as session:
        session.execute(text(statement))
    assert [(one.id, one.amount) for one in world.records()] == before


def test_the_sums_of_a_month_are_those_of_its_records(world: World):
    for number in range(6):
        run = run_at(world, f"{number + 8:02}:{number * 9:02}:01", "2026-11-30", server=str(number), cpu=1234)
        end(world, run, f"{number * 3:02}:07:59", "2026-12-01")
    world.meter()
    months: dict[str, int] = {}
    for one in world.records():
        months[f"{one.start:%Y-%m}"] = months.get(f"{one.start:%Y-%m}", 0) + one.amount
    assert dict(world.read(select(MemberMonth.month, MemberMonth.amount))) == months
    world.check()


@pytest.mark.parametrize("most", [1, 2, 5, 7])
def test_short_transactions_write_the_same_rows(world: World, most: int):
    """However few slices one transaction takes, whole periods at a time, and then the next run."""
    first = run_at(world, "08:15:10", gpus=1, cpu=333, server="first")
    second = run_at(world, "09:00:00", server="second", cpu=500)
    end(world, first, "12:20:00")
    world.seen(second)
    left, written, rounds = [first.id, second.id], 0, 0
    while left:
        with db.begin(world.engine) as session:
            done = metering.meter(session, allocation_ids=left, now=world.now, most=most)
        assert done.written <= most + 2
        left, written, rounds = done.left, written + done.written, rounds + 1
    assert rounds > 2
    assert written == len(world.records()) == 3 * 5 + 2 * 3
    assert world.meter() == 0
    world.check()
