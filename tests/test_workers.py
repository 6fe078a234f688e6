"""The ticks: what the reconciler decides, who may tick, and that a tick never ends by an error."""

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine

from remotegpu_hub import workers
from remotegpu_hub.db import begin
from remotegpu_hub.domain.allocations import Snapshot
from remotegpu_hub.errors import Unavailable
from remotegpu_hub.observed import Part, Run, Server
from remotegpu_hub.orm import AllocationState, EndReason, TickLease
from remotegpu_hub.runtime import utcnow
from remotegpu_hub.workers import Fault, compare, end_lease, every, give_back, take_lease

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=1)
HUB_STARTED = NOW - timedelta(minutes=10)
GRACE = timedelta(minutes=3)
ALIVE = [Run(1, "1:1:a")]
READY = [Server("alice", "", ready=True, pending=False)]
PENDING = [Server("alice", "", ready=False, pending=True)]
STOPPED = [Server("alice", "", ready=False, pending=False)]


NAMES = {1: ("alice", "")}


def snapshot(
    state: AllocationState,
    *,
    admitted: datetime = LONG_AGO,
    started: datetime | None = None,
    seen: datetime | None = None,
    ending: datetime | None = None,
) -> Snapshot:
    return Snapshot(1, "attempt", state, "alice", "", admitted, started, seen, ending)


ADMITTED, ACTIVE, ENDING = AllocationState.ADMITTED, AllocationState.ACTIVE, AllocationState.ENDING
MINUTE_AGO = NOW - timedelta(minutes=1)


@pytest.mark.parametrize(
    ("run", "alive", "servers", "fault"),
    [
        pytest.param(snapshot(ACTIVE, started=LONG_AGO), ALIVE, READY, None, id="all is well"),
        pytest.param(snapshot(ACTIVE, started=LONG_AGO), [], READY, Fault.ENDED, id="it died, the hub has not seen it"),
        pytest.param(snapshot(ACTIVE, started=LONG_AGO), ALIVE, [], Fault.ORPHAN, id="the hub lost it"),
        pytest.param(snapshot(ACTIVE, started=LONG_AGO), ALIVE, STOPPED, Fault.ORPHAN, id="the hub thinks it stopped"),
        pytest.param(snapshot(ACTIVE, started=LONG_AGO), ALIVE, PENDING, None, id="the hub is stopping it"),
        pytest.param(snapshot(ACTIVE, started=LONG_AGO, seen=MINUTE_AGO), [], PENDING, None, id="the hub is at it"),
        pytest.param(
            snapshot(ACTIVE, started=LONG_AGO, seen=LONG_AGO),
            [],
            PENDING,
            Fault.ENDED,
            id="the hub is stuck in its stop",
        ),
        pytest.param(snapshot(ACTIVE, started=NOW), [], [], None, id="younger than the facts"),
        pytest.param(snapshot(ENDING, started=LONG_AGO), ALIVE, [], Fault.UNFINISHED, id="its end broke off"),
        pytest.param(snapshot(ENDING, started=LONG_AGO), [], [], Fault.UNFINISHED, id="gone and not given back"),
        pytest.param(
            snapshot(ENDING, started=LONG_AGO, ending=MINUTE_AGO), ALIVE, PENDING, None, id="its end is under way"
        ),
        pytest.param(
            snapshot(ENDING, started=LONG_AGO, ending=LONG_AGO), ALIVE, PENDING, Fault.UNFINISHED, id="its end is stuck"
        ),
        pytest.param(snapshot(ADMITTED), [], [], Fault.GHOST, id="begun by an earlier hub"),
        pytest.param(snapshot(ADMITTED), ALIVE, [], Fault.GHOST, id="forked, then the hub was killed"),
        pytest.param(snapshot(ADMITTED, admitted=MINUTE_AGO), [], PENDING, None, id="a slow start"),
        pytest.param(snapshot(ADMITTED), [], PENDING, Fault.GHOST, id="slower than any start can be"),
        pytest.param(snapshot(ADMITTED, admitted=MINUTE_AGO), [], [], None, id="this hub's, within the grace"),
        pytest.param(
            snapshot(ADMITTED, admitted=NOW - timedelta(minutes=4)), [], [], Fault.GHOST, id="this hub's, too old"
        ),
    ],
)
def test_the_reconciler_repairs_what_is_wrong_and_waits_where_it_may_not_be(
    run: Snapshot, alive: list[Run], servers: list[Server], fault: Fault | None
) -> None:
    repairs = compare(
        [run], alive, servers, names=NAMES, ended_ids=[], looked_at=NOW, hub_started=HUB_STARTED, start_grace=GRACE
    )
    assert [one.fault for one in repairs] == ([fault] if fault else [])


def test_a_run_whose_server_was_renamed_meanwhile_is_left_for_the_next_look() -> None:
    run = snapshot(ACTIVE, started=LONG_AGO)
    facts = {"ended_ids": [], "looked_at": NOW, "hub_started": HUB_STARTED, "start_grace": GRACE}
    assert compare([run], ALIVE, [], names={1: ("alice", "before")}, **facts) == []
    assert compare([run], ALIVE, [], names=NAMES, **facts) != []


