"""All workspaces for admins of the hub: what each holds and spends, to make one, and to archive one."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any, Final
from urllib.parse import quote, urlencode
from zoneinfo import available_timezones

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from ... import words
from ...domain import budgets, workspaces
from ...errors import Invalid, RemoteGPUError
from ...orm import (
    ENDED,
    Allocation,
    Budget,
    Workspace,
    WorkspaceKind,
    WorkspaceStatus,
)
from .. import api, paging
from ..api import Call, Needs, Route, call_of
from ..pages import Bar, Page, View
from . import spaces

FILTERS: Final = ("search", "kind", "status")
FIELDS: Final = ("name", "display_name", "owner", "kind", "hub_group", "time_zone")
_ROUTES: Final = {route.work: route for route in spaces.ROUTES}


@dataclass(frozen=True)
class Row:
    """A workspace with what it has and holds now."""

    workspace: Workspace
    members: int
    runs: int
    gpu_millis: int
    spent: int
    """Of this month, in millionths."""
    budget: Budget | None
    bar: Bar | None
    """Of the budget."""


def list_rows(call: Call) -> Any:
    """A page of rows and the cursor of the next: seven statements, however many workspaces there are."""
    view, asked = call.query
    query = select(Workspace).options(selectinload(Workspace.owner))
    if asked.search:
        query = query.where(spaces.fits(asked.search))
    if asked.kind is not None:
        query = query.where(Workspace.kind == asked.kind)
    if asked.status is not None:
        query = query.where(Workspace.status == asked.status)
    found, following = paging.page(
        call.session, query, asked, sorts={"name": (Workspace.name,)}, sort="name", shown=lambda one: one
    )
    return read_rows(call.session, view, found, now=call.now), following


LIST: Final = Route("GET", "admin/spaces", "All workspaces", Needs.HUB_ADMIN, list_rows)


def read_rows(session: Session, view: View, found: Sequence[Workspace], *, now: datetime) -> list[Row]:
    """Lay beside each workspace what it has, holds and spends."""
    ids = [one.id for one in found]
    members = workspaces.count_members(session, workspace_ids=ids)
    open_runs = (
        select(Allocation.workspace_id, func.count(), func.sum(Allocation.gpu_millis))
        .where(Allocation.workspace_id.in_(ids), Allocation.state != ENDED)
        .group_by(Allocation.workspace_id)
    )
    held: dict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
    held.update({number: (count, int(gpus)) for number, count, gpus in session.execute(open_runs)})
    limits = {one.workspace_id: one for one in session.scalars(select(Budget).where(Budget.workspace_id.in_(ids)))}
    months = budgets.months(session, workspaces=found, now=now)
    return [
        Row(one, members.get(one.id, 0), *held[one.id], months[one.id].spent, limits.get(one.id),
            _bar(view, months[one.id].spent, limits.get(one.id)))
        for one in found
    ]  # fmt: skip


def _bar(view: View, spent: int, budget: Budget | None) -> Bar | None:
    if budget is None:
        return None
    numbers = view.say("{held} of {limit}", held=view.money(spent, short=True),
                       limit=view.money(budget.amount, short=True))  # fmt: skip
    share = 100 * spent / budget.amount if budget.amount else 100.0 * bool(spent)
    return Bar(view.say("Budget a month"), numbers, min(100.0, share))


async def show_rows(page: Page, error: RemoteGPUError | None = None) -> None:
    """Render the list, with what went wrong."""
    view = View(page.language, currency=page.runtime.settings.currency)
    given = {
        name: page.get_query_argument(name, "")[: paging.MOST_CURSOR].replace("\0", "") for name in (*FILTERS, "cursor")
    }

    def work(session: Session) -> tuple[list[Row], str | None]:
        call = call_of(page, session, LIST, {}, None, None)
        asked = api.check(spaces.WorkspacesAsked, {name: value for name, value in given.items() if value})
        found: tuple[list[Row], str | None] = list_rows(replace(call, query=(view, asked)))
        return found

    try:
        rows, following = await page.ask(work)
    except Invalid as wrong:
        error, rows, following = error or wrong, [], None
        page.set_status(wrong.status)

    def link(**changed: str) -> str:
        kept = {name: value for name, value in {**given, "cursor": "", **changed}.items() if value}
        return page.address("admin/spaces") + (f"?{urlencode(kept)}" if kept else "")

    page.show(
        "all-spaces.html", view, title=view.say("Workspaces"), here="admin/spaces", rows=rows, given=given, link=link,
        following=following, error=error, Kind=WorkspaceKind, Status=WorkspaceStatus,
        term=lambda text: words.term(view.language, text), quote=lambda text: quote(text, safe="~"),
    )  # fmt: skip


@cache
def _zones() -> list[str]:
    return sorted(available_timezones())


class AllSpaces(Page):
    """Every workspace, by its name."""

    async def get(self) -> None:
        await show_rows(self)


class ArchiveSpace(Page):
    """Close one for new starts; what cannot be is told on the list."""

    async def get(self, name: str) -> None:
        self.back("admin/spaces")

    async def post(self, name: str) -> None:
        try:
            await self.do(_ROUTES[spaces.archive_workspace], {"workspace": name})
        except RemoteGPUError as error:
            self.set_status(error.status)
            await show_rows(self, error)
            return
        self.redirect(self.address("admin/spaces") + f"?{urlencode({'search': name})}", status=303)


class NewSpace(Page):
    """Asks for what a workspace needs, and makes it."""

    async def get(self) -> None:
        await self.ask(lambda session: call_of(self, session, LIST, {}, None, None))
        self._form({"time_zone": "UTC"})

    async def post(self) -> None:
        given = {name: self.get_body_argument(name, "")[:300] for name in FIELDS}
        try:
            body = api.check(spaces.NewWorkspace, {name: value for name, value in given.items() if value})
            made = await self.do(_ROUTES[spaces.create_workspace], {}, body)
        except RemoteGPUError as error:
            self.set_status(error.status)
            self._form(given, error)
            return
        self.redirect(self.address("spaces/" + quote(made["name"], safe="~")), status=303)

    def _form(self, given: dict[str, str], error: RemoteGPUError | None = None) -> None:
        view = View(self.language)
        values = {**dict.fromkeys(FIELDS, ""), **given}
        self.show("new-space.html", view, title=view.say("New workspace"), here="admin/spaces", given=values,
                  error=error, zones=_zones())  # fmt: skip


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (r"admin/spaces", AllSpaces, {}),
    (r"admin/spaces/new", NewSpace, {}),
    (r"admin/spaces/(?P<name>[^/]+)/archive", ArchiveSpace, {}),
]
