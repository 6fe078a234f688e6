"""Routes and ticks of the service `workspaces`."""

import asyncio
import os
from collections.abc import Awaitable
from typing import Any

from sqlalchemy.orm import Session

from ... import choices, courier, workers
from ...domain.offers import offers
from ...runtime import Runtime, utcnow
from ..api import handlers
from ..base import Handler, hub_client, run
from ..openapi import describe
from ..pages import STATIC
from . import (
    admin,
    environment_page,
    events,
    hook_pages,
    limit_pages,
    member_pages,
    pages,
    quota_pages,
    request_pages,
    space_pages,
    try_page,
    work_pages,
)
from . import site as sites
from .routes import ROUTES

PAGES: list[tuple[str, type[Any], dict[str, Any]]] = [
    *pages.ROUTES,
    *environment_page.ROUTES,
    *try_page.ROUTES,
    *space_pages.ROUTES,
    *member_pages.ROUTES,
    *work_pages.ROUTES,
    *limit_pages.ROUTES,
    *request_pages.ROUTES,
    *quota_pages.ROUTES,
    *admin.ROUTES,
    *hook_pages.ROUTES,
    STATIC,
]
"""What a browser shows; patterns below the service's prefix."""


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


def ticks(runtime: Runtime) -> list[Awaitable[None]]:
    hub = hub_client()
    site = sites.of(runtime)
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
        (r"api/offers/?", Offers, {}), (r"api/openapi\.json", Description, {}),
    ]  # fmt: skip
    run(
        "remotegpu_hub.services.workspaces",
        [
            *own,
            *handlers(ROUTES, {"events": events.Stream}),
            *PAGES,
        ],
        ticks,
    )
