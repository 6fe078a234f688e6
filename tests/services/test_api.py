"""The REST API behind a real hub: who may do what, and that nothing which is sent breaks it."""

import base64
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
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
from sqlalchemy.orm import Session

from remotegpu_hub import words, workers
from remotegpu_hub.clients import outputs
from remotegpu_hub.clients.hub import HubClient
from remotegpu_hub.db import begin
from remotegpu_hub.domain import (
    budgets,
    catalog,
    inventory,
    invitations,
    keys,
    quotas,
    users,
    volumes,
    webhooks,
    workspaces,
)
from remotegpu_hub.errors import TooMany
from remotegpu_hub.orm import (
    Answered,
    AuditEntry,
    BudgetAction,
    Delivery,
    EndReason,
    Environment,
    Event,
    Gpu,
    Host,
    HostStatus,
    Image,
    QuotaModel,
    QuotaRequest,
    QuotaScope,
    Role,
    SshKey,
    User,
    VolumeKind,
    Workspace,
    WorkspaceStatus,
)
from remotegpu_hub.services import api, paging, streams
from remotegpu_hub.services.api import Route
from remotegpu_hub.services.workspaces.routes import ROUTES
from remotegpu_hub.units import MICROS, Money
from tests.gpu_hubs import GpuHub, apart
from tests.worlds import ADMIN

from .conftest import ROLES, put_members
from .test_all_spaces import send
from .test_audit_pages import see
from .test_first_page import keep

KEY, OTHER_KEY = (
    Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + comment
    for comment in (" carol@laptop", " carol@desk")
)
CALLERS = {**{role: user for user, role in ROLES.items()}, "stranger": "eve", "hub admin": "admin"}
EVERYBODY = frozenset(CALLERS)
HUB = frozenset({"hub admin"})
OWNERS = HUB | {"owner"}
MANAGERS = OWNERS | {"admin"}
MEMBERS = MANAGERS | {"member", "viewer"}

KEYS_OF_USER = ("list_keys_of_user", "add_key_of_user", "remove_key_of_user")
TABLE: dict[str, frozenset[str]] = {
    "read_who": EVERYBODY,
    "read_overview": MEMBERS,
    "read_hub_overview": HUB,
    "list_workspaces": EVERYBODY,
    "create_workspace": HUB,
    "read_workspace": MEMBERS,
    "edit_workspace": MANAGERS,
    "archive_workspace": OWNERS,
    "reopen_workspace": OWNERS,
    "leave_workspace": MEMBERS - HUB,
    "list_members": MEMBERS,
    "read_member": MEMBERS,
    "put_member": MANAGERS,
    "remove_member": MANAGERS,
    "list_invitations": MANAGERS,
    "create_invitation": MANAGERS,
    "take_back_invitation": OWNERS,
    "list_my_invitations": EVERYBODY,
    "accept_invitation": frozenset({"stranger"}),
    "decline_invitation": frozenset({"stranger"}),
    "read_usage": MEMBERS,
    "list_quotas": HUB,
    "read_workspace_quota": MEMBERS,
    "edit_workspace_quota": HUB,
    "read_member_quota": MEMBERS,
    "edit_member_quota": MANAGERS,
    "read_user_quota": HUB,
    "edit_user_quota": HUB,
    "read_default_quota": HUB,
    "edit_default_quota": HUB,
    "list_quota_requests": EVERYBODY,
    "create_quota_request": EVERYBODY,
    "list_all_quota_requests": HUB,
    "list_quota_requests_of_workspace": MANAGERS,
    "read_quota_request": MANAGERS | {"member"},
    "approve_quota_request": MANAGERS,
    "refuse_quota_request": MANAGERS,
    "withdraw_quota_request": frozenset({"member"}),
    "list_prices": EVERYBODY,
    "create_price": HUB,
    "list_budgets": HUB,
    "read_budget": MEMBERS,
    "put_budget": HUB,
    "remove_budget": HUB,
    "list_environments": EVERYBODY,
    "list_all_environments": HUB,
    "list_environments_of_workspace": MEMBERS,
    "read_environment": MEMBERS,
    "list_runs": MEMBERS,
    "start_environment": HUB | {"member"},
    "stop_environment": MANAGERS | {"member"},
    "restart_environment": frozenset({"member"}),
    "delete_environment": HUB | {"member"},
    "list_volumes": EVERYBODY,
    "list_all_volumes": HUB,
    "list_volumes_of_workspace": MEMBERS,
    "read_volume": MEMBERS,
    "delete_volume": HUB | {"member"},
    "list_keys": EVERYBODY,
    "add_key": EVERYBODY,
    "remove_key": frozenset({"member"}),
    **dict.fromkeys(KEYS_OF_USER, HUB | {"member"}),
    "list_hosts": HUB,
    "read_host": HUB,
    "edit_host": HUB,
    "drain_host": HUB,
    "list_environments_of_host": HUB,
    "list_gpus_of_host": HUB,
    "list_gpus": HUB,
    "edit_gpu": HUB,
    "edit_gpu_of_host": HUB,
    "list_images": HUB,
    "list_flavors": HUB,
    "read_flavor": HUB,
    "put_flavor": HUB,
    "retire_flavor": HUB,
    "read_image": HUB,
    "edit_image": HUB,
    "dry_run_policy": HUB,
    "list_audit": HUB,
    "read_me": EVERYBODY,
    "read_offers": EVERYBODY,
    "list_users": HUB,
    "read_user": HUB,
    "create_environment": frozenset({"owner", "admin", "member"}),
    "list_ports": EVERYBODY,
    "list_all_ports": HUB,
    "list_access": MEMBERS,
    "read_logs": MANAGERS | {"member"},
    "list_events": EVERYBODY,
    "list_events_of_environment": MEMBERS,
    "list_webhooks": HUB,
    "create_webhook": HUB,
    "read_webhook": HUB,
    "edit_webhook": HUB,
    "remove_webhook": HUB,
    "test_webhook": HUB,
    "list_deliveries": HUB,
    "deliver_again": HUB,
}
"""Who may do what in `lab`: to the environment, the home, the key and the request (for more inside it) of its member carol, and
to the member zoe. The stranger is invited to `lab` as an admin, which gives no right but to answer."""
OF_A_WORKSPACE = ("{workspace}", "environments/{id}", "volumes/{id}")
"""In paths: what hides from who is no member."""
EXAMPLES = 5
"""For each route and role."""
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
          response_schema_conformance]  # fmt: skip
