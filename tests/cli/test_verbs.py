import re
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update

from remotegpu_hub.domain import workspaces
from remotegpu_hub.domain.audit import Actor
from remotegpu_hub.orm import Gpu, Host, HostStatus, QuotaScope, Role
from remotegpu_hub.units import GIB, MICROS

from ..worlds import A100, IMAGE

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def last_actor(world):
    return world.audit()[-1].actor


def test_a_workspace_is_made_shown_changed_and_archived(remotegpu, world, monkeypatch):
    monkeypatch.setattr("remotegpu_hub.cli.command.Command.actor", Actor("cli:ops"))
    remotegpu("workspaces", "create", "vision", "--owner", "alice", "--display-name", "视觉组", "--kind", "enterprise")
    assert last_actor(world) == "cli:ops"
    remotegpu("workspaces", "update", "vision", "--time-zone", "Asia/Shanghai", "--hub-group", "vision-people")
    shown = remotegpu("workspaces", "show", "vision", "--json").json["workspace"]
    assert {name: shown[name] for name in ("name", "display_name", "kind", "status", "owner", "time_zone")} == {
        "name": "vision",
        "display_name": "视觉组",
        "kind": "enterprise",
        "status": "active",
        "owner": "alice",
        "time_zone": "Asia/Shanghai",
    }
    assert shown["hub_group"] == "vision-people"
    assert [(one["user"], one["role"]) for one in shown["members"]] == [("alice", "owner")]
    remotegpu("workspaces", "update", "vision", "--hub-group", "")
    remotegpu("workspaces", "archive", "vision")
    assert [row["name"] for row in remotegpu("workspaces", "--json").json["workspaces"]] == ["lab"]
    everything = remotegpu("workspaces", "list", "--all", "--json").json["workspaces"]
    assert [(row["name"], row["status"], row["hub_group"]) for row in everything] == [
        ("lab", "active", None),
        ("vision", "archived", None),
    ]


def test_a_workspace_is_shown_with_what_it_holds_and_spends(remotegpu, world):
    world.budget("lab", 500)
    world.quota(QuotaScope.WORKSPACE, workspace="lab", gpu_millis=4000, models={A100: 3})
    run = world.run("bob", gpus=2, cpu=4000, memory=8 * GIB)
    world.pass_time(minutes=30)
    world.seen(run)
    shown = remotegpu("workspaces", "show", "lab", "--json").json["workspace"]
    limits = {one["resource"]: (one["held"], one["limit"]) for one in shown["limits"]}
    assert limits["gpus"] == (2000, 4000)
    assert limits[f"gpu:{A100}"] == (2, 3)
    assert limits["cpu"] == (4000, None)
    assert limits["memory"] == (8 * GIB, None)
    assert limits["environments"] == (1, None)
    assert limits["gpu_hours"] == (2000 * 1800, None)
    month = shown["month"]
    assert (month["budget_micros"], month["per_hour_micros"], month["currency"]) == (
        500 * MICROS,
        28 * MICROS,
        "USD",
    )
    assert month["spent_micros"] > 0
    text = remotegpu("workspaces", "show", "lab").out
    assert re.search(r"^gpus +2 +4$", text, re.M)
    assert re.search(r"^cpu +4 +unlimited$", text, re.M)
    assert re.search(r"^gpu_hours +1 +unlimited$", text, re.M)
    assert re.search(r"^budget +\$500\.00$", text, re.M)


def test_a_running_workspace_is_not_archived(remotegpu, world):
    world.run("bob")
    said = remotegpu("workspaces", "archive", "lab", code=1)
    assert said.err == "remotegpu: Environments of lab are running. Stop them first.\n"
    assert said.out == ""


def test_a_workspace_can_be_given_to_somebody_whom_only_the_hub_knows(remotegpu, world, hub_user):
    hub_user("dana")
    remotegpu("workspaces", "create", "fresh", "--owner", "dana")
    assert remotegpu("members", "list", "fresh", "--json").json["members"][0]["user"] == "dana"
    said = remotegpu("workspaces", "create", "other", "--owner", "nobody", code=1)
    assert said.err == "remotegpu: The user nobody was not found.\n"


