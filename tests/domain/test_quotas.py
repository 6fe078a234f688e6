from datetime import datetime

import pytest

from remotegpu_hub import db
from remotegpu_hub.domain import quotas, users
from remotegpu_hub.errors import Breach, Denied, Invalid, NotFound, QuotaExceeded
from remotegpu_hub.orm import MemberStatus, QuotaScope, Role
from remotegpu_hub.units import GIB, UNLIMITED

from ..worlds import A100, ADMIN, World, gpus, host


def refused(world: World, user: str = "bob", workspace: str = "lab", **wanted: object) -> set[Breach]:
    with pytest.raises(QuotaExceeded) as caught:
        world.admit(user, workspace, **wanted)
    assert caught.value.facts["breaches"] == caught.value.breaches
    return set(caught.value.breaches)


DEFAULT_USER, DEFAULT_WORKSPACE = QuotaScope.USER_DEFAULT, QuotaScope.WORKSPACE_DEFAULT


@pytest.mark.parametrize(
    ("resource", "limit", "wanted", "breach"),
    [
        ("gpu_millis", 1999, {"gpus": 2}, ("gpus", 2000, 1999)),
        ("gpu_millis", 0, {"gpus": 1}, ("gpus", 1000, 0)),
        ("cpu_millis", 1999, {"cpu": 2000}, ("cpu", 2000, 1999)),
        ("memory_bytes", GIB - 1, {"memory": GIB}, ("memory", GIB, GIB - 1)),
        ("environments", 0, {}, ("environments", 1, 0)),
        ("gpu_hours", 0, {"gpus": 1}, ("gpu_hours", 3_600_000, 0)),
    ],
    ids=["gpus", "no-gpus", "cpu", "memory", "environments", "gpu-hours"],
)
@pytest.mark.parametrize(
    ("scope", "level", "name"),
    [
        (QuotaScope.USER, "user", "bob"),
        (QuotaScope.WORKSPACE, "workspace", "lab"),
        (QuotaScope.MEMBER, "member", "lab"),
        (DEFAULT_USER, "user", "bob"),
        (DEFAULT_WORKSPACE, "workspace", "lab"),
    ],
    ids=["user", "workspace", "member", "user-default", "workspace-default"],
)
def test_each_resource_is_limited_on_each_level(
    world: World, scope: QuotaScope, level: str, name: str, resource: str, limit: int, wanted: dict, breach: tuple
):
    owners = {
        QuotaScope.USER: {"user": "bob"},
        QuotaScope.WORKSPACE: {"workspace": "lab"},
        QuotaScope.MEMBER: {"user": "bob", "workspace": "lab"},
    }.get(scope, {})
    world.quota(scope, **owners, **{resource: limit})
    assert refused(world, **wanted) == {Breach(level, name, breach[0], breach[1], 0, breach[2])}
    world.quota(
        scope, **owners, **{resource: limit + 4_000_000_000_000 if resource == "memory_bytes" else limit + 2000}
    )
    world.admit("bob", **wanted)


def test_a_refusal_names_every_limit_with_wanted_held_and_limit(world: World):
    world.admit("bob", server="first", gpus=2, cpu=3000, memory=4 * GIB)
    world.admit("alice", gpus=1)
    world.quota(QuotaScope.USER, user="bob", gpu_millis=3000, cpu_millis=4000)
    world.quota(QuotaScope.WORKSPACE, workspace="lab", gpu_millis=4000, environments=2)
    world.quota(QuotaScope.MEMBER, workspace="lab", user="bob", memory_bytes=5 * GIB, models={A100: 3})
    assert refused(world, server="second", gpus=2, cpu=2000, memory=2 * GIB) == {
        Breach("user", "bob", "gpus", 2000, 2000, 3000),
        Breach("user", "bob", "cpu", 2000, 3000, 4000),
        Breach("workspace", "lab", "gpus", 2000, 3000, 4000),
        Breach("workspace", "lab", "environments", 1, 2, 2),
        Breach("member", "lab", "memory", 2 * GIB, 4 * GIB, 5 * GIB),
        Breach("member", "lab", f"gpu:{A100}", 2, 2, 3),
    }