ACTS_ON_THE_HUB = {"start_environment", "stop_environment", "restart_environment", "delete_environment",
                   "create_environment"}  # fmt: skip
BODIES: dict[str, Any] = {
    "create_workspace": {"name": "made-by-a-test", "display_name": "x", "owner": "alice"},
    "edit_workspace": {},
    "put_member": {"role": "viewer"},
    "create_invitation": {"user": "admin", "role": "viewer"},
    "edit_workspace_quota": {},
    "edit_member_quota": {"cpu_millis": None},
    "edit_user_quota": {},
    "edit_default_quota": {},
    "create_environment": {"name": "made by a test", "workspace": "lab"},
    "create_price": {
        "resource": "gpu:made-by-a-test",
        "unit_price_micros": 1_000_000,
        "effective_from": "2099-01-01T00:00:00Z",
    },
    "create_quota_request": {
        "scope": "workspace",
        "workspace": "~{user}",
        "limits": {"cpu_millis": 2000},
        "reason": "x",
    },
    "approve_quota_request": {},
    "refuse_quota_request": {"answer": "x"},
    "put_budget": {"amount_micros": 1},
    "add_key": {"public_key": KEY},
    "edit_host": {"status": "online"},
    "drain_host": {"grace_seconds": 3600},
    "edit_gpu": {"status": "available"},
    "put_flavor": {"display_name": "Small", "cpu_millis": 1000, "memory_bytes": 2**30},
    "edit_image": {},
    "create_webhook": {"url": "http://127.0.0.1:9/other", "kinds": ["environment.failed"]},
    "edit_webhook": {"active": False},
    "edit_gpu_of_host": {"status": "available"},
    "add_key_of_user": {"public_key": OTHER_KEY},
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
        user = "eve" if "invitations" in route.path else "carol" if "ssh-keys" in route.path else "zoe"
        numbers = {
            "quota-requests": self.request,
            "images": self.image,
            "webhooks": self.webhook,
            "volumes": self.volume,
        }
        number = self.key if "ssh-keys" in route.path else numbers.get(route.path.split("/")[0], self.environment)
        path = route.path.format(
            workspace=workspace, user=user, id=number, level="user", host=self.host, uuid=self.gpu, index=0,
            name="small", delivery=self.delivery,
        )  # fmt: skip
        if route.body is not None:
            body = dict(BODIES[route.operation])
            if "workspace" in body:
                body["workspace"] = body["workspace"].format(user=CALLERS[role])
            given.setdefault("json", body)
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
            self.webhook, self.delivery = self._webhook(session)
            carol = users.by_name(session, name="carol")
            if not without_key:
                self.key = keys.add(session, user=carol, text=KEY, actor=ADMIN, now=hub.world.now).id
            self.volume = self._home(session, carol, lab)
            session.execute(delete(QuotaRequest))
            request = QuotaRequest(
                scope=QuotaScope.MEMBER, asker_id=carol.id, workspace_id=lab.id, wanted={"gpu_hours": 1}, reason="x",
                created_at=hub.world.now,
            )  # fmt: skip
            session.add(request)
            session.flush()
            self.request = request.id
            budgets.put(
                session, workspace=lab, amount=Money(MICROS), action=BudgetAction.WARN, actor=ADMIN, now=hub.world.now
            )
        put_members(hub, zoe="member")
        with begin(hub.engine) as session:
            lab, eve = workspaces.by_name(session, name="lab"), users.by_name(session, name="eve")
            invitations.invite(session, workspace=lab, user=eve, role=Role.ADMIN, actor=ADMIN, now=datetime.now(UTC))

    def _home(self, session: Session, user: User, space: Workspace) -> int:
        there = volumes.of_run(session, user_id=user.id, workspace_id=space.id)
        volumes.ensure(session, user_id=user.id, workspace_id=space.id, there=there, sizes={VolumeKind.HOME: 1},
                       actor=ADMIN, now=self.hub.world.now)  # fmt: skip
        return volumes.of_run(session, user_id=user.id, workspace_id=space.id)[VolumeKind.HOME].id

    def _webhook(self, session: Session) -> tuple[int, int]:
        """One that nobody listens to, paused, with one delivery."""
        now = self.hub.world.now
        for one in webhooks.live(session):
            webhooks.remove(session, webhook_id=one.id, actor=ADMIN, now=now)
        key = self.hub.runtime.settings.webhook_key
        url, kinds = "http://127.0.0.1:9/", ["environment.failed"]
        made = webhooks.create(session, url=url, kinds=kinds, key=key, actor=ADMIN, now=now)
        made.active = False
        event = session.scalars(select(Event).where(Event.number.is_not(None))).first()
        assert event is not None
        sent = Delivery(webhook_id=made.id, event_id=event.id, tries=1, created_at=now, next_try_at=now, give_up_at=now)
        session.add(sent)
        session.flush()
        return made.id, sent.id


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
    changed = True
    for role in CALLERS:
        if role in allowed and route.operation in ACTS_ON_THE_HUB:
            continue
        if changed:
            desk.restore()
        if role == "member" and route.operation == "add_key":
            with begin(desk.hub.engine) as session:
                carol = users.by_name(session, name="carol")
                keys.remove(session, user=carol, key_id=desk.key, actor=ADMIN, now=desk.hub.world.now)
        answer = desk.send(role, route)
        changed = route.changes and answer.is_success
        if (role, route.operation) == ("owner", "leave_workspace"):
            assert answer.status_code == 409, "the last owner stays"
        elif role in allowed:
            assert answer.is_success, f"{role}: {answer.status_code} {answer.text}"
        if role in allowed:
            continue
        hidden = role == "stranger" and any(one in route.path for one in OF_A_WORKSPACE)
        to_themselves = ("remove_key", "leave_workspace", "accept_invitation", "decline_invitation", *KEYS_OF_USER)
        hidden = (hidden and allowed != HUB) or route.operation in to_themselves
        hidden = hidden or (route.operation == "create_environment" and role != "viewer")  # no workspace of theirs
        hidden = hidden or (role in ("viewer", "stranger") and "quota-requests/{id}" in route.path)
        assert answer.status_code == (404 if hidden else 403), f"{role}: {answer.status_code} {answer.text}"
        assert set(answer.json()["error"]) == {"code", "message", "facts", "request_id"}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.operation)
