"""Small worlds to test and measure in: users, workspaces, quotas, prices, hosts × GPUs, built by the street's own verbs.

    world = World(engine, now).furnish()
    run = world.run("bob", gpus=2)

Everything a `World` returns was committed and is detached; its methods take names and open their own transactions.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from threading import Barrier
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import joinedload, selectinload

from remotegpu_hub import observed
from remotegpu_hub.db import begin
from remotegpu_hub.domain import (
    allocations,
    budgets,
    catalog,
    environments,
    inventory,
    metering,
    prices,
    quotas,
    users,
    workspaces,
)
from remotegpu_hub.domain.audit import Actor
from remotegpu_hub.domain.environments import Choice, Rules, Wish
from remotegpu_hub.errors import RemoteGPUError
from remotegpu_hub.orm import (
    Allocation,
    AllocationSlot,
    AllocationState,
    AuditEntry,
    BillingRecord,
    BudgetAction,
    EndReason,
    GpuSlot,
    Host,
    HostModel,
    QuotaScope,
    RecordKind,
    Role,
    User,
    Workspace,
)
from remotegpu_hub.units import GIB, MICROS, UNLIMITED, WHOLE_GPU, Money

from . import sums

A100 = "A100-80GB"
ADMIN = Actor("admin", request_id="r-1", address="192.0.2.7")
IMAGE = "local:python"
HOST_CPU_MILLIS = 64_000
HOST_MEMORY_BYTES = 512 * GIB
AMPLE: dict[str, int | None] = dict.fromkeys(
    ("gpu_millis", "cpu_millis", "memory_bytes", "storage_bytes", "environments", "gpu_hours"), UNLIMITED
)
"""A quota that never refuses."""


def gpus(
    count: int, *, model: str = A100, prefix: str = "GPU", shares: int = 1, memory_mib: int = 81920
) -> tuple[observed.Gpu, ...]:
    """Observed devices `GPU-0`, `GPU-1`, …, each whole or cut in equal shares."""
    name = model if shares == 1 else f"{model}/{shares}"
    slots = tuple(observed.Slot(name, WHOLE_GPU // shares) for _ in range(shares))
    return tuple(observed.Gpu(index, f"{prefix}-{index}", model, memory_mib, slots=slots) for index in range(count))


def host(name: str = "host-1", gpu_count: int = 8, **columns: Any) -> observed.Host:
    """An observed machine; `columns` are those of `observed.Host`."""
    wanted: dict[str, Any] = {
        "pool": "local",
        "cpu_millis": HOST_CPU_MILLIS,
        "memory_bytes": HOST_MEMORY_BYTES,
        "gpus": gpus(gpu_count, prefix=f"{name}-GPU"),
        **columns,
    }
    return observed.Host(name=name, **wanted)


def without(machine: observed.Host, *uuids: str) -> observed.Host:
    """The machine as seen after some of its GPUs disappeared."""
    return replace(machine, gpus=tuple(gpu for gpu in machine.gpus if gpu.uuid not in uuids))


def at_once(count: int, work: Callable[[int], Any], *, threads: int | None = None) -> list[Any]:
    """Run `work(0)` … `work(count - 1)` in threads that begin together; an error of our tree is a result too."""
    barrier = Barrier(threads or count)

    def one(number: int) -> Any:
        if number < barrier.parties:
            barrier.wait(60)
        try:
            return work(number)
        except RemoteGPUError as error:
            return error

    with ThreadPoolExecutor(threads or count) as pool:
        return list(pool.map(one, range(count)))


@dataclass(frozen=True)
class Prepared:
    """A start that only has to be admitted."""

    user: User
    server: str
    wish: Wish


@dataclass
class World:
    """A database with its clock. `now` is the instant at which the next verb is called."""

    engine: Engine
    now: datetime
    rules: Rules = field(
        default_factory=lambda: Rules(port_ranges={"ssh": range(22000, 22100), "tensorboard": range(26000, 26100)})
    )
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    # what exists

    def furnish(self, *, hosts: int = 2, gpus_each: int = 8) -> "World":
        """The usual small world: `lab` with its owner alice, the member bob and the viewer carol, ample quotas, prices
        from two months ago, one image, and hosts `host-1`, … with eight A100 each."""
        for name in ("alice", "bob", "carol"):
            self.user(name)
        self.workspace("lab", owner="alice", members={"bob": Role.MEMBER, "carol": Role.VIEWER})
        self.quota(QuotaScope.USER_DEFAULT)
        self.quota(QuotaScope.WORKSPACE_DEFAULT)
        self.price(f"gpu:{A100}", 12)
        self.price("cpu", 0.5)
        self.price("memory", 0.25)
        self.image()
        if hosts:
            self.see(*(host(f"host-{number}", gpus_each) for number in range(1, hosts + 1)))
        return self

    def pass_time(self, **duration: float) -> datetime:
        """Let the clock run."""
        self.now += timedelta(**duration)
        return self.now

    def number(self) -> int:
        """A number that this world gave to nobody else."""
        return next(self._numbers)

    def user(self, name: str, *, hub_user_id: int | None = None, created: str = "2026-01-01") -> User:
        with begin(self.engine) as session:
            seen = observed.HubUser(hub_user_id or self.number(), name, created)
            return users.ensure(session, hub_user=seen, now=self.now)

    def workspace(self, name: str, *, owner: str, members: dict[str, Role] | None = None, **columns: Any) -> Workspace:
        with begin(self.engine) as session:
            made = workspaces.create(
                session,
                name=name,
                display_name=columns.pop("display_name", name),
                owner=users.by_name(session, name=owner),
                actor=ADMIN,
                now=self.now,
                **columns,
            )
            for member, role in (members or {}).items():
                user = users.by_name(session, name=member)
                workspaces.put_member(session, workspace=made, user=user, role=role, actor=ADMIN, now=self.now)
            return made

    def crowd(self, count: int, *, workspace: str | None = None) -> None:
        """Users `user-0`, …: members of one workspace, or each with a workspace `space-0`, … of its own."""
        with begin(self.engine) as session:
            shared = workspaces.by_name(session, name=workspace) if workspace else None
            for number in range(count):
                seen = observed.HubUser(self.number(), f"user-{number}", "2026-01-01")
                user = users.ensure(session, hub_user=seen, now=self.now)
                facts: dict[str, Any] = {"actor": ADMIN, "now": self.now}
                if shared is not None:
                    workspaces.put_member(session, workspace=shared, user=user, role=Role.MEMBER, **facts)
                else:
                    name = f"space-{number}"
                    workspaces.create(session, name=name, display_name=name, owner=user, **facts)

    def member(self, workspace: str, user: str, role: Role = Role.MEMBER, **columns: Any) -> None:
        with begin(self.engine) as session:
            workspaces.put_member(
                session,
                workspace=workspaces.by_name(session, name=workspace),
                user=users.by_name(session, name=user),
                role=role,
                actor=ADMIN,
                now=self.now,
                **columns,
            )

    def remove(self, workspace: str, user: str) -> None:
        with begin(self.engine) as session:
            workspaces.remove_member(
                session,
                workspace=workspaces.by_name(session, name=workspace),
                user=users.by_name(session, name=user),
                actor=ADMIN,
                now=self.now,
            )

    def quota(
        self,
        scope: QuotaScope,
        *,
        workspace: str | None = None,
        user: str | None = None,
        models: dict[str, int | None] | None = None,
        **values: int | None,
    ) -> None:
        """Set limits of one scope; without any value everything in it becomes unlimited."""
        with begin(self.engine) as session:
            quotas.put(
                session,
                scope=scope,
                workspace=workspaces.by_name(session, name=workspace) if workspace else None,
                user=users.by_name(session, name=user) if user else None,
                values=values if values or models else AMPLE,
                models=models,
                actor=ADMIN,
                now=self.now,
            )

    def price(self, resource: str, amount: float, *, at: datetime | None = None) -> None:
        """Set a price in the hub's currency, by default from sixty days ago on."""
        with begin(self.engine) as session:
            prices.put(
                session,
                resource=resource,
                unit_price=Money(round(amount * MICROS)),
                effective_from=at or self.now - timedelta(days=60),
                actor=ADMIN,
                now=self.now,
            )

    def budget(self, workspace: str, amount: float, action: BudgetAction = BudgetAction.REFUSE) -> None:
        with begin(self.engine) as session:
            budgets.put(
                session,
                workspace=workspaces.by_name(session, name=workspace),
                amount=Money(round(amount * MICROS)),
                actor=ADMIN,
                now=self.now,
                action=action,
            )

    def image(self, reference: str = IMAGE, **columns: Any) -> None:
        with begin(self.engine) as session:
            catalog.put_image(
                session, reference=reference, display_name=reference, actor=ADMIN, now=self.now, **columns
            )

    def see(self, *machines: observed.Host, pool: str | None = None) -> None:
        """Sync the inventory with these machines."""
        with begin(self.engine) as session:
            inventory.sync(session, hosts=machines, now=self.now)
            if pool:
                inventory.miss(session, pool=pool, seen=[one.name for one in machines], now=self.now)

    # the life of a run

    def resolve(self, user: str, choice: Choice, *, server: str = "") -> Wish:
        with begin(self.engine, read_only=True) as session:
            row = users.by_name(session, name=user)
            kept = environments.find(session, user_id=row.id, server_name=server)
            return environments.resolve(
                session, user=row, server_name=server, choice=choice, rules=self.rules, kept=kept
            )

    def choice(
        self,
        workspace: str = "lab",
        *,
        gpus: int = 0,
        model: str = A100,
        cpu: int = 1000,
        memory: int = GIB,
        ports: Sequence[str] = (),
        image: str = IMAGE,
    ) -> Choice:
        return Choice(
            workspace=workspace,
            image=image,
            gpu_model=model if gpus else None,
            gpus=gpus,
            cpu_millis=cpu,
            memory_bytes=memory,
            ports=tuple(ports),
        )

    def prepare(self, user: str = "bob", workspace: str = "lab", *, server: str = "", **wanted: Any) -> Prepared:
        """Resolve a start, so that `start` measures, or races, nothing but the admission."""
        wish = self.resolve(user, self.choice(workspace, **wanted), server=server)
        with begin(self.engine, read_only=True) as session:
            return Prepared(users.by_name(session, name=user), server, wish)

    def start(
        self, prepared: Prepared, *, attempt: str | None = None, busy_ports: Collection[int] = frozenset()
    ) -> Allocation:
        """Admit in a transaction of its own."""
        with begin(self.engine) as session:
            return allocations.admit(
                session,
                user=prepared.user,
                server_name=prepared.server,
                wish=prepared.wish,
                attempt=attempt or f"attempt-{self.number()}",
                rules=self.rules,
                actor=Actor(prepared.user.name),
                now=self.now,
                busy_ports=busy_ports,
            )

    def admit(
        self,
        user: str = "bob",
        workspace: str = "lab",
        *,
        attempt: str | None = None,
        busy_ports: Collection[int] = frozenset(),
        **wanted: Any,
    ) -> Allocation:
        """Resolve and admit; `wanted` are those of `prepare`. The answer has its slots and ports."""
        started = self.start(self.prepare(user, workspace, **wanted), attempt=attempt, busy_ports=busy_ports)
        return self.allocation(started.attempt)

    def activate(self, attempt: str, *, mark: str = "1:1") -> Allocation:
        with begin(self.engine) as session:
            return allocations.activate(session, attempt=attempt, mark=mark, now=self.now)

    def run(self, user: str = "bob", workspace: str = "lab", **wanted: Any) -> Allocation:
        """Admit and activate at this instant."""
        return self.activate(self.admit(user, workspace, **wanted).attempt)

    def seen(self, *runs: Allocation) -> None:
        with begin(self.engine) as session:
            allocations.seen(session, allocation_ids=[run.id for run in runs], at=self.now)

    def mark_ending(self, attempt: str, reason: EndReason = EndReason.USER) -> Allocation | None:
        with begin(self.engine) as session:
            return allocations.mark_ending(session, attempt=attempt, reason=reason, actor=ADMIN, now=self.now)

    def release(
        self, attempt: str, reason: EndReason = EndReason.USER, *, ended_at: datetime | None = None
    ) -> Allocation | None:
        with begin(self.engine) as session:
            return allocations.release(
                session, attempt=attempt, reason=reason, actor=ADMIN, now=self.now, ended_at=ended_at
            )

    def end(self, attempt: str) -> Allocation | None:
        """Release a run whose end is seen at this instant."""
        return self.release(attempt, ended_at=self.now)

    def meter(self, *allocation_ids: int) -> int:
        """Meter these runs, or all that may have something to write."""
        with begin(self.engine) as session:
            chosen = list(allocation_ids) or metering.unmetered(session, after=0, limit=10_000)
            return metering.meter(session, allocation_ids=chosen, now=self.now).written

    # what the database says

    def read(self, query: Any) -> list[Any]:
        """All rows of a query; of one column, its values."""
        with begin(self.engine, read_only=True) as session:
            rows = session.execute(query).all()
            return [row[0] if len(row) == 1 else tuple(row) for row in rows]

    def allocation(self, attempt: str) -> Allocation:
        query = select(Allocation).where(Allocation.attempt == attempt)
        query = query.options(
            selectinload(Allocation.slots).joinedload(AllocationSlot.slot).joinedload(GpuSlot.gpu),
            selectinload(Allocation.ports),
            joinedload(Allocation.environment),
            joinedload(Allocation.host),
        )
        found: Allocation = self.read(query)[0]
        return found

    def open_runs(self) -> list[Allocation]:
        query = select(Allocation).where(Allocation.state != AllocationState.ENDED).order_by(Allocation.id)
        return self.read(query.options(selectinload(Allocation.slots)))

    def records(self) -> list[BillingRecord]:
        query = select(BillingRecord).where(BillingRecord.kind == RecordKind.USAGE)
        return self.read(query.order_by(BillingRecord.subject_id, BillingRecord.start, BillingRecord.resource))

    def audit(self, action: str | None = None) -> list[AuditEntry]:
        query = select(AuditEntry).order_by(AuditEntry.id)
        return self.read(query.where(AuditEntry.action == action) if action else query)

    def counters(self) -> dict[str, tuple[int, ...]]:
        """What each host, and each model of each host, says that it has and holds."""
        with begin(self.engine, read_only=True) as session:
            result: dict[str, tuple[int, ...]] = {}
            for row in session.scalars(select(Host)):
                result[row.name] = (
                    row.gpu_millis,
                    row.used_cpu_millis,
                    row.used_memory_bytes,
                    row.used_gpu_millis,
                    row.used_environments,
                    round(row.score * 1e9),
                )
            models = select(Host.name, HostModel).join(Host, Host.id == HostModel.host_id)
            for name, model in session.execute(models):
                result[f"{name} {model.model}"] = (model.usable, model.used)
            return result

    def recount(self) -> None:
        """One host in a transaction: an inventory that goes on meanwhile locks them in an order of its own."""
        with begin(self.engine, read_only=True) as session:
            hosts = session.scalars(select(Host.id)).all()
        for host_id in hosts:
            with begin(self.engine) as session:
                inventory.recount(session, host_id=host_id)

    def check(self) -> None:
        """Assert that every derived number is the sum that it stands for, and that nothing is held twice or lost."""
        before = self.counters()
        self.recount()
        assert self.counters() == before
        with begin(self.engine, read_only=True) as session:
            sums.check(session)
