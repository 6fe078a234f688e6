"""If-Match is heeded by every edit, or refused: never passed over."""

import re
from typing import Any

import pytest
from sqlalchemy import select

from remotegpu_hub.orm import Webhook
from remotegpu_hub.services.workspaces.routes import ROUTES
from tests.gpu_hubs import GpuHub

from .test_all_spaces import send
from .test_api import ACTS_ON_THE_HUB, Desk
from .test_audit_pages import see

OLD = {"If-Match": '"an-older-one"'}


@pytest.fixture(scope="module")
def desk(hub: GpuHub) -> Desk:
    return Desk(hub)


@pytest.mark.parametrize("route", [one for one in ROUTES if one.changes], ids=lambda route: route.operation)
def test_an_edit_of_what_was_another_is_not_made(desk: Desk, route: Any):
    desk.restore()
    role = "member" if route.operation in ("withdraw_quota_request", "create_environment") else "hub admin"
    role = "stranger" if route.operation.endswith("_invitation") and "invitations/{workspace}" in route.path else role
    answer = desk.send(role, route, headers=OLD)
    if route.operation in ("leave_workspace", *ACTS_ON_THE_HUB, "remove_key"):
        assert not answer.is_success
    else:
        assert answer.status_code == (412 if route.shows is not None else 400), answer.text


def test_what_a_host_holds_meanwhile_does_not_stop_who_takes_it_out(desk: Desk):
    desk.restore()
    path = f"hosts/{desk.host}"
    seen = {"If-Match": desk.ask("hub admin", "GET", path).headers["ETag"]}
    desk.hub.start_server("carol", {"workspace": "lab"}, server="carols")
    try:
        assert desk.ask("hub admin", "PATCH", path, json={"status": "maintenance"}, headers=seen).status_code == 200
        late = desk.ask("hub admin", "POST", f"{path}/drain", json={"grace_seconds": 0}, headers=seen)
        assert late.status_code == 412
    finally:
        desk.ask("hub admin", "PATCH", path, json={"status": "online"})
        desk.hub.stop_server("carol", "carols")


def test_of_two_admins_who_change_a_webhook_on_its_page_the_second_is_told(desk: Desk):
    desk.restore()
    page = see(desk.hub, "admin", "admin/webhooks").text
    (action, seen) = re.findall(r'action="[^"]*/(admin/webhooks/\d+/edit)".*?name="seen" value="([^"]+)"', page)[0]
    fields = {"seen": seen.replace("&#34;", '"'), "kinds": "environment.failed"}
    first = send(desk.hub, "admin", action, url="http://127.0.0.1:9/first", **fields)
    second = send(desk.hub, "admin", action, url="http://127.0.0.1:9/second", **fields)
    assert (first.status_code, second.status_code) == (303, 412)
    assert "Look at it again" in second.text
    assert desk.hub.world.read(select(Webhook.url).where(Webhook.id == desk.webhook)) == ["http://127.0.0.1:9/first"]