def test_what_has_no_open_run_is_ended_if_ours_and_only_told_if_unknown() -> None:
    runs = [Run(7, "7:1:a"), Run(8, "8:1:a"), Run(9, "a pod that never began", alive=False)]
    repairs = compare(
        [], runs, [], names={}, ended_ids=[7, 9], looked_at=NOW, hub_started=HUB_STARTED, start_grace=GRACE
    )
    assert [(one.fault, one.allocation_id) for one in repairs] == [
        (Fault.LEAKED, 7), (Fault.UNKNOWN, 8), (Fault.LEAKED, 9),
    ]  # fmt: skip


def test_what_is_left_of_an_ended_run_is_removed_and_what_stands_for_nothing_only_told() -> None:
    parts = [
        Part("services/a", allocation_id=1), Part("services/b", allocation_id=7), Part("configmaps/b", allocation_id=7),
        Part("services/c", allocation_id=8), Part("claims/a", volume_id=1), Part("claims/b", volume_id=2),
        Part("services/odd"),
    ]  # fmt: skip
    repairs = compare(
        [snapshot(ACTIVE, started=LONG_AGO)], [*ALIVE, Run(8, "8:1:a")], READY, names=NAMES, ended_ids=[1, 7],
        looked_at=NOW, hub_started=HUB_STARTED, start_grace=GRACE, parts=parts, volume_ids=[1],
    )  # fmt: skip
    assert {(one.fault, str(one)) for one in repairs} == {
        (Fault.LEAKED, "run 7, services/b, configmaps/b"), (Fault.UNKNOWN, "run 8, services/c"),
        (Fault.UNKNOWN, "claims/b"), (Fault.UNKNOWN, "services/odd"),
    }  # fmt: skip


def test_a_pod_on_a_silent_node_goes_on_until_the_cluster_says_that_it_is_over() -> None:
    facts = {"names": NAMES, "ended_ids": [], "looked_at": NOW, "hub_started": HUB_STARTED, "start_grace": GRACE}
    run = snapshot(ACTIVE, started=LONG_AGO)
    assert compare([run], [Run(1, "uid", alive=False)], READY, **facts) == []
    (repair,) = compare(
        [run], [Run(1, "uid", alive=False, over=True, ended_at=NOW, reason="oom_killed", message="Too much.")], READY,
        **facts,
    )  # fmt: skip
    assert (repair.fault, repair.reason, repair.ended_at) == (Fault.ENDED, EndReason.OOM_KILLED, NOW)
    assert repair.message == "Too much."


def take(engine: Engine, holder: str, now: datetime, *, since: datetime | None = None) -> bool:
    return take_lease(engine, name="sync", holder=holder, seconds=60, not_since=since or now, now=now)


def test_one_holder_ticks_at_a_time_until_its_lease_ends_or_expires(engine: Engine) -> None:
    assert take(engine, "elsewhere 1:1:a", NOW)
    assert take(engine, "elsewhere 1:1:a", NOW + timedelta(seconds=1)), "renewed by its holder"
    assert not take(engine, "elsewhere 2:2:a", NOW + timedelta(seconds=30))
    assert take(engine, "elsewhere 2:2:a", NOW + timedelta(seconds=62)), "expired"
    end_lease(engine, name="sync", holder="elsewhere 2:2:a", now=NOW + timedelta(seconds=63))
    later = NOW + timedelta(seconds=70)
    assert not take(engine, "elsewhere 3:3:a", later, since=NOW + timedelta(seconds=60)), "done just now"
    assert take(engine, "elsewhere 3:3:a", later, since=later)


def test_who_ends_in_order_gives_back_what_is_its_own(engine: Engine) -> None:
    assert take(engine, "elsewhere 1:1:a", NOW)
    give_back(engine, holder="elsewhere 2:2:a", now=NOW + timedelta(seconds=1))
    assert not take(engine, "elsewhere 2:2:a", NOW + timedelta(seconds=1))
    give_back(engine, holder="elsewhere 1:1:a", now=NOW + timedelta(seconds=2))
    assert take(engine, "elsewhere 2:2:a", NOW + timedelta(seconds=2)), "at once, and it was not done"


def test_a_holder_of_this_machine_that_died_loses_its_lease_at_once(engine: Engine) -> None:
    machine = workers.holder().rpartition(" ")[0]
    assert take(engine, f"{machine} 999999999:1:dead", NOW)
    assert take(engine, workers.holder(), NOW + timedelta(seconds=1))
    assert not take(engine, f"{machine} 999999998:1:other", NOW + timedelta(seconds=2)), "we live"


async def test_a_tick_that_fails_is_tried_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "RETRY_SECONDS", 0.01)
    faults: list[Exception] = [Unavailable("The hub does not answer."), ValueError("a bug")]
    done = asyncio.Event()

    async def tick() -> None:
        if faults:
            raise faults.pop()
        done.set()

    runtime: Any = SimpleNamespace(engine=engine)
    task = asyncio.create_task(every(runtime, "test", 60, tick))
    await asyncio.wait_for(done.wait(), 10)
    task.cancel()
    assert faults == []


async def test_whoever_dies_in_a_tick_is_waited_for_as_long_as_its_lease(engine: Engine) -> None:
    until: list[datetime] = []
    done = asyncio.Event()

    async def tick() -> None:
        with begin(engine, read_only=True) as session:
            until.append(session.get_one(TickLease, "test").expires_at)
        done.set()

    runtime: Any = SimpleNamespace(engine=engine)
    before = utcnow()
    task = asyncio.create_task(every(runtime, "test", 60, tick, lease_seconds=3600))
    await asyncio.wait_for(done.wait(), 10)
    task.cancel()
    assert before + timedelta(seconds=3600) <= until[0] <= utcnow() + timedelta(seconds=3600)