def test_what_a_user_holds_elsewhere_counts_for_the_user_only(world: World):
    world.workspace("other", owner="bob")
    world.admit("bob", "other", server="there", gpus=2)
    world.quota(QuotaScope.WORKSPACE, workspace="lab", gpu_millis=2000)
    world.quota(QuotaScope.MEMBER, workspace="lab", user="bob", gpu_millis=2000)
    world.quota(QuotaScope.USER, user="bob", gpu_millis=3000)
    assert refused(world, gpus=2) == {Breach("user", "bob", "gpus", 2000, 2000, 3000)}
    world.quota(QuotaScope.USER, user="bob", gpu_millis=4000)
    world.admit("bob", gpus=2)


def test_no_row_anywhere_allows_nothing(engine, now: datetime):
    world = World(engine, now)
    world.user("alice")
    world.workspace("lab", owner="alice")
    world.image()
    world.see(host())
    for resource in ("cpu", "memory"):
        world.price(resource, 1)
    wanted = {("cpu", 1000), ("memory", GIB), ("environments", 1)}
    assert {(one.scope, one.resource, one.wanted, one.limit) for one in refused(world, "alice")} == {
        (level, *part, 0) for level in ("user", "workspace") for part in wanted
    }


def test_null_inherits_and_a_model_of_the_default_row_counts_too(world: World):
    world.quota(DEFAULT_USER, gpu_millis=4000, models={A100: 1})
    world.quota(QuotaScope.USER, user="bob", gpu_millis=None, cpu_millis=64000)
    assert refused(world, gpus=5) == {
        Breach("user", "bob", "gpus", 5000, 0, 4000),
        Breach("user", "bob", f"gpu:{A100}", 5, 0, 1),
    }
    world.quota(QuotaScope.USER, user="bob", models={A100: UNLIMITED})
    world.admit("bob", gpus=4)


@pytest.mark.parametrize(
    ("models", "wanted", "allowed"),
    [
        ({A100: 1}, 1, True),
        ({A100: 1}, 2, False),
        ({A100: 0}, 1, False),
        ({"H100": 0}, 2, True),
        ({A100: UNLIMITED}, 2, True),
    ],
    ids=["within", "above", "none", "other-model", "unlimited"],
)
def test_a_model_may_have_its_own_limit(world: World, models: dict, wanted: int, allowed: bool):
    world.quota(QuotaScope.WORKSPACE, workspace="lab", models=models)
    if allowed:
        world.admit(gpus=wanted)
    else:
        assert refused(world, gpus=wanted) == {Breach("workspace", "lab", f"gpu:{A100}", wanted, 0, models[A100])}


def test_a_share_counts_one_of_its_model_and_its_fraction_of_gpus(world: World):
    share = f"{A100}/4"
    world.see(host("shared", gpus=gpus(1, shares=4)))
    world.price(f"gpu:{share}", 4)
    world.quota(QuotaScope.USER, user="bob", gpu_millis=700, models={share: 3})
    assert refused(world, model=share, gpus=4) == {
        Breach("user", "bob", "gpus", 1000, 0, 700),
        Breach("user", "bob", f"gpu:{share}", 4, 0, 3),
    }
    assert world.admit(model=share, gpus=2).gpu_millis == 500


def test_a_limit_below_what_is_held_stops_nothing_and_refuses_new_starts(world: World):
    run = world.run(gpus=2)
    world.quota(QuotaScope.USER, user="bob", gpu_millis=1000)
    assert world.allocation(run.attempt).state == "active"
    assert refused(world, server="more", gpus=1) == {Breach("user", "bob", "gpus", 1000, 2000, 1000)}
    world.admit("bob", server="cpu-only")


def test_ending_still_counts_as_held_and_released_does_not(world: World):
    world.quota(QuotaScope.USER, user="bob", environments=1)
    run = world.run()
    world.mark_ending(run.attempt)
    assert refused(world, server="next") == {Breach("user", "bob", "environments", 1, 1, 1)}
    world.end(run.attempt)
    world.admit("bob", server="next")


