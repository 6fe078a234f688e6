"""A busy hub's database, made by bulk inserts: hosts × 8 GPUs, 500 users in 50 workspaces, quotas with every limit set
on both levels, budgets, prices, a month of ended runs, and 1,000 environments that run.

Ids begin at another million in each table, so that a number found in a statement tells what it is.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, String, cast, func, insert, literal, select, text, update

from remotegpu_hub.domain import inventory
from remotegpu_hub.domain.environments import Wish
from remotegpu_hub.domain.quotas import Resources
from remotegpu_hub.orm import (
    PREFIX,
    Allocation,
    AllocationSlot,
    AllocationState,
    Budget,
    BudgetAction,
    EndReason,
    Environment,
    EnvironmentState,
    Gpu,
    GpuSlot,
    GpuStatus,
    Host,
    HostModel,
    HostStatus,
    Image,
    Member,
    MemberMonth,
    Price,
    Quota,
    QuotaModel,
    QuotaScope,
    Role,
    User,
    Workspace,
    WorkspaceKind,
)
from remotegpu_hub.units import GIB, MICROS, WHOLE_GPU, month_of

MODEL = "A100-80GB"
IMAGE = "local:jupyterlab"
GPUS_PER_HOST = 8
USERS, WORKSPACES = 500, 50
ENVIRONMENTS_PER_USER = 4
RUNNING_WITH_GPU = 200
ENDED_RUNS = 20_000

FIRST = {
    User: 1_000_001,
    Workspace: 2_000_001,
    Environment: 3_000_001,
    Host: 4_000_001,
    Gpu: 5_000_001,
    GpuSlot: 6_000_001,
    Allocation: 7_000_001,
    Quota: 8_000_001,
}
WANTED = Resources(MODEL, 1, WHOLE_GPU, 4000, 16 * GIB)
"""What each measured admission asks for."""
IDLE = Resources(None, 0, 0, 2000, 4 * GIB)
"""What a running environment without a GPU holds."""


NOW = datetime(2026, 11, 23, 4, 0, tzinfo=UTC)
"""The instant at which everything in the town happens."""


@dataclass(frozen=True)
class Start:
    """An environment that stands still and can be started."""

    user_id: int
    environment_id: int
    server_name: str
    wish: Wish


@dataclass
class Town:
    """What was built. `first_new_run` is the id of the first allocation made after the building."""

    hosts: int
    first_new_run: int


STILL = USERS * ENVIRONMENTS_PER_USER // 2
"""Each user's third and fourth environment stands still; the first and second run."""
STRIDE = 389
"""Prime to STILL, so that start number k for k = 0, 1, … visits every environment once, in no order."""