def test_no_token_a_servers_token_and_a_reading_token_do_no_more_than_they_carry(desk: Desk, route: Route):
    nobody = desk.send("owner", route, token="not-a-token")
    assert nobody.status_code == 403
    reach = ["access:services!service=workspaces"]
    bare = desk.hub.token_of("admin", reach)
    answer = desk.send("owner", route, token=bare)
    assert answer.status_code == (200 if route.bare else 403), "a server's token carries nothing of ours"
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


def test_an_admin_of_a_workspace_invites_members_and_viewers_and_takes_back_no_higher_invitation(desk: Desk):
    path = "workspaces/lab/invitations"
    for role in ("owner", "admin"):
        assert desk.ask("admin", "POST", path, json={"user": "admin", "role": role}).status_code == 403
    assert desk.ask("admin", "DELETE", f"{path}/eve").status_code == 403, "eve is asked in as an admin"
    made = desk.ask("admin", "POST", path, json={"user": "admin", "role": "member", "days": 3})
    assert (made.status_code, made.json()["invited_by"]) == (201, "bob")
    assert [one["user"] for one in desk.ask("owner", "GET", path).json()["items"]] == ["admin", "eve"]
    unknown = desk.ask("owner", "POST", path, json={"user": "nobody-of-this-name"})
    assert (unknown.status_code, unknown.json()["error"]["message"]) == (
        404,
        "The user nobody-of-this-name was not found.",
    )
    assert desk.ask("owner", "POST", path, json={"user": "eve"}).status_code == 409
    assert desk.ask("owner", "POST", path, json={"user": "zoe"}).status_code == 409, "a member already"
    for days in (0, 366, 1.5, "3"):
        assert desk.ask("owner", "POST", path, json={"user": "admin", "days": days}).status_code == 400


