"""Hosts and GPUs as they were observed, and who holds each slot. Reality may shrink below what is held."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import case, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, selectinload

from ..errors import Conflict, NotFound
from ..observed import COUNTED
from ..observed import Gpu as ObservedGpu
from ..observed import Host as ObservedHost
from ..orm import (
    ENDED,
    Allocation,
    AllocationSlot,
    AllocationState,
    Deadline,
    EndReason,
    Environment,
    Gpu,
    GpuSlot,
    GpuStatus,
    Host,
    HostModel,
    HostStatus,
    User,
    locked,
)
from . import events
from .audit import SYSTEM, Actor, record


@dataclass(frozen=True)
class ModelStock:
    """Slots of one model over all hosts that are online."""

    model: str
    memory_mib: int
    gpu_millis: int
    usable: int
    free: int
    hosts_free: int
    simulated: bool


@dataclass(frozen=True)
class SlotHolder:
    """A slot and, where one is open, the allocation and user that hold it."""

    gpu: Gpu
    host: Host
    slot: GpuSlot
    allocation_id: int | None
    user: str | None


@dataclass(frozen=True)
class Drained:
    """A host that was taken out, until when what runs there may go on, and how many runs that are."""

    host: Host
    ends_at: datetime
    runs: int


DRAINED: Final = "Its host was taken out of work by an admin."
"""What the user of a run reads that a drain ends."""


def hosts(session: Session) -> list[Host]:
    return list(session.scalars(select(Host).order_by(Host.name)))


def holders(session: Session, *, host: str | None = None, gpu_ids: Collection[int] | None = None) -> list[SlotHolder]:
    """Every slot in use or usable with its holder, in the order of hosts and devices; of a host, of some GPUs, or of
    all."""
    query = (
        select(Gpu, Host, GpuSlot, AllocationSlot.allocation_id, User.name)
        .join(Host, Host.id == Gpu.host_id)
        .join(GpuSlot, GpuSlot.gpu_id == Gpu.id)
        .outerjoin(AllocationSlot, (AllocationSlot.slot_id == GpuSlot.id) & AllocationSlot.open)
        .outerjoin(Allocation, Allocation.id == AllocationSlot.allocation_id)
        .outerjoin(User, User.id == Allocation.user_id)
        .where(~GpuSlot.retired | AllocationSlot.allocation_id.is_not(None))
        .order_by(Host.name, Gpu.index, GpuSlot.ordinal)
    )
    if host is not None:
        query = query.where(Host.name == host)
    if gpu_ids is not None:
        query = query.where(Gpu.id.in_(gpu_ids))
    return [SlotHolder(*row) for row in session.execute(query).tuples()]


def stock(session: Session) -> list[ModelStock]:
    """Count what is usable and free of each model on hosts that are online. A model of which only holders of an older
    split are left is not offered any more."""
    free = case((HostModel.used < HostModel.usable, HostModel.usable - HostModel.used), else_=0)
    counts = session.execute(
        select(
            HostModel.model,
            func.sum(HostModel.usable),
            func.sum(free),
            func.sum(case((free > 0, 1), else_=0)),
            func.max(case((Host.simulated, 1), else_=0)),
        )
        .join(Host, Host.id == HostModel.host_id)
        .where(Host.status == HostStatus.ONLINE, HostModel.usable > 0)
        .group_by(HostModel.model)
        .order_by(HostModel.model)
    ).all()
    sizes = {
        model: (memory, millis)
        for model, memory, millis in session.execute(
            select(GpuSlot.model, func.max(Gpu.memory_mib), func.max(GpuSlot.gpu_millis))
            .join(Gpu, Gpu.id == GpuSlot.gpu_id)
            .where(~GpuSlot.retired)
            .group_by(GpuSlot.model)
        )
    }
    result = []
    for model, usable, free_slots, hosts_free, simulated in counts:
        if model not in sizes:
            continue
        memory, millis = sizes[model]
        result.append(
            ModelStock(
                model, memory * millis // 1000, millis, int(usable), int(free_slots), int(hosts_free), bool(simulated)
            )
        )
    return result


def known_models(session: Session) -> set[str]:
    """Models of which some host has, or had, a slot."""
    return set(session.scalars(select(HostModel.model).distinct()))


def sync(session: Session, *, hosts: Iterable[ObservedHost], now: datetime) -> None:
    """Bring hosts and their GPUs to what was observed."""
    for observed in sorted(hosts, key=lambda one: one.name):
        _sync_host(session, observed, now)


def seen(session: Session, *, names: Collection[str], now: datetime) -> None:
    """Note that these hosts are there as they were."""
    here = (Host.name.in_(names), Host.status != HostStatus.OFFLINE)
    session.execute(locked(select(Host.id).where(*here).order_by(Host.name)))  # in everybody's order
    session.execute(update(Host).where(*here).values(last_seen_at=now).execution_options(synchronize_session=False))


def differing(session: Session, *, online: Mapping[str, bool]) -> set[str]:
    """Those of these hosts that are kept as something else than they are: an admin may have set one online that is not,
    or another process have written what it had seen before."""
    kept = session.execute(select(Host.name, Host.status).where(Host.status != HostStatus.MAINTENANCE)).tuples()
    return {name for name, status in kept if name in online and online[name] != (status == HostStatus.ONLINE)}


def miss(session: Session, *, pool: str | None, seen: Collection[str], now: datetime) -> None:
    """Take hosts offline that were not seen when all were listed, of one pool or of all. They keep what they hold until
    their runs are confirmed gone."""
    gone = select(Host).where(Host.status == HostStatus.ONLINE, Host.name.not_in(seen)).order_by(Host.name)
    for host in session.scalars(gone if pool is None else gone.where(Host.pool == pool)):
        _set_status(session, host, HostStatus.OFFLINE, actor=SYSTEM, now=now)


def _sync_host(session: Session, observed: ObservedHost, now: datetime) -> None:
    host = session.scalar(locked(select(Host).where(Host.name == observed.name)))
    facts: dict[str, Any] = {
        "pool": observed.pool,
        "address": observed.address,
        "simulated": observed.simulated,
        "cpu_millis": observed.cpu_millis,
        "memory_bytes": observed.memory_bytes,
        "foreign_cpu_millis": observed.foreign_cpu_millis,
        "foreign_memory_bytes": observed.foreign_memory_bytes,
        "labels": dict(observed.labels),
    }
    if host is None:
        host = Host(name=observed.name, status=HostStatus.ONLINE, last_seen_at=now, **facts)
        session.add(host)
        session.flush()
        record(session, actor=SYSTEM, action="host.found", entity="host", entity_id=host.id, now=now, name=host.name)
    else:
        for name, value in facts.items():
            setattr(host, name, value)
    wanted = HostStatus.ONLINE if observed.online else HostStatus.OFFLINE
    if host.status not in (HostStatus.MAINTENANCE, wanted):
        _set_status(session, host, wanted, actor=SYSTEM, now=now)
    if observed.online:
        host.last_seen_at = now
    _sync_gpus(session, host, observed.gpus)
    session.flush()
    recount(session, host_id=host.id)


def _sync_gpus(session: Session, host: Host, observed: Iterable[ObservedGpu]) -> None:
    known = {
        gpu.uuid: gpu
        for gpu in session.scalars(select(Gpu).where(Gpu.host_id == host.id).options(selectinload(Gpu.slots)))
    }
    seen = set()
    for device in observed:
        seen.add(device.uuid)
        gpu = known.get(device.uuid)
        if gpu is None:
            gpu = Gpu(host_id=host.id, uuid=device.uuid, index=device.index, model=device.model,
                      memory_mib=device.memory_mib, slots=[])  # fmt: skip
            session.add(gpu)
            session.flush()
        gpu.index, gpu.model, gpu.memory_mib = device.index, device.model, device.memory_mib
        gpu.foreign, gpu.missing = device.foreign, False
        if gpu.status != GpuStatus.MAINTENANCE:  # which only an admin ends
            gpu.status = GpuStatus.AVAILABLE if device.healthy else GpuStatus.ERROR
        _sync_slots(gpu, host, device)
    for uuid, gpu in known.items():
        if uuid not in seen:
            gpu.missing = True
    session.flush()


def _sync_slots(gpu: Gpu, host: Host, device: ObservedGpu) -> None:
    """A GPU is whole or split; slots of an older split are retired, and stay held until released."""
    wanted = {(slot.model, ordinal): slot for ordinal, slot in enumerate(device.slots)}
    known = {(slot.model, slot.ordinal): slot for slot in gpu.slots}
    for key, slot in known.items():
        slot.retired = key not in wanted
    for (model, ordinal), observed in wanted.items():
        if (model, ordinal) not in known:
            gpu.slots.append(GpuSlot(host_id=host.id, model=model, ordinal=ordinal, gpu_millis=observed.gpu_millis))


def recount(session: Session, *, host_id: int) -> None:
    """Rewrite everything that is derived of a host: usable slots, what is held, the score.

    A slot that is held counts as usable though its GPU was taken out meanwhile: else it would be missing twice, and a
    healthy free one would be given to nobody. Not so where a device plugin only counts: which device a run holds there
    nobody knows, so what is out of work is taken from what may be free.

    The row lock on the host keeps admissions out, so the sums cannot be overtaken.
    """
    host = session.scalars(locked(select(Host).where(Host.id == host_id))).one()
    _mark_usable(session, host_id)
    kept = AllocationSlot.slot_id.is_not(None) & ~Gpu.uuid.contains(COUNTED)
    usable = {
        model: (count, millis)
        for model, count, millis in session.execute(
            select(GpuSlot.model, func.count(), func.sum(GpuSlot.gpu_millis))
            .join(Gpu, Gpu.id == GpuSlot.gpu_id)
            .outerjoin(AllocationSlot, (AllocationSlot.slot_id == GpuSlot.id) & AllocationSlot.open)
            .where(GpuSlot.host_id == host_id, GpuSlot.usable | kept)
            .group_by(GpuSlot.model)
        )
    }
    held = session.execute(
        select(GpuSlot.model, func.count())
        .join(AllocationSlot, (AllocationSlot.slot_id == GpuSlot.id) & AllocationSlot.open)
        .where(GpuSlot.host_id == host_id)
        .group_by(GpuSlot.model)
    )
    used: dict[str, int] = dict(held.tuples().all())
    rows = {row.model: row for row in session.scalars(select(HostModel).where(HostModel.host_id == host_id))}
    sizes = select(GpuSlot.model, func.max(GpuSlot.gpu_millis)).where(GpuSlot.host_id == host_id)
    for model, slot_millis in session.execute(sizes.group_by(GpuSlot.model)).all():
        row = rows.get(model)
        if row is None:
            row = HostModel(host_id=host_id, model=model, gpu_millis=slot_millis)
            session.add(row)
        row.usable = usable.get(model, (0, 0))[0]
        row.used = used.get(model, 0)
    session.flush()
    gpu_millis = sum(int(millis) for _count, millis in usable.values())
    cpu, memory, gpu, environments = session.execute(
        select(
            func.coalesce(func.sum(Allocation.cpu_millis), 0),
            func.coalesce(func.sum(Allocation.memory_bytes), 0),
            func.coalesce(func.sum(Allocation.gpu_millis), 0),
            func.count(),
        ).where(Allocation.host_id == host_id, Allocation.state != ENDED)
    ).one()
    session.execute(
        update(Host)
        .where(Host.id == host_id)
        .values(
            gpu_millis=gpu_millis,
            used_cpu_millis=int(cpu),
            used_memory_bytes=int(memory),
            used_gpu_millis=int(gpu),
            used_environments=environments,
        )
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(Host).where(Host.id == host_id).values(score=score(0, 0, 0)).execution_options(synchronize_session=False)
    )
    session.refresh(host)


def _mark_usable(session: Session, host_id: int) -> None:
    """A slot is usable while its GPU is available, present and free of strangers, and nothing of another split of
    the same GPU is still held."""
    slots = session.execute(
        select(GpuSlot, Gpu, AllocationSlot.allocation_id)
        .join(Gpu, Gpu.id == GpuSlot.gpu_id)
        .outerjoin(AllocationSlot, (AllocationSlot.slot_id == GpuSlot.id) & AllocationSlot.open)
        .where(GpuSlot.host_id == host_id)
    ).all()
    blocked = {gpu.id for slot, gpu, holder in slots if slot.retired and holder is not None}
    for slot, gpu, _holder in slots:
        slot.usable = (
            not slot.retired
            and gpu.status == GpuStatus.AVAILABLE
            and not gpu.foreign
            and not gpu.missing
            and gpu.id not in blocked
        )
    session.flush()


def score(cpu: Any, memory: Any, gpu: Any) -> Any:
    """The SQL of a host's score after adding these amounts: 0.4·cpu + 0.4·memory + 0.2·gpu of what is used."""

    def part(used: Any, more: Any, capacity: Any) -> Any:
        return case((capacity > 0, (used + more) * 1.0 / func.nullif(capacity, 0)), else_=0.0)

    return (
        0.4 * part(Host.used_cpu_millis, cpu, Host.cpu_millis)
        + 0.4 * part(Host.used_memory_bytes, memory, Host.memory_bytes)
        + 0.2 * part(Host.used_gpu_millis, gpu, Host.gpu_millis)
    )


