"""What must hold in every database of ours at any time: sums are the sums of their parts, nothing is held twice."""

from collections.abc import Iterable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from remotegpu_hub.orm import Allocation, AllocationSlot, AllocationState, BillingRecord, GpuSlot, PortMapping, Spend


def check(session: Session) -> None:
    """Assert it, for slots, ports and the ledger. Hosts are compared by `World.check`, which counts them anew."""
    _check_slots(session)
    _check_ports(session)
    _check_spend(session)


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


def _check_spend(session: Session) -> None:
    written = dict(
        session.execute(
            select(BillingRecord.workspace_id, func.sum(BillingRecord.amount)).group_by(BillingRecord.workspace_id)
        )
        .tuples()
        .all()
    )
    spent = dict(
        session.execute(select(Spend.workspace_id, func.sum(Spend.amount)).group_by(Spend.workspace_id)).tuples().all()
    )
    assert {key: int(value) for key, value in written.items() if value} == {
        key: int(value) for key, value in spent.items() if value
    }