def test_members_come_change_are_suspended_and_go(remotegpu, world, hub_user):
    hub_user("dana")
    remotegpu("members", "add", "lab", "dana", "--role", "viewer")
    remotegpu("members", "set", "lab", "dana", "--role", "admin")
    remotegpu("members", "suspend", "lab", "dana")
    rows = remotegpu("members", "list", "lab", "--json").json["members"]
    assert [(row["user"], row["role"], row["status"]) for row in rows] == [
        ("alice", "owner", "active"),
        ("dana", "admin", "suspended"),
        ("bob", "member", "active"),
        ("carol", "viewer", "active"),
    ]
    assert "remotegpu invitations send" in remotegpu("members", "set", "lab", "dana", "--status", "invited", code=2).err
    remotegpu("members", "set", "lab", "dana", "--status", "active")
    remotegpu("members", "remove", "lab", "dana")
    assert "dana" not in remotegpu("members", "lab").out
    assert "already" in remotegpu("members", "add", "lab", "bob", code=1).err
    assert "not found" in remotegpu("members", "suspend", "lab", "dana", code=1).err
    assert "needs an owner" in remotegpu("members", "remove", "lab", "alice", code=1).err


def test_all_members_are_listed_however_many_they_are(remotegpu, world):
    for number in range(60):
        world.user(f"user-{number}")
        world.member("lab", f"user-{number}", Role.MEMBER)
    rows = remotegpu("members", "list", "lab", "--json").json["members"]
    assert len(rows) == len(remotegpu("workspaces", "show", "lab", "--json").json["workspace"]["members"]) == 63


@pytest.mark.parametrize(
    ("words", "scope", "workspace", "user"),
    [
        pytest.param(("--default", "user"), "user-default", None, None, id="default of users"),
        pytest.param(("--default", "workspace"), "workspace-default", None, None, id="default of workspaces"),
        pytest.param(("--workspace", "lab"), "workspace", "lab", None, id="workspace"),
        pytest.param(("--user", "bob"), "user", None, "bob", id="user"),
        pytest.param(("--user", "bob", "--workspace", "lab"), "member", "lab", "bob", id="user in workspace"),
    ],
)
def test_a_quota_is_set_for_each_scope(remotegpu, world, words, scope, workspace, user):
    limits = ("gpus=8", "cpu=0.5", "--model", f"{A100}=4", "memory=64G", "environments=3", "--model", f"{A100}/4=2")
    quota = remotegpu("quotas", "set", *words, *limits, "gpu-hours=unlimited", "storage=default", "--json").json[
        "quota"
    ]
    assert quota == {
        "scope": scope,
        "workspace": workspace,
        "user": user,
        "gpu_millis": 8000,
        "cpu_millis": 500,
        "memory_bytes": 64 * GIB,
        "storage_bytes": None,
        "environments": 3,
        "gpu_hours": "unlimited",
        "models": {A100: 4, f"{A100}/4": 2},
    }
    again = remotegpu("quotas", "set", *words, "cpu=default", "--model", f"{A100}=default", "--json").json["quota"]
    assert (again["cpu_millis"], again["gpu_millis"], again["models"]) == (None, 8000, {f"{A100}/4": 2})
    rows = remotegpu("quotas", "list", "--json").json["quotas"]
    assert again in rows


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--user", "bob"), "Name a limit to set."),
        (("gpus=1",), "Whose quota? Write --workspace, --user, both, or --default."),
        (("--default", "team", "gpus=1"), "--default is user or workspace, not `team`."),
        (("--default", "user", "--user", "bob", "gpus=1"), "--default stands alone: it is nobody's own quota."),
        (("--user", "bob", "gpsu=1"), "`gpsu=1` is not a limit"),
        (("--user", "bob", "gpus"), "`gpus` is not a limit"),
        (("--user", "bob", "environments=two"), "not `two`."),
        (("--user", "bob", "gpu_hours=-1"), "not `-1`."),
        (("--user", "bob", "--model", "A100"), "`A100` is not a limit of a model"),
        (("--user", "bob", "memory=99999999999T"), "is too much: write `unlimited`."),
    ],
)
def test_a_quota_that_makes_no_sense_is_wrong_usage(remotegpu, words, said):
    told = remotegpu("quotas", "set", *words, code=2)
    assert said in told.err
    assert told.out == ""


@pytest.mark.parametrize("value", ["gpus=x", "memory=much", "cpu=-1"])
def test_an_amount_that_cannot_be_read_is_refused(remotegpu, value):
    assert remotegpu("quotas", "set", "--default", "user", value, code=1).err.count("\n") == 1


