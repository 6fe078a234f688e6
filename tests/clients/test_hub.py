"""The hub client against a real hub, and against a server that misbehaves on purpose."""

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from jupyterhub.handlers.base import BaseHandler

from remotegpu_hub import errors
from remotegpu_hub.clients import hub as client
from remotegpu_hub.clients.hub import HubClient
from remotegpu_hub.observed import Server
from tests.hubs import SMALL_SPAWNER, RealHub, free_ports

SLOW = (
    SMALL_SPAWNER
    + """
from jupyterhub.spawner import SimpleLocalProcessSpawner
import asyncio
class Slow(SimpleLocalProcessSpawner):
    home_dir_template = os.path.abspath("home-{username}")
    async def start(self):
        if self.name == "slow":
            await asyncio.sleep(1000)
        return await super().start()
    async def stop(self, now=False):
        if self.name == "sticky":
            await asyncio.sleep(3)
        await super().stop(now=now)
c.JupyterHub.spawner_class = Slow
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0.5, "slow_stop_timeout": 0.5}
"""
)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHub]:
    with RealHub(tmp_path_factory.mktemp("hub"), SLOW) as hub:
        yield hub


@pytest.fixture(autouse=True)
def no_servers_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "hub" in request.fixturenames:
        hub: RealHub = request.getfixturevalue("hub")
        for user in hub.api("GET", "users").json():
            for name in user["servers"]:
                hub.api("DELETE", f"users/{user['name']}/servers/{name}" if name else f"users/{user['name']}/server")
        wait_for(lambda: not any(user["servers"] for user in hub.api("GET", "users").json()))


def start(hub: RealHub, user: str, server: str = "") -> None:
    hub.api("POST", f"users/{user}")
    answer = hub.api("POST", f"users/{user}/servers/{server}" if server else f"users/{user}/server", json={})
    assert answer.status_code in {201, 202}, answer.text


