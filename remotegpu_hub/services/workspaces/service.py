"""Routes and ticks of the service `workspaces`."""

import asyncio
import json
import os
from collections.abc import Awaitable
from functools import cache
from typing import Any

from ... import courier, workers
from ...runtime import Runtime
from ..api import Buckets, handlers
from ..base import Handler, hub_client, run
from ..openapi import describe
from ..pages import STATIC, NoPage
from . import (
    admin,
    environment_page,
    events,
    hook_pages,
    limit_pages,
    member_pages,
    pages,
    quota_pages,
    quoting,
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
    (r"(?!api/|oauth_callback).+", NoPage, {}),
]
"""What a browser shows; patterns below the service's prefix."""


@cache
def _description() -> str:
    """Made once: it takes the schemas of all routes."""
    prefix = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
    return json.dumps(describe(ROUTES, title="remotegpu-hub", server=f"{prefix}api"), ensure_ascii=False)


class Description(Handler):
    """The OpenAPI description of all routes."""

    buckets = Buckets()

    async def get(self) -> None:
        self.buckets.take(f"{self.current_user.get('kind')}:{self.current_user['name']}")
        self.finish(_description())


def ticks(runtime: Runtime) -> list[Awaitable[None]]:
    hub = hub_client()
    site = sites.of(runtime)
    carrier = courier.Courier(runtime)

    async def sync() -> None:
        await workers.sync(runtime, site)

    async def reconcile() -> None:
        await asyncio.to_thread(workers.follow_budgets, runtime)
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
        workers.every(runtime, "events", courier.REST_SECONDS, carrier.shift, lease_seconds=courier.LEASE_SECONDS),
        workers.every(runtime, "thresholds", courier.THRESHOLD_SECONDS, carrier.look_at_limits),
        events.Stream.feed.run(runtime),
    ]


def main() -> None:
    """Serve until the hub's process ends."""
    run(
        "remotegpu_hub.services.workspaces",
        [
            (r"api/openapi\.json", Description, {}),
            *handlers(ROUTES, {"events": events.Stream, "offers": quoting.Offers}),
            *PAGES,
        ],
        ticks,
    )
