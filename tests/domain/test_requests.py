from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select

from remotegpu_hub import db
from remotegpu_hub.domain import quotas, requests, users, workspaces
from remotegpu_hub.domain.audit import Actor
from remotegpu_hub.errors import Conflict, Denied, Invalid, NotFound
from remotegpu_hub.observed import HubUser
from remotegpu_hub.orm import QuotaRequest, QuotaScope, RequestState
from remotegpu_hub.units import GIB, UNLIMITED

from ..worlds import A100, ADMIN, World, at_once

USER, WORKSPACE, MEMBER = QuotaScope.USER, QuotaScope.WORKSPACE, QuotaScope.MEMBER
LITTLE = {
    "gpu_millis": 0,
    "cpu_millis": 2000,
    "memory_bytes": 4 * GIB,
    "storage_bytes": GIB,
    "environments": 1,
    "gpu_hours": 0,
}


def ask(
    world: World, user: str = "bob", scope: QuotaScope = USER, workspace: str = "lab", **given: Any
) -> QuotaRequest:
    wanted = {"wanted": {"gpu_millis": 2000}, "reason": "训练 <script>", **given}
    with db.begin(world.engine) as session:
        return requests.ask(
            session, scope=scope, asker=users.by_name(session, name=user),
            workspace=None if scope == USER else workspaces.by_name(session, name=workspace),
            actor=Actor(user), now=world.now, **wanted,
        )  # fmt: skip


def decide(world: World, verb: Any, request: QuotaRequest, actor: Actor = ADMIN, **given: Any) -> QuotaRequest:
    with db.begin(world.engine) as session:
        found = session.get_one(QuotaRequest, request.id)
        return verb(session, request=found, actor=actor, now=world.now, **given)


def limits(world: World, scope: QuotaScope, user: str | None = None, workspace: str | None = None) -> dict[str, Any]:
    """What the row of exactly this scope says."""
    with db.begin(world.engine, read_only=True) as session:
        row = quotas.find(
            session, scope=scope, user_id=users.by_name(session, name=user).id if user else None,
            workspace_id=workspaces.by_name(session, name=workspace).id if workspace else None,
        )  # fmt: skip
        return {name: value for name, value in quotas.describe(row).items() if value is not None} if row else {}


def states(world: World) -> list[str]:
    return [one.value for one in world.read(select(QuotaRequest.state).order_by(QuotaRequest.id))]


@pytest.fixture
def short(world: World) -> World:
    """Where nobody has a GPU and everything else is little."""
    for scope in (QuotaScope.USER_DEFAULT, QuotaScope.WORKSPACE_DEFAULT):
        world.quota(scope, **LITTLE)
    return world


def test_what_is_approved_is_the_askers_limit_and_nothing_else_changes(short: World):
    until = short.now + timedelta(days=30)
    request = ask(short, wanted={"gpu_millis": 2000, "memory_bytes": 8 * GIB}, needed_until=until)
    assert (request.state, request.needed_until, request.reason) == (RequestState.OPEN, until, "训练 <script>")
    approved = decide(short, requests.approve, request, answer="good luck")
    assert approved.state == RequestState.APPROVED
    assert approved.granted == {"gpu_millis": 2000, "memory_bytes": 8 * GIB}
    assert (approved.decided_by, approved.answer) == ("admin", "good luck")
    assert limits(short, USER, "bob") == {"gpu_millis": 2000, "memory_bytes": 8 * GIB}
    actions = [one.action for one in short.audit()]
    assert actions[-3:] == ["quota_request.ask", "quota.put", "quota_request.approve"]
    assert short.audit("quota_request.ask")[-1].detail["reason"] == "训练 <script>"


def test_an_owner_asks_for_the_workspace_and_a_member_inside_it(short: World):
    short.quota(MEMBER, workspace="lab", user="bob", gpu_millis=0, models={A100: 0})
    decide(short, requests.approve, ask(short, "alice", WORKSPACE, wanted={"gpu_millis": 4000, "gpu_hours": 100}))
    decide(short, requests.approve, ask(short, "bob", MEMBER, wanted={"gpu_millis": 1000, f"gpu:{A100}": 1}))
    assert limits(short, WORKSPACE, workspace="lab") == {"gpu_millis": 4000, "gpu_hours": 100}
    assert limits(short, MEMBER, "bob", "lab") == {"gpu_millis": 1000, f"gpu:{A100}": 1}
    assert limits(short, USER, "bob") == {}


def test_approving_lowers_nothing_unless_that_is_said(short: World):
    request = ask(short, wanted={"gpu_millis": 2000, "cpu_millis": 8000})
    short.quota(USER, user="bob", gpu_millis=6000)
    approved = decide(short, requests.approve, request)
    assert approved.granted == {"cpu_millis": 8000}
    assert limits(short, USER, "bob") == {"gpu_millis": 6000, "cpu_millis": 8000}
    again = ask(short, wanted={"gpu_millis": 8000})
    decide(short, requests.approve, again, limits={"gpu_millis": 3000}, lower=True)
    assert limits(short, USER, "bob")["gpu_millis"] == 3000