def host_by_name(session: Session, *, name: str) -> Host:
    """Find a host. Raises: NotFound."""
    host: Host | None = session.scalar(locked(select(Host).where(Host.name == name)))
    if host is None:
        raise NotFound(f"The host {name}")
    return host


def set_host_status(session: Session, *, name: str, status: HostStatus, actor: Actor, now: datetime) -> Host:
    """Put a host into maintenance or back online; what runs there goes on, also what was to end by a drain, where its
    end has not begun. Raises: NotFound."""
    host = host_by_name(session, name=name)
    online = status == HostStatus.ONLINE
    spared = events.spare(session, _lives_on(host), reason=EndReason.DRAINED, now=now) if online else 0
    _set_status(session, host, status, actor=actor, now=now, **({"spared": spared} if spared else {}))
    return host


def drain(session: Session, *, name: str, grace: timedelta, actor: Actor, now: datetime) -> Drained:
    """Take a host out and let what runs there end after a while; of two drains the later one counts. Raises: NotFound.

    The lock on the host is the one that admissions take: who came before it has a run that is found here, who comes
    after it finds the host closed.
    """
    host = host_by_name(session, name=name)
    if host.status != HostStatus.MAINTENANCE:
        _set_status(session, host, HostStatus.MAINTENANCE, actor=actor, now=now)
    ends_at = now + grace
    runs = select(
        Allocation.id,
        literal(EndReason.DRAINED, Deadline.reason.type),
        literal(ends_at, Deadline.at.type),
        literal(DRAINED, Deadline.message.type),
    ).where(_lives_on(host))
    insert_on: Any = (postgresql if session.get_bind().dialect.name == "postgresql" else sqlite).insert
    given = insert_on(Deadline).from_select(["allocation_id", "reason", "at", "message"], runs)
    session.execute(
        given.on_conflict_do_update(index_elements=["allocation_id", "reason"], set_={"at": given.excluded.at})
    )
    on_it = select(Environment).join(Allocation, Allocation.environment_id == Environment.id).where(_lives_on(host))
    ending = session.scalars(on_it.order_by(Environment.id)).all()
    for one in ending:
        events.of_deadline(session, one, at=ends_at, reason=EndReason.DRAINED.value, message=DRAINED, now=now)
    record(session, actor=actor, action="host.drain", entity="host", entity_id=host.id, now=now, name=host.name,
           grace_seconds=int(grace.total_seconds()), runs=len(ending))  # fmt: skip
    return Drained(host, ends_at, len(ending))


