"""Limits of one member in their form, read and shown to the last unit; and lists of whom goes while they are read."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine, select

from remotegpu_hub.db import begin
from remotegpu_hub.domain import users, workspaces
from remotegpu_hub.errors import Invalid
from remotegpu_hub.orm import Environment, Role
from remotegpu_hub.services import paging
from remotegpu_hub.services.api import Call, Caller
from remotegpu_hub.services.pages import View
from remotegpu_hub.services.workspaces import limit_pages, member_pages, space_pages, spaces
from remotegpu_hub.units import GIB
from tests.gpu_hubs import GpuHub
from tests.worlds import ADMIN, World

from .test_api import Desk
from .test_audit_pages import call, see


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gpu_millis", "1e999999"), ("gpu_millis", "0.0001"), ("gpu_millis", "-1"), ("gpu_millis", "NaN"),
        ("gpu_millis", "9" * 18), ("memory_bytes", "many"), ("environments", "1.5"), ("model:A100", "1e3"),
    ],
)  # fmt: skip
def test_what_cannot_be_counted_is_told(name: str, text: str):
    with pytest.raises(Invalid):
        member_pages.read_limit(name, text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("gpu_millis", 142), ("memory_bytes", 3 * GIB + 1), ("environments", 7), ("model:A100", 2), ("cpu_millis", None),
     ("gpu_hours", "unlimited")],
)  # fmt: skip
@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_the_form_shows_is_read_back_as_it_was(name: str, value: int | str | None, language: str):
    assert member_pages.read_limit(name, member_pages.written(View(language), name, value)) == value


def test_who_goes_while_a_list_is_read_is_left_out(engine: Engine, now: datetime, monkeypatch: pytest.MonkeyPatch):
    world = World(engine, now).furnish(hosts=1)

    def page(*given: Any, **more: Any) -> Any:
        found = paging.page(*given, **more)
        with begin(engine) as session:
            lab, bob = workspaces.by_name(session, name="lab"), users.by_name(session, name="bob")
            workspaces.remove_member(session, workspace=lab, user=bob, actor=ADMIN, now=world.now)
        return found

    monkeypatch.setattr(spaces, "page", page)
    with begin(engine, read_only=True) as session:
        asked = Call(
            **{
                **vars(call(session, now)),
                "query": spaces.MembersAsked(),
                "workspace": workspaces.by_name(session, name="lab"),
            }
        )
        shown, _ = spaces.list_members(asked)
        assert {"alice", "carol"} <= {one["user"] for one in shown} <= {"alice", "bob", "carol"}
        assert limit_pages.rows(session, [{"id": 10**9}]) == []


def test_a_page_leaves_out_who_goes_and_what_goes_while_it_is_read(
    engine: Engine, now: datetime, monkeypatch: pytest.MonkeyPatch
):
    world = World(engine, now).furnish(hosts=1)
    world.workspace("others", owner="alice")
    names = ["lab", "others", "renamed-meanwhile"]

    def listed(given: Call) -> Any:
        rows, following = list_members(given)
        return [*rows, {**rows[0], "user": "renamed-meanwhile"}], following

    list_members = spaces.list_members
    monkeypatch.setattr(spaces, "list_members", listed)
    with begin(engine, read_only=True) as session:
        lab, bob = workspaces.by_name(session, name="lab"), users.by_name(session, name="bob")
        asked = replace(
            call(session, now), caller=Caller("bob", bob, frozenset(), hub_admin=False), workspace=lab, role=Role.MEMBER
        )
        assert [row.workspace.name for row in space_pages.rows_of(asked, View("en"), names)] == ["lab"]
        found = member_pages.people(asked, View("en"), {})
        assert [one.user for one in found.rows] == ["alice", "bob", "carol"]


def test_a_link_into_an_environment_holds_its_whole_name(hub: GpuHub):
    number = Desk(hub).environment

    def rename(name: str) -> None:
        with begin(hub.engine) as session:
            session.get_one(Environment, number).server_name = name

    (before,) = hub.world.read(select(Environment.server_name).where(Environment.id == number))
    rename("odd #1?")
    try:
        assert "/spawn/carol/odd%20%231%3F" in see(hub, "carol", "?").text
    finally:
        rename(before)
