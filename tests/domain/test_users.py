"""Hub users come, are renamed, go, and come again under the same name or the same number."""

from collections.abc import Iterable
from datetime import datetime

import pytest
from jupyterhub import orm as hub_orm
from sqlalchemy import select
from sqlalchemy.orm import Session

from remotegpu_hub import db
from remotegpu_hub.domain import environments, users, workspaces
from remotegpu_hub.errors import NotFound
from remotegpu_hub.observed import HubUser
from remotegpu_hub.orm import EnvironmentState, Quota, QuotaScope, User, Workspace, WorkspaceStatus

from ..worlds import World


class Hub:
    """The hub's own tables, changed as the hub changes them."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _do(self, work: object) -> int:
        with Session(self.world.engine, join_transaction_mode="create_savepoint") as session, session.begin():
            result = work(session)  # type: ignore[operator]
            session.flush()
            return int(getattr(result, "id", 0) or 0)

    def add(
        self, name: str, *, created: str = "2026-01-01", number: int | None = None, groups: Iterable[str] = ()
    ) -> int:
        def work(session: Session) -> hub_orm.User:
            user = hub_orm.User(id=number, name=name, created=datetime.fromisoformat(created))
            session.add(user)
            for group in groups:
                found = session.scalar(select(hub_orm.Group).where(hub_orm.Group.name == group))
                user.groups.append(found or hub_orm.Group(name=group))
            return user

        return self._do(work)

    def rename(self, before: str, after: str) -> None:
        def work(session: Session) -> None:
            session.query(hub_orm.User).filter_by(name=before).one().name = after

        self._do(work)

    def remove(self, name: str) -> None:
        def work(session: Session) -> None:
            session.delete(session.query(hub_orm.User).filter_by(name=name).one())

        self._do(work)

    def sync(self) -> list[str]:
        """What the tick does: follow users, personal workspaces, groups. Returns who was retired."""
        world = self.world
        with db.begin(world.engine) as session:
            seen = users.hub_users(session)
            gone, changed = users.differences(session, hub_users=seen)
            retired = users.sync(session, gone=gone, changed=changed, now=world.now)
            assert users.differences(session, hub_users=seen) == ([], [])
            workspaces.retire_owned(session, users=retired, now=world.now)
            for user in workspaces.lacking_personal(session):
                workspaces.ensure_personal(
                    session, user=user, now=world.now, quota={"cpu_millis": 2000, "gpu_millis": 0}, budget=7
                )
            assert workspaces.lacking_personal(session) == []
            workspaces.follow_groups(session, hub_users=seen, now=world.now)
            return [user.name for user in retired]


@pytest.fixture
def hub(world: World) -> Hub:
    """The furnished users are the hub's, too."""
    made = Hub(world)
    with db.begin(world.engine) as session:
        for user in session.scalars(select(User)).all():
            user.hub_user_id = made.add(user.name)
            user.hub_created = users.hub_user(session, hub_user_id=user.hub_user_id).created
    assert made.sync() == []
    return made


def live(world: World) -> dict[str, User]:
    return {user.name: user for user in world.read(select(User).where(User.deleted_at.is_(None)))}


def personal(world: World, name: str) -> Workspace:
    found: Workspace = world.read(select(Workspace).where(Workspace.name == f"~{name}"))[0]
    return found


def test_the_hubs_users_are_read_with_their_groups(world: World, hub: Hub):
    number = hub.add("dave", groups=("physics", "staff"))
    with db.begin(world.engine, read_only=True) as session:
        all_of_them = users.hub_users(session)
        assert [one.name for one in all_of_them] == ["alice", "bob", "carol", "dave"]
        assert all_of_them[-1].groups == {"physics", "staff"}
        assert users.hub_user(session, hub_user_id=number).created == all_of_them[-1].created
        with pytest.raises(NotFound):
            users.hub_user(session, hub_user_id=10**6)


def test_a_second_sync_changes_nothing(world: World, hub: Hub):
    hub.add("dave")
    hub.sync()
    entries = len(world.audit())
    assert hub.sync() == []
    assert len(world.audit()) == entries


def test_a_renamed_user_keeps_all_and_the_personal_workspace_follows(world: World, hub: Hub):
    before, space = live(world)["bob"], personal(world, "bob")
    run = world.run("bob", server="train")
    hub.rename("bob", "robert")
    assert hub.sync() == []
    assert live(world)["robert"].id == before.id
    after = personal(world, "robert")
    assert (after.id, after.display_name, after.status) == (space.id, "robert", "active")
    with db.begin(world.engine, read_only=True) as session:
        with pytest.raises(NotFound):
            users.by_name(session, name="bob")
        assert environments.find(session, user_id=before.id, server_name="train") is not None
    assert world.allocation(run.attempt).user_id == before.id
    assert world.audit("user.renamed")[-1].detail == {"before": {"name": "bob"}, "after": {"name": "robert"}}
    assert world.audit("workspace.renamed")[-1].detail == {
        "before": {"name": "~bob", "display_name": "bob"},
        "after": {"name": "~robert", "display_name": "robert"},
    }


