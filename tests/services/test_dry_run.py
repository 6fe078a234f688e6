"""The dry run of a policy: as a route and as a page."""

from datetime import UTC, datetime, timedelta
from threading import Event, Semaphore
from typing import Any

import pytest
from sqlalchemy import Engine

from remotegpu_hub.errors import Busy, Invalid
from remotegpu_hub.services import api
from remotegpu_hub.services.pages import View
from remotegpu_hub.services.workspaces import dry_run, policy_pages
from tests.gpu_hubs import GpuHub
from tests.worlds import A100, World

from .test_audit_pages import NASTY, see

MARCH = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize("batch", [1, 5000])
def test_a_month_is_replayed_with_names(engine: Engine, batch: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dry_run, "BATCH", batch)
    world = World(engine, MARCH - timedelta(days=60)).furnish()
    world.workspace("vision", owner="alice", display_name=NASTY)
    world.now = MARCH
    world.run("bob", server="first", gpus=2)
    world.pass_time(hours=1)
    world.run("bob", server="second", gpus=2)
    world.run("alice", "vision", server=NASTY, gpus=1)
    asked = api.check(
        dry_run.DryRun,
        {"month": "2026-03", "user": {"gpu_millis": 3000}, "workspace": {"gpu_hours": 0, "models": {A100: 0}}},
    )
    told = dry_run.replay(engine, asked)
    dry_run.DryRunShown.model_validate(told)
    assert (told["starts"], told["refused"]) == (3, 3)
    loose = dry_run.replay(engine, api.check(dry_run.DryRun, {"month": "2026-03", "user": {"gpu_millis": 3000}}))
    assert (loose["starts"], loose["refused"]) == (3, 1)
    assert loose["users"] == [{"name": "bob", "starts": 2, "refused": 1}]
    assert loose["limits"] == [{"scope": "user", "resource": "gpus", "refused": 1}]
    (first,) = loose["first"]
    assert (first["environment"], first["workspace"]) == ("second", "lab")
    assert [policy_pages.breach(View("en"), one) for one in first["breaches"]] == ["GPUs: 2 held, 2 wanted, 3 allowed"]
    assert dry_run.replay(engine, api.check(dry_run.DryRun, {"month": "2026-02", "user": {"gpu_millis": 0}})) == {
        "month": "2026-02", "starts": 0, "refused": 0, "users": [], "workspaces": [], "limits": [], "first": [],
    }  # fmt: skip


def test_the_form_is_read_into_the_routes_body():
    models = [A100]
    given = dict.fromkeys(
        [f"{one}-{two}" for one in policy_pages.SCOPES for two in (*policy_pages.LIMITS, f"gpu:{A100}")], ""
    )
    given |= {
        "user-gpus": "0.5",
        "user-memory": "64G",
        "workspace-storage": "1.5T",
        f"workspace-gpu:{A100}": "2",
        "workspace-gpu_hours": "100",
    }
    asked = api.check(dry_run.DryRun, {"month": "2026-03", **policy_pages.read_limits(given, models)})
    assert (asked.user.gpu_millis, asked.user.memory_bytes) == (500, 64 * 2**30)
    assert asked.workspace.storage_bytes == 1536 * 2**30
    assert (asked.workspace.models, asked.workspace.gpu_hours) == ({A100: 2}, 100)
    for name, wrong in (
        ("user-gpus", "many"),
        ("user-gpu_hours", "1.5"),
        ("user-memory", "1 pound"),
        ("user-cpu", "-1"),
    ):
        with pytest.raises(Invalid):
            policy_pages.read_limits({**given, name: wrong}, models)
    nothing = policy_pages.read_limits(dict.fromkeys(given, ""), models)
    with pytest.raises(Invalid):
        dry_run.check(api.check(dry_run.DryRun, {"month": "2026-03", **nothing}))


def test_before_the_first_of_a_month_is_the_month_before():
    assert dry_run.month_before(datetime(2026, 1, 1, tzinfo=UTC)) == "2025-12"
    assert dry_run.month_before(datetime(2026, 3, 31, 23, tzinfo=UTC)) == "2026-02"


def test_a_third_dry_run_at_once_is_told_to_come_back(hub: GpuHub, monkeypatch: pytest.MonkeyPatch):
    go, begun = Event(), Semaphore(0)
    kept = dry_run.replay

    def slowly(*given: Any) -> Any:
        begun.release()
        go.wait(30)
        return kept(*given)

    monkeypatch.setattr(dry_run, "replay", slowly)
    asked = api.check(dry_run.DryRun, {"month": "2025-01", "user": {"gpu_millis": 0}})
    running = [dry_run.begin_replay(hub.runtime, asked) for _ in range(dry_run.MOST_AT_ONCE)]
    try:
        assert all(begun.acquire(timeout=30) for _ in running)
        with pytest.raises(Busy) as told:
            dry_run.begin_replay(hub.runtime, asked)
        assert (told.value.status, told.value.facts["after_seconds"]) == (429, dry_run.AFTER_SECONDS)
    finally:
        go.set()
    assert [one.result(30)["starts"] for one in running] == [0, 0]
    monkeypatch.setattr(dry_run, "replay", lambda *_: 1 / 0)
    for _ in range(dry_run.MOST_AT_ONCE + 1):
        with pytest.raises(ZeroDivisionError):
            dry_run.begin_replay(hub.runtime, asked).result(30)


def test_an_admin_tries_a_policy_and_nobody_else_does(hub: GpuHub):
    assert "2025-01" in see(hub, "admin", "admin/policy?month=2025-01&user-gpus=1").text
    empty = see(hub, "admin", "admin/policy?month=2025-01")
    assert (empty.status_code, "Name at least one limit" in empty.text) == (400, True)
    assert see(hub, "admin", "admin/policy?month=spring&user-gpus=1").status_code == 400
    wrong = see(hub, "admin", "admin/policy?month=2025-01&user-gpus=%3Cscript%3E")
    assert (wrong.status_code, '<script>" maxlength' in wrong.text) == (400, False)
    assert see(hub, "alice", "admin/policy").status_code == 403