def start_number(number: int) -> Start:
    """The environment that is started as number k of a round; pgbench computes the same, see `PGBENCH_START`."""
    still = number * STRIDE % STILL
    return environment_number(still // 2 * 4 + 2 + still % 2)


def environment_number(number: int) -> Start:
    """Environment 0, 1, 2, … of the town: four for each user, in the user's two workspaces by turns."""
    user = number // ENVIRONMENTS_PER_USER
    place = (user + number % 2 * 7) % WORKSPACES
    wish = Wish(
        workspace_id=FIRST[Workspace] + place, workspace=f"space-{place}", time_zone="Asia/Shanghai", image_id=1,
        image_reference=IMAGE, image_digest=None, flavor=None, gpu_model=WANTED.gpu_model, gpu_slots=WANTED.gpu_slots,
        cpu_millis=WANTED.cpu_millis, memory_bytes=WANTED.memory_bytes, ports=(), display_name="Training",
    )  # fmt: skip
    return Start(FIRST[User] + user, FIRST[Environment] + number, str(number), wish)


PGBENCH_START = rf"""
\set still (:k * {STRIDE}) % {STILL}
\set number :still / 2 * 4 + 2 + :still % 2
\set user {FIRST[User]} + :number / {ENVIRONMENTS_PER_USER}
\set workspace {FIRST[Workspace]} + (:number / {ENVIRONMENTS_PER_USER} + :number % 2 * 7) % {WORKSPACES}
\set environment {FIRST[Environment]} + :number
"""
"""`start_number` in pgbench's own language: from :k to :user, :workspace, :environment and the server name :number."""


def build(engine: Engine, *, hosts: int, ended: int = ENDED_RUNS) -> Town:
    """Fill a database that has our tables and nothing in them."""
    environments = [environment_number(number) for number in range(USERS * ENVIRONMENTS_PER_USER)]
    busy = [one for number, one in enumerate(environments) if number % 4 < 2]
    random.Random(7).shuffle(busy)
    with engine.begin() as connection:
        _people(connection)
        _limits(connection)
        _hosts(connection, hosts)
        _environments(connection, environments)
        _history(connection, hosts, ended)
        first_new = _runs(connection, busy, hosts, min(RUNNING_WITH_GPU, hosts * GPUS_PER_HOST // 3), ended)
        _set_sequence(connection, Allocation, first_new)
    settle(engine)
    return Town(hosts, first_new)


def settle(engine: Engine) -> None:
    """Let the database clean up and count its rows, so that nothing of it falls into a measurement."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("VACUUM (ANALYZE)")
            connection.exec_driver_sql("CHECKPOINT")
        else:
            connection.exec_driver_sql("ANALYZE")


class Clock:
    """Brings a town back to how it was built, so that each round begins alike."""

    def __init__(self, engine: Engine, town: Town) -> None:
        self.engine, self.first_new_run = engine, town.first_new_run
        with engine.begin() as connection:
            for table in ("hosts", "host_models"):
                connection.exec_driver_sql(f"CREATE TABLE built_{table} AS SELECT * FROM {PREFIX}{table}")
            connection.exec_driver_sql("CREATE UNIQUE INDEX built_hosts_id ON built_hosts (id)")
            connection.exec_driver_sql("CREATE UNIQUE INDEX built_models_id ON built_host_models (host_id, model)")
            self.last_audit = connection.exec_driver_sql(
                f"SELECT coalesce(max(id), 0) FROM {PREFIX}audit_log"
            ).scalar_one()

    def turn_back(self) -> None:
        """Undo every admission since the building."""
        first = self.first_new_run
        columns = ["used_cpu_millis", "used_memory_bytes", "used_gpu_millis", "used_environments", "score"]
        old_host = ", ".join(f"{c} = (SELECT b.{c} FROM built_hosts b WHERE b.id = {PREFIX}hosts.id)" for c in columns)
        touched = f"SELECT host_id FROM {PREFIX}allocations WHERE id >= {first}"
        same = f"b.host_id = {PREFIX}host_models.host_id AND b.model = {PREFIX}host_models.model"
        with self.engine.begin() as connection:
            for statement in (
                f"UPDATE {PREFIX}hosts SET {old_host} WHERE id IN ({touched})",
                f"UPDATE {PREFIX}host_models SET used = (SELECT b.used FROM built_host_models b WHERE {same}) "
                f"WHERE host_id IN ({touched})",
                f"UPDATE {PREFIX}environments SET state = 'stopped' WHERE id IN "
                f"(SELECT environment_id FROM {PREFIX}allocations WHERE id >= {first})",
                f"DELETE FROM {PREFIX}allocation_slots WHERE allocation_id >= {first}",
                f"DELETE FROM {PREFIX}attempts",
                f"DELETE FROM {PREFIX}allocations WHERE id >= {first}",
                f"DELETE FROM {PREFIX}audit_log WHERE id > {self.last_audit}",
            ):
                connection.exec_driver_sql(statement)
        settle(self.engine)

    def admitted(self) -> tuple[int, int]:
        """Runs and slots that were admitted since the building."""
        with self.engine.connect() as connection:
            runs = select(func.count()).where(Allocation.id >= self.first_new_run)
            slots = select(func.count()).where(AllocationSlot.allocation_id >= self.first_new_run)
            return connection.scalar(runs) or 0, connection.scalar(slots) or 0


def fill(connection: Connection, table: Any, rows: Iterable[dict[str, Any]]) -> None:
    connection.execute(insert(table), list(rows))


def _set_sequence(connection: Connection, table: Any, first: int) -> None:
    name = table.__tablename__
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), {first}, false)")
    else:
        connection.execute(text("UPDATE sqlite_sequence SET seq = :last WHERE name = :name"),
                           {"last": first - 1, "name": name})  # fmt: skip


def _people(connection: Connection) -> None:
    user, workspace = FIRST[User], FIRST[Workspace]
    fill(connection, User, (
        {"id": user + number, "hub_user_id": 1 + number, "hub_created": "2026", "name": f"user-{number}",
         "created_at": NOW} for number in range(USERS)
    ))  # fmt: skip
    fill(connection, Workspace, (
        {"id": workspace + number, "name": f"space-{number}", "display_name": f"Space {number}",
         "kind": WorkspaceKind.TEAM, "owner_id": user + number, "time_zone": "Asia/Shanghai", "created_at": NOW}
        for number in range(WORKSPACES)
    ))  # fmt: skip
    fill(connection, Member, (
        {"workspace_id": workspace + place, "user_id": user + number, "role": Role.MEMBER, "created_at": NOW}
        for number in range(USERS) for place in (number % WORKSPACES, (number + 7) % WORKSPACES)
    ))  # fmt: skip


def _limits(connection: Connection) -> None:
    """Set quotas, budgets and prices; none refuses: what is measured is that all of them are looked at."""
    high = {"gpu_millis": 500_000, "cpu_millis": 10_000_000, "memory_bytes": 40_000 * GIB, "storage_bytes": 10**15,
            "environments": 1000, "gpu_hours": 10**6}  # fmt: skip
    owners: list[dict[str, Any]] = [
        {"scope": QuotaScope.USER_DEFAULT, "workspace_id": None, "user_id": None},
        {"scope": QuotaScope.WORKSPACE_DEFAULT, "workspace_id": None, "user_id": None},
        *({"scope": QuotaScope.WORKSPACE, "workspace_id": FIRST[Workspace] + n, "user_id": None}
          for n in range(WORKSPACES)),
        *({"scope": QuotaScope.USER, "workspace_id": None, "user_id": FIRST[User] + n} for n in range(0, USERS, 5)),
    ]  # fmt: skip
    fill(connection, Quota, ({"id": FIRST[Quota] + n, **owner, **high} for n, owner in enumerate(owners)))
    fill(connection, QuotaModel, (
        {"quota_id": FIRST[Quota] + 2 + n, "model": MODEL, "slots": 500} for n in range(WORKSPACES)
    ))  # fmt: skip
    fill(connection, Budget, (
        {"workspace_id": FIRST[Workspace] + n, "amount": 10**9 * MICROS, "action": BudgetAction.REFUSE}
        for n in range(WORKSPACES)
    ))  # fmt: skip
    fill(connection, MemberMonth, (
        {"workspace_id": FIRST[Workspace] + place, "month": month_of(NOW, "Asia/Shanghai"),
         "user_id": FIRST[User] + n, "amount": 123 * MICROS, "gpu_time": 10**8}
        for n in range(USERS) for place in (n % WORKSPACES, (n + 7) % WORKSPACES)
    ))  # fmt: skip
    fill(connection, Price, (
        {"resource": resource, "unit_price": price, "effective_from": NOW - timedelta(days=days)}
        for resource, price in ((f"gpu:{MODEL}", 12 * MICROS), ("cpu", MICROS // 2), ("memory", MICROS // 4))
        for days in (400, 60)
    ))  # fmt: skip
    connection.execute(insert(Image), {"id": 1, "reference": IMAGE, "display_name": "JupyterLab"})


def numbers(count: int) -> Any:
    """A column `n` that counts from 0, so that one statement makes all rows of a table."""
    first = select(literal(0).label("n")).cte("numbers", recursive=True)
    return first.union_all(select(first.c.n + 1).where(first.c.n + 1 < count)).c.n


def make(connection: Connection, table: Any, columns: dict[str, Any]) -> None:
    """INSERT … SELECT: values are SQL expressions, or constants of the column's type."""
    kinds = table.__table__.c
    values = [v if isinstance(v, ColumnElement) else literal(v, kinds[name].type) for name, v in columns.items()]
    connection.execute(insert(table).from_select(list(columns), select(*values)))


def _hosts(connection: Connection, count: int) -> None:
    n = numbers(count)
    make(connection, Host, {
        "id": FIRST[Host] + n, "name": "host-" + cast(n, String), "pool": "benchmark", "address": "192.0.2.1",
        "status": HostStatus.ONLINE, "simulated": True, "cpu_millis": 128_000, "memory_bytes": 1024 * GIB,
        "gpu_millis": GPUS_PER_HOST * WHOLE_GPU, "last_seen_at": NOW,
    })  # fmt: skip
    make(connection, HostModel, {
        "host_id": FIRST[Host] + n, "model": MODEL, "gpu_millis": WHOLE_GPU, "usable": GPUS_PER_HOST, "used": 0
    })  # fmt: skip
    n = numbers(count * GPUS_PER_HOST)
    host_id = FIRST[Host] + n // GPUS_PER_HOST
    make(connection, Gpu, {
        "id": FIRST[Gpu] + n, "host_id": host_id, "index": n % GPUS_PER_HOST, "uuid": "GPU-" + cast(n, String),
        "model": MODEL, "memory_mib": 81920, "status": GpuStatus.AVAILABLE,
    })  # fmt: skip
    make(connection, GpuSlot, {
        "id": FIRST[GpuSlot] + n, "gpu_id": FIRST[Gpu] + n, "host_id": host_id, "ordinal": 0, "model": MODEL,
        "gpu_millis": WHOLE_GPU,
    })  # fmt: skip


def _environments(connection: Connection, made: list[Start]) -> None:
    fill(connection, Environment, (
        {"id": one.environment_id, "user_id": one.user_id, "server_name": one.server_name,
         "display_name": one.wish.display_name, "workspace_id": one.wish.workspace_id, "image_id": 1,
         "gpu_model": WANTED.gpu_model, "gpu_slots": WANTED.gpu_slots, "cpu_millis": WANTED.cpu_millis,
         "memory_bytes": WANTED.memory_bytes, "ports": [], "state": EnvironmentState.STOPPED, "created_at": NOW}
        for one in made
    ))  # fmt: skip


def _run(number: int, start: Start, host: int, held: Resources, now: datetime) -> dict[str, Any]:
    return {
        "id": FIRST[Allocation] + number, "environment_id": start.environment_id, "attempt": f"built-{number}",
        "workspace_id": start.wish.workspace_id, "user_id": start.user_id, "host_id": FIRST[Host] + host,
        "gpu_model": held.gpu_model, "gpu_slots": held.gpu_slots, "gpu_millis": held.gpu_millis,
        "cpu_millis": held.cpu_millis, "memory_bytes": held.memory_bytes, "image_reference": IMAGE,
        "price_per_hour": 12 * MICROS, "prices": {"cpu": MICROS // 2, "memory": MICROS // 4},
        "requested_at": now, "admitted_at": now, "started_at": now, "seen_at": now,
    }  # fmt: skip


def _history(connection: Connection, hosts: int, ended: int) -> None:
    """Runs of this month that are over and metered, an hour each, of all environments in turn."""
    n = numbers(ended)
    began, over = NOW - timedelta(days=2, hours=1), NOW - timedelta(days=2)
    prototype = {
        "gpu_model": MODEL, "gpu_slots": 1, "gpu_millis": WHOLE_GPU, "cpu_millis": WANTED.cpu_millis,
        "memory_bytes": WANTED.memory_bytes, "image_reference": IMAGE, "price_per_hour": 12 * MICROS, "prices": {},
        "state": AllocationState.ENDED, "requested_at": began, "admitted_at": began, "started_at": began,
        "seen_at": over, "ended_at": over, "metered_until": over, "metered": True, "end_reason": EndReason.USER,
    }  # fmt: skip
    columns = Allocation.__table__.c
    made = {
        "id": FIRST[Allocation] + n, "attempt": "built-" + cast(n, String), "host_id": FIRST[Host] + n % hosts,
        "environment_id": Environment.id, "workspace_id": Environment.workspace_id, "user_id": Environment.user_id,
        **{name: literal(value, columns[name].type) for name, value in prototype.items()},
    }  # fmt: skip
    chosen = Environment.id == FIRST[Environment] + n % (USERS * ENVIRONMENTS_PER_USER)
    connection.execute(
        insert(Allocation).from_select(list(made), select(*made.values()).select_from(Environment).where(chosen))
    )


def _runs(connection: Connection, busy: list[Start], hosts: int, with_gpu: int, first: int) -> int:
    """Runs that go on, spread over the hosts; returns the id of the next allocation."""
    began = NOW - timedelta(minutes=30)
    held = [WANTED if number < with_gpu else IDLE for number in range(len(busy))]
    fill(connection, Allocation, (
        {**_run(first + number, start, number % hosts, held[number], began), "state": AllocationState.ACTIVE,
         "ended_at": None, "metered_until": None, "metered": False, "end_reason": None}
        for number, start in enumerate(busy)
    ))  # fmt: skip
    fill(connection, AllocationSlot, (
        {"allocation_id": FIRST[Allocation] + first + number, "open": True,
         "slot_id": FIRST[GpuSlot] + (number % hosts) * GPUS_PER_HOST + number // hosts}
        for number in range(with_gpu)
    ))  # fmt: skip
    running = [one.environment_id for one in busy]
    connection.execute(update(Environment).where(Environment.id.in_(running)).values(state=EnvironmentState.RUNNING))
    _add_up(connection)
    return FIRST[Allocation] + first + len(busy)


def _add_up(connection: Connection) -> None:
    """Write what hosts hold, as `inventory.recount` does for one host."""
    here = (Allocation.host_id == Host.id) & (Allocation.state != AllocationState.ENDED)
    busy = select(Allocation.host_id).where(Allocation.state != AllocationState.ENDED)

    def total(column: Any) -> Any:
        return select(func.coalesce(func.sum(column), 0)).where(here).scalar_subquery()

    connection.execute(
        update(Host).where(Host.id.in_(busy)).values(
            used_cpu_millis=total(Allocation.cpu_millis),
            used_memory_bytes=total(Allocation.memory_bytes),
            used_gpu_millis=total(Allocation.gpu_millis),
            used_environments=select(func.count()).select_from(Allocation).where(here).scalar_subquery(),
        )
    )  # fmt: skip
    connection.execute(update(Host).values(score=inventory.score(0, 0, 0)))
    slots = select(func.coalesce(func.sum(Allocation.gpu_slots), 0)).where(
        Allocation.host_id == HostModel.host_id, Allocation.state != AllocationState.ENDED
    )
    connection.execute(update(HostModel).where(HostModel.host_id.in_(busy)).values(used=slots.scalar_subquery()))
