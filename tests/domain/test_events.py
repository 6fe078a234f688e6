"""What happened is written once, with the change itself; it is told in one order, and to webhooks."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, func, select

from remotegpu_hub.db import begin
from remotegpu_hub.domain import allocations, environments, events, thresholds, users, webhooks, workspaces
from remotegpu_hub.domain.events import Happened, Sight
from remotegpu_hub.errors import Conflict, Invalid, NotFound
from remotegpu_hub.observed import Reply
from remotegpu_hub.orm import Delivery, DeliveryState, EndReason, Event, QuotaScope, Webhook
from remotegpu_hub.runtime import RETRIES
from remotegpu_hub.units import GIB

from ..worlds import ADMIN, AMPLE, World, at_once

KEY = "a key of this test"
ALL = Sight(everything=True)
TAKEN, BROKEN = Reply(200, ""), Reply(500, "HTTP 500")


def kinds(world: World) -> list[str]:
    return world.read(select(Event.kind).order_by(Event.id))


def tell(world: World) -> list[Happened]:
    """Number all that is new; everything that was told."""
    with begin(world.engine) as session:
        while webhooks.tell(session, now=world.now, limit=3):
            pass
    with begin(world.engine, read_only=True) as session:
        return events.told(session, after=0, sight=ALL, limit=1000)


def hook(world: World, *kinds: str, url: str = "https://example.org/hook") -> int:
    with begin(world.engine) as session:
        return webhooks.create(session, url=url, kinds=kinds, key=KEY, actor=ADMIN, now=world.now).id


def due(world: World, webhook: int) -> list[webhooks.Due]:
    with begin(world.engine, read_only=True) as session:
        return webhooks.due(session, webhook_id=webhook, key=KEY, now=world.now, limit=10)


def note(world: World, delivery: int, reply: Reply) -> Delivery:
    with begin(world.engine) as session:
        return webhooks.note(session, delivery_id=delivery, reply=reply, pauses=RETRIES, now=world.now)


def test_each_change_of_an_environment_is_one_event(world: World):
    run = world.run("bob", gpus=1)
    world.activate(run.attempt)
    world.mark_ending(run.attempt)
    world.mark_ending(run.attempt)
    world.end(run.attempt)
    world.end(run.attempt)
    with begin(world.engine) as session:
        for _ in range(2):
            environments.delete(session, user_id=run.user_id, server_name="", actor=ADMIN, now=world.now)
    assert kinds(world) == [f"environment.{one}" for one in ("creating", "started", "stopping", "stopped", "deleted")]
    told = tell(world)
    assert {(one.workspace, one.user, one.environment_id) for one in told} == {("lab", "bob", run.environment_id)}
    assert [one.detail.get("reason") for one in told] == [None, None, "user", "user", None]


def test_a_failure_is_told_with_its_reason_and_a_refused_start_is_not_told(world: World):
    run = world.run("bob")
    with begin(world.engine) as session:
        allocations.release(session, attempt=run.attempt, reason=EndReason.OOM_KILLED, actor=ADMIN, now=world.now,
                            message="It used more memory than it holds.")  # fmt: skip
    told = tell(world)[-1]
    assert (told.kind, told.detail["reason"]) == ("environment.failed", "oom_killed")
    before = len(kinds(world))
    world.quota(QuotaScope.MEMBER, workspace="lab", user="bob", environments=0)
    with pytest.raises(Exception, match="over a limit"):
        world.admit("bob")
    assert len(kinds(world)) == before


def test_the_environments_of_a_user_whom_the_hub_lost_are_told_as_deleted(world: World):
    run = world.run("bob")
    world.end(run.attempt)
    with begin(world.engine) as session:
        users.retire(session, user=users.by_name(session, name="bob"), now=world.now)
    assert kinds(world)[-1] == "environment.deleted"


def test_who_reads_on_from_a_number_misses_nothing_that_was_committed_late(engine: Engine, now):
    """On PostgreSQL ids are given before the commit: the events of eight writers are begun and committed in any order."""
    world = World(engine, now).furnish()
    seen: list[int] = []

    def write(number: int) -> None:
        for _ in range(10):
            with begin(engine) as session:
                events.record(session, kind=events.EventKind.QUOTA, now=now, workspace_id=None, who=number)

    def read(_: int) -> None:
        while len(seen) < 70:
            with begin(engine) as session:
                webhooks.tell(session, now=now, limit=5)
            with begin(engine, read_only=True) as session:
                seen.extend(one.id for one in events.told(session, after=seen[-1] if seen else 0, sight=ALL, limit=50))

    at_once(8, lambda number: read(number) if number == 0 else write(number))
    assert seen == list(range(1, 71))
    assert world.read(select(func.count()).where(Event.number.is_(None))) == [0]


def test_everybody_sees_their_own_and_their_workspaces_and_admins_of_the_hub_all(world: World):
    world.workspace("other", owner="carol")
    world.run("bob")
    world.run("carol", "other")
    told = tell(world)
    ids = {name: world.read(select(users.User.id).where(users.User.name == name))[0] for name in ("bob", "carol")}
    lab = world.read(select(workspaces.Workspace.id).where(workspaces.Workspace.name == "lab"))[0]
    for sight, expected in (
        (Sight(ids["bob"], frozenset({lab})), {"bob"}),
        (Sight(ids["bob"]), {"bob"}),
        (Sight(ids["carol"]), {"carol"}),
        (Sight(), set()),
        (ALL, {"bob", "carol"}),
    ):
        with begin(world.engine, read_only=True) as session:
            found = events.told(session, after=0, sight=sight, limit=100)
        assert {one.user for one in found} == expected
        assert found == [one for one in told if sight.sees(one)]


def look(world: World) -> list[tuple[str, dict[str, Any]]]:
    """One look at the limits; the thresholds that it told."""
    before = world.read(select(func.max(Event.id)))[0] or 0
    with begin(world.engine) as session:
        found = thresholds.readings(session, pairs=thresholds.holders(session), now=world.now)
        moved, left = thresholds.changes(thresholds.last_told(session), found)
        thresholds.write(session, moved=moved, left=left, now=world.now)
    rows = world.read(select(Event.kind, Event.detail).where(Event.id > before).order_by(Event.id))
    return [(kind, detail) for kind, detail in rows if kind.endswith("threshold")]


def test_a_limit_is_told_once_at_each_step_and_again_after_it_was_left(world: World):
    world.quota(QuotaScope.WORKSPACE, workspace="lab", gpu_millis=10_000)
    runs = [world.run("bob", gpus=4, server="a"), world.run("alice", gpus=4, server="b")]
    told = look(world)
    assert [(one["resource"], one["scope"], one["percent"]) for _, one in told] == [("gpus", "workspace", 80)]
    assert look(world) == []
    runs.append(world.run("bob", gpus=2, server="c"))
    assert [one["percent"] for _, one in look(world)] == [100]
    world.end(runs.pop().attempt)
    assert look(world) == [], "less is no news"
    runs.append(world.run("bob", gpus=1, server="c"))
    assert [one["percent"] for _, one in look(world)] == [90]
    for run in runs:
        world.end(run.attempt)
    world.meter()
    assert look(world) == []
    world.run("alice", gpus=8, server="b")
    assert [one["percent"] for _, one in look(world)] == [80]


def test_a_budget_is_told_once_at_its_warning_and_once_when_it_is_spent_in_each_month(world: World):
    world.budget("lab", 24)
    run = world.run("bob", gpus=1, cpu=1)
    assert look(world) == []
    world.pass_time(hours=1, minutes=45)
    world.seen(run)
    ((kind, detail),) = look(world)
    assert (kind, detail["percent"], detail["amount_micros"]) == ("budget.threshold", 80, 24_000_000)
    assert look(world) == []
    world.pass_time(hours=1)
    world.seen(run)
    assert [one["percent"] for _, one in look(world)] == [100]
    world.budget("lab", 1000)
    assert look(world) == []
    world.budget("lab", 25)
    assert look(world) == [], "it was told this month"
    world.pass_time(days=10)
    world.seen(run)
    assert [(one["month"], one["percent"]) for _, one in look(world)] == [("2026-12", 100)]


def test_that_a_personal_workspace_is_full_is_no_news(world: World):
    full = dict.fromkeys(AMPLE, 0) | {"environments": 1, "cpu_millis": 1000, "memory_bytes": GIB}
    with begin(world.engine) as session:
        bob = users.by_name(session, name="bob")
        workspaces.ensure_personal(session, user=bob, now=world.now, quota=full, budget=None)
    world.run("bob", "~bob")
    assert look(world) == []


def test_a_webhook_is_told_of_what_it_wants_since_it_was_made(world: World):
    world.run("bob", server="before")
    world.pass_time(seconds=1)
    started = hook(world, "environment.started")
    failed = hook(world, "environment.failed", url="https://example.org/failed")
    world.pass_time(seconds=1)
    run = world.run("bob", server="after")
    tell(world)
    assert [(one.event.kind, one.event.environment_id) for one in due(world, started)] == [
        ("environment.started", run.environment_id)
    ]
    assert due(world, failed) == []


def test_what_is_not_taken_is_tried_again_ever_later_and_given_up_after_a_day(world: World):
    webhook = hook(world, "environment.started")
    world.run("bob")
    tell(world)
    (first,) = due(world, webhook)
    began, tries = world.now, []
    while True:
        found = due(world, webhook)
        if not found:
            break
        assert [one.event.id for one in found] == [first.event.id], "under the same id each time"
        row = note(world, found[0].delivery_id, BROKEN)
        tries.append((world.now - began).total_seconds())
        assert due(world, webhook) == [] or row.state == DeliveryState.GIVEN_UP
        world.now = max(row.next_try_at, world.now)
    pauses = [after - before for before, after in pairwise(tries)]
    assert all(0.8 * usual <= pause <= 1.2 * usual for pause, usual in zip(pauses, RETRIES, strict=False))
    assert (tries[-1], row.state, row.last_status) == (86400, DeliveryState.GIVEN_UP, 500)
    with begin(world.engine) as session:
        webhooks.again(session, webhook_id=webhook, delivery_id=row.id, actor=ADMIN, now=world.now)
    (again,) = due(world, webhook)
    assert again.event == first.event
    assert note(world, again.delivery_id, TAKEN).state == DeliveryState.DELIVERED
    assert due(world, webhook) == []


def test_the_secret_comes_from_the_key_and_stands_in_no_table(world: World):
    webhook = hook(world, "environment.started")
    with begin(world.engine, read_only=True) as session:
        row = webhooks.find(session, webhook_id=webhook)
        secret = webhooks.secret(row, key=KEY)
        assert secret is not None and secret.startswith("whsec_")
        assert webhooks.secret(row, key="another key") is None, "better none than one that the receiver refuses"
        assert secret not in str(vars(row))
    assert secret != webhooks.secret_of(KEY, "another salt")


@pytest.mark.parametrize(
    "url",
    ["", "example.org", "ftp://example.org/", "https://", "https://user:pw@example.org/", "https://@example.org/",
     "https://example.org/#part", "https://example.org:99999/", "https://exa mple.org/", "https://exämple.org/",
     "javascript:alert(1)", "https://example.org/" + "x" * 2000, "http://[::1/"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_in_words(world: World, url: str):
    with pytest.raises(Invalid):
        hook(world, "environment.started", url=url)


def test_webhooks_have_an_address_each_and_are_not_too_many(world: World):
    webhook = hook(world, "environment.started")
    with pytest.raises(Conflict):
        hook(world, "environment.started")
    with begin(world.engine) as session:
        webhooks.edit(session, webhook_id=webhook, values={"active": False, "kinds": ["budget.threshold"]}, actor=ADMIN,
                      now=world.now)  # fmt: skip
        webhooks.remove(session, webhook_id=webhook, actor=ADMIN, now=world.now)
    with begin(world.engine) as session, pytest.raises(NotFound):
        webhooks.edit(session, webhook_id=webhook, values={"active": True}, actor=ADMIN, now=world.now)
    for number in range(webhooks.MOST_WEBHOOKS):
        hook(world, "environment.started", url=f"http://127.0.0.1:{1000 + number}/")
    with pytest.raises(Conflict):
        hook(world, "environment.started", url="http://127.0.0.1/")


def test_what_was_paused_moved_or_removed_since_it_was_read_is_looked_at_again(world: World):
    webhook = hook(world, "environment.started")
    world.run("bob")
    tell(world)
    (found,) = due(world, webhook)

    def again(**values: Any) -> webhooks.Due | None:
        with begin(world.engine) as session:
            webhooks.edit(session, webhook_id=webhook, values=values, actor=ADMIN, now=world.now)
        with begin(world.engine, read_only=True) as session:
            return webhooks.afresh(session, found, key=KEY)

    moved = again(url="https://example.org/moved")
    assert moved is not None
    assert (moved.url, moved.secret) == ("https://example.org/moved", found.secret)
    assert again(active=False) is None
    assert again(active=True) is not None
    with begin(world.engine) as session:
        session.get_one(Webhook, webhook).deleted_at = world.now
    with begin(world.engine, read_only=True) as session:
        assert webhooks.afresh(session, found, key=KEY) is None
        assert webhooks.waiting(session, now=world.now) == []
    assert due(world, webhook) == [], "removed is removed, whatever else its row says"


def test_a_webhook_that_was_removed_while_it_is_changed_stays_removed(engine: Engine, now: datetime):
    webhook = hook(World(engine, now), "environment.started")
    given: dict[str, Any] = {"webhook_id": webhook, "actor": ADMIN, "now": now}

    def edit() -> None:
        with begin(engine) as session:
            webhooks.edit(session, values={"active": True}, **given)

    with ThreadPoolExecutor(1) as threads:
        with begin(engine) as session:
            webhooks.remove(session, **given)
            late = threads.submit(edit)
            time.sleep(0.5)
        with pytest.raises(NotFound):
            late.result(30)


def test_old_events_are_forgotten_in_small_parts_and_numbers_still_grow(world: World):
    webhook = hook(world, "environment.started")
    for number in range(3):
        world.run("bob", server=f"s{number}")
    newest = tell(world)[-1].id
    (first, *_) = due(world, webhook)
    note(world, first.delivery_id, TAKEN)
    world.pass_time(days=8)
    sizes = []
    with begin(world.engine) as session:
        while True:
            sizes.append(events.forget(session, now=world.now, limit=2))
            if not sizes[-1]:
                break
    assert max(sizes) == 2
    assert world.read(select(func.count(Delivery.id))) == [0]
    assert [one.id for one in tell(world)] == [newest]
    world.run("alice")
    assert [one.id for one in tell(world)] == [newest, newest + 1, newest + 2]
