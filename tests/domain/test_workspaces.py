from datetime import datetime

import pytest
from sqlalchemy import select

from remotegpu_hub import db
from remotegpu_hub.domain import allocations, billing, users, workspaces
from remotegpu_hub.errors import Conflict, Invalid, NotFound
from remotegpu_hub.observed import HubUser
from remotegpu_hub.orm import Deadline, EndReason, Event, Member, MemberStatus, Role, User, Workspace, WorkspaceStatus

from ..worlds import ADMIN, World


def members(world: World, name: str = "lab") -> dict[str, str]:
    with db.begin(world.engine, read_only=True) as session:
        found = workspaces.members(session, workspace=workspaces.by_name(session, name=name))
        return {one.user.name: one.role.value for one in found}


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"name": "vision-2"}, None),
        ({"name": "abc"}, None),
        ({"name": "ab"}, Invalid),
        ({"name": "~bob"}, Invalid),
        ({"name": "Vision"}, Invalid),
        ({"name": "2-vision"}, Invalid),
        ({"name": "vision-"}, Invalid),
        ({"name": "x" * 64}, Invalid),
        ({"name": "vision\n"}, Invalid),
        ({"name": "lab"}, Conflict),
        ({"name": "vision", "display_name": "视觉 Vision"}, None),
        ({"name": "vision", "display_name": " "}, Invalid),
        ({"name": "vision", "display_name": "a\u202eb"}, Invalid),
        ({"name": "vision", "time_zone": "Asia/Shanghai"}, None),
        ({"name": "vision", "time_zone": "Mars/Olympus"}, Invalid),
    ],
    ids=lambda one: ",".join(map(repr, one.values())) if isinstance(one, dict) else getattr(one, "__name__", "fine"),
)
def test_names_and_zones_are_checked(world: World, columns: dict, error: type[Exception] | None):
    if error:
        with pytest.raises(error):
            world.workspace(owner="bob", **columns)
    else:
        made = world.workspace(owner="bob", **columns)
        assert members(world, made.name) == {"bob": "owner"}
        assert world.audit("workspace.create")[-1].detail == {"name": made.name, "owner": "bob"}


@pytest.mark.parametrize(
    ("role", "status"),
    [(Role.ADMIN, MemberStatus.ACTIVE), (Role.OWNER, MemberStatus.SUSPENDED), (None, None)],
    ids=["demoted", "suspended", "removed"],
)
@pytest.mark.parametrize("other", ["none", "admin", "suspended-owner", "deleted-owner", "owner"])
def test_the_last_owner_stays(world: World, role: Role | None, status: MemberStatus | None, other: str):
    if other != "none":
        world.member(
            "lab", "bob", Role.ADMIN if other == "admin" else Role.OWNER,
            status=MemberStatus.SUSPENDED if other == "suspended-owner" else MemberStatus.ACTIVE,
        )  # fmt: skip
    with db.begin(world.engine) as session:
        if other == "deleted-owner":
            users.retire(session, user=users.by_name(session, name="bob"), now=world.now)

    def leave() -> None:
        if role is not None:
            world.member("lab", "alice", role, status=status)
            return
        with db.begin(world.engine) as session:
            lab, alice = workspaces.by_name(session, name="lab"), users.by_name(session, name="alice")
            workspaces.remove_member(session, workspace=lab, user=alice, actor=ADMIN, now=world.now)

    if other == "owner":
        leave()
        entry = world.audit("member.put" if role else "member.remove")[-1]
        assert entry.detail["user"] == "alice"
        assert entry.detail["before"] == ({"status": "active"} if role == Role.OWNER else {"role": "owner"})
    else:
        with pytest.raises(Conflict, match="lab needs an owner"):
            leave()


def test_members_are_added_changed_and_removed_with_an_entry_each(world: World):
    world.member("lab", "bob", Role.ADMIN)
    with db.begin(world.engine) as session:
        lab, bob = workspaces.by_name(session, name="lab"), users.by_name(session, name="bob")
        workspaces.remove_member(session, workspace=lab, user=bob, actor=ADMIN, now=world.now)
        with pytest.raises(NotFound, match="The member bob"):
            workspaces.remove_member(session, workspace=lab, user=bob, actor=ADMIN, now=world.now)
    assert members(world) == {"alice": "owner", "carol": "viewer"}
    assert [entry.detail for entry in world.audit() if entry.action.startswith("member.")][-2:] == [
        {"user": "bob", "before": {"role": "member"}, "after": {"role": "admin"}},
        {"user": "bob", "before": {"role": "admin"}},
    ]


