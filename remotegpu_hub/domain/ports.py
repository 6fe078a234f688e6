"""Outside ways into an environment: a free port of the service's range, never given twice."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ..errors import Invalid, Refused
from ..orm import PortMapping, PortService

INTERNAL_PORTS = {"ssh": 22, "jupyter": 8888, "vscode": 8080, "tensorboard": 6006}
"""Where a service listens inside, where nothing else is said."""

Ranges = Mapping[str, range]
"""Outside ports by service."""


def insert_ignoring(session: Session, table: Any) -> Any:
    """An INSERT that skips a row which some unique key already holds, on both databases."""
    dialect = session.get_bind().dialect.name
    return (postgresql if dialect == "postgresql" else sqlite).insert(table).on_conflict_do_nothing()


def check_services(services: Collection[str], ranges: Ranges) -> None:
    """Raises: Invalid for a service that this hub offers no ports for."""
    for service in services:
        if service not in ranges:
            offered = ", ".join(sorted(ranges)) or "-"
            raise Invalid("{value} is not a port service here: choose of {offered}.", value=service, offered=offered)


def take(
    session: Session,
    *,
    allocation_id: int,
    services: Collection[str],
    address: str,
    ranges: Ranges,
    busy: Collection[int] = frozenset(),
    same_inside: bool = False,
) -> list[PortMapping]:
    """Map one free outside port for each service. `busy` are ports that something else was seen to listen on;
    `same_inside`: the process listens on the outside port itself, as local ones do.

    Raises: Refused when a range is full.
    """
    taken = []
    for service in sorted(services):  # in one order for all: two who wait for each other's port would wait for ever
        ports = ranges[service]
        used = set(
            session.scalars(
                select(PortMapping.external_port).where(
                    PortMapping.address == address,
                    PortMapping.open,
                    PortMapping.external_port.between(ports.start, ports.stop - 1),
                )
            )
        )
        taken.append(
            _take_one(session, allocation_id, service, address, ports, used.union(busy), same_inside=same_inside)
        )
    return taken


def _take_one(
    session: Session,
    allocation_id: int,
    service: str,
    address: str,
    ports: range,
    used: Collection[int],
    *,
    same_inside: bool,
) -> PortMapping:
    for port in ports:
        if port in used:
            continue
        internal = port if same_inside else INTERNAL_PORTS.get(service, port)
        row = session.execute(
            insert_ignoring(session, PortMapping).returning(PortMapping.id),
            {
                "allocation_id": allocation_id,
                "service": PortService(service),
                "protocol": "tcp",
                "address": address,
                "internal_port": internal,
                "external_port": port,
                "open": True,
            },
        ).first()
        if row is not None:
            return session.get_one(PortMapping, row[0])
    raise Refused(
        "No port is free for {service} ({count} in all). Try without it, or later.", service=service, count=len(ports)
    )


def give_back(session: Session, *, allocation_id: int) -> None:
    """Free a run's ports for others."""
    session.execute(
        update(PortMapping)
        .where(PortMapping.allocation_id == allocation_id, PortMapping.open)
        .values(open=False)
        .execution_options(synchronize_session=False)
    )
