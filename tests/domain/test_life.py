"""Random lives of many runs against a model of what must hold, whatever happens in whichever order."""

import itertools
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, func, select

from remotegpu_hub import db
from remotegpu_hub.errors import Abandoned, BudgetExceeded, Conflict, NoCapacity, QuotaExceeded
from remotegpu_hub.orm import (
    Allocation,
    AllocationState,
    BillingRecord,
    EndReason,
    QuotaScope,
    Role,
    User,
    Workspace,
)
from remotegpu_hub.units import GIB, seconds_between

from ..postgres import Postgres
from ..worlds import A100, World, host, without

USERS = ("alice", "bob", "dora")
SPACES = ("lab", "shanghai")
MACHINES = (host("host-1", 3, cpu_millis=8000), host("host-2", 2, cpu_millis=8000))
RESOURCES = ("gpu_millis", "cpu_millis", "memory_bytes", "environments")
NOTHING = dict.fromkeys(RESOURCES, 0)

limits = st.fixed_dictionaries(
    {},
    optional={
        "gpu_millis": st.integers(0, 4).map(lambda count: 1000 * count),
        "cpu_millis": st.integers(0, 12_000),
        "memory_bytes": st.integers(0, 6).map(lambda count: count * GIB),
        "environments": st.integers(0, 4),
    },
)


wishes = st.fixed_dictionaries(
    {
        "user": st.sampled_from(USERS),
        "workspace": st.sampled_from(SPACES),
        "server": st.sampled_from(["", "a"]),
        "gpus": st.integers(0, 3),
        "cpu": st.integers(1, 4000),
        "memory": st.integers(1, 3).map(lambda count: count * GIB),
        "ports": st.sampled_from([(), ("ssh",)]),
    }
)