def test_who_is_invited_accepts_once_and_is_in(desk: Desk):
    (one,) = desk.ask("stranger", "GET", "invitations").json()["items"]
    assert (one["workspace"], one["role"], one["ran_out"]) == ("lab", "admin", False)
    assert desk.ask("stranger", "POST", "invitations/lab/accept").status_code == 204
    assert desk.ask("stranger", "GET", "workspaces/lab/members/eve").json()["role"] == "admin"
    assert desk.ask("stranger", "POST", "invitations/lab/accept").status_code == 404
    assert desk.ask("owner", "DELETE", "workspaces/lab/invitations/eve").status_code == 409


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


def test_limits_that_are_set_at_once_by_who_saw_nothing_are_set_one_after_the_other(desk: Desk):
    def edit(slots: int | None) -> int:
        body = {"models": {"A100-80GB": slots}}
        return desk.ask("hub admin", "PATCH", "workspaces/lab/quota", json=body).status_code

    assert edit(3) == 200
    with ThreadPoolExecutor(4) as threads:
        with begin(desk.hub.engine) as session:
            lab = workspaces.by_name(session, name="lab")
            quotas.keep_still(session, scope=QuotaScope.WORKSPACE, workspace=lab, user=None)
            session.execute(select(QuotaModel).with_for_update())
            waiting = [threads.submit(edit, slots) for slots in (None, 5, None, 6)]
            time.sleep(1)
        assert [one.result() for one in waiting] == [200] * 4
    assert edit(None) == 200


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


def test_an_empty_group_links_a_workspace_to_none(desk: Desk):
    body = {"name": "made-by-a-test", "display_name": "x", "owner": "alice", "hub_group": ""}
    assert desk.ask("hub admin", "POST", "workspaces", json=body).json()["hub_group"] is None
    assert desk.ask("hub admin", "GET", "workspaces/made-by-a-test").json()["hub_group"] is None


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
    refused = desk.ask("owner", "PUT", "workspaces/lab/members/zoe", json={"role": "member", "status": "invited"})
    assert refused.status_code == 400
    assert "remotegpu invitations send" in refused.json()["error"]["message"]
    members = [one["user"] for one in walk(ask, "workspaces/lab/members?limit=2")]
    assert members == ["alice", "bob", "carol", "dave", "zoe"], "eve is only invited"
    assert [one["user"] for one in walk(ask, "workspaces/lab/members?limit=2&sort=-user")] == members[::-1]
    assert [one["user"] for one in ask("workspaces/lab/members?search=A&role=viewer").json()["items"]] == ["dave"]
    entries = walk(ask, "audit?limit=100")
    told = [(datetime.fromisoformat(one["at"]), one["id"]) for one in entries]
    assert told == sorted(told, reverse=True)
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("sort", ["reference", "-reference"])
def test_a_list_takes_its_own_cursor_however_long_its_names_are(desk: Desk, sort: str):
    names = [f"{'训' * 500}-{number}" for number in range(3)]
    with begin(desk.hub.engine) as session:
        for one in names:
            catalog.put_image(session, reference=one, display_name="😀" * 100, actor=ADMIN, now=desk.hub.world.now)
    try:
        found = walk(lambda path: desk.ask("hub admin", "GET", path), f"images?limit=1&sort={sort}")
        assert [one["reference"] for one in found if one["reference"] in names] == sorted(names, reverse=sort[0] == "-")
        cursor = desk.ask("hub admin", "GET", "images?limit=1&sort=reference&search=训").json()["next"]
        page = desk.hub.service("workspaces", f"admin/catalog?cursor={cursor}", token=desk.tokens["hub admin"])
        assert names[1] in page.text
    finally:
        with begin(desk.hub.engine) as session:
            session.execute(delete(Image).where(Image.reference.in_(names)))


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


