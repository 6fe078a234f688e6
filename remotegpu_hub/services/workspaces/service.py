"""Routes and ticks of the service `workspaces`."""

import asyncio
import os
from collections.abc import Awaitable
from typing import Any

from sqlalchemy.orm import Session

from ... import choices, courier, workers
from ...domain import allocations, budgets, ports, quotas, workspaces
from ...domain import environments as street
from ...domain.offers import offers
from ...orm import Allocation, AllocationState
from ...runtime import Runtime, utcnow
from ...units import UNLIMITED
from ..api import handlers
from ..base import Handler, hub_client, run
from ..openapi import describe
from ..pages import STATIC
from . import admin_pages, events, hook_pages, pages
from .routes import ROUTES


class Offers(Handler):
    """What the caller may start now, with the price and limits of the choice in the query."""

    async def get(self) -> None:
        query = {
            key.removeprefix("opt-"): [value.decode("utf-8", "replace") for value in values]
            for key, values in self.request.query_arguments.items()
        }
        server_name = query.pop("server_name", [""])[0]
        choice = choices.prefill(query)
        settings = self.runtime.settings

        def work(session: Session) -> Any:
            return offers(
                session,
                user=self.caller(session),
                server_name=server_name,
                choice=choice,
                rules=self.runtime.rules,
                now=utcnow(),
                insecure_demo=settings.insecure_demo,
            )

        self.answer(await self.ask(work))


class Description(Handler):
    """The OpenAPI description of all routes."""

    async def get(self) -> None:
        prefix = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
        self.answer(describe(ROUTES, title="remotegpu-hub", server=f"{prefix}api"))


class Me(Handler):
    """The caller's workspaces, limits, what is held, and environments."""

    async def get(self) -> None:
        self.answer(await self.ask(self._me))

    def _me(self, session: Session) -> dict[str, Any]:
        user = self.caller(session)
        return {
            "name": user.name,
            "workspaces": [_workspace(session, user.id, member) for member in workspaces.of_user(session, user=user)],
            "environments": [
                _environment(session, one, self.runtime.settings.ssh_user) for one in street.of_user(session, user=user)
            ],
        }


def _workspace(session: Session, user_id: int, member: Any) -> dict[str, Any]:
    space = member.workspace
    now = utcnow()
    levels = quotas.levels(session, user_id=user_id, workspace_id=space.id, time_zone=space.time_zone, now=now)
    status = budgets.status_of(session, workspace=space, now=now)

    def shown(value: int) -> int | str:
        return "unlimited" if value >= UNLIMITED else value

    return {
        "name": space.name,
        "display_name": space.display_name,
        "role": member.role.value,
        "limits": {level: {name: shown(value) for name, value in one.limits.items()} for level, one in levels.items()},
        "held": {level: {name: one.held[name] for name in quotas.HELD_AT_ONCE} for level, one in levels.items()},
        "budget": {"amount": status.amount, "spent": status.spent, "month": status.month} if status else None,
    }


def _environment(session: Session, one: Any, login: str) -> dict[str, Any]:
    open_run = session.query(Allocation).filter(
        Allocation.environment_id == one.id, Allocation.state != AllocationState.ENDED
    ).first()  # fmt: skip
    return {
        "server_name": one.server_name,
        "display_name": one.display_name,
        "workspace": one.workspace.name,
        "image": one.image.reference,
        "state": one.state.value,
        "message": one.message,
        "gpu_model": one.gpu_model,
        "gpus": one.gpu_slots,
        "cpu_millis": one.cpu_millis,
        "memory_bytes": one.memory_bytes,
        "run": None
        if open_run is None
        else {
            "host": open_run.host.name,
            "started_at": open_run.started_at,
            "stops_at": allocations.stops_at(session, allocation_id=open_run.id),
            "price_per_hour": open_run.price_per_hour,
            "gpus": [slot.gpu.uuid for slot in open_run.slots],
            "ports": {port.service.value: port.external_port for port in open_run.ports},
            "access": ports.ways(open_run, login=login),
        },
    }


def ticks(runtime: Runtime) -> list[Awaitable[None]]:
    hub = hub_client()
    site = workers.site_of(runtime)
    carrier = courier.Courier(runtime)

    async def sync() -> None:
        await workers.sync(runtime, site)

    async def reconcile() -> None:
        await workers.stop_due(runtime, hub.stop_server)
        await workers.reconcile(runtime, hub.servers, site)
        await workers.forget_refused(runtime, hub.forget_server)

    async def close_at_the_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await site.close()

    return [
        close_at_the_end(),
        workers.every(runtime, "sync", workers.SYNC_SECONDS, sync, site.hosts_changed),
        workers.every(runtime, "reconcile", workers.TICK_SECONDS, reconcile, site.runs_changed),
        workers.every(runtime, "events", courier.REST_SECONDS, carrier.shift),
        workers.every(runtime, "thresholds", courier.THRESHOLD_SECONDS, carrier.look_at_limits),
        events.Stream.feed.run(runtime),
    ]


def main() -> None:
    """Serve until the hub's process ends."""
    own: list[tuple[str, type[Handler], dict[str, Any]]] = [
        (r"api/me/?", Me, {}), (r"api/offers/?", Offers, {}), (r"api/openapi\.json", Description, {}),
    ]  # fmt: skip
    run(
        "remotegpu_hub.services.workspaces",
        [
            *own,
            *handlers(ROUTES, {"events": events.Stream}),
            *pages.ROUTES,
            *admin_pages.ROUTES,
            *hook_pages.ROUTES,
            STATIC,
        ],
        ticks,
    )
