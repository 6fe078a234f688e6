"""Invitations: who can be asked, what an invited user may do until they accept (nothing), and two answers at once."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, select

from remotegpu_hub import db
from remotegpu_hub.domain import invitations, quotas, users, workspaces
from remotegpu_hub.domain.audit import Actor
from remotegpu_hub.errors import Conflict, Denied, Invalid, NotFound
from remotegpu_hub.observed import HubUser
from remotegpu_hub.orm import Member, MemberStatus, Role, User

from ..worlds import ADMIN, World, at_once


@pytest.fixture
def asking(world: World) -> World:
    """Alice asks dan into `lab`."""
    world.user("dan")
    answer(world, invitations.invite, "dan", role=Role.MEMBER, actor=Actor("alice"))
    return world


def answer(world: World, verb: Callable[..., Any], user: str, workspace: str = "lab", **given: Any) -> Any:
    with db.begin(world.engine) as session:
        space, row = workspaces.by_name(session, name=workspace), users.by_name(session, name=user)
        given.setdefault("actor", Actor(user))
        return verb(session, workspace=space, user=row, now=world.now, **given)


def standing(world: World, user: str = "dan") -> tuple[str, str] | None:
    rows = world.read(select(Member.role, Member.status).join(Member.user).where(User.name == user))
    return (rows[0][0].value, rows[0][1].value) if rows else None


def open_ones(world: World, user: str = "dan") -> list[str]:
    with db.begin(world.engine, read_only=True) as session:
        found = invitations.open_of(session, user=users.by_name(session, name=user), now=world.now)
        return [one.workspace.name for one in found]


def archive_lab(world: World) -> None:
    with db.begin(world.engine) as session:
        workspaces.archive(
            session, workspace=workspaces.by_name(session, name="lab"), actor=ADMIN, now=world.now
        )  # fmt: skip


def link_lab(world: World) -> None:
    with db.begin(world.engine) as session:
        lab = workspaces.by_name(session, name="lab")
        workspaces.update_settings(session, workspace=lab, hub_group="physics", actor=ADMIN, now=world.now)


def test_who_is_invited_has_no_rights_until_they_accept(asking: World):
    with db.begin(asking.engine) as session:
        dan, lab = users.by_name(session, name="dan"), workspaces.by_name(session, name="lab")
        assert workspaces.of_user(session, user=dan) == []
        with pytest.raises(NotFound, match="The workspace"):
            quotas.lock(session, user_id=dan.id, workspace_id=lab.id, gpu_model=None)
        with pytest.raises(NotFound, match="The member"):
            workspaces.member_named(session, workspace=lab, name="dan")
        assert [one.user.name for one in invitations.of_workspace(session, workspace=lab)] == ["dan"]
    with pytest.raises((NotFound, Denied)):
        asking.admit("dan")
    assert open_ones(asking) == ["lab"]
    member = answer(asking, invitations.accept, "dan")
    assert (member.role, member.status, member.invited_until) == (Role.MEMBER, MemberStatus.ACTIVE, None)
    assert open_ones(asking) == []
    assert asking.run("dan").workspace_id == member.workspace_id
    told = [(entry.actor, entry.action, entry.detail) for entry in asking.audit() if entry.detail.get("user") == "dan"]
    assert [(who, what) for who, what, _ in told] == [("alice", "invitation.create"), ("dan", "member.put")]
    assert told[1][2]["before"] == {"status": "invited"}


def test_declined_and_taken_back_leave_nothing_and_can_be_repeated(asking: World):
    for verb, action in ((invitations.decline, "invitation.decline"), (invitations.take_back, "invitation.take_back")):
        answer(asking, verb, "dan")
        assert standing(asking) is None
        assert asking.audit(action)
        for again in (invitations.accept, invitations.decline, invitations.take_back):
            with pytest.raises(NotFound, match="The invitation"):
                answer(asking, again, "dan")
        answer(asking, invitations.invite, "dan", role=Role.VIEWER)
    assert standing(asking) == ("viewer", "invited")


def test_an_invitation_that_ran_out_is_refused_and_made_anew(asking: World):
    asking.pass_time(days=14)
    assert open_ones(asking) == []
    with pytest.raises(Conflict, match="ran out"):
        answer(asking, invitations.accept, "dan")
    assert standing(asking) == ("member", "invited")
    answer(asking, invitations.invite, "dan", role=Role.VIEWER, days=1)
    asking.pass_time(hours=23, minutes=59)
    assert answer(asking, invitations.accept, "dan").role == Role.VIEWER


@pytest.mark.parametrize(
    ("prepare", "error", "says"),
    [
        pytest.param(lambda world: None, Conflict, "dan is invited already", id="twice"),
        pytest.param(lambda world: world.member("lab", "dan"), Conflict, "in lab already", id="a member"),
        pytest.param(
            lambda world: world.member("lab", "dan", status=MemberStatus.SUSPENDED), Conflict, "in lab already",
            id="suspended",
        ),
        pytest.param(archive_lab, Conflict, "archived", id="archived"),
        pytest.param(link_lab, Conflict, "group physics", id="linked to a group"),
    ],
)  # fmt: skip
def test_who_cannot_be_invited_is_told_why(
    asking: World, prepare: Callable[[World], None], error: type[Exception], says: str
):
    prepare(asking)
    with pytest.raises(error, match=says):
        answer(asking, invitations.invite, "dan", role=Role.MEMBER)


def test_nobody_is_invited_into_a_personal_workspace_or_for_an_odd_time(asking: World):
    with db.begin(asking.engine) as session:
        alice = users.by_name(session, name="alice")
        workspaces.ensure_personal(session, user=alice, now=asking.now, quota={}, budget=None)
    with pytest.raises(Conflict, match="personal workspace"):
        answer(asking, invitations.invite, "dan", "~alice", role=Role.MEMBER)
    for days in (0, -1, 366):
        with pytest.raises(Invalid, match="1 to 365 days"):
            answer(asking, invitations.invite, "dan", role=Role.MEMBER, days=days)


@pytest.mark.parametrize("name", ["bob", "dan"], ids=["a member", "invited with an end"])
def test_a_member_is_not_made_invited_without_an_end(asking: World, name: str):
    with pytest.raises(Invalid, match="remotegpu invitations send"):
        asking.member("lab", name, status=MemberStatus.INVITED)
    with db.begin(asking.engine, read_only=True) as session:
        lab = workspaces.by_name(session, name="lab")
        assert all(one.invited_until for one in invitations.of_workspace(session, workspace=lab))


def test_an_archived_workspace_is_not_joined_and_not_shown(asking: World):
    archive_lab(asking)
    assert open_ones(asking) == []
    with pytest.raises(Conflict, match="archived"):
        answer(asking, invitations.accept, "dan")
    answer(asking, invitations.decline, "dan")


def test_an_invited_owner_keeps_no_workspace_and_stands_in_nobodys_way(world: World):
    answer(world, invitations.invite, "bob2" if world.user("bob2") else "", role=Role.OWNER)
    with pytest.raises(Conflict, match="needs an owner"):
        world.remove("lab", "alice")
    answer(world, invitations.take_back, "bob2")
    answer(world, invitations.invite, "bob2", role=Role.OWNER)
    answer(world, invitations.accept, "bob2")
    world.remove("lab", "alice")


def test_who_is_added_by_hand_or_comes_with_the_group_is_a_member_and_no_longer_invited(asking: World):
    asking.user("ella")
    answer(asking, invitations.invite, "ella", role=Role.ADMIN)
    asking.member("lab", "dan", Role.VIEWER)
    assert standing(asking) == ("viewer", "active")
    link_lab(asking)
    with db.begin(asking.engine) as session:
        numbers = {one.name: one for one in session.scalars(select(User))}
        seen = [HubUser(numbers["ella"].hub_user_id, "ella", "2026-01-01", frozenset({"physics"}))]
        workspaces.follow_groups(session, hub_users=seen, now=asking.now)
    assert standing(asking, "ella") == ("admin", "active")
    with pytest.raises(Conflict, match="is a member of lab by now"):
        answer(asking, invitations.take_back, "ella")


class TestRace:
    """On a database of its own, whose transactions really meet."""

    @pytest.fixture
    def world(self, database_url: str, now: datetime) -> Iterator[World]:
        engine: Engine = db.open_engine(database_url, pool_size=8)
        made = World(engine, now).furnish(hosts=0)
        made.user("dan")
        yield made
        engine.dispose()

    def test_of_an_acceptance_and_a_taking_back_at_once_one_counts_and_the_other_is_told(self, world: World):
        seen = set()
        for _ in range(12):
            answer(world, invitations.invite, "dan", role=Role.MEMBER)
            verbs = (invitations.accept, invitations.take_back)
            accepted, taken = at_once(2, lambda number, verbs=verbs: answer(world, verbs[number], "dan"))
            if isinstance(accepted, Member):
                assert isinstance(taken, Conflict)
                assert standing(world) == ("member", "active")
                world.remove("lab", "dan")
            else:
                assert isinstance(accepted, NotFound)
                assert taken is None
                assert standing(world) is None
            seen.add(isinstance(accepted, Member))
        assert seen

    def test_of_two_who_invite_at_once_one_is_told(self, world: World):
        both = at_once(2, lambda _: answer(world, invitations.invite, "dan", role=Role.MEMBER))
        assert sorted(type(one).__name__ for one in both) == ["Conflict", "Member"]
        assert world.read(select(Member.invited_until).where(Member.status == MemberStatus.INVITED)) == [
            world.now + timedelta(days=14)
        ]