def test_two_users_who_swap_names_keep_their_own_workspaces(world: World, hub: Hub):
    ids = {name: (live(world)[name].id, personal(world, name).id) for name in ("alice", "bob")}
    hub.rename("alice", "x")
    hub.rename("bob", "alice")
    hub.rename("x", "bob")
    hub.sync()
    assert {name: (live(world)[name].id, personal(world, name).id) for name in ("bob", "alice")} == {
        "bob": ids["alice"],
        "alice": ids["bob"],
    }


def test_a_deleted_user_is_retired_with_environments_and_workspace(world: World, hub: Hub):
    run = world.run("bob", server="train")
    space = personal(world, "bob")
    hub.remove("bob")
    assert hub.sync() == ["bob"]
    assert "bob" not in live(world)
    found = world.allocation(run.attempt)
    assert (found.state, found.environment.state) == ("active", EnvironmentState.DELETED), "held until confirmed gone"
    assert world.read(select(Workspace.status).where(Workspace.id == space.id)) == [WorkspaceStatus.ARCHIVED]
    assert [entry.entity_id for entry in world.audit("workspace.archive")] == [space.id]
    world.release(run.attempt)
    assert world.allocation(run.attempt).environment.state == EnvironmentState.DELETED
    world.check()


@pytest.mark.parametrize("synced", [True, False], ids=["seen-as-deleted", "never-seen-as-deleted"])
@pytest.mark.parametrize("same_number", [True, False], ids=["same-number", "other-number"])
def test_a_re_created_name_inherits_nothing(world: World, hub: Hub, synced: bool, same_number: bool):
    """SQLite gives the numeric id of a deleted last user to the next one."""
    number = hub.add("dave")
    hub.sync()
    world.member("lab", "dave")
    world.quota(QuotaScope.USER, user="dave", gpu_millis=5000)
    old, space = live(world)["dave"], personal(world, "dave")
    world.admit("dave", server="train")
    hub.remove("dave")
    if synced:
        assert hub.sync() == ["dave"]
    hub.add("dave", created="2026-11-23", number=number if same_number else number + 50)
    assert hub.sync() == ([] if synced else ["dave"])
    new = live(world)["dave"]
    assert new.id != old.id
    with db.begin(world.engine, read_only=True) as session:
        assert [one.workspace.name for one in workspaces.of_user(session, user=new)] == ["~dave"]
        assert environments.of_user(session, user=new) == []
        assert workspaces.by_name(session, name=f"~dave#{space.id}").status == WorkspaceStatus.ARCHIVED
    assert personal(world, "dave").owner_id == new.id
    assert world.read(select(Quota.id).where(Quota.user_id == new.id)) == []


def test_the_name_of_a_deleted_user_goes_to_whoever_is_renamed_to_it(world: World, hub: Hub):
    hub.remove("carol")
    hub.rename("bob", "carol")
    bob = live(world)["bob"]
    assert hub.sync() == ["carol"]
    assert (live(world)["carol"].id, personal(world, "carol").owner_id) == (bob.id, bob.id)


def test_a_start_notices_a_re_created_user_without_any_sync(world: World, hub: Hub):
    old = live(world)["bob"]
    with db.begin(world.engine) as session:
        new = users.ensure(session, hub_user=HubUser(old.hub_user_id, "bob", "later"), now=world.now)
        again = users.ensure(session, hub_user=HubUser(old.hub_user_id, "bob", "later"), now=world.now)
    assert old.id != new.id == again.id
    assert [entry.action for entry in world.audit()][-2:] == ["user.deleted", "user.seen"]


def test_a_new_user_gets_a_personal_workspace_with_its_quota_and_budget(world: World, hub: Hub):
    hub.add("dave")
    hub.sync()
    space = personal(world, "dave")
    quota = world.read(select(Quota).where(Quota.workspace_id == space.id))[0]
    assert (quota.cpu_millis, quota.gpu_millis, quota.memory_bytes) == (2000, 0, None)
    assert world.audit("quota.put")[-1].detail == {"after": {"cpu_millis": 2000, "gpu_millis": 0, "budget": 7}}


def test_an_endless_name_still_gets_a_workspace(world: World, hub: Hub):
    hub.add("x" * 200)
    hub.sync()
    assert personal(world, "x" * 62).display_name == "x" * 100
