"""Pages of workspaces for those who are in them: my workspaces and invitations, one workspace, its settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from zoneinfo import available_timezones

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ...domain import invitations, prices, quotas, workspaces
from ...domain.quotas import Level
from ...errors import RemoteGPUError
from ...orm import (
    ENDED,
    Allocation,
    Budget,
    Member,
    MemberStatus,
    Role,
    User,
    Workspace,
    WorkspaceKind,
    WorkspaceStatus,
)
from ..api import Call, call_of, check, tag
from ..pages import Bar, View, bar
from . import invitations as invitation_routes
from . import spaces
from .pages import _bars as bars_of
from .space_frame import NAME, SpacePage, named, route_of, running_of

A_PAGE = 20


# all of mine


@dataclass(frozen=True)
class Row:
    """A workspace in its member's list."""

    workspace: Workspace
    role: Role
    members: int
    running: int
    spent: str
    an_hour: int
    money: Bar | None
    """Of the budget; None where there is none."""
    gpus: Bar


def rows_of(call: Call, view: View, names: Sequence[str]) -> list[Row]:
    """What the list shows of each: four statements for all of them, and one for each. Without what the reader is no
    member of any more, or what has another name by now."""
    session = call.session
    by_name = {one.name: one for one in session.scalars(select(Workspace).where(Workspace.name.in_(names)))}
    found = [by_name[name] for name in names if name in by_name]
    ids = [one.id for one in found]
    person = call.caller.person
    members = workspaces.count_members(session, workspace_ids=ids)
    roles = {
        one.workspace_id: one.role
        for one in session.scalars(
            select(Member).where(Member.user_id == person.id, Member.workspace_id.in_(ids))
        )
    }  # fmt: skip
    terms = {one.workspace_id: one for one in session.scalars(select(Budget).where(Budget.workspace_id.in_(ids)))}
    rows = []
    for one in found:
        if one.id not in roles:
            continue
        level = quotas.levels(
            session, user_id=person.id, workspace_id=one.id, time_zone=one.time_zone, now=call.now
        )["workspace"]  # fmt: skip
        rows.append(
            Row(
                one, roles[one.id], members.get(one.id, 0), level.held["environments"],
                view.money(level.spent, short=True), level.per_hour, money_bar(view, level, terms.get(one.id)),
                bar(view, view.say("GPUs"), "gpus", level.held["gpu_millis"], level.limits["gpu_millis"]),
            )
        )  # fmt: skip
    return rows


def money_bar(view: View, level: Level, budget: Budget | None) -> Bar | None:
    """This month's money beside the budget."""
    if budget is None:
        return None
    spent, amount = view.money(level.spent, short=True), view.money(budget.amount, short=True)
    percent = 100.0 * level.spent / budget.amount if budget.amount else 100.0 * bool(level.spent)
    numbers = view.say("{held} of {limit}", held=spent, limit=amount)
    return Bar(view.say("This month"), numbers, max(0.0, min(100.0, percent)))


async def show_mine(page: SpacePage, error: RemoteGPUError | None = None) -> None:
    """Render the list of the reader's workspaces, with open invitations on top."""
    asked = page.asked("search", "cursor")
    route = route_of(spaces.list_workspaces)

    def work(session: Session) -> tuple[View, list[Row], str | None, list[Any]]:
        view = View(page.language, currency=prices.currency(session))
        query = check(spaces.WorkspacesAsked, {**asked, "limit": A_PAGE})
        call = call_of(page, session, route, {}, query, None)
        shown, following = route.work(call)
        rows = rows_of(call, view, [one["name"] for one in shown])
        opened = invitations.open_of(session, user=call.caller.person, now=call.now)
        return view, rows, following, [invitation_routes.shown(call, one) for one in opened]

    view, rows, following, opened = await page.ask(work)
    if error is not None:
        page.set_status(error.status)
    page.show(
        "spaces.html", view, title=view.say("My workspaces"), here="spaces", rows=rows, opened=opened, error=error,
        search=asked.get("search", ""), further="cursor" in asked, Kind=WorkspaceKind, Status=WorkspaceStatus,
        of=lambda name, *parts: page.address(page.path_of(name, *parts)),
        following=page.address("spaces") + "?" + urlencode({**asked, "cursor": following}) if following else "",
    )  # fmt: skip


class MySpaces(SpacePage):
    """All that the reader is in, and what they are asked into."""

    async def get(self) -> None:
        await show_mine(self)


ANSWERS = {"accept": invitation_routes.accept_invitation, "decline": invitation_routes.decline_invitation}


class AnswerInvitation(SpacePage):
    """Accept or decline; what cannot be is told on the list."""

    async def get(self, name: str, verb: str) -> None:
        self.back("spaces")

    async def post(self, name: str, verb: str) -> None:
        try:
            await self.do(route_of(ANSWERS[verb]), {"workspace": name})
        except RemoteGPUError as error:
            await show_mine(self, error)
            return
        if verb == "accept":
            self.onward(name, told=verb)
        else:
            self.back("spaces", told=verb)


