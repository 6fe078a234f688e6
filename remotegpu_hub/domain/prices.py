"""What a unit of a resource costs from an instant on. Old prices are kept; the past cannot be repriced."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from ..errors import Conflict, Invalid
from ..orm import Allocation, Fact, Price
from ..units import Money, charge
from .audit import Actor, record
from .quotas import Resources

RESOURCES = ("cpu", "memory", "storage")


CURRENCY: Any = func.coalesce(select(Fact.value).where(Fact.name == "currency").scalar_subquery(), "USD")
"""The hub's one currency, an ISO 4217 code, for statements that ask for more."""


def currency(session: Session) -> str:
    """The hub's one currency."""
    return str(session.scalar(select(CURRENCY)))


def set_currency(session: Session, *, code: str) -> None:
    """Write the currency once. Raises: Conflict when prices exist in another one."""
    fact = session.get(Fact, "currency")
    if fact is None:
        session.add(Fact(name="currency", value=code))
    elif fact.value != code:
        if session.scalar(select(func.count()).select_from(Price)):
            raise Conflict(
                "The prices of this hub are in {before}; its currency cannot become {after}.",
                before=fact.value,
                after=code,
            )
        fact.value = code
    session.flush()


def put(
    session: Session, *, resource: str, unit_price: Money, effective_from: datetime, actor: Actor, now: datetime
) -> Price:
    """Set a price from a whole second on, which is not in the past unless the resource had none. Raises: Invalid."""
    if not (resource in RESOURCES or (resource.startswith("gpu:") and 4 < len(resource) <= 100)):
        raise Invalid("{value} is not a resource: write cpu, memory, storage or gpu:MODEL.", value=resource)
    if unit_price < 0:
        raise Invalid("A price cannot be negative.")
    effective_from = effective_from.replace(microsecond=0)
    priced = session.scalar(select(func.count()).select_from(Price).where(Price.resource == resource))
    if priced and effective_from < now.replace(microsecond=0):
        raise Invalid("A price of the past cannot change: choose a moment from now on.")
    row = session.scalar(select(Price).where(Price.resource == resource, Price.effective_from == effective_from))
    if row is not None:
        if row.unit_price == unit_price:
            return row
        raise Conflict("There is a price for {resource} from that moment already.", resource=resource)
    row = Price(resource=resource, unit_price=unit_price, effective_from=effective_from)
    session.add(row)
    session.flush()
    record(session, actor=actor, action="price.put", entity="price", entity_id=row.id, now=now,
           resource=resource, unit_price=unit_price, effective_from=effective_from.isoformat())  # fmt: skip
    return row


_latest = (
    select(Price.resource, func.max(Price.effective_from).label("since"))
    .where(Price.effective_from <= bindparam("now"))
    .group_by(Price.resource)
    .subquery()
)
_in_force = (Price.resource == _latest.c.resource) & (Price.effective_from == _latest.c.since)
_rows_in_force = select(Price).join(_latest, _in_force)
_amounts_in_force = select(Price.resource, Price.unit_price).join(_latest, _in_force)


def at(session: Session, *, now: datetime) -> dict[str, Price]:
    """The price of each resource that is in force at an instant."""
    return {row.resource: row for row in session.scalars(_rows_in_force, {"now": now})}


def history(session: Session) -> dict[str, list[Price]]:
    """All prices by resource, oldest first."""
    result: dict[str, list[Price]] = {}
    for row in session.scalars(select(Price).order_by(Price.resource, Price.effective_from)):
        result.setdefault(row.resource, []).append(row)
    return result


def quantities(held: Resources | Allocation) -> dict[str, int]:
    """What is charged for, per second, by resource; nothing that is zero."""
    parts = {"cpu": held.cpu_millis, "memory": held.memory_bytes}
    if held.gpu_model and held.gpu_slots:
        parts = {f"gpu:{held.gpu_model}": held.gpu_slots, **parts}
    return {resource: amount for resource, amount in parts.items() if amount}


def of(session: Session, *, wanted: Resources, now: datetime) -> tuple[dict[str, int], dict[str, Money]]:
    """Unit prices in force, and what one hour of each part costs. Raises: Invalid for an unpriced resource."""
    rows = session.connection().execute(_amounts_in_force, {"now": now}).all()
    in_force = {row.resource: row.unit_price for row in rows}
    parts = quantities(wanted)
    unit_prices = {name: in_force[name] for name in parts if name in in_force}
    return unit_prices, hourly(parts, unit_prices)


def hourly(parts: Mapping[str, int], unit_prices: Mapping[str, int]) -> dict[str, Money]:
    """Price one hour of each part. Raises: Invalid when a part has no price: nothing runs unpriced."""
    result: dict[str, Any] = {}
    for resource, amount in parts.items():
        if resource not in unit_prices:
            raise Invalid("No price is set for {resource}. Ask an admin of the hub to set one.", resource=resource)
        result[resource] = charge(resource, amount * 3600, unit_prices[resource])
    return result
