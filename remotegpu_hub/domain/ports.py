"""Outside ways into an environment: a free port of the service's range, or an address of its own at the cluster's
Ingress. Neither is ever given twice."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ..errors import Invalid, Refused
from ..orm import Allocation, PortMapping, PortService

INTERNAL_PORTS = {"ssh": 2222, "jupyter": 8888, "vscode": 8080, "tensorboard": 6006}
"""Where a service listens inside, where nothing else is said."""

WEB = frozenset({PortService.JUPYTER, PortService.VSCODE, PortService.TENSORBOARD})
"""What a browser can open. A custom port may be anything."""
ANY_NODE = "cluster"
"""The address of node ports: a cluster opens one on all of its nodes."""

Ranges = Mapping[str, range]
"""Outside ports by service."""


@dataclass(frozen=True)
class Ingress:
    """Where a cluster's Ingress answers for what a browser can open. Host and path are templates with `{run}`, which is
    never used twice, and `{service}`."""

    host: str
    path: str = "/"
    tls: bool = False

    def at(self, *, run: int, service: str) -> tuple[str, str]:
        """Host and path of one service of one run."""
        return tuple(text.replace("{run}", str(run)).replace("{service}", service) for text in (self.host, self.path))  # type: ignore[return-value]


def insert_ignoring(session: Session, table: Any) -> Any:
    """An INSERT that skips a row which some unique key already holds, on both databases."""
    dialect = session.get_bind().dialect.name
    return (postgresql if dialect == "postgresql" else sqlite).insert(table).on_conflict_do_nothing()


def check_services(services: Collection[str], offered: Collection[str]) -> None:
    """Raises: Invalid for a service that this hub offers no ports for."""
    for service in services:
        if service not in offered:
            raise Invalid(
                "{value} is not a port service here: choose of {offered}.",
                value=service, offered=", ".join(sorted(offered)) or "-",
            )  # fmt: skip


def take(
    session: Session,
    *,
    allocation_id: int,
    services: Collection[str],
    address: str,
    ranges: Ranges,
    ingress: Ingress | None = None,
    busy: Collection[int] = frozenset(),
    same_inside: bool = False,
) -> list[PortMapping]:
    """Map one free outside port for each service, or its place at the Ingress.

    `busy` are ports that something else was seen to listen on; `same_inside`: the process listens on the outside port
    itself, as local ones do.

    Raises: Refused when a range is full.
    """
    taken = []
    for service in sorted(services):  # in one order for all: two who wait for each other's port would wait for ever
        if ingress is not None and service in WEB:
            taken.append(_at_ingress(session, allocation_id, service, ingress))
            continue
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


def _at_ingress(session: Session, allocation_id: int, service: str, ingress: Ingress) -> PortMapping:
    host, path = ingress.at(run=allocation_id, service=service)
    row = PortMapping(
        allocation_id=allocation_id,
        service=PortService(service),
        protocol="tcp",
        address=f"{host}{path}",
        internal_port=INTERNAL_PORTS[service],
        external_port=443 if ingress.tls else 80,
        url=f"{'https' if ingress.tls else 'http'}://{host}{path}",
        open=True,
    )
    session.add(row)
    session.flush()
    return row


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


@dataclass(frozen=True)
class Way:
    """How a port of a run is reached, ready to paste."""

    service: str
    address: str
    """Host and port, or host and path, outside, without any login."""
    command: str | None = None
    url: str | None = None
    hub_path: str | None = None
    """Below the hub's base URL, behind its login; the image needs jupyter-server-proxy for it."""


def ways(run: Allocation, *, login: str) -> list[Way]:
    """How each open port of a run is reached. `login` is the system user inside; empty: the hub user's own name."""
    return [way(port, login=login) for port in run.ports if port.open]


def way(port: PortMapping, *, login: str) -> Way:
    """How one port is reached."""
    run = port.allocation
    server = "".join(f"{quote(name, safe='@~')}/" for name in (run.user.name, run.environment.server_name) if name)
    hub_path = f"user/{server}proxy/{port.internal_port}/"
    if port.url:
        return Way(port.service.value, port.address, url=port.url, hub_path=hub_path)
    host = run.host.address if port.address == ANY_NODE else port.address
    address = f"{f'[{host}]' if ':' in host else host}:{port.external_port}"
    if port.service == PortService.SSH:
        command = f"ssh -p {port.external_port} {login or run.user.name}@{host}"
        return Way(port.service.value, address, command=command)
    url = f"http://{address}/" if port.service in WEB else None
    return Way(port.service.value, address, url=url, hub_path=hub_path)