def _lives_on(host: Host) -> Any:
    return (Allocation.host_id == host.id) & Allocation.state.in_([AllocationState.ADMITTED, AllocationState.ACTIVE])


def _set_status(
    session: Session, host: Host, status: HostStatus, *, actor: Actor, now: datetime, **detail: Any
) -> None:
    before = host.status
    host.status = status
    session.flush()
    record(
        session,
        actor=actor,
        action="host.status",
        entity="host",
        entity_id=host.id,
        now=now,
        before={"status": before},
        after={"status": status},
        name=host.name,
        **detail,
    )


def set_gpu_status(
    session: Session, *, uuid: str, status: GpuStatus, actor: Actor, now: datetime, host: str | None = None
) -> Gpu:
    """Take a GPU out for maintenance, or give it back; who holds it keeps it. A device plugin's GPUs have no names of
    their own: there each host has one of the same, and `host` says which is meant.

    Raises: NotFound; Conflict when several hosts have it.
    """
    query = select(Gpu).where(Gpu.uuid == uuid)
    if host is not None:
        query = query.join(Host, Host.id == Gpu.host_id).where(Host.name == host)
    found = list(session.scalars(query.limit(2)))
    if not found:
        raise NotFound(f"The GPU {uuid}")
    if len(found) > 1:
        raise Conflict("More than one host has a GPU {uuid}. Name it by its host and number.", uuid=uuid)
    gpu = found[0]
    session.scalars(locked(select(Host).where(Host.id == gpu.host_id))).one()
    before = gpu.status
    gpu.status = status
    session.flush()
    recount(session, host_id=gpu.host_id)
    record(
        session,
        actor=actor,
        action="gpu.status",
        entity="gpu",
        entity_id=gpu.id,
        now=now,
        before={"status": before},
        after={"status": status},
        uuid=uuid,
    )
    return gpu
