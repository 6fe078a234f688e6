"""My environments where there are many: what runs is shown always, of the rest a page, with search and the next one."""

import re
from collections.abc import Iterator
from datetime import datetime

import pytest
from sqlalchemy import Engine, event, insert, update

from remotegpu_hub.db import begin
from remotegpu_hub.domain import environments, users, workspaces
from remotegpu_hub.errors import Invalid
from remotegpu_hub.orm import Environment, EnvironmentState, Image
from remotegpu_hub.services.pages import View
from remotegpu_hub.services.workspaces import pages
from remotegpu_hub.services.workspaces.pages import A_PAGE, Mine
from tests.gpu_hubs import GpuHub
from tests.worlds import ADMIN, World

from .test_all_spaces import send
from .test_audit_pages import see

MANY = 2 * A_PAGE + 5


def keep(engine: Engine, user: str, count: int, now: datetime) -> None:
    """Environments `old 0`, `old 1`, … that do not run."""
    with begin(engine) as session:
        owner, lab = users.by_name(session, name=user), workspaces.by_name(session, name="lab")
        image = session.query(Image.id).limit(1).scalar()
        rows = [
            {
                "user_id": owner.id, "server_name": f"old-{number}", "display_name": f"old {number}",
                "workspace_id": lab.id, "image_id": image, "gpu_slots": 0, "cpu_millis": 1000, "memory_bytes": 2**30,
                "ports": [], "state": EnvironmentState.STOPPED, "created_at": now,
            }
            for number in range(count)
        ]  # fmt: skip
        session.execute(insert(Environment), rows)


def read(world: World, **asked: str) -> Mine:
    with begin(world.engine, read_only=True) as session:
        bob = users.by_name(session, name="bob")
        return pages.mine(session, View("en"), user=bob, login="", now=world.now, **asked)


def names(rows: list[pages.Row]) -> list[str]:
    return [row.environment.display_name for row in rows]


def test_what_runs_is_always_shown_and_of_the_rest_a_page(engine: Engine, now: datetime):
    world = World(engine, now).furnish()
    world.run("bob", server="first")
    few: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: few.append(given[2]))
    read(world)
    before = len(few)
    keep(engine, "bob", MANY, now)
    keep(engine, "alice", 3, now)
    world.run("bob", server="last")
    seen: list[str] = []
    cursor, sizes = "", []
    while True:
        few.clear()
        found = read(world, cursor=cursor)
        assert len(few) <= before + 1, "as many statements as for one environment, and one for homes"
        assert names(found.running) == ["last", "first"]
        sizes.append(len(found.rest))
        seen += names(found.rest)
        cursor = found.following
        if not cursor:
            break
    assert sizes == [A_PAGE, A_PAGE, 5]
    assert seen == [f"old {number}" for number in reversed(range(MANY))]
    found = read(world, search="OLD 1")
    assert names(found.rest) == [f"old {number}" for number in (*range(19, 9, -1), 1)]
    assert (len(found.running), found.following) == (2, "")
    assert read(world, search="100%").rest == [], "a search has no wildcards"
    with begin(engine) as session:
        bob = users.by_name(session, name="bob").id
        environments.delete(session, user_id=bob, server_name="old-44", actor=ADMIN, now=now)
    assert names(read(world).rest)[0] == "old 43"
    for wrong in ("x", "٣", "-1", "9" * 30):
        with pytest.raises(Invalid):
            read(world, cursor=wrong)


@pytest.fixture
def many(hub: GpuHub) -> Iterator[None]:
    """Zoe keeps more than a page, and loses it afterwards."""
    keep(hub.engine, "zoe", A_PAGE + 1, hub.world.now)
    yield
    with begin(hub.engine) as session:
        zoe = users.by_name(session, name="zoe").id
        session.execute(update(Environment).where(Environment.user_id == zoe).values(state=EnvironmentState.DELETED))


def test_a_long_list_is_searched_and_turned_and_a_form_comes_back_to_its_page(hub: GpuHub, many: None):
    first = see(hub, "zoe", "").text
    (cursor,) = re.findall(r'\?cursor=(\d+)">More<', first)
    assert ("old 20" in first, "old 0<" in first) == (True, False)
    second = see(hub, "zoe", f"?cursor={cursor}").text
    assert ("old 20" in second, "old 0<" in second, "From the beginning" in second) == (False, True, True)
    assert "Nothing fits." in see(hub, "zoe", "?search=nothing-of-the-kind").text
    assert see(hub, "zoe", "?cursor=spring").status_code == 400
    number = re.findall(r"old 0<.*?environments/(\d+)/delete\?cursor", second, re.DOTALL)[0]
    gone = send(hub, "zoe", f"environments/{number}/delete?cursor={cursor}")
    assert (gone.status_code, gone.headers["Location"].split("?")[1]) == (303, f"cursor={cursor}&told=delete")
    refused = send(hub, "zoe", f"environments/{number}/stop?cursor={cursor}")
    assert (refused.status_code, f"?cursor={cursor}" in refused.text) == (404, True)
    assert "Search" not in see(hub, "eve", "").text
