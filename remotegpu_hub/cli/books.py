"""What `remotegpu doctor` reads inside the database: is all priced and limited, do the sums agree, which GPUs are
out. Everything is recounted and nothing is written."""

from collections import Counter, defaultdict
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from .. import plain, words
from ..domain import inventory, metering, prices
from ..orm import (
    Allocation,
    AllocationSlot,
    AllocationState,
    BillingRecord,
    Gpu,
    GpuSlot,
    Host,
    HostModel,
    HostStatus,
    MemberMonth,
    PortMapping,
    Quota,
    QuotaScope,
    SubjectKind,
    User,
    Workspace,
)
from ..units import GPU_HOUR, month_of
from .findings import Findings, ok, problem, some, warn

SQLITE_USERS = 50
"""Beyond this many users SQLite's one writer is felt."""
UNSEEN = timedelta(minutes=3)


def check_all(session: Session, now: datetime) -> Findings:
    """All checks of one snapshot of the database."""
    if session.get_bind().dialect.name == "postgresql":
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    yield from check_size(session)
    yield from check_prices(session, now)
    yield from check_quotas(session)
    yield from check_hosts(session, now)
    yield from check_gpus(session)
    yield from check_counters(session)
    yield from check_leftovers(session)
    yield from check_months(session)


def check_size(session: Session) -> Findings:
    """Whether the database's kind suits the number of users."""
    count = session.scalar(select(func.count()).select_from(User).where(User.deleted_at.is_(None))) or 0
    if session.get_bind().dialect.name == "sqlite" and count > SQLITE_USERS:
        yield warn("users", f"{count} users are many for SQLite: move to PostgreSQL 15 or newer.")


def check_prices(session: Session, now: datetime) -> Findings:
    """Whether everything that can be held has a price: nothing runs unpriced."""
    in_force = prices.at(session, now=now)
    held = {"cpu", "memory", *(f"gpu:{model}" for model in inventory.known_models(session))}
    missing = sorted(held - in_force.keys())
    if missing:
        yield problem("prices", f"no price for {some(missing)}: set one with `remotegpu prices set`.")
    else:
        yield ok("prices", f"everything that can be held has one, in {prices.currency(session)}.")


def check_quotas(session: Session) -> Findings:
    """Whether both default quotas exist: without them everything that is not written is 0."""
    found = set(session.scalars(select(Quota.scope).distinct()))
    for scope, level in ((QuotaScope.USER_DEFAULT, "user"), (QuotaScope.WORKSPACE_DEFAULT, "workspace")):
        if scope not in found:
            yield warn(
                "quotas",
                f"no default quota of a {level}: a {level} without a quota of its own may hold nothing. Set it with "
                f"`remotegpu quotas set --default {level} …`.",
            )
    if {QuotaScope.USER_DEFAULT, QuotaScope.WORKSPACE_DEFAULT} <= found:
        yield ok("quotas", "both defaults exist.")


def check_hosts(session: Session, now: datetime) -> Findings:
    """Whether there are hosts, and somebody looks at them."""
    hosts = inventory.hosts(session)
    if not hosts:
        yield warn("hosts", "none was seen yet: they appear once the hub runs.")
        return
    unseen = [host.name for host in hosts if host.status == HostStatus.ONLINE and host.last_seen_at < now - UNSEEN]
    out = [f"{host.name} ({host.status.value})" for host in hosts if host.status != HostStatus.ONLINE]
    if unseen:
        yield warn("hosts", f"{some(unseen)} online, but not looked at for 3 minutes: does the hub run?")
    if out:
        yield warn("hosts", f"{some(out)}: nothing new starts there.")
    if not unseen and not out:
        yield ok("hosts", f"{len(hosts)} online and seen.")


def check_gpus(session: Session) -> Findings:
    """Which GPUs are not given out, and why."""
    faults: dict[str, list[str]] = defaultdict(list)
    count = 0
    for gpu, host in session.execute(
        select(Gpu, Host.name).join(Host, Host.id == Gpu.host_id).order_by(Host.name, Gpu.index)
    ):
        count += 1
        faults[plain.condition(gpu)].append(f"{host}:{gpu.index}")
    healthy = faults.pop("available", [])
    if names := faults.pop("error", None):
        yield problem("gpus", f"in error: {some(names)}. The driver's log (`dmesg`) says why; a reset may help.")
    for state, names in sorted(faults.items()):
        yield warn("gpus", f"{state}, so not given out: {some(names)}.")
    if count and len(healthy) == count:
        yield ok("gpus", f"all {count} can be given out.")


