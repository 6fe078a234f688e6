"""The stream of events and the webhooks behind a real hub, with real listeners and receivers."""

import asyncio
import hashlib
import hmac
import json
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from remotegpu_hub import courier
from remotegpu_hub.clients.webhooks import TIMEOUT_SECONDS
from remotegpu_hub.db import begin
from remotegpu_hub.domain import environments, events, users, webhooks
from remotegpu_hub.domain.audit import SYSTEM
from remotegpu_hub.orm import EventKind
from remotegpu_hub.runtime import Runtime, Settings, utcnow
from tests.gpu_hubs import GpuHub

from .conftest import put_members

ALL_STATES = [f"environment.{one}" for one in ("creating", "started", "stopping", "stopped")]
STARTED = "environment.started"


class Ear:
    """Listens in a thread of its own, until it is closed or the stream ends."""

    def __init__(self, hub: GpuHub, token: str, query: str = "", **headers: str) -> None:
        self.heard: list[dict[str, Any]] = []
        self.ids: list[int] = []
        self.status = 0
        self.ended = threading.Event()
        self._ready = threading.Event()
        headers = {"Authorization": f"token {token}", "Accept": "text/event-stream", **headers}
        self._asked = (f"{hub.url}services/workspaces/api/events{query}", headers)
        self._client = httpx.Client(timeout=60, trust_env=False)
        self._closing = False
        threading.Thread(target=self._listen, daemon=True).start()
        assert self._ready.wait(30)

    def _listen(self) -> None:
        try:
            with self._client.stream("GET", self._asked[0], headers=self._asked[1]) as answer:
                self.status, self._answer = answer.status_code, answer
                for line in answer.iter_lines():
                    self._ready.set()
                    if line.startswith("id: "):
                        self.ids.append(int(line[4:]))
                    if line.startswith("data: "):
                        self.heard.append(json.loads(line[6:]))
                    if self._closing:
                        return
        except (httpx.HTTPError, httpx.StreamError, OSError):
            pass
        finally:
            self._ready.set()
            self.ended.set()

    @property
    def kinds(self) -> list[str]:
        return [one["kind"] for one in self.heard]

    def of(self, server: str) -> list[str]:
        """What was heard of one server."""
        return [one["kind"] for one in self.heard if one["detail"].get("server_name") == server]

    def close(self) -> None:
        self._closing = True
        for connection in self._client._transport._pool.connections:  # type: ignore[attr-defined]
            stream = connection._connection._network_stream.get_extra_info("socket")
            stream.shutdown(2)
        self.ended.wait(10)


@pytest.fixture
def listen(hub: GpuHub) -> Iterator[Callable[..., Ear]]:
    ears: list[Ear] = []

    def begin(user: str, query: str = "", *, token: str = "", **headers: str) -> Ear:
        ears.append(Ear(hub, token or hub.token_of(user), query, **headers))
        return ears[-1]

    yield begin
    for one in ears:
        if not one.ended.is_set():
            one.close()


