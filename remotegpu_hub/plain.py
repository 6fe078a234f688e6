"""Rows as plain values for programs: the same in the command's `--json` and in the API."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from .domain import budgets, inventory
from .domain.allocations import Ending
from .orm import (
    QUOTA_RESOURCES,
    Allocation,
    Budget,
    Environment,
    Flavor,
    Gpu,
    GpuStatus,
    Host,
    Image,
    Price,
    QuotaRequest,
    User,
    Workspace,
)
from .units import iso, month_of, price_unit


def host(row: Host) -> dict[str, Any]:
    """A host for programs; `used` is what open allocations hold."""
    pairs = (
        (row.used_gpu_millis, row.gpu_millis),
        (row.used_cpu_millis + row.foreign_cpu_millis, row.cpu_millis),
        (row.used_memory_bytes + row.foreign_memory_bytes, row.memory_bytes),
    )
    return {
        "name": row.name,
        "pool": row.pool,
        "address": row.address,
        "status": row.status.value,
        "simulated": row.simulated,
        "gpu_millis": row.gpu_millis,
        "used_gpu_millis": row.used_gpu_millis,
        "cpu_millis": row.cpu_millis,
        "used_cpu_millis": row.used_cpu_millis,
        "memory_bytes": row.memory_bytes,
        "used_memory_bytes": row.used_memory_bytes,
        "environments": row.used_environments,
        "overcommitted": any(used > capacity for used, capacity in pairs),
        "last_seen_at": iso(row.last_seen_at),
    }


def condition(gpu: Gpu) -> str:
    """How a GPU is, in a word: what keeps it from being given out comes first."""
    if gpu.missing:
        return "missing"
    if gpu.status != GpuStatus.AVAILABLE:
        return gpu.status.value
    return "used by others" if gpu.foreign else gpu.status.value


def gpus(session: Session, *, host: str | None = None, ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """GPUs for programs, each with its slots and who holds them; in the order of hosts and devices."""
    slots: dict[int, list[dict[str, Any]]] = {}
    for one in inventory.holders(session, host=host, gpu_ids=ids):
        slots.setdefault(one.gpu.id, []).append(
            {
                "model": one.slot.model,
                "gpu_millis": one.slot.gpu_millis,
                "usable": one.slot.usable,
                "allocation_id": one.allocation_id,
                "user": one.user,
            }
        )
    query = select(Gpu, Host).join(Host, Host.id == Gpu.host_id).order_by(Host.name, Gpu.index)
    if host is not None:
        query = query.where(Host.name == host)
    if ids is not None:
        query = query.where(Gpu.id.in_(ids))
    return [
        {
            "host": machine.name,
            "simulated": machine.simulated,
            "index": gpu.index,
            "uuid": gpu.uuid,
            "model": gpu.model,
            "memory_mib": gpu.memory_mib,
            "status": gpu.status.value,
            "condition": condition(gpu),
            "foreign": gpu.foreign,
            "missing": gpu.missing,
            "slots": slots.get(gpu.id, []),
        }
        for gpu, machine in session.execute(query)
    ]


def image(session: Session, row: Image) -> dict[str, Any]:
    """An image of the catalogue for programs."""
    space = session.get(Workspace, row.workspace_id) if row.workspace_id else None
    owner = session.get(User, row.owner_id) if row.owner_id else None
    return {
        "id": row.id,
        "reference": row.reference,
        "digest": row.digest,
        "display_name": row.display_name,
        "framework": row.framework,
        "cuda_version": row.cuda_version,
        "python_version": row.python_version,
        "size_bytes": row.size_bytes,
        "category": row.category,
        "visibility": row.visibility.value,
        "workspace": space.name if space else None,
        "owner": owner.name if owner else None,
        "status": row.status.value,
    }


def flavor(session: Session, row: Flavor) -> dict[str, Any]:
    """A flavor for programs."""
    space = session.get(Workspace, row.workspace_id) if row.workspace_id else None
    return {
        "name": row.name,
        "display_name": row.display_name,
        "gpu_model": row.gpu_model,
        "gpu_slots": row.gpu_slots,
        "cpu_millis": row.cpu_millis,
        "memory_bytes": row.memory_bytes,
        "workspace": space.name if space else None,
        "retired": row.retired,
    }


def environment(row: Environment, run: Allocation | None, ends: Ending | None, currency: str) -> dict[str, Any]:
    """An environment for programs; `run` is null when it holds nothing."""
    return {
        "id": row.id,
        "user": row.user.name,
        "server_name": row.server_name,
        "display_name": row.display_name,
        "workspace": row.workspace.name,
        "image": row.image.reference,
        "flavor": row.flavor,
        "gpu_model": row.gpu_model,
        "gpu_slots": row.gpu_slots,
        "cpu_millis": row.cpu_millis,
        "memory_bytes": row.memory_bytes,
        "ports": list(row.ports),
        "state": row.state.value,
        "message": row.message,
        "created_at": iso(row.created_at),
        "run": None if run is None else _run(run, ends, currency),
    }


def _run(run: Allocation, ends: Ending | None, currency: str) -> dict[str, Any]:
    return {
        "allocation_id": run.id,
        "state": run.state.value,
        "host": run.host.name,
        "gpus": [held.gpu.uuid for held in run.slots if held.open],
        "price_per_hour_micros": run.price_per_hour,
        "currency": currency,
        "admitted_at": iso(run.admitted_at),
        "started_at": iso(run.started_at),
        "seen_at": iso(run.seen_at),
        "stops_at": iso(ends.at) if ends else None,
        "stops_reason": ends.reason.value if ends else None,
        "stops_message": ends.message if ends else "",
    }


def budget(session: Session, workspace: Workspace, *, currency: str, now: datetime) -> dict[str, Any]:
    """A budget for programs, with what of it is spent in the current month of the workspace's zone."""
    return all_budgets(session, [workspace], currency=currency, now=now)[0]


