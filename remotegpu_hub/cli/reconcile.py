"""`remotegpu reconcile`: one pass of what the hub's service does each minute, also while the hub is down."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from urllib.parse import urlparse

from sqlalchemy import column, select, table
from sqlalchemy.orm import Session

from .. import workers
from ..clients.hub import HubClient
from ..domain import users
from ..domain.audit import record
from ..observed import Server
from ..orm import Allocation, AllocationState
from ..runtime import Runtime, Settings, utcnow
from ..workers import Fault, Repair
from .command import Command
from .database import Place, runtime_file, shown
from .machine import hub_ticks
from .stop import Refused
from .tables import Column, dump
from .tables import table as lay_out

TOKEN_VARIABLE = "JUPYTERHUB_API_TOKEN"
URL_VARIABLE = "JUPYTERHUB_API_URL"
HUB_PORT = 8081
COLUMNS = [Column("RUN", "allocation_id", right=True), Column("FOUND", "fault"), Column("NOW", "outcome"),
           Column("BESIDE", lambda row: ", ".join(row["parts"]))]  # fmt: skip
_users = table("users", column("id"), column("name"))
_spawners = table("spawners", column("user_id"), column("server_id"), column("name"))


class Reconcile(Command):
    name = "reconcile"
    description = (
        "Compare what is held with what really runs, here or on the hub's cluster, once, and repair: what ended is "
        "given back, what nobody holds is stopped. The hub's own service does this each minute. While the hub is down, "
        "its tables say "
        "which servers it knows; while it runs, it is asked: put an admin's API token into the env var "
        f"{TOKEN_VARIABLE} (and the hub's API address into {URL_VARIABLE}, where it is not the configured one)."
    )

    def run(self) -> None:
        logging.getLogger("remotegpu").setLevel(logging.CRITICAL)  # each repair is printed below
        settings = _settings(self.place)
        token = os.environ.get(TOKEN_VARIABLE)
        url = api_url(self.place)
        if token:
            runtime, servers = Runtime(settings), _asked(url, token)
        else:
            self._refuse_while_running(url)
            now = utcnow().isoformat()  # the hub is gone: no start from before can be on its way
            runtime, servers = Runtime(replace(settings, hub_started_at=now)), self._kept
        repairs = self._once(runtime, servers)
        self._show(repairs)

    def _refuse_while_running(self, url: str) -> None:
        with self.transaction(read_only=True) as session:
            ticking = hub_ticks(session)
        if ticking or _listens(url):
            raise Refused(
                "The hub runs, and its own service reconciles each minute. For a pass now, put an admin's API token "
                f"into the env var {TOKEN_VARIABLE}."
            )

    async def _kept(self) -> list[Server]:
        """The servers that the hub's tables name; the hub is down, so none is on its way."""
        with self.transaction(read_only=True) as session:
            return servers_of(session)

    def _once(self, runtime: Runtime, servers: Callable[[], Awaitable[list[Server]]]) -> list[Repair]:
        now, me = utcnow(), workers.holder()
        if not workers.take_lease(
            self.engine, name="reconcile", holder=me, seconds=workers.LEASE_SECONDS, not_since=now, now=now
        ):
            raise Refused("The hub's service reconciles right now. Try again in a minute.")
        try:
            return asyncio.run(_pass(runtime, servers))
        finally:
            workers.end_lease(self.engine, name="reconcile", holder=me, now=utcnow())
            runtime.engine.dispose()

    def _show(self, repairs: list[Repair]) -> None:
        ids = [repair.allocation_id for repair in repairs if repair.allocation_id is not None]
        with self.transaction() as session:
            still = set(
                session.scalars(
                    select(Allocation.id).where(Allocation.id.in_(ids), Allocation.state != AllocationState.ENDED)
                )
            )
            if repairs:
                record(session, actor=self.actor, action="reconcile", entity="hub", entity_id=None, now=utcnow(),
                       runs=ids)  # fmt: skip
        rows = [
            {
                "allocation_id": one.allocation_id,
                "fault": one.fault.value,
                "outcome": _outcome(one, still),
                "parts": list(one.parts),
            }
            for one in repairs
        ]
        if self.json:
            self.say(dump({"repairs": rows}))
        else:
            self.say(lay_out(COLUMNS, rows) if rows else "Everything that is held runs, and nothing else does.")
        left = sum(row["outcome"] != "repaired" for row in rows)
        if left:
            raise Refused(f"{left} of {len(rows)} could not be put right.")


async def _pass(runtime: Runtime, servers: Callable[[], Awaitable[list[Server]]]) -> list[Repair]:
    site = workers.site_of(runtime)
    try:
        return await workers.reconcile(runtime, servers, site)
    finally:
        await site.close()


def _outcome(repair: Repair, still: set[int]) -> str:
    if repair.fault == Fault.UNKNOWN:
        return "left alone"
    return "still held" if repair.allocation_id in still else "repaired"


def _settings(place: Place) -> Settings:
    path = runtime_file(place.config)
    if place.running is None:
        if os.path.exists(path):
            raise Refused(f"{path} cannot be read: run this as the user of the hub.")
        raise Refused(f"There is no {path}: the hub has not started here yet, so nothing of it can run.")
    if place.running.db_url != place.url:
        raise Refused(
            f"The hub was started with the database {shown(place.running.db_url)}, but {place.source} names "
            f"{place.shown}: name the configuration that the hub was started with."
        )
    return place.running


def api_url(place: Place) -> str:
    """Where the hub's API is asked, by the env var or by the hub's configuration."""
    if os.environ.get(URL_VARIABLE):
        return os.environ[URL_VARIABLE]
    hub = place.config.JupyterHub if place.config is not None else {}
    base = str(hub.get("base_url") or urlparse(str(hub.get("bind_url") or "")).path or "/").strip("/")
    own = urlparse(str(hub.get("hub_connect_url") or hub.get("hub_bind_url") or ""))
    host = own.hostname or str(hub.get("hub_ip") or "127.0.0.1")
    if host in ("0.0.0.0", "::", "*"):
        host = "127.0.0.1"
    try:
        port = own.port or int(hub.get("hub_port") or HUB_PORT)
    except (TypeError, ValueError) as error:
        raise Refused("The hub's configuration names a port that is no number.") from error
    return f"{own.scheme or 'http'}://{host}:{port}/{base + '/' if base else ''}hub/api"


def _asked(url: str, token: str) -> Callable[[], Awaitable[list[Server]]]:
    async def servers() -> list[Server]:
        async with HubClient(url, token) as hub:
            return await hub.servers()

    return servers


def _listens(url: str) -> bool:
    address = urlparse(url)
    try:
        socket.create_connection((address.hostname or "127.0.0.1", address.port or 80), timeout=3).close()
    except OSError:
        return False
    return True


def servers_of(session: Session) -> list[Server]:
    """The servers that the hub would find again when it starts."""
    if not users.hub_has_tables(session):
        raise Refused("The hub has no tables in this database, so nothing is known of its servers.")
    rows = session.execute(
        select(_users.c.name, _spawners.c.name)
        .join_from(_spawners, _users, _users.c.id == _spawners.c.user_id)
        .where(_spawners.c.server_id.is_not(None))
    )
    return [Server(user, server, ready=True, pending=False) for user, server in rows]
