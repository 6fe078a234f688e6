"""Which host a run goes to. A policy orders hosts by a stored key; a guarded UPDATE takes what is needed, so that
two who choose the same host at once can never hold more than it has."""

from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import bindparam, case, func, select, text, update
from sqlalchemy.orm import Session

from ..errors import HostReason, NoCapacity
from ..orm import Host, HostModel, HostStatus
from ..units import GIB, show_thousandths
from .inventory import score
from .quotas import Resources

FEW = 16
"""How many of the best hosts are read at once."""
ATTEMPTS = 4
"""How often the best few are read anew when others were faster at all of them."""
EXPLAINED = 8


@dataclass(frozen=True)
class Spot:
    """The host that took a wish, and why it was that one."""

    host_id: int
    host: str
    policy: str


class Policy:
    """The order in which hosts are tried. `name` is how the configuration calls it."""

    name: ClassVar[str]

    def order(self) -> Any:
        raise NotImplementedError


class LeastLoaded(Policy):
    """Lowest 0.4·cpu + 0.4·memory + 0.2·gpu of what is used first."""

    name = "least-loaded"

    def order(self) -> Any:
        return Host.score.asc()


class Pack(Policy):
    """Fullest host that still fits first: keeps whole hosts free for those who need many GPUs."""

    name = "pack"

    def order(self) -> Any:
        return Host.score.desc()


class Spread(Policy):
    """Fewest running environments first, however large they are."""

    name = "spread"

    def order(self) -> Any:
        return Host.used_environments.asc()


POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (LeastLoaded, Pack, Spread)}

_fits = (
    (Host.status == HostStatus.ONLINE)
    & (Host.used_cpu_millis + bindparam("cpu") <= Host.cpu_millis - Host.foreign_cpu_millis)
    & (Host.used_memory_bytes + bindparam("memory") <= Host.memory_bytes - Host.foreign_memory_bytes)
)
_slots_fit = (HostModel.model == bindparam("wanted_model")) & (HostModel.used + bindparam("slots") <= HostModel.usable)
_take_host = (
    update(Host)
    .values(
        used_cpu_millis=Host.used_cpu_millis + bindparam("cpu"),
        used_memory_bytes=Host.used_memory_bytes + bindparam("memory"),
        used_gpu_millis=Host.used_gpu_millis + bindparam("gpu"),
        used_environments=Host.used_environments + 1,
        score=score(bindparam("cpu"), bindparam("memory"), bindparam("gpu")),
    )
    .returning(Host.id, Host.name)
    .execution_options(synchronize_session=False)
)
_take_this_host = _take_host.where(Host.id == bindparam("host"), _fits)
_take_slots = (
    update(HostModel)
    .where(HostModel.host_id == bindparam("host"), _slots_fit)
    .values(used=HostModel.used + bindparam("slots"))
    .execution_options(synchronize_session=False)
)


@dataclass(frozen=True)
class _Statements:
    """What one policy asks about one kind of hosts."""

    list: Any
    """The best few that fit."""
    take: Any
    """Take room on the best one that fits and that nobody else is taking now."""


def _statements(policy: Policy, condition: Any, *, slots: bool = False) -> _Statements:
    fitting = select(Host.id, Host.name).where(_fits, condition).order_by(policy.order())
    locked: Any = Host
    if slots:
        fitting, locked = fitting.join(HostModel, HostModel.host_id == Host.id), (Host, HostModel)
    best = fitting.with_only_columns(Host.id).limit(1).with_for_update(of=locked, skip_locked=True, key_share=True)
    return _Statements(fitting.limit(FEW), _take_host.where(Host.id == best.scalar_subquery()))


def _kinds(policy: Policy) -> tuple[_Statements, _Statements, _Statements]:
    """Hosts with the wanted slots, hosts without GPUs, hosts with GPUs."""
    return (
        _statements(policy, _slots_fit, slots=True),
        _statements(policy, Host.gpu_millis == 0),
        _statements(policy, Host.gpu_millis > 0),
    )


_KINDS = {name: _kinds(policy()) for name, policy in POLICIES.items()}


def _kinds_for(wanted: Resources, policy: Policy) -> tuple[_Statements, ...]:
    """The kinds of hosts to try, in this order: GPU hosts are kept for those who need GPUs."""
    with_slots, without_gpus, with_gpus = _KINDS.get(policy.name) or _kinds(policy)
    return (with_slots,) if wanted.gpu_slots else (without_gpus, with_gpus)


def _amounts(wanted: Resources) -> dict[str, Any]:
    return {
        "cpu": wanted.cpu_millis,
        "memory": wanted.memory_bytes,
        "gpu": wanted.gpu_millis,
        "wanted_model": wanted.gpu_model,
        "slots": wanted.gpu_slots,
    }


def candidates(session: Session, *, wanted: Resources, policy: Policy) -> list[Any]:
    """Id and name of the best few hosts that fit now, best first."""
    for kind in _kinds_for(wanted, policy):
        found = session.connection().execute(kind.list, _amounts(wanted)).all()
        if found:
            return list(found)
    return []


