"""Every list of the API, by generation: it is walked page by page, and sorted as it says."""

from collections.abc import Iterator
from time import sleep
from typing import Any, get_args

import httpx
import pytest
from sqlalchemy import delete

from remotegpu_hub.db import begin
from remotegpu_hub.domain import invitations, keys, quotas, users, webhooks, workspaces
from remotegpu_hub.orm import PortMapping, PortService, QuotaScope, Role
from remotegpu_hub.services.api import Route
from remotegpu_hub.services.paging import Paging
from remotegpu_hub.services.workspaces.routes import ROUTES
from tests.gpu_hubs import GpuHub
from tests.worlds import ADMIN

from .test_api import CALLERS, OTHER_KEY, TABLE, Desk

LISTS = [route for route in ROUTES if route.listing]
MANY = {"list_my_invitations": "stranger", "list_environments": "member", "list_keys": "member", "list_ports": "member",
        "list_quota_requests": "member"}  # fmt: skip
"""Who has some of what is one's own."""
MOST = 12


@pytest.fixture(scope="module")
def desk(hub: GpuHub) -> Iterator[Desk]:
    """At least two of everything that a list can show."""
    made = Desk(hub)
    made.restore()
    given: dict[str, Any] = {"actor": ADMIN, "now": hub.world.now}
    hub.world.workspace("second", owner="eve")
    hub.start_server("carol", {"workspace": "lab"}, server="carols")
    hub.stop_server("carol", "carols")
    run = hub.all_runs("carol", "carols")[-1]
    with begin(hub.engine) as session:
        second = workspaces.by_name(session, name="second")
        people = {name: users.by_name(session, name=name) for name in ("eve", "carol", "admin")}
        keys.add(session, user=people["carol"], text=OTHER_KEY, **given)
        lab = workspaces.by_name(session, name="lab")
        invitations.invite(session, workspace=lab, user=people["admin"], role=Role.VIEWER, **given)
        webhooks.create(session, url="http://127.0.0.1:9/2", kinds=["environment.failed"],
                        key=hub.runtime.settings.webhook_key, **given)  # fmt: skip
        quotas.put(session, scope=QuotaScope.WORKSPACE, values={"environments": 1}, models={}, workspace=second, user=None,
                   **given)  # fmt: skip
        for number in range(3):
            session.add(
                PortMapping(
                    allocation_id=run.id, service=PortService.CUSTOM, protocol="tcp", address="127.0.0.1",
                    internal_port=9000 + number, external_port=60000 + number, open=True,
                )
            )  # fmt: skip
    yield made
    with begin(hub.engine) as session:
        session.execute(delete(PortMapping).where(PortMapping.allocation_id == run.id))


def patiently(desk: Desk, route: Route, role: str, params: dict[str, Any]) -> httpx.Response:
    """Ask, and again where it was too often."""
    while (answer := desk.send(role, route, params=params)).status_code == 429:
        sleep(int(answer.headers["Retry-After"]))
    return answer


def walk(desk: Desk, route: Route, role: str, limit: int, **asked: Any) -> list[Any]:
    found: list[Any] = []
    cursor = None
    while True:
        params = {"limit": limit, **asked, **({"cursor": cursor} if cursor else {})}
        answer = patiently(desk, route, role, params)
        assert answer.is_success, f"{route.operation} {params}: {answer.text}"
        body = answer.json()
        assert len(body["items"]) <= limit
        found += [{name: one[name] for name in one if name != "last_seen_at"} for one in body["items"]]  # time goes on
        cursor = body["next"]
        if cursor is None or len(found) >= MOST:
            return found


@pytest.mark.parametrize("route", LISTS, ids=lambda route: route.operation)
def test_each_list_is_walked_page_by_page_and_sorted_as_it_says(desk: Desk, route: Route):
    assert issubclass(route.query, Paging), "a list takes limit and cursor"
    role = MANY.get(route.operation, "hub admin")
    assert role in CALLERS.keys() & TABLE[route.operation]
    field = route.query.model_fields.get("sort")
    for sort in get_args(field.annotation) if field else [None]:
        asked = {"sort": sort} if sort else {}
        whole = walk(desk, route, role, 200, **asked)
        assert walk(desk, route, role, 1, **asked)[:MOST] == whole[:MOST]
        assert walk(desk, route, role, 2, **asked)[:MOST] == whole[:MOST]
        if sort and not sort.startswith("-"):
            back = walk(desk, route, role, 200, sort=f"-{sort}")
            if len(whole) < MOST:
                assert back == whole[::-1]
    for wrong in ({"limit": 0}, {"limit": 201}, {"cursor": "x"}):
        assert patiently(desk, route, role, wrong).status_code == 400, wrong