def test_whom_the_hub_deleted_is_no_member_to_be_seen_and_keeps_a_name_in_the_usage(world: World):
    run = world.run("bob")
    world.pass_time(hours=1)
    world.end(run.attempt)
    with db.begin(world.engine) as session:
        users.retire(session, user=users.by_name(session, name="bob"), now=world.now)
        lab = workspaces.by_name(session, name="lab")
        assert workspaces.count_members(session, workspace_ids=[lab.id, 0]) == {lab.id: 2}
        usage = billing.usage_of(session, workspace=lab, month=None, now=world.now)
        assert list(usage.by_user) == ["bob"]
    assert members(world) == {"alice": "owner", "carol": "viewer"}


def test_a_workspace_with_running_environments_is_not_archived(world: World):
    run = world.run()

    def archive() -> None:
        with db.begin(world.engine) as session:
            lab = workspaces.by_name(session, name="lab")
            workspaces.archive(session, workspace=lab, actor=ADMIN, now=world.now)

    with pytest.raises(Conflict, match="Stop them first"):
        archive()
    world.mark_ending(run.attempt)
    with pytest.raises(Conflict):
        archive()
    world.end(run.attempt)
    archive()
    assert world.read(select(Workspace.status).where(Workspace.name == "lab")) == [WorkspaceStatus.ARCHIVED]
    assert world.audit("workspace.archive")[-1].actor == "admin"


def test_an_archived_workspace_is_reopened_once_and_starts_again(world: World):
    for _ in range(2):
        with db.begin(world.engine) as session:
            workspaces.archive(session, workspace=workspaces.by_name(session, name="lab"), actor=ADMIN, now=world.now)
    assert len(world.audit("workspace.archive")) == 1
    with pytest.raises(NotFound):
        world.run()
    for _ in range(2):
        with db.begin(world.engine) as session:
            workspaces.reopen(session, workspace=workspaces.by_name(session, name="lab"), actor=ADMIN, now=world.now)
    assert world.read(select(Workspace.status).where(Workspace.name == "lab")) == [WorkspaceStatus.ACTIVE]
    assert [(entry.actor, entry.detail) for entry in world.audit("workspace.reopen")] == [("admin", {"name": "lab"})]
    assert world.run().id


def test_settings_change_with_before_and_after(world: World):
    world.workspace("other", owner="bob", hub_group="physics")
    with db.begin(world.engine) as session:
        lab = workspaces.by_name(session, name="lab")
        facts = {"workspace": lab, "actor": ADMIN, "now": world.now}
        workspaces.update_settings(session, display_name="实验室", time_zone="Asia/Shanghai", **facts)
        assert world.audit("workspace.update")[-1].detail == {
            "before": {"display_name": "lab", "time_zone": "UTC"},
            "after": {"display_name": "实验室", "time_zone": "Asia/Shanghai"},
        }
        workspaces.update_settings(session, hub_group="chemistry", **facts)
        assert lab.hub_group == "chemistry"
        workspaces.update_settings(session, hub_group=None, **facts)
        for wrong in ({"time_zone": "Mars/Olympus"}, {"display_name": ""}):
            with pytest.raises(Invalid):
                workspaces.update_settings(session, **wrong, **facts)
        with pytest.raises(Conflict, match="linked to the workspace other"):
            workspaces.update_settings(session, hub_group="physics", **facts)
    with pytest.raises(Conflict, match="linked to the workspace other"):
        world.workspace("third", owner="bob", hub_group="physics")


