"""The replay of a month against what a slow and simple count says."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from remotegpu_hub import db
from remotegpu_hub.domain import policy
from remotegpu_hub.domain.policy import GPU_HOUR, Limits, Sized, Start
from remotegpu_hub.errors import Breach, QuotaExceeded
from remotegpu_hub.orm import QuotaScope, Role, VolumeKind
from remotegpu_hub.units import GIB

from ..worlds import A100, World

BEGIN, END = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
NONE = Limits()


def start(number: int, hour: float, hours: float | None, *, user: int = 1, workspace: int = 1, gpus: int = 1,
          model: str | None = A100, waits: float = 0) -> Start:  # fmt: skip
    at = BEGIN + timedelta(hours=hour)
    return Start(
        number, number, user, workspace, model if gpus else None, gpus, gpus * 1000, 1000 * (1 + gpus), GIB, at,
        at + timedelta(hours=waits), None if hours is None else at + timedelta(hours=hours),
    )  # fmt: skip


def refused(starts: list[Start], **limits: Limits) -> dict[int, tuple[str, ...]]:
    given = {"user": NONE, "workspace": NONE, **limits}
    found = policy.replay(starts, begin=BEGIN, end=END, **given)
    return {one.start.id: tuple(f"{two.scope} {two.resource}" for two in one.breaches) for one in found}


def test_what_a_refused_start_would_have_held_is_free_for_the_next():
    runs = [start(1, 0, 5, gpus=2), start(2, 1, 5, gpus=2), start(3, 2, 5, gpus=1), start(4, 5, 1, gpus=2)]
    assert refused(runs, user=Limits(gpu_millis=3000)) == {2: ("user gpus",)}
    assert refused(runs) == {}
    assert refused(runs, user=Limits(gpu_millis=0)) == dict.fromkeys((1, 2, 3, 4), ("user gpus",))


def test_every_limit_that_a_start_would_break_is_named_with_what_is_held():
    runs = [start(1, 0, 9), start(2, 1, 9, user=2)]
    limits = Limits(gpu_millis=1000, environments=1, models={A100: 1, "L40": 0})
    (found,) = policy.replay(runs, user=NONE, workspace=limits, begin=BEGIN, end=END)
    assert found.breaches == (
        Breach("workspace", "1", "gpus", 1000, 1000, 1000),
        Breach("workspace", "1", "environments", 1, 1, 1),
        Breach("workspace", "1", f"gpu:{A100}", 1, 1, 1),
    )


def test_gpu_hours_count_from_the_month_and_from_when_it_ran():
    before = start(1, -10, 12)
    waited = start(2, 3, 4, waits=1)
    late = [start(number, hour, 1) for number, hour in ((3, 4.5), (4, 5.5), (5, 6.9), (6, 7))]
    assert refused([before, waited, *late], user=Limits(gpu_hours=5)) == {
        5: ("user gpu_hours",),
        6: ("user gpu_hours",),
    }
    (first, _) = policy.replay([before, waited, *late], user=Limits(gpu_hours=5), workspace=NONE, begin=BEGIN, end=END)
    hours = 2 + 2.9 + 1 + 1
    assert first.breaches[0].held == round(hours * GPU_HOUR)
    assert refused([before, waited, start(3, 8, 1, gpus=0)], user=Limits(gpu_hours=0, gpu_millis=0)) == {
        2: ("user gpus", "user gpu_hours")
    }


def test_what_is_outside_of_the_month_is_not_judged():
    runs = [start(1, -1, None, gpus=4), start(2, 0, 1), start(3, 24 * 30, 1), start(4, 24 * 30 + 1, 1)]
    assert refused(runs, user=Limits(gpu_millis=4000)) == {2: ("user gpus",)}


def by_hand(starts: list[Start], user: Limits, workspace: Limits) -> dict[int, set[tuple[str, str]]]:
    """The same by adding up everything anew at each start."""
    kept: list[Start] = []
    found: dict[int, set[tuple[str, str]]] = {}
    for one in starts:
        broken: set[tuple[str, str]] = set()
        for scope, limits in (("user", user), ("workspace", workspace)):
            theirs = [two for two in kept if getattr(two, f"{scope}_id") == getattr(one, f"{scope}_id")]
            now = [two for two in theirs if two.ended_at is None or two.ended_at > one.admitted_at]
            for name, shown in policy.AT_ONCE.items():
                amount = (lambda two: 1) if name == "environments" else (lambda two, name=name: getattr(two, name))
                limit = getattr(limits, name)
                if limit is not None and amount(one) and sum(map(amount, now)) + amount(one) > limit:
                    broken.add((scope, shown))
            limit = limits.models.get(one.gpu_model or "")
            slots = sum(two.gpu_slots for two in now if two.gpu_model == one.gpu_model)
            if limit is not None and one.gpu_slots and slots + one.gpu_slots > limit:
                broken.add((scope, f"gpu:{one.gpu_model}"))
            used = 0.0
            for two in theirs:
                if two.started_at is not None:
                    until = min(one.admitted_at, two.ended_at or one.admitted_at)
                    used += two.gpu_millis * max((until - max(two.started_at, BEGIN)).total_seconds(), 0)
            if limits.gpu_hours is not None and one.gpu_millis and used >= limits.gpu_hours * GPU_HOUR:
                broken.add((scope, "gpu_hours"))
        if broken and BEGIN <= one.admitted_at < END:
            found[one.id] = broken
        elif one.admitted_at < END:
            kept.append(one)
    return found


@pytest.mark.parametrize("seed", range(40))
def test_the_replay_says_what_a_simple_count_says(seed: int):
    chance = random.Random(seed)
    hours = sorted(chance.choice((-5, *range(60))) + chance.choice((0, 0, 0.25)) for _ in range(60))
    runs = [
        start(
            number, hour, chance.choice((None, 0, 1, 2, 5, 30)), user=chance.randrange(4), workspace=chance.randrange(3),
            gpus=chance.choice((0, 1, 1, 2)), model=chance.choice((A100, "L40")), waits=chance.choice((0, 0, 0.25)),
        )
        for number, hour in enumerate(hours)
    ]  # fmt: skip
    runs = [one for one in runs if one.started_at is None or one.ended_at is None or one.started_at <= one.ended_at]

    def some(*values: int) -> int | None:
        return chance.choice((None, *values))

    limits = [
        Limits(some(1000, 3000), some(4000), some(2 * GIB), some(1, 3), some(2, 9, 40), {A100: chance.randrange(3)})
        for _ in range(2)
    ]
    told = policy.replay(runs, user=limits[0], workspace=limits[1], begin=BEGIN, end=END)
    assert {one.start.id: {(two.scope, two.resource) for two in one.breaches} for one in told} == by_hand(runs, *limits)


def test_runs_of_a_month_are_read_in_parts_with_what_ran_before(world: World):
    def run(server: str, when: datetime, hours: float | None) -> int:
        world.now = when
        made = world.run(server=server, gpus=1)
        if hours is not None:
            world.now = when + timedelta(hours=hours)
            world.end(made.attempt)
        return made.id

    run("old", BEGIN - timedelta(days=9), 1)
    wanted = [run("across", BEGIN - timedelta(hours=1), 2), run("within", BEGIN + timedelta(days=3), 1)]
    wanted.append(run("open", BEGIN + timedelta(days=4), None))
    run("after", END, None)
    found: list[Start] = []
    with db.begin(world.engine, read_only=True) as session:
        while part := policy.starts(session, begin=BEGIN, end=END, after=found[-1].id if found else 0, limit=2):
            found += part
    assert [one.id for one in found] == wanted
    assert refused(found, user=Limits(environments=0)) == dict.fromkeys(wanted[1:], ("user environments",))


def sized(hour: float, size: int, *, user: int | None = 1, workspace: int = 1) -> Sized:
    return Sized(BEGIN + timedelta(hours=hour), workspace, user, size * GIB)


def test_a_volume_that_was_refused_has_to_be_made_by_the_next_one():
    runs = [start(number, hour, 1, user=user, gpus=0) for number, hour, user in
            ((1, 0, 1), (2, 1, 2), (3, 2, 1), (4, 3, 2), (5, 5, 2), (6, 6, 1), (7, 7, 1))]  # fmt: skip
    sizes = [sized(6, 12), sized(4, 0), sized(0, 10), sized(1, 10, user=2), sized(0, 2, user=None)]
    given = {"begin": BEGIN, "end": END, "sizes": sizes}
    found = policy.replay(runs, user=NONE, workspace=Limits(storage_bytes=20 * GIB), **given)
    assert {one.start.id: one.breaches for one in found} == {
        number: (Breach("workspace", "1", "storage", new * GIB, held * GIB, 20 * GIB),)
        for number, new, held in ((2, 10, 12), (4, 10, 12), (6, 12, 12), (7, 12, 12))
    }
    alone = policy.replay(runs, user=Limits(storage_bytes=11 * GIB), workspace=NONE, **given)
    assert {one.start.id for one in alone} == {6, 7}, "what a workspace shares is not a user's"


def test_what_was_stored_before_the_month_is_there_whatever_the_limit():
    sizes = [sized(-9, 10), sized(-5, 40), sized(-1, 10, user=2)]
    runs = [start(1, 0, 1, gpus=0), start(2, 1, 1, user=2, gpus=0), start(3, 2, 1, user=3, gpus=0)]
    found = policy.replay(
        runs, user=NONE, workspace=Limits(storage_bytes=1), begin=BEGIN, end=END, sizes=[*sizes, sized(2, 1, user=3)]
    )
    assert [(one.start.id, one.breaches[0].held) for one in found] == [(3, 50 * GIB)]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.prove) for seed in range(1, 6))])
def test_the_replay_refuses_what_the_admission_refuses_for_storage(world: World, seed: int):
    """The same starts twice: in workspaces with the limits, and in such without, whose month is replayed under them."""
    for name in "ab":
        for user in "xyz":
            world.user(f"{name}{user}")
        for space in ("one", "two"):
            people = {f"{name}y": Role.MEMBER, f"{name}z": Role.MEMBER}
            world.workspace(f"{name}-{space}", owner=f"{name}x", members=people)
            if name == "b":
                world.quota(QuotaScope.WORKSPACE, workspace=f"b-{space}", storage_bytes=30 * GIB)
    for user in "xyz":
        world.quota(QuotaScope.USER, user=f"b{user}", storage_bytes=22 * GIB)
    chance, refused_there, ids = random.Random(seed), set(), {}
    for number in range(24):
        world.pass_time(minutes=1)
        grown = {VolumeKind.HOME: (10 if number < 12 else 13) * GIB, VolumeKind.SHARED: 5 * GIB}
        world.rules = replace(world.rules, volumes=grown)
        user, space = chance.choice("xyz"), chance.choice(("one", "two"))
        made = world.run(f"a{user}", f"a-{space}", server=f"s-{number}", cpu=100)
        ids[made.id] = number
        world.end(made.attempt)
        try:
            world.end(world.run(f"b{user}", f"b-{space}", server=f"s-{number}", cpu=100).attempt)
        except QuotaExceeded:
            refused_there.add(number)
    with db.begin(world.engine, read_only=True) as session:
        runs = [one for one in policy.starts(session, begin=BEGIN, end=END, after=0, limit=1000) if one.id in ids]
        sizes = policy.sizes(session, end=END)
    found = policy.replay(
        runs, user=Limits(storage_bytes=22 * GIB), workspace=Limits(storage_bytes=30 * GIB), begin=BEGIN, end=END,
        sizes=sizes,
    )  # fmt: skip
    assert refused_there, "otherwise this compares nothing"
    assert {ids[one.start.id] for one in found} == refused_there