@pytest.mark.parametrize("depth", [300, 600, 900])
@pytest.mark.parametrize("around", ["[{}]", '{{"models": {}}}'], ids=["lists", "objects"])
def test_a_body_however_deep_is_a_clear_400(desk: Desk, around: str, depth: int):
    text = "1"
    for _ in range(depth):
        text = around.format(text)
    answer = desk.ask(
        "hub admin", "PATCH", "workspaces/lab/quota", content=text, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid")


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
        "audit?cursor=x", "environments?sort=-id&cursor=WyItaWQiLCJ4Il0", "audit?since=yesterday", "audit?since=2026-11-01T00:00:00",
        "audit?what=1", "environments?state=dancing", "audit?entity_id=0", f"audit?entity_id={2**63}",
        "workspaces?search=%00", "offers?server_name=%00", "offers?colour=red", "workspaces/lab/usage?month=2026-13", "workspaces/lab/usage?month=november",
        f"environments?sort=-id&cursor={paging._cursor('-id', [2**70])}",
        f"workspaces?cursor={base64.b64encode(b'[' * 2900).decode()}",
        "audit?since=0001-01-01T00:00:00%2B14:00", "audit?until=9999-12-31T23:59:59-14:00",
        f"audit?cursor={paging._cursor('-at', ['0001-01-01T00:00:00+14:00', 1])}",
        f"workspaces?sort=created_at&cursor={paging._cursor('created_at', ['9999-12-31T23:59:59-14:00', 1])}",
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


def test_the_audit_keeps_the_address_that_the_proxy_saw_and_not_what_the_client_wrote(desk: Desk):
    forged = {"X-Real-Ip": "203.0.113.9", "X-Forwarded-For": "198.51.100.9"}
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"), timeout=60) as elsewhere:
        answer = elsewhere.patch(
            f"{desk.client.base_url}workspaces/lab", json={"display_name": "from elsewhere"},
            headers={"Authorization": f"token {desk.tokens['admin']}", **forged},
        )  # fmt: skip
    wanted = select(AuditEntry.address).where(AuditEntry.request_id == answer.headers["X-Request-Id"])
    assert desk.hub.world.read(wanted) == ["127.0.0.2"]


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
    told = lambda: [one["kind"] for one in desk.ask("viewer", "GET", f"{path}/events").json()["items"]]  # noqa: E731
    desk.hub.until(lambda: "environment.stopped" in told()[:1], "its end is among its events")
    past = desk.ask("member", "GET", f"{path}/runs").json()["items"]
    assert [one["end_reason"] for one in past[:1]] == ["admin"]
    restart = lambda: desk.ask("member", "POST", f"{path}/restart", headers={"Idempotency-Key": "again"})  # noqa: E731
    desk.hub.until(lambda: restart().status_code == 202, "it is started again")
    desk.hub.until(lambda: desk.hub.model("carol", "carols").get("ready"), "it runs again")
    run = desk.hub.run_of("carol", "carols")
    assert restart().status_code == 202
    assert desk.hub.run_of("carol", "carols").id == run.id, "asked for once, it is restarted once"
    desk.hub.stop_server("carol", "carols")


def test_an_environment_is_made_once_however_often_it_is_asked_for_and_its_log_is_followed(desk: Desk):
    body = {"name": "训练 <b>", "workspace": "lab", "cpu": 0.5, "memory": "256M"}
    make = lambda _: desk.ask("member", "POST", "environments", json=body, headers={"Idempotency-Key": "make-1"})  # noqa: E731
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(make, range(3)))
    assert {answer.status_code for answer in answers} <= {202, 409}, [answer.text for answer in answers]
    made = make(0)
    assert made.status_code == 202, made.text
    other = desk.ask("member", "POST", "environments", json={**body, "cpu": 0.4}, headers={"Idempotency-Key": "make-1"})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
    server = made.json()["server_name"]
    try:
        desk.hub.until(lambda: desk.hub.model("carol", server).get("ready"), "it runs")
        (found,) = desk.ask("member", "GET", "environments?running=true&search=训练").json()["items"]
        assert (found["server_name"], found["display_name"], found["workspace"]) == (server, "训练 <b>", "lab")
        path = f"environments/{found['id']}/logs"
        assert desk.ask("member", "GET", path).headers["Content-Type"].startswith("text/plain")
        assert desk.ask("stranger", "GET", path).status_code == 404
        run = desk.hub.run_of("carol", server)
        printed = outputs.path_of(desk.hub.runtime.settings.output_folder, run.id)
        with desk.client.stream(
            "GET", f"{path}?follow=true", headers={"Authorization": f"token {desk.tokens['admin']}"}
        ) as live:
            lines = live.iter_lines()
            with printed.open("a") as file:
                file.write("loss 0.25 损失\n")
            assert any("loss 0.25 损失" in line for line in lines)
            desk.hub.stop_server("carol", server)
            assert not any("loss 0.25 损失" in line for line in lines), "it ends with the run"
        assert "loss 0.25 损失" in desk.ask("owner", "GET", f"{path}?run={run.id}&tail=3").text
        with printed.open("a") as file:
            file.writelines(f"{'x' * 8000}\n" for _ in range(2400))
        headers = {"Authorization": f"token {desk.tokens['owner']}"}
        with desk.client.stream("GET", f"{path}?run={run.id}&tail=2400", headers=headers) as slow:
            time.sleep(streams.RIGHTS_SECONDS + 2)
            assert len(slow.read().splitlines()) == 2400, "who reads slowly gets all of it"
        refused = desk.ask("owner", "GET", f"{path}?since=2026-11-01T00:00:00Z")
        assert (refused.status_code, "no times" in refused.text) == (400, True), "nobody wrote down when"
        assert desk.ask("owner", "GET", f"{path}?run=1").status_code in (200, 404)
    finally:
        desk.hub.stop_server("carol", server)
        assert desk.ask("member", "DELETE", f"environments/{found['id']}").is_success