# one of them


@dataclass(frozen=True)
class Overview:
    """What the first tab shows."""

    members: int
    running: int
    spent: str
    an_hour: int
    money: Bar | None
    bars: list[Bar]
    own_bars: list[Bar]
    """The reader's inside the workspace, where something limits them there."""
    leaves: list[str]
    """What the reader runs there."""
    action: str | None
    """What happens when the budget is spent."""


def overview(call: Call, view: View) -> Overview:
    session, space = call.session, call.space
    person = call.caller.person
    levels = quotas.levels(
        session, user_id=person.id, workspace_id=space.id, time_zone=space.time_zone, now=call.now
    )  # fmt: skip
    level, budget = levels["workspace"], session.get(Budget, space.id)
    members = session.scalar(
        select(func.count())
        .select_from(Member)
        .join(Member.user)
        .where(Member.workspace_id == space.id, Member.status == MemberStatus.ACTIVE, User.deleted_at.is_(None))
    )
    return Overview(
        members=members or 0,
        running=level.held["environments"],
        spent=view.money(level.spent, short=True),
        an_hour=level.per_hour,
        money=money_bar(view, level, budget),
        bars=bars_of(view, level),
        own_bars=bars_of(view, levels["member"], only_limited=True) if call.role is not None else [],
        leaves=[name for name, _ in running_of(session, space, [person.id])[person.id]],
        action=budget.action.value if budget else None,
    )


async def show_overview(page: SpacePage, name: str, error: RemoteGPUError | None = None) -> None:
    """Render the first tab, with what went wrong."""
    frame, view, found = await page.read(name, overview)
    page.show_tab("space.html", "overview", frame, view, error, found=found, leaves=named(view, found.leaves))


class OneSpace(SpacePage):
    """What a workspace holds of its limits and its budget, and the way out of it."""

    async def get(self, name: str) -> None:
        await show_overview(self, name)


class LeaveSpace(SpacePage):
    """Leave a workspace; the last owner is told to stay."""

    async def get(self, name: str) -> None:
        self.onward(name)

    async def post(self, name: str) -> None:
        try:
            await self.do(route_of(spaces.leave_workspace), {"workspace": name})
        except RemoteGPUError as error:
            await show_overview(self, name, error)
            return
        self.back("spaces", told="leave")


async def show_settings(
    page: SpacePage, name: str, error: RemoteGPUError | None = None, typed: dict[str, str] | None = None
) -> None:
    """Render the settings, with what went wrong, and as they were typed."""
    edit = route_of(spaces.edit_workspace)

    def work(call: Call, view: View) -> tuple[str, int]:
        holding = select(func.count()).where(Allocation.workspace_id == call.space.id, Allocation.state != ENDED)
        return tag(edit, spaces.shown(call.space)), call.session.scalar(holding.where(~Allocation.metered)) or 0

    frame, view, (seen, holding) = await page.read(name, work, edit)
    values = {"display_name": frame.display_name, "time_zone": frame.time_zone, **(typed or {})}
    page.show_tab(
        "space_settings.html", "settings", frame, view, error, values=values, tag=seen, holding=holding,
        zones=sorted(available_timezones()),
    )  # fmt: skip


class Settings(SpacePage):
    """Display name, time zone, and closing it."""

    async def get(self, name: str) -> None:
        await show_settings(self, name)

    async def post(self, name: str) -> None:
        typed = {field: self.given(field) for field in ("display_name", "time_zone")}
        try:
            body = check(spaces.WorkspaceEdit, typed)
            await self.do(route_of(spaces.edit_workspace), {"workspace": name}, body, seen=self.given("seen"))
        except RemoteGPUError as error:
            await show_settings(self, name, error, None if error.code == "changed" else typed)
            return
        self.onward(name, "settings", told="settings")


class CloseSpace(SpacePage):
    """Close a workspace for new starts, or open it again."""

    async def get(self, name: str, verb: str) -> None:
        self.onward(name, "settings")

    async def post(self, name: str, verb: str) -> None:
        work = spaces.archive_workspace if verb == "archive" else spaces.reopen_workspace
        try:
            await self.do(route_of(work), {"workspace": name})
        except RemoteGPUError as error:
            await show_settings(self, name, error)
            return
        self.onward(name, told=verb)


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (r"spaces", MySpaces, {}),
    (NAME, OneSpace, {}),
    (NAME + r"/(?P<verb>accept|decline)", AnswerInvitation, {}),
    (NAME + r"/leave", LeaveSpace, {}),
    (NAME + r"/settings", Settings, {}),
    (NAME + r"/(?P<verb>archive|reopen)", CloseSpace, {}),
]