_give_host = (
    update(Host)
    .where(Host.id == bindparam("host"))
    .values(
        used_cpu_millis=Host.used_cpu_millis - bindparam("cpu"),
        used_memory_bytes=Host.used_memory_bytes - bindparam("memory"),
        used_gpu_millis=Host.used_gpu_millis - bindparam("gpu"),
        used_environments=Host.used_environments - 1,
        score=score(-bindparam("cpu"), -bindparam("memory"), -bindparam("gpu")),
    )
    .execution_options(synchronize_session=False)
)
_give_slots = (
    update(HostModel)
    .where(HostModel.host_id == bindparam("host"), HostModel.model == bindparam("wanted_model"))
    .values(used=HostModel.used - bindparam("slots"))
    .execution_options(synchronize_session=False)
)


_savepoint, _back_to_savepoint = text("SAVEPOINT host"), text("ROLLBACK TO SAVEPOINT host")


def choose(session: Session, *, wanted: Resources, policy: Policy) -> Spot:
    """Take room on a host. The row of the host stays locked until the transaction ends, so the slots that are
    picked there next are seen as they are. Raises: NoCapacity, explaining each host.

    Nobody waits for a host while holding another, so there is no circle of waiters: a host that turns out not to fit
    any more when it is locked stays locked all the same, so all are let go of before one is waited for.
    """
    execute, amounts = session.connection().execute, _amounts(wanted)
    execute(_savepoint)
    for kind in _kinds_for(wanted, policy):
        row = execute(kind.take, amounts).first()
        if row is not None:
            if wanted.gpu_slots:
                execute(_take_slots, {**amounts, "host": row[0]})  # its row was locked and fits
            return Spot(row[0], row[1], policy.name)
    execute(_back_to_savepoint)
    return _wait_for_one(session, wanted, policy)


def _wait_for_one(session: Session, wanted: Resources, policy: Policy) -> Spot:
    """Every host that fits is being taken by somebody else just now: wait for them, one after the other."""
    execute, amounts = session.connection().execute, _amounts(wanted)
    for _attempt in range(ATTEMPTS):
        hosts = candidates(session, wanted=wanted, policy=policy)
        if not hosts:
            break
        for host_id, name in hosts:
            taken: Any = execute(_take_this_host, {**amounts, "host": host_id}).first()
            if taken and (not wanted.gpu_slots or execute(_take_slots, {**amounts, "host": host_id}).rowcount == 1):
                return Spot(host_id, name, policy.name)
            execute(_back_to_savepoint)
    raise explain(session, wanted=wanted)


def give_back(session: Session, *, host_id: int, held: Resources) -> None:
    """Return what a run held of its host."""
    session.execute(
        _give_host,
        {"host": host_id, "cpu": held.cpu_millis, "memory": held.memory_bytes, "gpu": held.gpu_millis},
    )
    if held.gpu_slots:
        session.execute(_give_slots, {"host": host_id, "wanted_model": held.gpu_model, "slots": held.gpu_slots})


def describe(wanted: Resources) -> str:
    """What is wanted, for people: `2 × A100-80GB, 8 cores, 64 GiB`."""
    parts = [f"{show_thousandths(wanted.cpu_millis)} CPU", f"{wanted.memory_bytes / GIB:.4g} GiB"]
    if wanted.gpu_slots:
        parts.insert(0, f"{wanted.gpu_slots} × {wanted.gpu_model}")
    return ", ".join(parts)


def explain(session: Session, *, wanted: Resources) -> NoCapacity:
    """Say of each host (the nearest few) what it lacks for this wish."""
    slots_free = func.coalesce(HostModel.usable - HostModel.used, 0)
    query = (
        select(Host, func.coalesce(HostModel.usable, 0), slots_free)
        .outerjoin(HostModel, (HostModel.host_id == Host.id) & (HostModel.model == (wanted.gpu_model or "")))
        .order_by(case((Host.status == HostStatus.ONLINE, 0), else_=1), slots_free.desc(), Host.score.asc(), Host.name)
    )
    if wanted.gpu_slots:
        query = query.where(HostModel.usable > 0)
    count = session.scalar(select(func.count()).select_from(query.order_by(None).subquery())) or 0
    reasons = []
    for host, usable, free in session.execute(query.limit(EXPLAINED)):
        reasons.append(_reason(host, int(usable), int(free), wanted))
    return NoCapacity(tuple(reasons), wanted=describe(wanted), more=max(count - EXPLAINED, 0))


def _reason(host: Host, usable: int, free: int, wanted: Resources) -> HostReason:
    if host.status != HostStatus.ONLINE:
        return HostReason(host.name, "status", 0, 0, host.status.value)
    if wanted.gpu_slots > free:
        return HostReason(host.name, f"gpu:{wanted.gpu_model}", max(free, 0), usable)
    free_cpu = host.cpu_millis - host.foreign_cpu_millis - host.used_cpu_millis
    if wanted.cpu_millis > free_cpu:
        return HostReason(host.name, "cpu", max(free_cpu, 0), host.cpu_millis)
    free_memory = host.memory_bytes - host.foreign_memory_bytes - host.used_memory_bytes
    return HostReason(host.name, "memory", max(free_memory, 0), host.memory_bytes)