def test_everybody_hears_what_they_may_see_and_goes_on_where_they_were(hub: GpuHub, listen: Callable[..., Ear]):
    put_members(hub)
    revoked = hub.api("POST", "users/alice/tokens", json={"note": "soon gone"}).json()
    losing = listen("alice", token=revoked["token"])
    assert hub.api("DELETE", f"users/alice/tokens/{revoked['id']}").is_success
    hub.add_users("rosa")
    renamed = listen("rosa", "?mine=true")
    rosa = rename(hub, "rosa", "rosalind")
    carol, dave, eve, admin = (listen(name) for name in ("carol", "dave", "eve", "admin"))
    idle = [listen(name, "?mine=true") for name in ("bob", "admin")]
    hub.start_server("carol", {"workspace": "lab"}, server="heard")
    hub.until(lambda: STARTED in dave.kinds, "a member of the workspace hears of it", 30)
    put_members(hub, dave="viewer")
    remove(hub, "dave")
    hub.stop_server("carol", "heard")
    for ear in (carol, admin):
        hub.until(lambda ear=ear: ear.of("heard") == ALL_STATES, "all of it was told", 30)  # type: ignore[misc]
    time.sleep(1.5)
    assert (dave.kinds, eve.kinds) == (ALL_STATES[:2], []), "who was removed hears nothing more, a stranger nothing"
    assert [one.kinds for one in idle] == [[], []], "nor does who asked for their own alone"
    assert not dave.ended.is_set()
    first = carol.heard[0]
    assert (first["workspace"], first["user"], first["detail"]["server_name"]) == ("lab", "carol", "heard")
    assert carol.ids == sorted(carol.ids) == [one["id"] for one in carol.heard]
    again = listen("carol", **{"Last-Event-ID": str(first["id"])})
    hub.until(lambda: again.kinds == ALL_STATES[1:], "the rest comes again", 30)
    assert listen("carol", f"?after={first['id']}&kind=environment.stopped").status == 200
    told = hub.service("workspaces", f"api/events?after={first['id']}&sort=id", token=hub.token_of("carol")).json()
    assert [one["kind"] for one in told["items"]] == ALL_STATES[1:], "the same as a list"
    assert losing.ended.wait(40), "a stream ends with its token"
    assert not renamed.ended.wait(3), "and not with a name"
    with begin(hub.engine) as session:
        events.record(session, kind=EventKind.QUOTA, now=utcnow(), workspace_id=None, user_id=rosa, percent=80)
    hub.until(lambda: renamed.kinds == ["quota.threshold"], "who has another name hears on", 30)
    put_members(hub)


@pytest.mark.parametrize(
    "given", ["x", "-1", "１", "9" * 19, "9" * 5000], ids=["text", "minus", "wide", "long", "longer"]
)
def test_what_is_no_id_of_an_event_is_told(hub: GpuHub, given: str):
    answer = httpx.get(
        f"{hub.url}services/workspaces/api/events", timeout=30, trust_env=False,
        headers=[("Authorization", f"token {hub.token_of('alice')}"), ("Accept", "text/event-stream"),
                 ("Last-Event-ID", given.encode())],
    )  # fmt: skip
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid")


def rename(hub: GpuHub, before: str, after: str) -> int:
    """Give a user of the hub another name; our id of them, which stays."""
    with begin(hub.engine, read_only=True) as session:
        number = users.by_name(session, name=before).id
    answer = hub.api("PATCH", f"users/{before}", json={"name": after})
    assert answer.is_success, answer.text
    return number


def remove(hub: GpuHub, name: str) -> None:
    answer = httpx.delete(
        f"{hub.url}services/workspaces/api/workspaces/lab/members/{name}", trust_env=False, timeout=30,
        headers={"Authorization": f"token {hub.token_of('alice')}"},
    )  # fmt: skip
    assert answer.is_success, answer.text


def test_a_user_has_a_few_streams_and_a_bad_place_to_go_on_from_is_told(hub: GpuHub, listen: Callable[..., Ear]):
    ears = [listen("eve") for _ in range(5)]
    assert {one.status for one in ears} == {200}
    assert listen("eve").status == 429
    ears[0].close()
    hub.until(lambda: listen("eve").status == 200, "one that is closed makes room", 30)
    assert listen("bob", **{"Last-Event-ID": "x"}).status == 400
    assert listen("bob", "?after=-1").status == 400
    assert listen("bob", token=hub.token_of("bob", ["access:services!service=workspaces"])).status == 403


class Receiver:
    """Takes webhooks; `answers` are the statuses of the first ones, `holding` keeps them waiting."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.came_at: list[float] = []
        """By the clock, in seconds."""
        self.answers: list[int] = []
        self.holding = threading.Event()
        self.go_on = threading.Event()
        outer = self

        class Take(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(length := int(self.headers["Content-Length"]))
                if len(body) < length:
                    return  # who sent it was killed
                outer.came_at.append(time.monotonic())
                outer.got.append(({key.lower(): value for key, value in self.headers.items()}, body))
                if outer.holding.is_set():
                    outer.go_on.wait(30)
                self.send_response(outer.answers.pop(0) if outer.answers else 200)
                self.end_headers()
                self.wfile.write(b"thank you")

            def log_message(self, *said: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign] # who asked was killed
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, environment: str) -> dict[str, list[str]]:
        """Kinds that came of one environment, by the events' ids."""
        found = defaultdict(list)
        for headers, body in list(self.got):
            event = json.loads(body)
            if event["detail"].get("server_name") == environment:
                found[headers["x-remotegpu-event"]].append(event["kind"])
        return found

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