def test_a_linked_workspace_follows_its_group_and_keeps_what_was_given_by_hand(world: World):
    world.user("dave")
    world.workspace("linked", owner="alice", members={"bob": Role.ADMIN}, hub_group="physics")

    def follow(*names: str) -> dict[str, str]:
        with db.begin(world.engine) as session:
            seen = [
                HubUser(
                    user.hub_user_id, user.name, user.hub_created, frozenset({"physics"} if user.name in names else ())
                )
                for user in session.scalars(select(User))
            ]
            workspaces.follow_groups(session, hub_users=seen, now=world.now)
        return members(world, "linked")

    by_hand = {"alice": "owner", "bob": "admin"}
    assert follow("bob", "dave", "carol") == {**by_hand, "carol": "member", "dave": "member"}
    entries = len(world.audit())
    assert follow("bob", "dave", "carol") == {**by_hand, "carol": "member", "dave": "member"}
    assert len(world.audit()) == entries
    world.member("linked", "dave", Role.VIEWER)
    assert follow("dave") == {**by_hand, "dave": "viewer"}
    world.member("linked", "dave", Role.OWNER)
    assert follow() == {**by_hand, "dave": "owner"}, "an owner does not vanish with a group"
    assert members(world) == {"alice": "owner", "bob": "member", "carol": "viewer"}


def test_the_memberships_of_a_user_put_teams_first(world: World, now: datetime):
    world.workspace("a-team", owner="bob")
    world.workspace("closed", owner="bob")
    world.member("lab", "bob", Role.VIEWER)
    with db.begin(world.engine) as session:
        bob = users.by_name(session, name="bob")
        workspaces.ensure_personal(session, user=bob, now=now, quota={}, budget=None)
        workspaces.archive(session, workspace=workspaces.by_name(session, name="closed"), actor=ADMIN, now=now)
        assert [one.workspace.name for one in workspaces.of_user(session, user=bob)] == ["a-team", "lab", "~bob"]
    world.member("lab", "bob", status=MemberStatus.SUSPENDED)
    with db.begin(world.engine, read_only=True) as session:
        assert [one.workspace.name for one in workspaces.of_user(session, user=bob)] == ["a-team", "~bob"]
        assert session.get(Member, (workspaces.by_name(session, name="lab").id, bob.id)) is not None


@pytest.mark.parametrize(
    "change",
    [{"role": Role.VIEWER}, {"role": Role.MEMBER, "status": MemberStatus.SUSPENDED}, None],
    ids=["made a viewer", "suspended", "removed"],
)
def test_what_somebody_runs_who_may_not_any_more_ends_an_hour_later(world: World, change: dict | None):
    mine, others = world.run("bob", server="mine"), world.run("alice", server="others")
    world.workspace("elsewhere", owner="bob")
    elsewhere = world.run("bob", "elsewhere", server="elsewhere")
    starting = world.admit("bob", server="starting")
    if change:
        world.member("lab", "bob", **change)
    else:
        world.remove("lab", "bob")
    assert due(world) == []
    world.pass_time(minutes=59, seconds=59)
    assert due(world) == []
    world.pass_time(seconds=1)
    assert due(world) == [(one.attempt, "bob", EndReason.ADMIN) for one in (mine, starting)]
    for one in (mine, starting):
        world.end(one.attempt)
    assert due(world) == []
    assert world.read(select(Deadline.at)) == []
    assert {one.id for one in world.open_runs()} == {others.id, elsewhere.id}
    world.check()


def test_who_comes_back_in_time_keeps_what_runs(world: World):
    run = world.run("bob")
    world.remove("lab", "bob")
    world.pass_time(minutes=50)
    world.member("lab", "bob", status=MemberStatus.SUSPENDED)
    world.member("lab", "bob", role=Role.ADMIN)
    told = world.read(select(Event).where(Event.kind == "environment.spared"))
    assert [(one.environment_id, one.detail["reason"]) for one in told] == [(run.environment_id, "admin")]
    world.pass_time(hours=2)
    assert due(world) == []
    world.remove("lab", "bob")
    world.pass_time(hours=1)
    assert [one[0] for one in due(world)] == [run.attempt]


def due(world: World) -> list[tuple[str, str, EndReason]]:
    with db.begin(world.engine, read_only=True) as session:
        return [(one.attempt, one.user_name, one.reason) for one in allocations.due(session, now=world.now)]