def test_a_host_goes_to_maintenance_and_back(remotegpu, world):
    remotegpu("hosts", "maintenance", "host-1")
    rows = remotegpu("hosts", "--json").json["hosts"]
    assert [(row["name"], row["status"]) for row in rows] == [("host-1", "maintenance"), ("host-2", "online")]
    assert ISO.fullmatch(rows[0]["last_seen_at"])
    remotegpu("hosts", "online", "host-1")
    assert world.read(Host.__table__.select().with_only_columns(Host.status)) == [HostStatus.ONLINE] * 2
    assert remotegpu("hosts", "online", "host-9", code=1).err == "remotegpu: The host host-9 was not found.\n"


def test_a_gpu_is_named_by_its_place_or_its_uuid(remotegpu, world):
    run = world.run("bob", gpus=1)
    holder = world.allocation(run.attempt).slots[0].gpu.uuid
    remotegpu("gpus", "maintenance", "host-2:3")
    remotegpu("gpus", "maintenance", "host-2-GPU-4")
    rows = {row["uuid"]: row for row in remotegpu("gpus", "--json").json["gpus"]}
    assert {uuid for uuid, row in rows.items() if row["condition"] == "maintenance"} == {"host-2-GPU-3", "host-2-GPU-4"}
    assert rows[holder]["slots"] == [
        {"model": A100, "gpu_millis": 1000, "usable": True, "allocation_id": run.id, "user": "bob"}
    ]
    remotegpu("gpus", "available", "host-2:3")
    one = remotegpu("gpus", "list", "--host", "host-2", "--json").json["gpus"]
    assert [row["condition"] for row in one].count("maintenance") == 1
    text = remotegpu("gpus").out
    assert "0 of 1 free, held by bob" in text
    assert "was not found" in remotegpu("gpus", "maintenance", "host-9:0", code=1).err


def test_gpus_without_names_of_their_own_are_told_apart_by_their_host(remotegpu, world, engine):
    with engine.begin() as connection:
        connection.execute(update(Gpu).where(Gpu.index == 0).values(uuid="nvidia.com/gpu#0"))
    remotegpu("gpus", "maintenance", "host-2:0")
    rows = remotegpu("gpus", "--json").json["gpus"]
    assert [(row["host"], row["index"]) for row in rows if row["condition"] == "maintenance"] == [("host-2", 0)]
    assert "More than one host has a GPU" in remotegpu("gpus", "available", "nvidia.com/gpu#0", code=1).err


def test_environments_are_listed_with_what_they_hold_and_cost(remotegpu, world):
    run = world.run("bob", gpus=2, cpu=4000, memory=8 * GIB)
    world.end(world.run("alice").attempt)
    bob, alice = sorted(remotegpu("environments", "--json").json["environments"], key=lambda row: -len(row["user"]))[
        ::-1
    ]
    assert (alice["user"], alice["run"]) == ("alice", None)
    moments = {name: bob["run"].pop(name) for name in ("admitted_at", "started_at", "seen_at")}
    assert all(ISO.fullmatch(moment) for moment in moments.values())
    assert ISO.fullmatch(bob.pop("created_at"))
    held = [slot.gpu.uuid for slot in world.allocation(run.attempt).slots]
    assert bob == {
        "id": run.environment_id,
        "user": "bob",
        "server_name": "",
        "display_name": bob["display_name"],
        "workspace": "lab",
        "image": IMAGE,
        "flavor": None,
        "gpu_model": A100,
        "gpu_slots": 2,
        "cpu_millis": 4000,
        "memory_bytes": 8 * GIB,
        "ports": [],
        "state": "running",
        "message": "",
        "run": {
            "allocation_id": run.id,
            "state": "active",
            "host": world.allocation(run.attempt).host.name,
            "gpus": held,
            "price_per_hour_micros": 28 * MICROS,
            "currency": "USD",
            "stops_at": None,
            "stops_reason": None,
            "stops_message": "",
            "access": [],
        },
    }
    running = remotegpu("environments", "list", "--running", "--workspace", "lab").out
    assert "2 × A100-80GB, 4 cores, 8 GiB" in running
    assert "$28.00" in running
    assert "alice" not in running
    world.remove("lab", "bob")
    (bob,) = remotegpu("environments", "--running", "--json").json["environments"]
    assert datetime.fromisoformat(bob["run"]["stops_at"]) == world.now + timedelta(hours=1)
    assert bob["run"]["stops_reason"] == "admin"
    assert f"Z: {workspaces.MAY_NOT_START}" in remotegpu("environments", "--running").out
    assert remotegpu("environments", "--user", "carol").out == "There are no such environments.\n"
    assert remotegpu("environments", "--user", "nobody", code=1).err == "remotegpu: The user nobody was not found.\n"


