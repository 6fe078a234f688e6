"""The REST API behind a real hub: who may do what, and that nothing which is sent breaks it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx
import pytest
import schemathesis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import delete, select, update

from remotegpu_hub import workers
from remotegpu_hub.clients.hub import HubClient
from remotegpu_hub.db import begin
from remotegpu_hub.domain import catalog, inventory, keys, quotas, users, workspaces
from remotegpu_hub.errors import TooMany
from remotegpu_hub.orm import (
    AuditEntry,
    EndReason,
    Environment,
    Gpu,
    Host,
    HostStatus,
    Image,
    QuotaScope,
    SshKey,
    Workspace,
    WorkspaceStatus,
)
from remotegpu_hub.services import api
from remotegpu_hub.services.api import Route
from remotegpu_hub.services.workspaces.routes import ROUTES
from tests.gpu_hubs import GpuHub, apart
from tests.worlds import ADMIN

from .conftest import ROLES, put_members

KEY = (
    Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    + " carol@laptop"
)
CALLERS = {**{role: user for user, role in ROLES.items()}, "stranger": "eve", "hub admin": "admin"}
EVERYBODY = frozenset(CALLERS)
HUB = frozenset({"hub admin"})
OWNERS = HUB | {"owner"}
MANAGERS = OWNERS | {"admin"}
MEMBERS = MANAGERS | {"member", "viewer"}

TABLE: dict[str, frozenset[str]] = {
    "list_workspaces": EVERYBODY,
    "create_workspace": HUB,
    "read_workspace": MEMBERS,
    "edit_workspace": MANAGERS,
    "archive_workspace": OWNERS,
    "leave_workspace": MEMBERS - HUB,
    "list_members": MEMBERS,
    "read_member": MEMBERS,
    "put_member": MANAGERS,
    "remove_member": MANAGERS,
    "list_quotas": HUB,
    "read_workspace_quota": MEMBERS,
    "edit_workspace_quota": HUB,
    "read_member_quota": MEMBERS,
    "edit_member_quota": MANAGERS,
    "read_user_quota": HUB,
    "edit_user_quota": HUB,
    "read_default_quota": HUB,
    "edit_default_quota": HUB,
    "list_environments": EVERYBODY,
    "list_all_environments": HUB,
    "list_environments_of_workspace": MEMBERS,
    "read_environment": MEMBERS,
    "list_runs": MEMBERS,
    "start_environment": HUB | {"member"},
    "stop_environment": MANAGERS | {"member"},
    "restart_environment": frozenset({"member"}),
    "delete_environment": MANAGERS | {"member"},
    "list_keys": EVERYBODY,
    "add_key": EVERYBODY,
    "remove_key": frozenset({"member"}),
    "list_hosts": HUB,
    "read_host": HUB,
    "edit_host": HUB,
    "drain_host": HUB,
    "list_environments_of_host": HUB,
    "list_gpus_of_host": HUB,
    "edit_gpu": HUB,
    "list_images": HUB,
    "list_flavors": HUB,
    "read_flavor": HUB,
    "put_flavor": HUB,
    "retire_flavor": HUB,
    "read_image": HUB,
    "edit_image": HUB,
    "dry_run_policy": HUB,
    "list_audit": HUB,
}
"""Who may do what in `lab`, to the environment and the key of its member carol, and to the member zoe."""
EXAMPLES = 5
"""For each route and role."""
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
          response_schema_conformance]  # fmt: skip
ACTS_ON_THE_HUB = {"start_environment", "stop_environment", "restart_environment", "delete_environment"}
BODIES: dict[str, Any] = {
    "create_workspace": {"name": "made-by-a-test", "display_name": "x", "owner": "alice"},
    "edit_workspace": {},
    "put_member": {"role": "viewer"},
    "edit_workspace_quota": {},
    "edit_member_quota": {"cpu_millis": None},
    "edit_user_quota": {},
    "edit_default_quota": {},
    "add_key": {"public_key": KEY},
    "edit_host": {"status": "online"},
    "drain_host": {"grace_seconds": 3600},
    "edit_gpu": {"status": "available"},
    "put_flavor": {"display_name": "Small", "cpu_millis": 1000, "memory_bytes": 2**30},
    "edit_image": {},
    "dry_run_policy": {"month": "2026-01", "user": {"gpu_millis": 1000}},
}


class Desk:
    """Sends requests as somebody, and puts back what they changed."""

    def __init__(self, hub: GpuHub) -> None:
        self.hub = hub
        self.tokens = {role: hub.token_of(user) for role, user in CALLERS.items()}
        self.client = httpx.Client(base_url=f"{hub.url}services/workspaces/api/", trust_env=False, timeout=60)
        if not hub.world.read(select(Environment.id).where(Environment.server_name == "carols")):
            hub.start_server("carol", {"workspace": "lab"}, server="carols")
            hub.stop_server("carol", "carols")
        with begin(hub.engine) as session:
            environment = session.scalars(select(Environment).where(Environment.server_name == "carols")).one()
            self.environment, self.host = environment.id, session.scalars(select(Host.name)).first()
            self.gpu = session.scalars(select(Gpu.uuid)).first()
            self.image = session.scalars(select(Image.id)).first()
            catalog.put_flavor(session, name="small", display_name="Small", gpu_model=None, gpu_slots=0, cpu_millis=1000,
                               memory_bytes=2**30, actor=ADMIN, now=hub.world.now)  # fmt: skip

    def ask(self, role: str, method: str, path: str, **given: Any) -> httpx.Response:
        token = given.pop("token", None) or self.tokens[role]
        headers = {"Authorization": f"token {token}", **given.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **given)

    def send(self, role: str, route: Route, *, workspace: str = "lab", **given: Any) -> httpx.Response:
        """A harmless request of a route."""
        number = {"ssh-keys": self.key, "images": self.image}.get(route.path.split("/")[0], self.environment)
        path = route.path.format(
            workspace=workspace, user="zoe", id=number, level="user", host=self.host, uuid=self.gpu, name="small"
        )  # fmt: skip
        if route.body is not None:
            given.setdefault("json", BODIES[route.operation])
        return self.ask(role, route.method, path, **given)

    def restore(self, *, without_key: bool = False) -> None:
        hub = self.hub
        with begin(hub.engine) as session:
            lab = workspaces.by_name(session, name="lab")
            lab.status, lab.display_name = WorkspaceStatus.ACTIVE, "lab"
            made = session.scalar(select(Workspace).where(Workspace.name == "made-by-a-test"))
            if made is not None:
                made.name = f"made-{made.id}"
            session.execute(delete(SshKey))
            session.execute(update(Host).values(status=HostStatus.ONLINE))
            carol = users.by_name(session, name="carol")
            if not without_key:
                self.key = keys.add(session, user=carol, text=KEY, actor=ADMIN, now=hub.world.now).id
        put_members(hub, zoe="member")


@pytest.fixture(scope="session")
def desk(hub: GpuHub) -> Desk:
    return Desk(hub)


@pytest.fixture(autouse=True)
def as_before(desk: Desk) -> None:
    desk.restore()


def test_the_table_names_every_route():
    assert set(TABLE) == {route.operation for route in ROUTES}
    assert {route.operation for route in ROUTES if route.body is not None} == set(BODIES)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
def test_each_route_lets_in_exactly_those_whom_the_table_names(desk: Desk, route: Route):
    allowed = TABLE[route.operation]
    for role in CALLERS:
        if role in allowed and route.operation in ACTS_ON_THE_HUB:
            continue
        desk.restore()
        if role == "member" and route.operation == "add_key":
            with begin(desk.hub.engine) as session:
                carol = users.by_name(session, name="carol")
                keys.remove(session, user=carol, key_id=desk.key, actor=ADMIN, now=desk.hub.world.now)
        answer = desk.send(role, route)
        if (role, route.operation) == ("owner", "leave_workspace"):
            assert answer.status_code == 409, "the last owner stays"
        elif role in allowed:
            assert answer.is_success, f"{role}: {answer.status_code} {answer.text}"
        if role in allowed:
            continue
        hidden = role == "stranger" and ("{workspace}" in route.path or "environments/{id}" in route.path)
        hidden = (hidden and allowed != HUB) or route.operation in ("remove_key", "leave_workspace")
        assert answer.status_code == (404 if hidden else 403), f"{role}: {answer.status_code} {answer.text}"
        assert set(answer.json()["error"]) == {"code", "message", "facts", "request_id"}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
def test_no_token_a_servers_token_and_a_reading_token_do_no_more_than_they_carry(desk: Desk, route: Route):
    nobody = desk.send("owner", route, token="not-a-token")
    assert nobody.status_code == 403
    reach = ["access:services!service=workspaces"]
    bare = desk.hub.token_of("admin", reach)
    assert desk.send("owner", route, token=bare).status_code == 403, "a server's token carries nothing of ours"
    reading = desk.hub.token_of("admin", [*reach, "custom:remotegpu:read"])
    answer = desk.send("owner", route, token=reading)
    if route.method == "GET":
        assert answer.is_success or route.operation in ("read_environment", "list_runs")
    else:
        assert answer.status_code == 403


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if "{workspace}" in route.path], ids=lambda route: route.operation
)
def test_a_foreign_workspace_answers_like_an_unknown_one(desk: Desk, route: Route):
    said = []
    for name in ("secret", "nothing-of-the-kind"):
        answer = desk.send("owner", route, workspace=name)
        said.append((answer.status_code, {**answer.json()["error"], "request_id": ""}))
    assert said[0] == said[1]
    assert said[0][0] in (403, 404)


def test_an_admin_of_a_workspace_touches_neither_owners_nor_admins_and_makes_none(desk: Desk):
    for user, role in (("alice", "member"), ("bob", "owner"), ("zoe", "admin"), ("zoe", "owner")):
        answer = desk.ask("admin", "PUT", f"workspaces/lab/members/{user}", json={"role": role})
        assert answer.status_code == 403, (user, role)
    assert desk.ask("admin", "DELETE", "workspaces/lab/members/alice").status_code == 403
    assert desk.ask("owner", "PUT", "workspaces/lab/members/zoe", json={"role": "admin"}).is_success


def test_a_personal_workspace_has_no_members_to_change(desk: Desk):
    answer = desk.ask("owner", "PUT", "workspaces/~alice/members/zoe", json={"role": "member"})
    assert answer.status_code == 409


def test_of_two_who_edit_what_they_both_saw_the_second_is_told(desk: Desk):
    path = "workspaces/lab/quota"
    seen = desk.ask("hub admin", "GET", path).headers["ETag"]
    first = desk.ask("hub admin", "PATCH", path, json={"environments": 41}, headers={"If-Match": seen})
    assert first.is_success
    assert first.headers["ETag"] == desk.ask("hub admin", "GET", path).headers["ETag"] != seen
    second = desk.ask("hub admin", "PATCH", path, json={"environments": 42}, headers={"If-Match": seen})
    assert (second.status_code, second.json()["error"]["code"]) == (412, "changed")
    assert desk.ask("hub admin", "GET", path).json()["environments"] == 41
    unseen = desk.ask("hub admin", "GET", path, headers={"If-None-Match": first.headers["ETag"]})
    assert (unseen.status_code, unseen.content) == (304, b"")


@pytest.mark.parametrize(
    ("path", "bodies"),
    [
        ("workspaces/lab/quota", [{"environments": 10 + number} for number in range(8)]),
        ("default-quotas/user", [{"environments": 20 + number} for number in range(8)]),
        ("workspaces/lab", [{"display_name": f"第 {number} 个实验室"} for number in range(8)]),
        ("workspaces/lab/members/zoe", [{"role": role} for role in ("viewer", "admin") * 4]),
    ],
    ids=["quota", "default quota", "workspace", "member"],
)
def test_of_many_edits_at_once_one_counts(desk: Desk, path: str, bodies: list[dict[str, Any]]):
    seen = desk.ask("hub admin", "GET", path).headers["ETag"]
    verb = "PUT" if "members" in path else "PATCH"
    edit = lambda body: desk.ask("hub admin", verb, path, json=body, headers={"If-Match": seen})  # noqa: E731
    with ThreadPoolExecutor(8) as threads:
        with begin(desk.hub.engine) as session:  # all have come in, and wait, before the first one counts
            workspaces.lock(session, workspaces.by_name(session, name="lab"))
            quotas.keep_still(session, scope=QuotaScope.USER_DEFAULT, workspace=None, user=None)
            waiting = [threads.submit(edit, body) for body in bodies]
            time.sleep(1)
        codes = sorted(one.result().status_code for one in waiting)
    assert codes == [200, *[412] * 7]


def test_a_creation_that_is_repeated_makes_nothing_twice(desk: Desk):
    body = {"name": "once", "display_name": "只此一次", "owner": "alice"}
    create = lambda _: desk.ask("hub admin", "POST", "workspaces", json=body, headers={"Idempotency-Key": "k-1"})  # noqa: E731
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(create, range(6)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    assert create(0).json()["display_name"] == "只此一次"
    other = desk.ask(
        "hub admin", "POST", "workspaces", json={**body, "name": "twice"}, headers={"Idempotency-Key": "k-1"}
    )
    assert other.status_code == 409
    again = desk.ask("hub admin", "POST", "workspaces", json=body)
    assert again.status_code == 409, "without a key it is a second one of that name"


def walk(ask: Callable[[str], httpx.Response], path: str) -> list[Any]:
    found, cursor = [], ""
    while True:
        body = ask(f"{path}{'&cursor=' + cursor if cursor else ''}").json()
        found += body["items"]
        if not body["next"]:
            return found
        cursor = body["next"]


def test_a_list_is_walked_page_by_page_forwards_and_backwards(desk: Desk):
    ask = lambda path: desk.ask("hub admin", "GET", path)  # noqa: E731
    whole = [one["name"] for one in ask("workspaces?mine=false&limit=200").json()["items"]]
    assert len(whole) > 4
    assert [one["name"] for one in walk(ask, "workspaces?mine=false&limit=2")] == whole
    assert [one["name"] for one in walk(ask, "workspaces?mine=false&limit=3&sort=-name")] == whole[::-1]
    times = walk(ask, "workspaces?mine=false&limit=2&sort=created_at")
    assert sorted(one["name"] for one in times) == sorted(whole)
    found = ask("workspaces?mine=false&search=LA").json()["items"]
    assert "lab" in {one["name"] for one in found}
    other = ask("workspaces?mine=false&limit=1").json()["next"]
    assert ask(f"workspaces?mine=false&sort=-name&cursor={other}").status_code == 400
    entries = walk(ask, "audit?limit=100")
    told = [(datetime.fromisoformat(one["at"]), one["id"]) for one in entries]
    assert told == sorted(told, reverse=True)
    assert len(set(told)) == len(told)


BAD = {
    "no JSON": {"content": b"{", "headers": {"Content-Type": "application/json"}},
    "nested": {"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}},
    "a list": {"json": []},
    "an unknown name": {"json": {"environments": 1, "colour": "red"}},
    "a fraction": {"json": {"environments": 1.5}},
    "text": {"json": {"environments": "many"}},
    "less than nothing": {"json": {"environments": -1}},
    "more than fits": {"json": {"environments": 2**70}},
    "a yes": {"json": {"environments": True}},
    "a model without a name": {"json": {"models": {"": 1}}},
    "a NUL": {"json": {"models": {"A100\0": 1}}},
    "half a pair": {"content": b'{"models": {"\\ud800": 1}}', "headers": {"Content-Type": "application/json"}},
}


@pytest.mark.parametrize("given", BAD.values(), ids=BAD.keys())
def test_a_bad_body_is_a_clear_400_and_changes_nothing(desk: Desk, given: dict[str, Any]):
    before = desk.ask("hub admin", "GET", "workspaces/lab/quota").json()
    answer = desk.ask("hub admin", "PATCH", "workspaces/lab/quota", **given)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "invalid"
    assert desk.ask("hub admin", "GET", "workspaces/lab/quota").json() == before


@pytest.mark.parametrize(
    "path",
    [
        "workspaces?limit=0", "workspaces?limit=201", "workspaces?limit=x", "workspaces?sort=owner", "audit?limit=1&limit=2",
        "audit?cursor=x", "audit?sort=-id&cursor=WyItaWQiLCJ4Il0", "audit?since=yesterday", "audit?since=2026-11-01T00:00:00",
        "audit?what=1", "environments?state=dancing", "audit?entity_id=0", f"audit?entity_id={2**63}",
        "workspaces?search=%00", f"audit?sort=-id&cursor={api._cursor('-id', [2**70])}",
    ],
)  # fmt: skip
def test_a_bad_query_is_a_clear_400(desk: Desk, path: str):
    answer = desk.ask("hub admin", "GET", path)
    assert answer.status_code == 400, answer.text


def test_other_media_other_verbs_and_odd_paths_are_told(desk: Desk):
    form = desk.ask("hub admin", "PATCH", "workspaces/lab/quota", data={"environments": "1"})
    assert form.status_code == 415
    verb = desk.ask("owner", "PUT", "workspaces/lab")
    assert (verb.status_code, verb.headers["Allow"]) == (405, "GET, PATCH")
    for path in ("environments/0", "environments/x", "environments/99999999999999999999", "environments/１",
                 "workspaces/%00", "hosts/%2e%2e%2f", "default-quotas/nobody", "users/no%20one/quota"):  # fmt: skip
        answer = desk.ask("hub admin", "GET", path)
        assert answer.status_code == 404, (path, answer.text)


def test_what_was_changed_is_audited_under_the_requests_id(desk: Desk):
    answer = desk.ask("admin", "PATCH", "workspaces/lab", json={"display_name": "<script>alert(1)</script>"})
    assert answer.json()["display_name"] == "<script>alert(1)</script>"
    assert answer.headers["Content-Type"].startswith("application/json")
    wanted = select(AuditEntry).where(AuditEntry.request_id == answer.headers["X-Request-Id"])
    (entry,) = desk.hub.world.read(wanted)
    assert (entry.actor, entry.action) == ("bob", "workspace.update")
    assert entry.address


def test_an_environment_is_started_seen_stopped_by_an_admin_and_deleted(desk: Desk):
    path = f"environments/{desk.environment}"
    assert desk.ask("member", "POST", f"{path}/start").json()["done"] in (True, False)
    desk.hub.until(lambda: desk.hub.model("carol", "carols").get("ready"), "it runs")
    shown = desk.ask("viewer", "GET", path).json()
    assert (shown["state"], shown["run"]["host"]) == ("running", desk.host)
    listed = desk.ask("owner", "GET", "workspaces/lab/environments?running=true").json()["items"]
    assert [one["id"] for one in listed] == [desk.environment]
    assert desk.ask("member", "DELETE", path).status_code == 409, "it runs"
    assert desk.ask("admin", "POST", f"{path}/stop").status_code == 202
    desk.hub.until_free("carol", "carols")
    run = desk.hub.run_of("carol", "carols")
    assert run.end_reason == EndReason.ADMIN, "why it ended is kept"
    past = desk.ask("member", "GET", f"{path}/runs").json()["items"]
    assert [one["end_reason"] for one in past[:1]] == ["admin"]
    assert desk.ask("member", "POST", f"{path}/restart").status_code in (202, 409)
    desk.hub.until(lambda: desk.hub.model("carol", "carols").get("ready"), "it runs again")
    desk.hub.stop_server("carol", "carols")


def test_a_start_that_the_rules_refuse_is_told_with_the_limit(desk: Desk):
    desk.ask("hub admin", "PATCH", "workspaces/lab/members/carol/quota", json={"environments": 0})
    try:
        answer = desk.ask("member", "POST", f"environments/{desk.environment}/start")
        assert answer.status_code == 403, answer.text
        assert "environments" in answer.json()["error"]["message"]
    finally:
        desk.ask("hub admin", "PATCH", "workspaces/lab/members/carol/quota", json={"environments": None})


def test_a_host_goes_into_maintenance_and_back(desk: Desk):
    path = f"hosts/{desk.host}"
    assert desk.ask("hub admin", "PATCH", path, json={"status": "maintenance"}).json()["status"] == "maintenance"
    assert desk.hub.world.read(select(Host.status)) == [HostStatus.MAINTENANCE]
    assert desk.ask("hub admin", "PATCH", path, json={"status": "online"}).json()["status"] == "online"


def test_a_drained_host_lets_its_users_know_and_back_to_work_spares_them(desk: Desk):
    desk.hub.start_server("carol", {"workspace": "lab"}, server="carols")
    path = f"hosts/{desk.host}"
    try:
        affected = desk.ask("hub admin", "GET", f"{path}/environments").json()["items"]
        assert [(one["user"], one["server_name"]) for one in affected] == [("carol", "carols")]
        for wrong in ({}, {"grace_seconds": -1}, {"grace_seconds": 10**9}):
            assert desk.ask("hub admin", "POST", f"{path}/drain", json=wrong).status_code == 400
        told = desk.ask("hub admin", "POST", f"{path}/drain", json={"grace_seconds": 3600}).json()
        assert (told["host"], told["environments"]) == (desk.host, 1)
        own = f"environments/{desk.environment}"
        assert desk.ask("member", "GET", own).json()["run"]["stops_at"] == told["ends_at"]
        desk.ask("hub admin", "PATCH", path, json={"status": "online"})
        assert desk.ask("member", "GET", own).json()["run"]["stops_at"] is None
        assert desk.ask("hub admin", "POST", "hosts/nothing/drain", json={"grace_seconds": 0}).status_code == 404
        assert desk.ask("hub admin", "GET", "hosts/nothing/environments").status_code == 404
        desk.ask("hub admin", "POST", f"{path}/drain", json={"grace_seconds": 0})
        apart(stop_due(desk.hub))
        desk.hub.until_free("carol", "carols")
        shown = desk.ask("member", "GET", own).json()
        assert (shown["state"], shown["message"]) == ("stopped", inventory.DRAINED)
        assert desk.hub.run_of("carol", "carols").end_reason == EndReason.DRAINED
    finally:
        desk.ask("hub admin", "PATCH", path, json={"status": "online"})


async def stop_due(hub: GpuHub) -> None:
    """As the service does each minute."""
    async with HubClient(hub.api_url, hub.token) as client:
        await workers.stop_due(hub.runtime, client.stop_server)


def test_the_description_tells_of_every_route(desk: Desk):
    told = desk.ask("viewer", "GET", "openapi.json").json()
    assert told["openapi"] == "3.1.0"
    operations = {one["operationId"] for path in told["paths"].values() for one in path.values()}
    assert operations == set(TABLE)


def test_who_asks_too_often_is_told_how_long_to_wait():
    buckets = api.Buckets(burst=3, per_second=0.001)
    for _ in range(3):
        buckets.take("user:alice")
    with pytest.raises(TooMany) as told:
        buckets.take("user:alice")
    assert told.value.facts["after_seconds"] > 0
    buckets.take("user:bob")


@pytest.mark.parametrize("role", ["hub admin", "admin", "stranger"])
def test_nothing_that_can_be_sent_breaks_a_route_or_its_description(desk: Desk, role: str):
    """By schemathesis: whatever fits the description, or just does not, is answered as the description says."""
    schema = schemathesis.openapi.from_dict(desk.ask(role, "GET", "openapi.json").json())
    headers = {"Authorization": f"token {desk.tokens[role]}"}
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.definition.raw["operationId"] in ACTS_ON_THE_HUB:
            continue

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def send(case: schemathesis.Case) -> None:
            answer = case.call(base_url=str(desk.client.base_url), headers=headers, timeout=60)
            if answer.status_code == 429:
                time.sleep(1)
                return
            case.validate_response(answer, checks=CHECKS)

        send()