def wait_for(check: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def ready(asked: HubClient, *wanted: tuple[str, str]) -> list[Server]:
    for _ in range(200):
        servers = await asked.servers()
        if {(s.user_name, s.server_name) for s in servers if s.ready} >= set(wanted):
            return servers
        await asyncio.sleep(0.05)
    raise AssertionError(servers)


async def test_ready_and_pending_servers_are_told_and_stopped_ones_are_not(hub: RealHub) -> None:
    for server in ("", "two", "gone"):
        start(hub, "alice", server)
    async with HubClient(hub.api_url, hub.token) as asked:
        await ready(asked, ("alice", ""), ("alice", "two"), ("alice", "gone"))
        start(hub, "bob", "slow")
        hub.api("POST", "users/idle")
        assert await asked.stop_server("alice", "gone")
        servers = {(s.user_name, s.server_name): s for s in await asked.servers()}
        assert servers == {
            ("alice", ""): Server("alice", "", ready=True, pending=False),
            ("alice", "two"): Server("alice", "two", ready=True, pending=False),
            ("bob", "slow"): Server("bob", "slow", ready=False, pending=True),
        }


async def test_a_stop_that_takes_long_is_not_done_and_is_still_listed(hub: RealHub) -> None:
    start(hub, "alice", "sticky")
    async with HubClient(hub.api_url, hub.token) as asked:
        await ready(asked, ("alice", "sticky"))
        assert not await asked.stop_server("alice", "sticky")
        assert await asked.servers() == [Server("alice", "sticky", ready=False, pending=True)]
        for _ in range(100):
            if not await asked.servers():
                break
            await asyncio.sleep(0.05)
        assert await asked.servers() == []


async def test_a_start_and_a_stop_are_waited_for_until_the_hub_says_that_they_are_under_way(hub: RealHub) -> None:
    """Which it does after half a second here, and after ten where nobody sets it."""
    start(hub, "alice", "sticky")
    async with HubClient(hub.api_url, hub.token) as asked:
        await ready(asked, ("alice", "sticky"))
    async with HubClient(hub.api_url, hub.token, timeout_seconds=0.25) as impatient:
        assert not await impatient.start_server("alice", "slow")
        assert not await impatient.stop_server("alice", "sticky")
    untouched = SimpleNamespace(settings={})
    for slow in (BaseHandler.slow_spawn_timeout, BaseHandler.slow_stop_timeout):
        assert 2 * slow.fget(untouched) <= client.ACT_SECONDS


async def test_stopping_a_stopped_server_is_done_and_an_unknown_one_is_not_found(hub: RealHub) -> None:
    hub.api("POST", "users/alice")
    async with HubClient(hub.api_url, hub.token) as asked:
        assert await asked.stop_server("alice")
        for user, server in (("nobody", ""), ("alice", "nothing"), ("../alice", ""), ("alice", "a/b?c")):
            with pytest.raises(errors.NotFound):
                await asked.stop_server(user, server)


async def test_a_user_name_with_odd_characters_is_addressed_whole(hub: RealHub) -> None:
    start(hub, "jo%20%40%C3%A9.x")
    async with HubClient(hub.api_url, hub.token) as asked:
        await ready(asked, ("jo @é.x", ""))
        assert await asked.stop_server("jo @é.x")
        assert await asked.servers() == []


@pytest.mark.parametrize("page_size", [2, 3, 200])
async def test_all_pages_are_read(hub: RealHub, page_size: int) -> None:
    names = [f"page{number}" for number in range(5)]
    for name in names:
        start(hub, name)
    async with HubClient(hub.api_url, hub.token, page_size=page_size) as asked:
        servers = await ready(asked, *((name, "") for name in names))
    assert [server.user_name for server in servers] == names


async def test_a_missing_scope_is_named(hub: RealHub) -> None:
    start(hub, "alice")
    blind = hub.token_of("admin", ["read:users:name"])
    async with HubClient(hub.api_url, blind) as asked:
        with pytest.raises(errors.Denied, match="list:users"):
            await asked.servers()
        with pytest.raises(errors.Denied, match="delete:servers"):
            await asked.stop_server("alice")
    async with HubClient(hub.api_url, hub.token_of("admin", ["list:users"])) as asked:
        with pytest.raises(errors.Denied, match="read:servers"):
            await asked.servers()
    reader = hub.token_of("admin", ["list:users", "read:servers"])
    async with HubClient(hub.api_url, reader) as asked:
        assert [server.user_name for server in await asked.servers()] == ["alice"]


async def test_a_wrong_token_is_denied_and_never_shown(hub: RealHub) -> None:
    async with HubClient(hub.api_url, "secret-token") as asked:
        with pytest.raises(errors.Denied) as denied:
            await asked.servers()
    assert "secret-token" not in str(denied.value)


async def test_a_hub_that_is_not_there_is_unavailable_in_a_sentence() -> None:
    async with HubClient(f"http://127.0.0.1:{free_ports(1)[0]}/hub/api", "t") as asked:
        with pytest.raises(errors.Unavailable, match=r"^The hub cannot be reached: "):
            await asked.servers()
        with pytest.raises(errors.Unavailable, match=r"^The hub cannot be reached: "):
            await asked.stop_server("alice")


Answers = list[tuple[int, Any]]


@contextmanager
def misbehaving(answers: Answers) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers in turn, and the requests that it got."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            status, body = answers.pop(0)
            if status == 0:
                time.sleep(1)
                return
            text = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_DELETE = do_GET

        def log_message(self, *said: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hub/api", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def page(*names: str, following: int | None = None, total: int = 0) -> dict[str, Any]:
    servers = {"": {"pending": None, "ready": True, "stopped": False}}
    link = None if following is None else {"offset": following, "limit": 2, "url": "http://attacker.example/steal"}
    return {
        "items": [{"name": name, "servers": servers} for name in names],
        "_pagination": {"offset": 0, "limit": 2, "total": total, "next": link},
    }


async def test_a_read_is_tried_again_and_a_stop_is_not() -> None:
    answers: Answers = [(503, {"message": "down"}), (502, "<html>"), (200, page("a"))]
    with misbehaving(answers) as (url, asked):
        async with HubClient(url, "t") as hub:
            assert [server.user_name for server in await hub.servers()] == ["a"]
            assert len(asked) == 3
            answers.append((503, {"message": "down"}))
            with pytest.raises(errors.Unavailable, match="answers 503: down"):
                await hub.stop_server("a")
            assert asked[3:] == ["DELETE /hub/api/users/a/server"]


async def test_a_slow_hub_is_unavailable_after_the_tries() -> None:
    with misbehaving([(0, "")] * client.TRIES) as (url, asked):
        async with HubClient(url, "t", timeout_seconds=0.1) as hub:
            with pytest.raises(errors.Unavailable, match="did not answer in time"):
                await hub.servers()
        assert len(asked) == client.TRIES


async def test_a_list_that_moves_between_pages_is_read_anew() -> None:
    """Between the pages `a` went, so the second page begins one later: `c` would have been missed."""
    answers: Answers = [
        (200, page("a", "b", following=2)),
        (200, page("c", "d", following=3)),
        (200, page("b", "c", following=2)),
        (200, page("c", "d")),
    ]
    with misbehaving(answers) as (url, asked):
        async with HubClient(url, "t", page_size=2) as hub:
            assert [server.user_name for server in await hub.servers()] == ["b", "c", "d"]
    assert [request.rpartition("offset=")[2] for request in asked] == ["0", "1", "0", "1"]


async def test_a_list_that_never_holds_still_is_unavailable_and_never_a_part() -> None:
    moving: Answers = [(200, page("a", "b", following=2)), (200, page("x"))] * client.LIST_ROUNDS
    with misbehaving(moving) as (url, _):
        async with HubClient(url, "t", page_size=2) as hub:
            with pytest.raises(errors.Unavailable, match="changes faster"):
                await hub.servers()


@pytest.mark.parametrize(
    "body", ["<html>a login page</html>", [], {"message": "hello"}], ids=["html", "list", "object"]
)
async def test_what_is_no_hub_is_said_to_be_none(body: object) -> None:
    with misbehaving([(200, body)]) as (url, _):
        async with HubClient(url, "t") as hub:
            with pytest.raises(errors.RemoteGPUError, match="no JupyterHub API"):
                await hub.servers()