def test_prices_change_from_a_moment_on_and_old_ones_are_kept(remotegpu, world):
    row = remotegpu("prices", "set", "storage", "0.000125", "--json").json["price"]
    assert ISO.fullmatch(row.pop("effective_from"))
    assert row == {
        "resource": "storage",
        "unit": "GiB-hour",
        "unit_price_micros": 125,
        "currency": "USD",
        "in_force": True,
    }
    remotegpu("prices", "set", "cpu", "0.75", "--from", "2099-01-01T08:00+08:00")
    cpu = [row for row in remotegpu("prices", "--json").json["prices"] if row["resource"] == "cpu"]
    assert [(row["unit_price_micros"], row["in_force"]) for row in cpu] == [(500_000, True), (750_000, False)]
    assert cpu[1]["effective_from"] == "2099-01-01T00:00:00Z"
    assert "cannot change" in remotegpu("prices", "set", "cpu", "1", "--from", "2020-01-01", code=1).err
    assert "not a resource" in remotegpu("prices", "set", "disk", "1", code=1).err
    assert "not a moment" in remotegpu("prices", "set", "cpu", "1", "--from", "tomorrow", code=2).err


def test_a_budget_keeps_what_was_not_named(remotegpu, world):
    remotegpu("budgets", "set", "lab", "5000", "--warn", "90", "--action", "warn")
    row = remotegpu("budgets", "set", "lab", "6000.5", "--json").json["budget"]
    assert re.fullmatch(r"\d{4}-\d\d", row.pop("month"))
    assert row == {
        "workspace": "lab",
        "amount_micros": 6_000_500_000,
        "spent_micros": 0,
        "currency": "USD",
        "warn_percent": 90,
        "action": "warn",
    }
    assert "$6,000.50" in remotegpu("budgets").out
    assert "whole number" in remotegpu("budgets", "set", "lab", "1", "--warn", "x", code=2).err
    assert "refuse, stop" in remotegpu("budgets", "set", "lab", "1", "--action", "explode", code=2).err


def test_an_image_is_blocked_or_kept_for_a_workspace(remotegpu, world):
    remotegpu("images", "set", IMAGE, "--status", "blocked")
    row = remotegpu("images", "set", IMAGE, "--visibility", "workspace", "--workspace", "lab", "--json").json["image"]
    assert (row["status"], row["visibility"], row["workspace"]) == ("blocked", "workspace", "lab")
    assert remotegpu("images", "--json").json["images"] == [row]
    remotegpu("images", "set", IMAGE, "--visibility", "public", "--display-name", "镜像")
    assert "镜像" in remotegpu("images").out
    assert "was not found" in remotegpu("images", "set", "local:none", "--status", "active", code=1).err
    assert "go together" in remotegpu("images", "set", IMAGE, "--visibility", "workspace", code=2).err
    assert "Nothing to change" in remotegpu("images", "set", IMAGE, code=2).err


def test_a_flavor_is_made_and_changed(remotegpu, world):
    words = ("--gpus", "1", "--gpu-model", A100, "--cpu", "8", "--memory", "64G")
    row = remotegpu("flavors", "set", "a100", *words, "--display-name", "1 × A100", "--json").json["flavor"]
    assert row == {
        "name": "a100",
        "display_name": "1 × A100",
        "gpu_model": A100,
        "gpu_slots": 1,
        "cpu_millis": 8000,
        "memory_bytes": 64 * GIB,
        "workspace": None,
        "retired": False,
    }
    remotegpu("flavors", "set", "small", "--cpu", "0.5", "--memory", "1G", "--workspace", "lab")
    assert [one["name"] for one in remotegpu("flavors", "--json").json["flavors"]] == ["small", "a100"]
    assert "go together" in remotegpu("flavors", "set", "x", "--gpus", "1", "--cpu", "1", "--memory", "1G", code=2).err
    assert "are required" in remotegpu("flavors", "set", "x", code=2).err