class Lives(RuleBasedStateMachine):
    """A furnished world whose every quota starts ample. Subclasses say where its database comes from."""

    new_engine: "staticmethod[[], Engine]"
    names = itertools.count()

    @initialize(first=st.lists(wishes, min_size=2, max_size=4))
    def furnish(self, first: list[dict[str, Any]]) -> None:
        self.world = World(type(self).new_engine(), datetime(2026, 11, 30, 13, 17, 5, tzinfo=UTC)).furnish(hosts=0)
        self.world.user("dora")
        self.world.member("lab", "dora")
        self.world.workspace("shanghai", owner="alice", members=dict.fromkeys(("bob", "dora"), Role.MEMBER),
                             time_zone="Asia/Shanghai")  # fmt: skip
        self.world.see(*MACHINES)
        self.world.budget("lab", 400)
        self.quotas: dict[tuple[str, str], dict[str, int]] = {}
        self.hidden: set[str] = set()
        for wish in first:
            self.admit(wish)

    def teardown(self) -> None:
        """In the end everything is given back and everything is billed to the second."""
        if not hasattr(self, "world"):
            return
        for run in self.world.open_runs():
            self.world.release(run.attempt, EndReason.ORPHAN)
        self.world.meter()
        self.nothing_is_held_any_more()
        self.billed_seconds_are_active_seconds()
        self.world.engine.dispose()

    # what may happen

    @rule(wish=wishes)
    def admit(self, wish: dict[str, Any]) -> None:
        user, space, gpus = wish["user"], wish["workspace"], wish["gpus"]
        cpu, memory = wish["cpu"], wish["memory"]
        wanted = {"gpu_millis": 1000 * gpus, "cpu_millis": cpu, "memory_bytes": memory, "environments": 1}
        held = self.held()
        broken = {
            (level, name, resource)
            for (level, name), values in self.quotas.items()
            if name in (user, space, f"{user}@{space}")
            for resource, limit in values.items()
            if wanted[resource] and held.get((level, name), NOTHING)[resource] + wanted[resource] > limit
        }
        try:
            run = self.world.admit(**wish)
        except QuotaExceeded as refusal:
            named = {
                (one.scope, {"member": f"{user}@{space}"}.get(one.scope, one.name), one.resource)
                for one in refusal.breaches
            }
            shown = {"gpu_millis": "gpus", "cpu_millis": "cpu", "memory_bytes": "memory"}
            assert named == {(level, name, shown.get(resource, resource)) for level, name, resource in broken}
        except (Conflict, NoCapacity, BudgetExceeded):
            pass
        else:
            assert not broken
            uuids = {one.gpu.uuid for one in run.slots}
            assert len(uuids) == gpus
            assert not uuids & self.hidden
            self.active_or_not(run)

    def active_or_not(self, run: Allocation) -> None:
        """Most starts run soon, and some never do."""
        if run.id % 4:
            self.world.pass_time(seconds=run.id % 7)
            self.world.activate(run.attempt)

    @precondition(lambda self: self.open_in(AllocationState.ADMITTED))
    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        self.world.activate(data.draw(st.sampled_from(self.open_in(AllocationState.ADMITTED))).attempt)

    @precondition(lambda self: self.world.open_runs())
    @rule(data=st.data())
    def seen(self, data: st.DataObject) -> None:
        self.world.seen(*data.draw(st.lists(st.sampled_from(self.world.open_runs()), min_size=1)))

    @precondition(lambda self: self.world.open_runs())
    @rule(data=st.data(), reason=st.sampled_from(EndReason))
    def mark_ending(self, data: st.DataObject, reason: EndReason) -> None:
        run = data.draw(st.sampled_from(self.world.open_runs()))
        self.world.mark_ending(run.attempt, reason)
        with pytest.raises(Abandoned):
            self.world.activate(run.attempt)

    @precondition(lambda self: self.world.open_runs())
    @rule(data=st.data(), back=st.integers(-60, 4000))
    def release(self, data: st.DataObject, back: int) -> None:
        """Its end was seen, a while ago or, by a clock that is ahead, in the future."""
        run = data.draw(st.sampled_from(self.world.open_runs()))
        now = self.world.now
        ended_at = self.world.pass_time(seconds=-back)
        self.world.now = now
        self.world.release(run.attempt, EndReason.EXITED, ended_at=ended_at)
        self.world.release(run.attempt, EndReason.EXITED, ended_at=now)

    @precondition(lambda self: self.world.open_runs())
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """The hub died; the reconciler finds nothing running and knows no end."""
        for run in data.draw(st.lists(st.sampled_from(self.world.open_runs()), min_size=1, unique_by=lambda r: r.id)):
            self.world.mark_ending(run.attempt, EndReason.GHOST)
            self.world.release(run.attempt, EndReason.GHOST)

    @rule(attempt=st.uuids())
    def give_up_a_start(self, attempt: object) -> None:
        self.world.release(str(attempt))
        with pytest.raises(Abandoned):
            self.world.admit("alice", server=str(attempt)[:8], attempt=str(attempt))

    @rule(seconds=st.integers(1, 2 * 3600), unseen=st.sets(st.integers(0, 5), max_size=2))
    def tick(self, seconds: int, unseen: set[int]) -> None:
        """Time passes, most runs are seen alive, and the ledger is written: the second time nothing."""
        self.world.pass_time(seconds=seconds)
        self.world.seen(*(run for number, run in enumerate(self.world.open_runs()) if number not in unseen))
        self.world.meter()
        assert self.world.meter() == 0

    @rule(seconds=st.one_of(st.integers(1, 90), st.integers(90, 3 * 3600)))
    def pass_time(self, seconds: int) -> None:
        self.world.pass_time(seconds=seconds)

    @rule(
        resource=st.sampled_from([f"gpu:{A100}", "cpu", "memory"]), price=st.integers(0, 30), ahead=st.integers(0, 5000)
    )
    def change_price(self, resource: str, price: int, ahead: int) -> None:
        now = self.world.now
        at = self.world.pass_time(seconds=ahead)
        self.world.now = now
        with suppress(Conflict):
            self.world.price(resource, price / 7, at=at)

    @rule(level=st.sampled_from(["user", "workspace", "member"]), user=st.sampled_from(USERS),
          space=st.sampled_from(SPACES), values=limits)  # fmt: skip
    def change_quota(self, level: str, user: str, space: str, values: dict[str, int]) -> None:
        owners = {
            "user": {"user": user},
            "workspace": {"workspace": space},
            "member": {"user": user, "workspace": space},
        }
        name = {"user": user, "workspace": space, "member": f"{user}@{space}"}[level]
        if values:
            self.world.quota(QuotaScope(level), **owners[level], **values)
            self.quotas.setdefault((level, name), {}).update(values)

    @rule(hidden=st.sets(st.sampled_from([gpu.uuid for machine in MACHINES for gpu in machine.gpus])))
    def lose_gpus(self, hidden: set[str]) -> None:
        self.world.see(*(without(machine, *hidden) for machine in MACHINES))
        self.hidden = hidden

    @rule(online=st.sampled_from([0, 1, 2]))
    def lose_hosts(self, online: int) -> None:
        self.world.see(*(without(machine, *self.hidden) for machine in MACHINES[:online]), pool="local")

    # what must hold

    @invariant()
    def sums_are_sums(self) -> None:
        """Counters of hosts, one holder a slot, ports of open runs only, spend = Σ records."""
        if hasattr(self, "world"):
            self.world.check()

    def open_in(self, state: AllocationState) -> list[Allocation]:
        return [run for run in self.world.open_runs() if run.state == state]

    def held(self) -> dict[tuple[str, str], dict[str, int]]:
        """Held sums by level and name, counted one run at a time."""
        names = self.world.read(
            select(Allocation, User.name, Workspace.name)
            .join(User, User.id == Allocation.user_id)
            .join(Workspace, Workspace.id == Allocation.workspace_id)
            .where(Allocation.state != AllocationState.ENDED)
        )
        sums: dict[tuple[str, str], dict[str, int]] = {}
        for run, user, space in names:
            for key in (("user", user), ("workspace", space), ("member", f"{user}@{space}")):
                total = sums.setdefault(key, dict(NOTHING))
                for resource in RESOURCES:
                    total[resource] += 1 if resource == "environments" else getattr(run, resource)
        return sums

    def nothing_is_held_any_more(self) -> None:
        self.world.check()
        self.world.see(*MACHINES)
        for name, numbers in self.world.counters().items():
            assert set(numbers[1:]) == {0}, name

    def billed_seconds_are_active_seconds(self) -> None:
        billed: dict[tuple[int, str], int] = {}
        last_end: dict[tuple[int, str], datetime] = {}
        for row in self.world.records():
            key = (row.subject_id, row.resource)
            assert last_end.get(key, row.start) == row.start, "slices lie end to end"
            last_end[key] = row.end
            billed[key] = billed.get(key, 0) + row.quantity
        active: dict[tuple[int, str], int] = {}
        for run in self.world.read(select(Allocation)):
            assert run.metered
            seconds = seconds_between(run.started_at, run.ended_at) if run.started_at else 0
            if run.started_at and run.seen_at:
                assert run.started_at <= run.seen_at <= run.ended_at
            parts = {f"gpu:{run.gpu_model}": run.gpu_slots, "cpu": run.cpu_millis, "memory": run.memory_bytes}
            active |= {(run.id, name): seconds * amount for name, amount in parts.items() if seconds * amount}
        assert billed == active
        assert self.world.read(select(func.count()).select_from(BillingRecord)) == [len(self.world.records())]


def live(new_engine: object, *, examples: int, steps: int) -> None:
    kind = type("Lives", (Lives,), {"new_engine": staticmethod(new_engine)})  # type: ignore[arg-type]
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize(
    ("examples", "steps"),
    [pytest.param(3, 30, id="some"), pytest.param(150, 60, id="full", marks=pytest.mark.prove)],
)
def test_lives_on_sqlite(sqlite_template: Path, tmp_path: Path, examples: int, steps: int):
    def new_engine() -> Engine:
        folder = mkdtemp(dir=tmp_path)
        shutil.copy(sqlite_template, folder)
        return db.open_engine(f"sqlite:///{folder}/{sqlite_template.name}")

    live(new_engine, examples=examples, steps=steps)


@pytest.mark.prove
def test_lives_on_postgresql(postgres: Postgres):
    names: list[str] = []

    def new_engine() -> Engine:
        if names:
            postgres.drop_database(names.pop())
        names.append(postgres.create_database(template="remotegpu_template"))
        return db.open_engine(postgres.url(names[-1]))

    live(new_engine, examples=80, steps=50)