def test_two_of_one_name_at_once_are_two_environments_each_as_it_was_asked_for(desk: Desk):
    def make(cpu: float) -> httpx.Response:
        return desk.ask("member", "POST", "environments", json={"name": "twin", "workspace": "lab", "cpu": cpu})

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(make, (0.2, 0.3)))
    made = [answer.json() for answer in answers]
    try:
        assert [answer.status_code for answer in answers] == [202, 202], made
        for one in made:
            desk.hub.until(lambda one=one: desk.hub.model("carol", one["server_name"]).get("ready"), "it runs")  # type: ignore[misc]
        asked = [desk.hub.run_of("carol", one["server_name"]).cpu_millis for one in made]
        assert asked == [200, 300], made
        assert all(one["server_name"].startswith("twin-") for one in made)
    finally:
        for name in {one["server_name"] for one in made}:
            desk.hub.stop_server("carol", name)


def test_a_stream_ends_when_its_reader_loses_the_right_or_the_token(desk: Desk):
    desk.hub.start_server("carol", {"workspace": "lab"}, server="watched")
    try:
        (one,) = desk.ask("member", "GET", "environments?search=watched&running=true").json()["items"]
        path = f"environments/{one['id']}/logs?follow=true"
        lost = desk.hub.api("POST", "users/alice/tokens", json={"note": "soon gone"}).json()
        first, second = ({"Authorization": f"token {token}"} for token in (desk.tokens["admin"], lost["token"]))
        with (
            desk.client.stream("GET", path, headers=first) as by_right,
            desk.client.stream("GET", path, headers=second) as by_token,
        ):
            put_members(desk.hub, bob="viewer")
            assert desk.hub.api("DELETE", f"users/alice/tokens/{lost['id']}").is_success
            for live in (by_right, by_token):
                for _line in live.iter_lines():
                    pass
        assert desk.ask("admin", "GET", f"environments/{one['id']}/logs").status_code == 403
        put_members(desk.hub, carol="viewer")
        refused = desk.ask("member", "POST", f"environments/{one['id']}/stop")
        assert (refused.status_code, "You are a viewer" in refused.json()["error"]["message"]) == (403, True)
    finally:
        put_members(desk.hub)
        desk.hub.stop_server("carol", "watched")


def test_a_choice_that_makes_no_sense_is_told_before_the_hub_is_asked(desk: Desk):
    for wrong in (
        {"image": "no-such"},
        {"workspace": "secret"},
        {"gpus": 2},
        {"cpu": "many"},
        {"memory": "1Q"},
        {"ports": ["x"]},
    ):
        answer = desk.ask("member", "POST", "environments", json={"name": "x", **wrong})
        assert answer.status_code in (400, 404), answer.text
    assert not desk.ask("member", "GET", "environments?search=x&running=true").json()["items"]


