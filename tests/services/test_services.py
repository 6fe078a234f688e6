"""Both services behind a real hub: who gets what, one shape of errors, and a life that ends with the hub's."""

import os
import signal
import time

import httpx
import psutil
import pytest
from sqlalchemy import select

from remotegpu_hub.db import begin
from remotegpu_hub.orm import TickLease
from remotegpu_hub.runtime import utcnow
from tests.gpu_hubs import A100, GpuHub

from .conftest import ROLES, put_members

ME, OFFERS, USAGE = ("workspaces", "api/me"), ("workspaces", "api/offers"), ("billing", "api/usage?workspace=lab")


@pytest.mark.parametrize(("service", "path"), [ME, OFFERS, USAGE, ("workspaces", "api/nothing")])
def test_without_a_login_everything_is_403_in_one_shape(hub: GpuHub, service: str, path: str) -> None:
    answer = hub.service(service, path, token="not-a-token")
    assert answer.status_code in (403, 404)
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "facts", "request_id"}
    assert answer.headers["X-Request-Id"] == error["request_id"]


@pytest.mark.parametrize("role", [*ROLES.values(), "stranger"])
@pytest.mark.parametrize("route", [ME, OFFERS, USAGE], ids=["me", "offers", "usage"])
def test_each_role_sees_what_the_table_says(hub: GpuHub, role: str, route: tuple[str, str]) -> None:
    put_members(hub)
    name = next((user for user, its in ROLES.items() if its == role), "eve")
    answer = hub.service(*route, token=hub.token_of(name))
    expected = 404 if role == "stranger" and route is USAGE else 200
    assert answer.status_code == expected, answer.text
    if expected == 200 and route is ME:
        mine = {one["name"]: one["role"] for one in answer.json()["workspaces"]}
        assert mine.get("lab") == (role if role != "stranger" else None)
    if expected == 200 and route is OFFERS:
        lab = [one for one in answer.json()["workspaces"] if one["name"] == "lab"]
        assert [bool(one["reason"]) for one in lab] == ([] if role == "stranger" else [role == "viewer"])


def test_a_foreign_workspace_answers_like_an_unknown_one(hub: GpuHub) -> None:
    token = hub.token_of("bob")
    bodies = []
    for name in ("secret", "nothing-of-the-kind"):
        answer = hub.service("billing", f"api/usage?workspace={name}", token=token)
        assert answer.status_code == 404
        bodies.append({**answer.json()["error"], "request_id": ""})
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize("month", ["2026-13", "november", "2026-11-01", "../etc"])
def test_a_bad_month_is_a_clear_400(hub: GpuHub, month: str) -> None:
    answer = hub.service("billing", f"api/usage?workspace=lab&month={month}", token=hub.token_of("alice"))
    assert answer.status_code == 400
    assert "2026-11" in answer.json()["error"]["message"]


def test_a_missing_argument_is_a_400_and_not_a_500(hub: GpuHub) -> None:
    assert hub.service("billing", "api/usage", token=hub.token_of("alice")).status_code == 400


def test_an_unknown_path_is_a_404_in_the_same_shape(hub: GpuHub) -> None:
    answer = hub.service("workspaces", "api/no/such/path", token=hub.token_of("alice"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_who_sends_too_much_is_told_in_the_same_shape(hub: GpuHub) -> None:
    headers = {"Authorization": f"token {hub.token_of('alice')}", "Content-Type": "application/json"}
    for service in ("workspaces", "billing"):
        for size, status in ((1_000_000, 404), (1_000_001, 413), (20_000_000, 413)):
            address = f"{hub.url}services/{service}/api/nothing"
            answer = httpx.post(address, content=b"x" * size, headers=headers, timeout=60, trust_env=False)
            assert answer.status_code == status, answer.text
            assert answer.json()["error"]["code"] == ("too_large" if status == 413 else "not_found")


def test_the_quote_of_rest_is_what_admission_then_does(hub: GpuHub) -> None:
    query = f"api/offers?workspace=lab&gpu_model={A100}&gpus=1&cpu=0.1"
    quote = hub.service("workspaces", query, token=hub.token_of("carol")).json()["quote"]
    assert quote["refusal"] is None
    hub.start_server("carol", {"workspace": "lab", "gpu_model": A100, "gpus": 1, "cpu": 0.1})
    run = hub.run_of("carol")
    assert run.price_per_hour == quote["price_per_hour"]
    mine = hub.service("workspaces", "api/me", token=hub.token_of("carol")).json()["environments"]
    assert [one["run"]["gpus"] for one in mine if one["run"]] == [hub.gpus_of("carol")]
    spent = hub.service(*USAGE, token=hub.token_of("dave")).json()
    assert spent["total"] == spent["written"] + spent["running"]
    too_many = hub.service("workspaces", query.replace("gpus=1", "gpus=900"), token=hub.token_of("carol")).json()
    assert too_many["problems"], "what cannot be asked for is told"
    hub.stop_server("carol")


def test_a_service_that_is_killed_alone_comes_back(hub: GpuHub) -> None:
    before = hub.service_pid("billing")
    os.kill(before, signal.SIGKILL)
    hub.until(lambda: hub.service("billing", "").status_code == 200, "billing answers again")
    assert hub.service_pid("billing") != before


def test_a_hub_that_ends_in_order_leaves_no_tick_to_wait_for(hub: GpuHub) -> None:
    hub.until(lambda: hub.ticked("meter"), "there are ticks")
    hub.stop()
    with begin(hub.engine, read_only=True) as session:
        assert [one.name for one in session.scalars(select(TickLease)) if one.expires_at > utcnow()] == []
    hub.start()


def test_services_die_with_the_hub_and_the_next_hub_starts(hub: GpuHub) -> None:
    pids = [hub.service_pid(name) for name in ("workspaces", "billing")]
    key = hub.runtime.settings.webhook_key
    hub.kill()
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < deadline, "a service outlived its hub"
        time.sleep(0.05)
    hub.start()
    assert key and hub.runtime.settings.webhook_key == key, "the secrets of webhooks are good after each start"
    assert hub.service("workspaces", "").status_code == 302, "its page sends whoever is not logged in to the login"
