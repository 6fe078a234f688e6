"""All workspaces as admins of the hub see them: their numbers, a new one, and one that is archived."""

from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx
from sqlalchemy import Engine, select

from remotegpu_hub.db import begin
from remotegpu_hub.domain import budgets
from remotegpu_hub.orm import Role, Workspace, WorkspaceStatus
from remotegpu_hub.services.pages import View
from remotegpu_hub.services.workspaces import all_spaces
from tests.gpu_hubs import GpuHub
from tests.hubs import TRUST
from tests.worlds import World

from .test_audit_pages import NASTY, see


def send(hub: GpuHub, user: str, path: str, **fields: Any) -> httpx.Response:
    """What the page's form sends."""
    return httpx.post(
        f"{hub.url}services/workspaces/{path}", data=fields, timeout=60, verify=TRUST, trust_env=False,
        headers={"Authorization": f"token {hub.token_of(user)}"},
    )  # fmt: skip


def test_each_workspace_is_told_with_what_it_has_holds_and_spends(engine: Engine, now: datetime):
    world = World(engine, now).furnish()
    world.workspace("empty", owner="alice", time_zone="Asia/Tokyo")
    world.member("lab", "bob", Role.ADMIN)
    world.budget("lab", 50)
    world.run("bob", gpus=2)
    world.run("alice", server="cpu")
    world.pass_time(hours=1)
    world.seen(*world.open_runs())
    world.meter()
    with begin(engine, read_only=True) as session:
        found = list(session.scalars(select(Workspace).order_by(Workspace.name)))
        empty, lab = all_spaces.read_rows(session, View("en", currency="CNY"), found, now=world.now)
        status = budgets.status_of(session, workspace=lab.workspace, now=world.now)
    assert status is not None
    assert (lab.members, lab.runs, lab.gpu_millis, lab.spent) == (3, 2, 2000, status.spent)
    assert lab.bar is not None
    assert lab.bar.numbers == "¥25.50 of ¥50.00"
    assert (empty.members, empty.runs, empty.gpu_millis, empty.spent, empty.bar) == (1, 0, 0, 0, None)


def test_an_admin_makes_a_workspace_and_archives_it_and_nobody_else_does(hub: GpuHub):
    fields = {
        "name": "page-made",
        "display_name": NASTY,
        "owner": "alice",
        "time_zone": "Asia/Shanghai",
        "kind": "team",
    }
    assert send(hub, "alice", "admin/spaces/new", **fields).status_code == 403
    assert see(hub, "alice", "admin/spaces").status_code == see(hub, "alice", "admin/spaces/new").status_code == 403
    wrong = send(hub, "admin", "admin/spaces/new", **{**fields, "name": "X"})
    assert wrong.status_code == 400
    assert "&lt;script&gt;" in wrong.text, "what was written is still there"
    assert send(hub, "admin", "admin/spaces/new", **{**fields, "owner": "nobody"}).status_code == 404
    made = send(hub, "admin", "admin/spaces/new", **fields)
    assert (made.status_code, made.headers["Location"]) == (303, "/services/workspaces/spaces/page-made")
    assert send(hub, "admin", "admin/spaces/new", **fields).status_code == 409
    shown = see(hub, "admin", f"admin/spaces?search={quote('训练训练')}&kind=team&status=active")
    assert "page-made" in shown.text
    assert "<script>alert" not in shown.text
    assert "Nothing fits." in see(hub, "admin", "admin/spaces?search=page-made&kind=personal").text
    assert see(hub, "admin", "admin/spaces?cursor=x").status_code == 400
    assert "secret" in see(hub, "admin", "admin/spaces").text
    assert send(hub, "bob", "admin/spaces/page-made/archive").status_code in (403, 404)
    assert send(hub, "admin", "admin/spaces/page-made/archive").status_code == 303
    assert hub.world.read(select(Workspace.status).where(Workspace.name == "page-made")) == [WorkspaceStatus.ARCHIVED]
    settings = see(hub, "alice", "spaces/page-made/settings").text
    assert "Reopen this workspace" in settings
    assert "Archive this workspace" not in settings
    assert send(hub, "bob", "spaces/page-made/reopen").status_code == 404
    assert send(hub, "alice", "spaces/page-made/reopen").status_code == 303
    assert "Archive this workspace" in see(hub, "alice", "spaces/page-made/settings").text
    assert "open again" in see(hub, "alice", "spaces/page-made?told=reopen").text
    assert send(hub, "admin", f"admin/spaces/{quote('~alice')}/archive").status_code == 409
    assert send(hub, "admin", "admin/spaces/nothing/archive").status_code == 404