def test_a_secret_is_told_at_the_creation_also_when_it_is_repeated_and_kept_nowhere(desk: Desk):
    body = {"url": "https://example.org/hook", "kinds": ["budget.threshold"]}
    create = lambda: desk.ask("hub admin", "POST", "webhooks", json=body, headers={"Idempotency-Key": "k-hook"})  # noqa: E731
    first, again = create(), create()
    assert first.status_code == 201
    assert first.text == again.text
    secret = first.json()["secret"]
    assert secret.startswith("whsec_")
    kept = desk.hub.world.read(select(Answered.body).where(Answered.key == "k-hook"))
    assert kept and secret not in kept[0]
    shown = desk.ask("hub admin", "GET", f"webhooks/{first.json()['id']}")
    assert "secret" not in shown.json()
    edited = desk.ask("hub admin", "PATCH", f"webhooks/{first.json()['id']}", json={"active": False},
                      headers={"If-Match": shown.headers["ETag"]})  # fmt: skip
    assert edited.json()["active"] is False
    assert edited.headers["ETag"] != shown.headers["ETag"]


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


def test_a_budget_is_set_read_by_members_and_taken_away_and_its_tag_is_not_of_what_is_spent(desk: Desk):
    path = "workspaces/lab/budget"
    put = lambda body, **given: desk.ask("hub admin", "PUT", path, json=body, **given)  # noqa: E731
    first = put({"amount_micros": 5_500_000, "warn_percent": 70, "action": "warn"})
    assert {**first.json(), "month": "", "spent_micros": 0, "currency": ""} == {
        "workspace": "lab", "month": "", "amount_micros": 5_500_000, "spent_micros": 0, "currency": "",
        "warn_percent": 70, "action": "warn",
    }  # fmt: skip
    seen = {"If-Match": desk.ask("viewer", "GET", path).headers["ETag"]}
    again = desk.ask("viewer", "GET", path, headers={"If-None-Match": seen["If-Match"]})
    assert again.status_code == 200, "what is spent may be another"
    assert put({"amount_micros": 6_000_000}, headers=seen).is_success
    assert put({"amount_micros": 7_000_000}, headers=seen).status_code == 412
    assert desk.ask("hub admin", "DELETE", path, headers=seen).status_code == 412
    assert "lab" in {one["workspace"] for one in desk.ask("hub admin", "GET", "budgets?limit=200").json()["items"]}
    assert desk.ask("hub admin", "DELETE", path).json()["amount_micros"] == 6_000_000
    assert desk.ask("owner", "GET", path).status_code == 404


def test_a_request_is_seen_by_who_decides_and_its_answer_by_who_asked(desk: Desk):
    nasty = "<script>alert(1)</script> 训练"
    wish = {"scope": "workspace", "workspace": "~dave", "limits": {"cpu_millis": 4000, "models": {}}, "reason": nasty}
    made = desk.ask("viewer", "POST", "quota-requests", json=wish, headers={"Idempotency-Key": "wish"})
    assert made.status_code == 201, made.text
    assert (
        desk.ask("viewer", "POST", "quota-requests", json=wish, headers={"Idempotency-Key": "wish"}).text == made.text
    )
    path = f"quota-requests/{made.json()['id']}"
    waiting = desk.ask("hub admin", "GET", "all-quota-requests?state=open&scope=workspace").json()["items"]
    assert [one["reason"] for one in waiting] == [nasty]
    for role in ("owner", "member", "stranger"):
        assert desk.ask(role, "GET", path).status_code == desk.ask(role, "POST", f"{path}/withdraw").status_code == 404
    assert desk.ask("viewer", "POST", f"{path}/approve", json={}).status_code == 403
    done = desk.ask("hub admin", "POST", f"{path}/approve", json={"limits": {"cpu_millis": 3000}, "answer": nasty})
    assert done.json()["granted"]["cpu_millis"] == 3000
    told = desk.ask("hub admin", "POST", f"{path}/refuse", json={"answer": "x"})
    assert (told.status_code, told.json()["error"]["message"]) == (409, "admin has approved this request already.")
    mine = desk.ask("viewer", "GET", "quota-requests").json()["items"]
    assert [(one["state"], one["answer"], one["decided_by"]) for one in mine] == [("approved", nasty, "admin")]
    foreign = desk.ask("viewer", "POST", "quota-requests", json={**wish, "workspace": "secret"})
    unknown = desk.ask("viewer", "POST", "quota-requests", json={**wish, "workspace": "nothing-of-the-kind"})
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.json()["error"]["message"] == unknown.json()["error"]["message"]
    desk.ask("hub admin", "PATCH", "workspaces/~dave/quota", json={"cpu_millis": 1000})


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
        run = desk.ask("member", "GET", own).json()["run"]
        assert (run["stops_at"], run["stops_reason"]) == (told["ends_at"], "drained")
        assert run["stops_message"] == inventory.DRAINED
        for page in ("", own, "spaces/lab/environments"):
            shown = see(desk.hub, "carol", page, language="zh").text
            assert words.sentence("zh", inventory.DRAINED) in shown, page
        desk.ask("hub admin", "PATCH", path, json={"status": "online"})
        run = desk.ask("member", "GET", own).json()["run"]
        assert (run["stops_at"], run["stops_reason"], run["stops_message"]) == (None, None, "")
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


