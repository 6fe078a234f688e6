"""Volumes outlive runs, count against the storage quota, and only grow."""

from dataclasses import replace

import pytest
from sqlalchemy import select

from remotegpu_hub.db import begin
from remotegpu_hub.domain import environments, volumes
from remotegpu_hub.errors import Conflict, NotFound, QuotaExceeded
from remotegpu_hub.orm import QuotaScope, Volume, VolumeKind
from remotegpu_hub.units import GIB
from tests.worlds import ADMIN, World

HOME, SHARED = VolumeKind.HOME, VolumeKind.SHARED


@pytest.fixture
def town(world: World) -> World:
    world.rules = replace(world.rules, volumes={HOME: 10 * GIB})
    return world


def there(world: World) -> list[tuple[str, int]]:
    with begin(world.engine, read_only=True) as session:
        rows = session.query(Volume).order_by(Volume.id)
        return [(one.kind.value, one.size_bytes // GIB) for one in rows if one.deleted_at is None]


def test_the_first_start_makes_a_home_and_the_next_one_finds_it(town: World) -> None:
    town.end(town.run("bob").attempt)
    town.end(town.run("bob").attempt)
    assert there(town) == [("home", 10)]


def test_each_user_has_a_home_in_each_workspace_and_a_workspace_one_shared_volume(town: World) -> None:
    town.rules = replace(town.rules, volumes={HOME: 10 * GIB, SHARED: 5 * GIB})
    town.workspace("other", owner="bob")
    town.run("alice")
    town.run("bob", server="one")
    town.run("bob", "other", server="two")
    assert sorted(there(town)) == [("home", 10)] * 3 + [("shared", 5)] * 2


def test_a_size_grows_and_never_shrinks(town: World) -> None:
    town.end(town.run("bob").attempt)
    town.rules = replace(town.rules, volumes={HOME: 20 * GIB})
    town.end(town.run("bob").attempt)
    town.rules = replace(town.rules, volumes={HOME: 5 * GIB})
    town.end(town.run("bob").attempt)
    assert there(town) == [("home", 20)]
    assert [entry.action for entry in town.audit("volume.size")] == ["volume.size"] * 2


@pytest.mark.parametrize("scope", [QuotaScope.USER, QuotaScope.WORKSPACE, QuotaScope.MEMBER])
def test_a_start_that_would_go_over_a_storage_limit_names_it_and_makes_nothing(town: World, scope: QuotaScope) -> None:
    named = {
        QuotaScope.USER: {"user": "bob"}, QuotaScope.WORKSPACE: {"workspace": "lab"},
        QuotaScope.MEMBER: {"workspace": "lab", "user": "bob"},
    }  # fmt: skip
    town.quota(scope, **named[scope], storage_bytes=9 * GIB)
    with pytest.raises(QuotaExceeded) as refused:
        town.run("bob")
    (breach,) = refused.value.breaches
    assert (breach.resource, breach.wanted, breach.held, breach.limit) == ("storage", 10 * GIB, 0, 9 * GIB)
    assert there(town) == []


def test_a_home_that_is_there_is_not_counted_twice(town: World) -> None:
    town.end(town.run("bob").attempt)
    town.quota(QuotaScope.USER, user="bob", storage_bytes=10 * GIB)
    town.end(town.run("bob").attempt)


def test_a_volume_in_use_cannot_be_deleted_and_a_deleted_one_is_made_anew(town: World) -> None:
    run = town.run("bob")
    (number,) = town.read(Volume.__table__.select().with_only_columns(Volume.id))  # type: ignore[attr-defined]

    def delete() -> None:
        with begin(town.engine) as session:
            volumes.delete(session, volume_id=number, actor=ADMIN, now=town.now)

    with pytest.raises(Conflict):
        delete()
    town.end(run.attempt)
    delete()
    with pytest.raises(NotFound):
        delete()
    with begin(town.engine, read_only=True) as session:
        assert volumes.known(session, volume_ids=[number, number + 1]) == {number: True}
    town.run("bob")
    assert there(town) == [("home", 10)]


def test_a_home_goes_with_the_last_environment_that_sees_it_where_its_user_says_so(town: World) -> None:
    town.workspace("other", owner="bob")
    runs = [town.run("bob", server=name) for name in ("one", "two")]
    town.run("bob", "other", server="elsewhere")
    town.run("alice", server="hers")

    def delete(server: str, with_home: bool) -> None:
        with begin(town.engine) as session:
            environments.delete(session, user_id=runs[0].user_id, server_name=server, actor=ADMIN, now=town.now,
                                with_home=with_home)  # fmt: skip

    with pytest.raises(Conflict, match="Stop it first"):
        delete("one", True)
    town.end(runs[0].attempt)
    with pytest.raises(Conflict, match="other environments") as refused:
        delete("one", True)
    assert refused.value.facts["count"] == 1
    delete("one", False)
    town.end(runs[1].attempt)
    assert len(there(town)) == 3
    town.quota(QuotaScope.MEMBER, workspace="lab", user="bob", storage_bytes=10 * GIB)
    delete("two", True)
    assert len(there(town)) == 2
    (gone,) = town.audit("volume.delete")
    assert gone.entity_id == next(one.id for one in volumes_of(town) if one.deleted_at is not None)
    third = town.run("bob", server="three")
    assert len(there(town)) == 3, "its quota is free again: a new home fits"
    town.end(third.attempt)
    town.rules = replace(town.rules, volumes={})
    delete("three", True)
    town.end(town.run("bob", server="without").attempt)
    with pytest.raises(Conflict, match="no home volume"):
        delete("without", True)
    delete("without", False)


def volumes_of(world: World) -> list[Volume]:
    return world.read(select(Volume).order_by(Volume.id))