class Desk:
    """An admin of the hub at the webhooks."""

    def __init__(self, hub: GpuHub) -> None:
        headers = {"Authorization": f"token {hub.token_of('admin')}"}
        self.client = httpx.Client(
            base_url=f"{hub.url}services/workspaces/api/", headers=headers, timeout=60, trust_env=False
        )

    def add(self, url: str, *kinds: str) -> dict[str, Any]:
        answer = self.client.post("webhooks", json={"url": url, "kinds": list(kinds)})
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def log(self, webhook: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get(f"webhooks/{webhook}/deliveries").json()["items"]
        return found


@pytest.fixture
def desk(hub: GpuHub) -> Iterator[Desk]:
    made = Desk(hub)
    yield made
    for one in made.client.get("webhooks").json()["items"]:
        made.client.delete(f"webhooks/{one['id']}")


def signature(secret: str, headers: dict[str, str], body: bytes) -> str:
    text = headers["x-remotegpu-timestamp"].encode() + b"." + body
    return "sha256=" + hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def test_a_webhook_is_signed_tried_again_and_logged(hub: GpuHub, desk: Desk, receiver: Receiver):
    made = desk.add(receiver.url, STARTED)
    tested = desk.client.post(f"webhooks/{made['id']}/test").json()
    assert (tested["delivered"], tested["status"], tested["said"]) == (True, 200, "thank you")
    assert receiver.got[0][0]["x-remotegpu-kind"] == "test"
    receiver.answers = [500, 302]
    hub.start_server("carol", {"workspace": "lab"}, server="hooked")
    hub.until(lambda: len(receiver.got) == 4, "it was tried until it was taken", 30)
    hub.stop_server("carol", "hooked")
    for headers, body in receiver.got:
        assert headers["x-remotegpu-signature"] == signature(made["secret"], headers, body)
        assert abs(time.time() - int(headers["x-remotegpu-timestamp"])) < 60
        assert headers["x-remotegpu-kind"] == json.loads(body)["kind"]
    assert list(receiver.of("hooked").values()) == [[STARTED] * 3], "under the same id each time, and nothing else"
    hub.until(lambda: desk.log(made["id"])[0]["state"] == "delivered", "it is logged", 30)
    last, test = desk.log(made["id"])
    assert (last["kind"], last["tries"], last["last_status"], last["event_id"]) == (
        STARTED, 3, 200, int(next(iter(receiver.of("hooked")))),
    )  # fmt: skip
    assert (test["kind"], test["state"], test["event_id"]) == ("test", "delivered", None)
    again = desk.client.post(f"webhooks/{made['id']}/deliveries/{last['id']}/again")
    assert (again.status_code, again.json()["state"]) == (202, "waiting")
    hub.until(lambda: len(receiver.got) == 5, "it came once more", 30)
    assert desk.client.post(f"webhooks/{made['id']}/deliveries/{test['id']}/again").status_code == 409


def test_a_webhook_to_the_neighbourhood_of_the_machine_is_told_at_once(desk: Desk):
    for url in ("http://169.254.169.254/latest", "http://[::1]/hub/api", "http://0.0.0.0/"):
        answer = desk.client.post("webhooks", json={"url": url, "kinds": [STARTED]})
        assert (answer.status_code, "may not reach" in answer.json()["error"]["message"]) == (400, True)
    made = desk.add("http://localhost.localdomain.invalid/hook", STARTED)
    edit = {"url": "http://169.254.169.254/latest"}
    assert desk.client.patch(f"webhooks/{made['id']}", json=edit).status_code == 400


def test_a_test_is_sent_once_under_its_key_and_the_key_is_of_this_request_alone(desk: Desk, receiver: Receiver):
    path = f"webhooks/{desk.add(receiver.url, STARTED)['id']}/test"
    test = lambda path=path: desk.client.post(path, headers={"Idempotency-Key": "k-test"})  # noqa: E731
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: test(), range(4)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert (test().status_code, test().json()["delivered"], len(receiver.got)) == (200, True, 1)
    other = desk.add(receiver.url + "/other", STARTED)["id"]
    assert test(f"webhooks/{other}/test").status_code == 409
    assert len(receiver.got) == 1


def test_who_removes_a_webhook_is_not_told_what_waited_for_it(hub: GpuHub, desk: Desk, receiver: Receiver):
    made = desk.add(receiver.url, "quota.threshold")
    receiver.holding.set()
    with begin(hub.engine) as session:
        for percent in range(10):
            events.record(session, kind=EventKind.QUOTA, now=utcnow(), workspace_id=None, percent=percent)
    hub.until(lambda: len(receiver.got) == 2, "two are being told", 30)
    assert desk.client.delete(f"webhooks/{made['id']}").is_success
    receiver.go_on.set()
    time.sleep(2)
    assert len(receiver.got) == 2, "the others were read already, and are not told"


def test_a_killed_service_loses_nothing_and_a_dead_receiver_holds_nobody_up(
    hub: GpuHub, desk: Desk, receiver: Receiver
):
    dead = Receiver()
    dead.holding.set()
    try:
        slow = desk.add(dead.url, *ALL_STATES)
        desk.add(receiver.url, *ALL_STATES)
        hub.start_server("carol", {"workspace": "lab"}, server="killed")
        hub.until(lambda: len(receiver.of("killed")) == 2, "the living one is told", 30)
        hub.until(lambda: dead.got, "the dead one is being tried", 30)
        assert receiver.came_at[0] - dead.came_at[0] < TIMEOUT_SECONDS / 2, "without waiting for the dead one"
        receiver.holding.set()
        hub.stop_server("carol", "killed")
        hub.until(lambda: len(receiver.of("killed")) >= 3, "it is being told of the end", 30)
        before = hub.service_pid("workspaces")
        os.kill(before, signal.SIGKILL)
        receiver.holding.clear()
        receiver.go_on.set()
        told = lambda: sorted(kinds[0] for kinds in receiver.of("killed").values())  # noqa: E731
        hub.until(lambda: told() == sorted(ALL_STATES), "after the kill everything is there", 60)
        hub.until(lambda: max(map(len, receiver.of("killed").values())) > 1, "what was being told is told again", 60)
        assert hub.service_pid("workspaces") != before
        hub.until(lambda: hub.service("workspaces", "").status_code == 302, "it answers again")
        hub.until(lambda: desk.log(slow["id"])[-1]["tries"], "the dead one is tried and tried again", 60)
        assert "no answer" in desk.log(slow["id"])[-1]["last_error"]
        assert {one["state"] for one in desk.log(slow["id"])} == {"waiting"}
        hub.until(lambda: hub.ticked("thresholds"), "limits are looked at")
    finally:
        dead.close()


async def test_the_end_of_a_shift_waits_for_a_dead_receiver_and_new_events_do_not(
    engine: Engine, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(courier, "SHIFT_SECONDS", 0.2)
    receiver.holding.set()
    runtime = Runtime(Settings(db_url="", webhook_key="k" * 32, webhook_networks=["127.0.0.0/8"]))
    runtime.engine = engine  # type: ignore[misc]
    with begin(engine) as session:
        webhooks.create(
            session, url=receiver.url, kinds=["quota.threshold"], key="k" * 32, actor=SYSTEM, now=utcnow()
        )  # fmt: skip

    def happen() -> None:
        with begin(engine) as session:
            events.record(session, kind=EventKind.QUOTA, now=utcnow(), workspace_id=None)

    def numbered() -> int:
        with begin(engine, read_only=True) as session:
            return events.newest(session)

    happen()
    shift = asyncio.create_task(courier.Courier(runtime).shift())
    async with asyncio.timeout(30):
        while not receiver.got:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        happen()
        while numbered() < 2:
            assert not shift.done(), "the receiver was waited for, and so was everybody else"
            await asyncio.sleep(0.05)
        receiver.go_on.set()
        await shift
    assert len(receiver.got) == 1, "what comes after the shift's end is for the next one"


def test_every_state_of_an_environment_has_its_event():
    assert set(environments.HAPPENED) == set(environments.EnvironmentState)