def test_offers_take_options_as_links_to_the_spawn_page_spell_them(desk: Desk):
    told = desk.ask("member", "GET", "offers?opt-workspace=lab&opt-gpus=many&ports=ssh&ports=odd&cpu=0.1&gpu_model=")
    assert told.status_code == 200, told.text
    assert (told.json()["choice"]["workspace"], told.json()["choice"]["cpu_millis"]) == ("lab", 100)


def test_a_home_is_given_up_by_its_user_and_what_is_shared_by_an_owner(desk: Desk):
    with begin(desk.hub.engine) as session:
        lab, carol = workspaces.by_name(session, name="lab"), users.by_name(session, name="carol")
        volumes.ensure(session, user_id=carol.id, workspace_id=lab.id, there={}, sizes={VolumeKind.SHARED: 2**30},
                       actor=ADMIN, now=desk.hub.world.now)  # fmt: skip
    rows = desk.ask("viewer", "GET", "workspaces/lab/volumes").json()["items"]
    assert {(one["kind"], one["user"]) for one in rows} == {("home", "carol"), ("shared", None)}
    assert [one["id"] for one in desk.ask("member", "GET", "volumes").json()["items"]] == [desk.volume]
    assert desk.ask("owner", "GET", "volumes").json()["items"] == []
    (shared,) = desk.ask("hub admin", "GET", "all-volumes?kind=shared").json()["items"]
    path = f"volumes/{shared['id']}"
    for role in ("admin", "member", "viewer"):
        refused = desk.ask(role, "DELETE", path)
        assert (refused.status_code, "Only an owner" in refused.json()["error"]["message"]) == (403, True)
    assert desk.ask("owner", "DELETE", path).status_code == 204
    assert desk.ask("owner", "DELETE", path).status_code == desk.ask("owner", "GET", path).status_code == 404


def test_only_its_user_or_an_admin_of_the_hub_deletes_an_environment_and_lets_its_home_go_with_it(desk: Desk):
    hub = desk.hub
    hub.add_users("holly")
    put_members(hub, zoe="member", holly="member")
    keep(hub.engine, "holly", 2, hub.world.now)
    with begin(hub.engine) as session:
        lab, holly = workspaces.by_name(session, name="lab"), users.by_name(session, name="holly")
        home = desk._home(session, holly, lab)
        first, last = session.scalars(select(Environment.id).where(Environment.user_id == holly.id))
    token, path = hub.token_of("holly"), f"environments/{first}?volume=true"
    for role in ("owner", "admin"):
        for one in (path, f"environments/{first}"):
            refused = desk.ask(role, "DELETE", one)
            assert (refused.status_code, "Only its user" in refused.json()["error"]["message"]) == (403, True)
    assert desk.ask("owner", "DELETE", f"environments/{first}?volume=perhaps").status_code == 400
    assert desk.ask("stranger", "DELETE", path).status_code == 404
    shared = desk.ask("", "DELETE", path, token=token)
    assert (shared.status_code, shared.json()["error"]["facts"]) == (409, {"count": 1})
    assert "Other environments here use the same home" in see(hub, "holly", f"environments/{first}").text
    for user, offered in (("holly", True), ("admin", True), ("alice", False), ("bob", False)):
        assert ("Delete…" in see(hub, user, f"environments/{first}").text) == offered, user
    assert send(hub, "alice", f"environments/{first}/here/delete").status_code == 403
    assert desk.ask("hub admin", "DELETE", f"environments/{first}").status_code == 200
    for page in ("", f"environments/{last}"):
        assert "all files in it are lost for good" in see(hub, "holly", page).text
    assert "all files in it" not in see(hub, "alice", f"environments/{last}").text
    sent = send(hub, "holly", f"environments/{last}/here/delete", volume="true")
    assert (sent.status_code, sent.headers["Location"].split("?")[1]) == (303, "told=delete-all")
    assert desk.ask("", "GET", f"volumes/{home}", token=token).status_code == 404


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


@pytest.mark.parametrize("role", ["hub admin", pytest.param("admin", marks=pytest.mark.prove), "stranger"])
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