def test_limits_that_were_lowered_meanwhile_are_raised_to_what_was_asked(short: World):
    short.quota(USER, user="bob", gpu_millis=1000)
    request = ask(short, wanted={"gpu_millis": 2000})
    short.quota(USER, user="bob", gpu_millis=0)
    assert decide(short, requests.approve, request).granted == {"gpu_millis": 2000}
    assert limits(short, USER, "bob") == {"gpu_millis": 2000}


def test_other_numbers_may_be_given_than_were_asked_for(short: World):
    request = ask(short, wanted={"gpu_millis": 8000})
    approved = decide(short, requests.approve, request, limits={"gpu_millis": 1000, "gpu_hours": UNLIMITED})
    assert approved.granted == {"gpu_millis": 1000, "gpu_hours": "unlimited"}
    assert approved.wanted == {"gpu_millis": 8000}


def test_a_new_request_takes_the_place_of_the_older_one_of_its_level_alone(short: World):
    for scope in (USER, WORKSPACE):
        ask(short, "alice", scope)
    newest = ask(short, "alice", USER, wanted={"gpu_millis": 3000})
    assert states(short) == ["withdrawn", "open", "open"]
    with db.begin(short.engine, read_only=True) as session:
        assert requests.count_open(session) == 2
    decide(short, requests.approve, newest)
    assert limits(short, USER, "alice") == {"gpu_millis": 3000}