def check_counters(session: Session) -> Findings:
    """Whether what hosts count as used is the sum of what open runs hold. The next sync of a host repairs it."""
    sums = {
        host_id: tuple(int(value) for value in values)
        for host_id, *values in session.execute(
            select(
                Allocation.host_id,
                func.sum(Allocation.cpu_millis),
                func.sum(Allocation.memory_bytes),
                func.sum(Allocation.gpu_millis),
                func.count(),
            )
            .where(Allocation.state != AllocationState.ENDED)
            .group_by(Allocation.host_id)
        )
    }
    wrong = []
    names = {}
    for host in inventory.hosts(session):
        names[host.id] = host.name
        counted = (host.used_cpu_millis, host.used_memory_bytes, host.used_gpu_millis, host.used_environments)
        if counted != sums.get(host.id, (0, 0, 0, 0)):
            wrong.append(host.name)
    held = {
        (host_id, model): int(count)
        for host_id, model, count in session.execute(
            select(GpuSlot.host_id, GpuSlot.model, func.count())
            .join(AllocationSlot, (AllocationSlot.slot_id == GpuSlot.id) & AllocationSlot.open)
            .group_by(GpuSlot.host_id, GpuSlot.model)
        )
    }
    rows = session.execute(select(HostModel.host_id, HostModel.model, HostModel.used)).all()
    used = {(host_id, model): count for host_id, model, count in rows if count}
    wrong += [f"{names[key[0]]} ({key[1]})" for key in held.keys() | used.keys() if held.get(key) != used.get(key)]
    if wrong:
        yield problem("counters", f"what is counted as used is not what open runs hold: {some(sorted(wrong))}. The hub "
                      "recounts a host at its next look at it.")  # fmt: skip
    else:
        yield ok("counters", "what hosts count as used is what open runs hold.")


def check_leftovers(session: Session) -> Findings:
    """Whether ended runs still hold a slot or a port."""
    for what, table in (("GPU", AllocationSlot), ("port", PortMapping)):
        left = session.scalars(
            select(table.allocation_id)
            .join(Allocation, Allocation.id == table.allocation_id)
            .where(table.open, Allocation.state == AllocationState.ENDED)
            .distinct()
        ).all()
        if left:
            runs = some([str(one) for one in sorted(left)])
            yield problem("runs", f"ended, but still hold a {what}: {runs}. The audit log says how they ended.")


def check_months(session: Session) -> Findings:
    """Whether the sums of each workspace's months are those of its records."""
    zones = {
        row_id: (name, zone) for row_id, name, zone in session.execute(
            select(Workspace.id, Workspace.name, Workspace.time_zone)
        )
    }  # fmt: skip
    months: Counter[tuple[int, str, int, str]] = Counter()
    kept: Counter[tuple[int, str, int, str]] = Counter()
    records = (
        select(BillingRecord, Allocation)
        .join(Allocation, Allocation.id == BillingRecord.subject_id)
        .where(BillingRecord.subject_kind == SubjectKind.ALLOCATION)
        .execution_options(yield_per=1000)
    )
    for one, run in session.execute(records):
        key = one.workspace_id, month_of(one.start, zones[one.workspace_id][1]), one.user_id
        months[*key, "amount"] += one.amount
        months[*key, "gpu_time"] += metering.gpu_time(run, one)
    for row in session.scalars(select(MemberMonth)):
        kept[row.workspace_id, row.month, row.user_id, "amount"] += row.amount
        kept[row.workspace_id, row.month, row.user_id, "gpu_time"] += row.gpu_time
    totals: Counter[tuple[int, str]] = Counter()
    for sums, sign in ((months, 1), (kept, -1)):
        for (workspace_id, _month, _user_id, what), value in sums.items():
            totals[workspace_id, what] += sign * value
    currency = prices.currency(session)
    for (workspace_id, what), difference in sorted(totals.items()):
        if difference:
            shown = words.money(abs(difference), currency, "en")
            if what == "gpu_time":
                shown = f"{abs(difference) / GPU_HOUR:.2f} GPU hours"
            more = "less" if difference > 0 else "more"
            yield problem("months", f"{zones[workspace_id][0]}: the months add up to {shown} {more} than its records.")
    shifted = {key[0] for key in months.keys() | kept.keys() if months[key] != kept[key] and not totals[key[0], key[3]]}
    if shifted:
        names = some(sorted(zones[one][0] for one in shifted))
        yield warn("months", f"{names}: records and months are cut differently: was the time zone changed?")
    if not any(totals.values()) and not shifted:
        yield ok("months", "the months of every workspace are the sums of its records.")
