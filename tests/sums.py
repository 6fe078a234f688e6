"""What must hold in every database of ours at any time: sums are the sums of their parts, nothing is held twice."""

from collections.abc import Iterable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from remotegpu_hub.orm import (
    Allocation,
    AllocationSlot,
    AllocationState,
    BillingRecord,
    Environment,
    EnvironmentState,
    GpuSlot,
    MemberMonth,
    PortMapping,
)
from remotegpu_hub.services.workspaces.runs import HOLDING


def check(session: Session) -> None:
    """Assert it, for states, slots, ports and the ledger. Hosts are compared by `World.check`, which counts them anew."""
    _check_states(session)
    _check_slots(session)
    _check_ports(session)
    _check_months(session)


def _check_states(session: Session) -> None:
    """An environment says that it holds something exactly while it has an open run; one that was deleted says nothing."""
    there = select(Environment.id).where(Environment.state != EnvironmentState.DELETED)
    runs = select(Allocation.environment_id).where(Allocation.state != AllocationState.ENDED)
    held = set(session.scalars(runs.where(Allocation.environment_id.in_(there))))
    assert held == set(session.scalars(select(Environment.id).where(Environment.state.in_(HOLDING))))


def _check_slots(session: Session) -> None:
    taken = session.execute(
        select(AllocationSlot.slot_id, func.count()).where(AllocationSlot.open).group_by(AllocationSlot.slot_id)
    ).all()
    assert all(holders == 1 for _slot, holders in taken)
    held = dict(
        session.execute(
            select(AllocationSlot.allocation_id, func.count())
            .where(AllocationSlot.open)
            .group_by(AllocationSlot.allocation_id)
        )
        .tuples()
        .all()
    )
    promised = {
        run.id: run.gpu_slots
        for run in session.scalars(select(Allocation).where(Allocation.state != AllocationState.ENDED))
        if run.gpu_slots
    }
    assert held == promised
    models: Iterable[tuple[str | None, str, int, int]] = (
        session.execute(
            select(Allocation.gpu_model, GpuSlot.model, Allocation.host_id, GpuSlot.host_id)
            .join(AllocationSlot, AllocationSlot.allocation_id == Allocation.id)
            .join(GpuSlot, GpuSlot.id == AllocationSlot.slot_id)
        )
        .tuples()
        .all()
    )
    assert all(wanted == got and where == there for wanted, got, where, there in models)


def _check_ports(session: Session) -> None:
    closed = select(func.count()).select_from(PortMapping).join(Allocation, Allocation.id == PortMapping.allocation_id)
    assert session.scalar(closed.where(PortMapping.open, Allocation.state == AllocationState.ENDED)) == 0


def _check_months(session: Session) -> None:
    written = dict.fromkeys(session.scalars(select(BillingRecord.workspace_id)), (0, 0))
    for one, run in session.execute(
        select(BillingRecord, Allocation).join(Allocation, Allocation.id == BillingRecord.subject_id)
    ):
        amount, gpu_time = written[one.workspace_id]
        share = run.gpu_millis // run.gpu_slots if one.resource.startswith("gpu:") else 0
        written[one.workspace_id] = amount + one.amount, gpu_time + one.quantity * share
    months = (
        select(MemberMonth.workspace_id, func.sum(MemberMonth.amount), func.sum(MemberMonth.gpu_time))
        .group_by(MemberMonth.workspace_id)
    )  # fmt: skip
    assert written == {key: (int(amount), int(gpu_time)) for key, amount, gpu_time in session.execute(months)}