def test_nobody_has_more_than_twenty_open_requests(short: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(requests, "MOST_OPEN", 2)
    for scope in (USER, WORKSPACE):
        ask(short, "alice", scope)
    short.workspace("other", owner="alice")
    with pytest.raises(Conflict, match="You have 2 open requests"):
        ask(short, "alice", WORKSPACE, "other")
    ask(short, "alice", USER, wanted={"gpu_millis": 3000})


@pytest.mark.parametrize(
    ("user", "scope", "workspace", "given", "error"),
    [
        ("bob", WORKSPACE, "lab", {}, Denied),
        ("carol", MEMBER, "lab", {}, Denied),
        ("carol", WORKSPACE, "other", {}, NotFound),
        ("bob", QuotaScope.USER_DEFAULT, "lab", {}, Invalid),
        ("bob", USER, "", {"wanted": {"gpu_millis": 0}}, Invalid),
        ("bob", USER, "", {"wanted": {}}, Invalid),
        ("bob", USER, "", {"wanted": {"gpus": 1}}, Invalid),
        ("bob", USER, "", {"wanted": {"gpu_millis": -1}}, Invalid),
        ("bob", USER, "", {"reason": " \n"}, Invalid),
        ("bob", USER, "", {"reason": "x" * 1001}, Invalid),
        ("bob", USER, "", {"needed_until": "yesterday"}, Invalid),
        ("bob", MEMBER, "lab", {}, Invalid),
    ],
    ids=["a member for all", "a viewer", "a foreign workspace", "a default", "what is there already", "nothing",
         "no such limit", "less than nothing", "no reason", "too long", "until yesterday", "unlimited already"],
)  # fmt: skip
def test_what_makes_no_sense_or_is_not_theirs_is_refused(
    short: World, user: str, scope: QuotaScope, workspace: str, given: dict, error: type[Exception]
):
    short.workspace("other", owner="bob")
    if "needed_until" in given:
        given = {"needed_until": short.now - timedelta(days=1)}
    with pytest.raises(error):
        ask(short, user, scope, workspace, **given)
    assert states(short) == []


def test_deciding_twice_is_told_and_withdrawing_twice_is_no_mistake(short: World):
    request = ask(short)
    decide(short, requests.refuse, request, answer="  no GPU is free  ")
    for verb, given in ((requests.approve, {}), (requests.refuse, {"answer": "x"}), (requests.withdraw, {})):
        with pytest.raises(Conflict, match="admin has refused this request already"):
            decide(short, verb, request, Actor("other"), **given)
    with pytest.raises(Invalid, match="1 to 1000"):
        decide(short, requests.refuse, ask(short), answer=" ")
    second = ask(short)
    decide(short, requests.withdraw, second, Actor("bob"))
    decide(short, requests.withdraw, second, Actor("bob"))
    with pytest.raises(Conflict, match="withdrawn meanwhile"):
        decide(short, requests.approve, second)
    assert limits(short, USER, "bob") == {}


def test_of_a_deleted_asker_nothing_waits_any_more(short: World):
    request = ask(short, "alice", WORKSPACE)
    with db.begin(short.engine) as session:
        users.sync(session, gone=[users.by_name(session, name="alice")], changed=[], now=short.now)
    assert states(short) == ["withdrawn"]
    with pytest.raises(Conflict, match="withdrawn meanwhile"):
        decide(short, requests.approve, request)
    with db.begin(short.engine) as session:  # a new user of that name inherits no wish
        users.ensure(session, hub_user=HubUser(999, "alice", "2026-11-20"), now=short.now)
    assert states(short) == ["withdrawn"]


def test_an_archived_workspace_gets_nothing_and_its_request_can_be_refused(short: World):
    request = ask(short, "alice", WORKSPACE)
    with db.begin(short.engine) as session:
        lab = workspaces.by_name(session, name="lab")
        workspaces.archive(session, workspace=lab, actor=ADMIN, now=short.now)
    with pytest.raises(Conflict, match="archived"):
        decide(short, requests.approve, request)
    assert states(short) == ["open"]
    decide(short, requests.refuse, request, answer="archived")
    with pytest.raises(Denied, match="archived"):
        ask(short, "alice", WORKSPACE)


def test_who_is_no_member_any_more_gets_nothing_inside(short: World):
    short.quota(MEMBER, workspace="lab", user="bob", gpu_millis=0)
    request = ask(short, "bob", MEMBER)
    short.remove("lab", "bob")
    with pytest.raises(Conflict, match="bob is no member of lab any more"):
        decide(short, requests.approve, request)


class TestAtOnce:
    """In threads, on databases of their own."""

    @pytest.fixture
    def engine(self, database_url: str) -> Iterator[Engine]:
        opened = db.open_engine(database_url, pool_size=8, pool_timeout=60)
        yield opened
        opened.dispose()

    @pytest.fixture
    def crowd(self, engine: Engine, now: Any) -> World:
        made = World(engine, now).furnish(hosts=0)
        made.quota(QuotaScope.USER_DEFAULT, **LITTLE)
        return made

    def test_of_two_admins_who_approve_one_counts_and_the_other_is_told(self, crowd: World):
        for number in range(5):
            request = ask(crowd, wanted={"gpu_millis": 1000 * (number + 1)})
            numbers = [{"gpu_millis": 1000 * (number + 1) + one} for one in (100, 200)]
            results = at_once(
                2,
                lambda one, request=request, numbers=numbers: decide(
                    crowd, requests.approve, request, Actor(f"admin-{one}"), limits=numbers[one]
                ),
            )
            won = [one for one in results if isinstance(one, QuotaRequest)]
            told = [one for one in results if isinstance(one, Conflict)]
            assert (len(won), len(told)) == (1, 1)
            assert f"{won[0].decided_by} has approved this request already" in str(told[0])
            assert limits(crowd, USER, "bob") == won[0].granted

    def test_of_approving_and_withdrawing_one_counts(self, crowd: World):
        kinds: Counter[str] = Counter()
        for number in range(10):
            request = ask(crowd, wanted={"gpu_millis": 1000 * (number + 1)})
            before = limits(crowd, USER, "bob")
            race = (requests.approve, requests.withdraw)
            results = at_once(2, lambda one, request=request, race=race: decide(crowd, race[one], request))
            (won,) = [one for one in results if isinstance(one, QuotaRequest)]
            kinds[won.state.value] += 1
            now = limits(crowd, USER, "bob")
            assert now == (won.granted if won.state == RequestState.APPROVED else before)
        assert set(kinds) <= {"approved", "withdrawn"}

    def test_of_many_wishes_at_once_one_stays_open(self, crowd: World):
        at_once(6, lambda number: ask(crowd, wanted={"gpu_millis": 1000 + number}))
        assert Counter(states(crowd)) == {"open": 1, "withdrawn": 5}

    def test_asking_while_the_hub_deletes_the_asker_leaves_nothing_open(self, crowd: World):
        def delete(_: Any) -> None:
            with db.begin(crowd.engine) as session:
                users.sync(session, gone=[users.by_name(session, name="bob")], changed=[], now=crowd.now)

        at_once(2, lambda number: delete(number) if number else ask(crowd))
        assert "open" not in states(crowd)

    def test_a_limit_that_is_raised_at_the_same_moment_is_not_lowered(self, crowd: World):
        for number in range(5):
            crowd.quota(USER, user="bob", gpu_millis=0)
            request = ask(crowd, wanted={"gpu_millis": 1000})
            work = (
                lambda request=request: decide(crowd, requests.approve, request),
                lambda number=number: crowd.quota(USER, user="bob", gpu_millis=5000 + number),
            )
            at_once(2, lambda one, work=work: work[one]())
            assert limits(crowd, USER, "bob") == {"gpu_millis": 5000 + number}
