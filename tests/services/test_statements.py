"""What a page or a list costs does not grow with what it shows: it asks the database a fixed number of questions."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.orm import Session

from remotegpu_hub.db import begin
from remotegpu_hub.domain import users, workspaces
from remotegpu_hub.services import api
from remotegpu_hub.services.api import Call, Caller, Route
from remotegpu_hub.services.pages import View
from remotegpu_hub.services.workspaces import pages
from remotegpu_hub.services.workspaces.routes import ROUTES
from tests.gpu_hubs import GpuHub
from tests.worlds import ADMIN, World, host

LISTS = [
    one for one in ROUTES
    if one.listing and "limit" in one.query.model_fields and not one.path.startswith("webhooks/")
]  # fmt: skip


@pytest.fixture(scope="module")
def world(hub: GpuHub) -> Iterator[World]:
    """Alice runs three environments on three hosts, each with a GPU and a port for SSH; undone afterwards."""
    with hub.engine.connect() as connection:
        outer = connection.begin()
        connection.begin_nested()
        world = World(cast(Engine, connection), datetime.now(UTC).replace(microsecond=0))
        world.image()
        for number in range(3):
            world.see(host(f"far-{number}", 1, pool="far"))
            world.run("alice", server=f"s-{number}", gpus=1, ports=["ssh"])
            world.workspace(f"paid-{number}", owner="alice")
            world.budget(f"paid-{number}", 100)
        yield world
        outer.rollback()


@pytest.fixture
def statements(world: World) -> Iterator[Callable[[Callable[[Session], Any]], int]]:
    """Counts the statements of what it is given."""
    connection, said = cast(Connection, world.engine), list[str]()

    def note(_connection: Any, _cursor: Any, text: str, *_more: Any) -> None:
        said.append(text)

    def count(work: Callable[[Session], Any]) -> int:
        said.clear()
        with begin(world.engine) as session:
            work(session)
        return sum(not text.startswith(("SAVEPOINT", "RELEASE")) for text in said)

    event.listen(connection, "before_cursor_execute", note)
    yield count
    event.remove(connection, "before_cursor_execute", note)


def test_the_first_page_asks_eight_times(world: World, statements: Callable[..., int]):
    def read(session: Session) -> None:
        alice = users.by_name(session, name="alice")
        found = pages.mine(session, View("en"), user=alice, login="", now=world.now)
        assert [len(row.ways) for row in found.running] == [1, 1, 1]
        assert len({row.run.host.name for row in found.running if row.run}) == 3

    assert statements(read) == 8


@pytest.mark.parametrize("route", LISTS, ids=lambda route: route.path)
def test_a_list_asks_as_often_for_many_rows_as_for_one(
    hub: GpuHub, world: World, statements: Callable[..., int], route: Route
):
    def read(session: Session, limit: int) -> None:
        alice = users.by_name(session, name="alice")
        kept = session.connection().exec_driver_sql("SELECT max(id) FROM remotegpu_environments").scalar_one()
        asked = {"limit": limit, **({"mine": False} if "mine" in route.query.model_fields else {})}
        call = Call(
            session=session, runtime=hub.runtime, caller=Caller("alice", alice, frozenset({api.ADMIN}), True),
            path={"workspace": "lab", "id": str(kept), "host": "far-0", "user": "alice"}, query=api.check(route.query, asked), body=None,
            now=world.now, actor=ADMIN, workspace=workspaces.by_name(session, name="lab"),
        )  # fmt: skip
        api.write(route, route.work(call))

    names = 2  # workspaces and users are asked for once each, where a row names one
    assert statements(lambda session: read(session, 100)) <= statements(lambda session: read(session, 1)) + names