def test_gpu_hours_count_up_to_where_each_run_was_seen_and_refuse_at_the_limit(world: World):
    world.quota(QuotaScope.USER, user="bob", gpu_hours=3)
    first = world.run(server="first", gpus=2)
    world.pass_time(hours=1)
    world.seen(first)
    world.pass_time(minutes=50)
    second = world.run(server="second", gpus=1)  # 2 of 3 GPU hours used: any start is still allowed
    world.seen(first, second)
    world.end(first.attempt)
    assert refused(world, server="third", gpus=1) == {
        Breach("user", "bob", "gpu_hours", 3_600_000, 13_200_000, 10_800_000)
    }
    world.admit("bob", server="cpu-only")


def test_gpu_hours_begin_anew_at_the_workspaces_month(world: World):
    world.workspace("shanghai", owner="bob", time_zone="Asia/Shanghai")
    world.quota(QuotaScope.WORKSPACE, workspace="shanghai", gpu_hours=2)
    world.now = datetime.fromisoformat("2026-11-30T14:00:00+00:00")
    run = world.run("bob", "shanghai", server="old", gpus=1)
    world.pass_time(hours=2)
    world.seen(run)
    assert world.now.isoformat() == "2026-11-30T16:00:00+00:00"  # midnight in Shanghai
    world.admit("bob", "shanghai", server="a", gpus=1)
    world.pass_time(hours=3)
    world.end(run.attempt)
    assert refused(world, "bob", "shanghai", server="b", gpus=1) == {
        Breach("workspace", "shanghai", "gpu_hours", 3_600_000, 10_800_000, 7_200_000)
    }


@pytest.mark.parametrize(
    ("owners", "scope", "values"),
    [
        ({"user": "bob"}, QuotaScope.WORKSPACE, {"gpu_millis": 1}),
        ({}, QuotaScope.USER, {"gpu_millis": 1}),
        ({"user": "bob"}, QuotaScope.MEMBER, {"gpu_millis": 1}),
        ({"workspace": "lab"}, QuotaScope.USER_DEFAULT, {"gpu_millis": 1}),
        ({"user": "bob"}, QuotaScope.USER, {"gpu_millis": -1}),
        ({"user": "bob"}, QuotaScope.USER, {"gpu_millis": UNLIMITED + 1}),
        ({"user": "bob"}, QuotaScope.USER, {"tpus": 1}),
        ({"user": "bob"}, QuotaScope.USER, {"models": {A100: -1}}),
    ],
    ids=["wrong-owner", "no-owner", "half-a-member", "owned-default", "negative", "too-large", "unknown", "model"],
)
def test_a_wrong_quota_is_refused_in_a_sentence(world: World, owners: dict, scope: QuotaScope, values: dict):
    with pytest.raises(Invalid):
        world.quota(scope, **owners, **values)


def test_putting_keeps_what_is_not_named_and_audits_before_and_after(world: World):
    world.quota(QuotaScope.USER, user="bob", gpu_millis=2000, models={A100: 1, "H100": 2})
    world.quota(QuotaScope.USER, user="bob", cpu_millis=UNLIMITED, models={A100: None})
    with db.begin(world.engine) as session:
        bob = users.by_name(session, name="bob")
        row = quotas.find(session, scope=QuotaScope.USER, workspace_id=None, user_id=bob.id)
        assert row is not None
        assert (row.gpu_millis, row.cpu_millis, [(one.model, one.slots) for one in row.models]) == (
            2000,
            UNLIMITED,
            [("H100", 2)],
        )
    last = world.audit("quota.put")[-1]
    assert (last.actor, last.request_id, last.address) == (ADMIN.name, "r-1", "192.0.2.7")
    assert last.detail == {
        "scope": "user",
        "workspace": None,
        "user": "bob",
        "before": {"cpu_millis": None, f"gpu:{A100}": 1},
        "after": {"cpu_millis": "unlimited"},
    }


@pytest.mark.parametrize(
    ("role", "status", "error"),
    [
        (Role.VIEWER, MemberStatus.ACTIVE, Denied),
        (Role.MEMBER, MemberStatus.SUSPENDED, NotFound),
    ],
    ids=["viewer", "suspended"],
)
def test_who_lost_the_right_between_form_and_admission_is_refused_under_the_lock(
    world: World, role: Role, status: MemberStatus, error: type[Exception]
):
    start = world.prepare(gpus=1)
    world.member("lab", "bob", role, status=status)
    with pytest.raises(error):
        world.start(start)
    assert world.open_runs() == []