def all_budgets(
    session: Session, workspaces: Sequence[Workspace], *, currency: str, now: datetime
) -> list[dict[str, Any]]:
    """The budgets of these workspaces, each of which has one: three statements, however many they are."""
    ids = [one.id for one in workspaces]
    terms = {one.workspace_id: one for one in session.scalars(select(Budget).where(Budget.workspace_id.in_(ids)))}
    so_far = budgets.months(session, workspaces=workspaces, now=now)
    return [
        {
            "workspace": one.name,
            "month": month_of(now, one.time_zone),
            "amount_micros": terms[one.id].amount,
            "spent_micros": so_far[one.id].spent,
            "currency": currency,
            "warn_percent": terms[one.id].warn_percent,
            "action": terms[one.id].action.value,
        }
        for one in workspaces
    ]


def quota_request(row: QuotaRequest) -> dict[str, Any]:
    """A request for programs; in `wanted` and `granted` null is what was not asked for, or not changed."""
    return {
        "id": row.id,
        "scope": row.scope.value,
        "workspace": row.workspace.name if row.workspace else None,
        "user": row.asker.name,
        "wanted": limits(row.wanted),
        "reason": row.reason,
        "needed_until": iso(row.needed_until),
        "state": row.state.value,
        "granted": None if row.granted is None else limits(row.granted),
        "answer": row.answer,
        "created_at": iso(row.created_at),
        "decided_at": iso(row.decided_at),
        "decided_by": row.decided_by,
    }


def limits(described: Mapping[str, Any]) -> dict[str, Any]:
    """Limits for programs, from how `quotas.describe` spells them: those of GPU models apart."""
    return {
        **{name: described.get(name) for name in QUOTA_RESOURCES},
        "models": {name.removeprefix("gpu:"): value for name, value in described.items() if name.startswith("gpu:")},
    }


def price(row: Price, *, currency: str, in_force: bool) -> dict[str, Any]:
    """A price for programs."""
    return {
        "resource": row.resource,
        "unit": price_unit(row.resource),
        "unit_price_micros": row.unit_price,
        "currency": currency,
        "effective_from": iso(row.effective_from),
        "in_force": in_force,
    }
