"""My limits: what is held of each, asking for more, and what became of it."""

from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from ...domain import quotas, requests, workspaces
from ...domain.quotas import Level
from ...errors import Invalid, NotFound, RemoteGPUError
from ...orm import Member, QuotaRequest, QuotaScope, RequestState, Role, Workspace, WorkspaceKind
from ...runtime import utcnow
from ...units import UNLIMITED
from ..api import call_of, check
from ..pages import Bar, Page, View
from . import amounts
from . import requests as routes
from .amounts import Amount
from .pages import _bars

MANAGERS = (Role.OWNER, Role.ADMIN)
MINE = 20
"""Requests that the page shows at once."""
ROUTE = {route.work: route for route in routes.ROUTES}


@dataclass(frozen=True)
class Section:
    """One level with its bars; `ask` leads to asking for more of it, where its reader may."""

    name: str
    bars: list[Bar]
    ask: str
    hint: str = ""


@dataclass(frozen=True)
class Limits:
    sections: list[Section]
    without_gpus: str
    """Where to ask for a GPU, for who can start with none anywhere."""
    to_decide: list[tuple[str, str, int]]
    """Workspaces of which the reader decides requests: name, display name, how many wait."""
    mine: list[QuotaRequest]
    more: str | None


def asking(scope: QuotaScope, workspace: Workspace | None = None) -> str:
    """The query of the form."""
    return urlencode({"scope": scope.value, **({"workspace": workspace.name} if workspace else {})})


def read_limits(session: Session, page: Page, view: View) -> Limits:
    """All levels of the reader, and what they asked for."""
    user, now = page.caller(session), utcnow()
    members = workspaces.of_user(session, user=user)
    own = requests.level_of(session, scope=QuotaScope.USER, workspace=None, user=user, now=now)
    sections = [
        Section(view.say("You, everywhere"), _bars(view, own), asking(QuotaScope.USER) if _limited(own) else "")
    ]
    room: list[tuple[Member, bool]] = []
    for member in members:
        space = member.workspace
        found = quotas.levels(session, user_id=user.id, workspace_id=space.id, time_zone=space.time_zone, now=now)
        whole, inside = found["workspace"], found["member"]
        manages = member.role in MANAGERS
        room.append((member, _gpus(whole) and _gpus(inside)))
        sections.append(
            Section(
                _name(view, space), _bars(view, whole),
                asking(QuotaScope.WORKSPACE, space) if manages and _limited(whole) else "",
                "" if manages else view.say("Its owners and admins ask for more."),
            )
        )  # fmt: skip
        bars = _bars(view, inside, only_limited=True)
        if bars:
            ask = asking(QuotaScope.MEMBER, space) if member.role != Role.VIEWER else ""
            sections.append(Section(view.say("You, in {workspace}", workspace=space.display_name), bars, ask))
    mine, more = _mine(session, page)
    return Limits(sections, _without_gpus(own, room), _to_decide(session, members), mine, more)


def _limited(level: Level) -> bool:
    return any(value < UNLIMITED for value in (*level.limits.values(), *level.slot_limits.values()))


def _gpus(level: Level) -> bool:
    """Whether a level lets a GPU run at all: it takes both, one to hold and hours to use it."""
    return bool(level.limits["gpu_millis"] and level.limits["gpu_hours"])


def _without_gpus(own: Level, room: list[tuple[Member, bool]]) -> str:
    """Where to ask first, for who may hold no GPU in any workspace."""
    if not _gpus(own):
        return asking(QuotaScope.USER)
    if any(allowed and one.role != Role.VIEWER for one, allowed in room):
        return ""
    managed = next((one for one, _ in room if one.role in MANAGERS), None)
    return asking(QuotaScope.WORKSPACE, managed.workspace) if managed else ""


def _to_decide(session: Session, members: list[Member]) -> list[tuple[str, str, int]]:
    managed = {one.workspace_id: one.workspace for one in members if one.role in MANAGERS}
    waiting = (
        select(QuotaRequest.workspace_id, func.count())
        .where(
            QuotaRequest.workspace_id.in_(managed),
            QuotaRequest.scope == QuotaScope.MEMBER,
            QuotaRequest.state == RequestState.OPEN,
        )
        .group_by(QuotaRequest.workspace_id)
    )
    return [
        (managed[number].name, managed[number].display_name, count)
        for number, count in session.execute(waiting)
        if number is not None
    ]


def _mine(session: Session, page: Page) -> tuple[list[QuotaRequest], str | None]:
    """The reader's requests, newest first, from the cursor of the query on."""
    route = ROUTE[routes.list_quota_requests]
    query = check(route.query, {"limit": MINE, "cursor": page.get_query_argument("cursor", None)})
    call = call_of(page, session, route, {}, query, None)
    items, following = route.work(call)
    return rows(session, items), following


def rows(session: Session, items: list[dict[str, Any]]) -> list[QuotaRequest]:
    """The rows of requests that a route listed, in its order, with what pages tell of them."""
    wanted = (selectinload(QuotaRequest.asker), selectinload(QuotaRequest.workspace))
    ids = [one["id"] for one in items]
    found = {
        one.id: one for one in session.scalars(select(QuotaRequest).where(QuotaRequest.id.in_(ids)).options(*wanted))
    }
    return [found[number] for number in ids if number in found]  # what went meanwhile is left out


async def show_limits(page: Page, error: RemoteGPUError | None = None) -> None:
    """Render the limits, with what went wrong."""
    view = View(page.language)

    found = await page.ask(lambda session: read_limits(session, page, view))
    page.show(
        "limits.html", view, title=view.say("My limits"), here="limits", found=found, error=error,
        State=RequestState, where=lambda one: where(view, one, mine=True),
        said=lambda kept: amounts.in_words(view, kept), older=urlencode({"cursor": found.more or ""}),
    )  # fmt: skip


def _name(view: View, space: Workspace, *, mine: bool = True) -> str:
    if space.kind != WorkspaceKind.PERSONAL:
        return space.display_name
    return view.say("Your personal workspace") if mine else view.say("the personal workspace {name}", name=space.name)


def where(view: View, request: QuotaRequest, *, mine: bool = False) -> str:
    """Which level a request is about, as its asker or as who decides reads it."""
    space = request.workspace.display_name if request.workspace else ""
    if request.scope == QuotaScope.WORKSPACE and request.workspace:
        name = _name(view, request.workspace, mine=mine)
        whole = request.workspace.kind != WorkspaceKind.PERSONAL
        return view.say("all of {workspace}", workspace=name) if whole else name
    if request.scope == QuotaScope.MEMBER:
        return view.say("You, in {workspace}" if mine else "only inside {workspace}", workspace=space)
    return view.say("You, everywhere" if mine else "everywhere")


class MyLimits(Page):
    """The reader's own limits and, in each workspace, what is left of the workspace's and of theirs inside it."""

    async def get(self) -> None:
        await show_limits(self)


class Withdraw(Page):
    """Take a request back."""

    async def get(self, id: str) -> None:
        self.back("limits")

    async def post(self, id: str) -> None:
        try:
            await self.do(ROUTE[routes.withdraw_quota_request], {"id": id})
        except RemoteGPUError as error:
            self.set_status(error.status)
            await show_limits(self, error)
            return
        self.back("limits", told="withdrawn")


class AskForMore(Page):
    """Which limits of a level, how much, and why."""

    async def get(self) -> None:
        await self.render_form()

    async def render_form(self, error: RemoteGPUError | None = None) -> None:
        view = View(self.language)
        scope, workspace = self._named()

        def work(session: Session) -> tuple[str, list[Amount], bool]:
            user = self.caller(session)
            members = {one.workspace.name: one.workspace for one in workspaces.of_user(session, user=user)}
            space = members.get(workspace or "")
            if scope != QuotaScope.USER and space is None:
                raise NotFound("The workspace")
            level = requests.level_of(session, scope=scope, workspace=space, user=user, now=utcnow())
            found = [
                amounts.amount(view, level, name, typed=self.get_body_argument(name, ""))
                for name in amounts.names(level)
                if requests.limit(level, name) < UNLIMITED
            ]
            shown = _name(view, space) if space else view.say("You, everywhere")
            if scope == QuotaScope.MEMBER:
                shown = view.say("You, in {workspace}", workspace=shown)
            return shown, found, not level.limits["gpu_hours"]

        name, found, no_hours = await self.ask(work)
        self.show(
            "ask.html", view, title=view.say("Ask for more"), here="limits", name=name, amounts=found, error=error,
            scope=scope.value, workspace=workspace or "", reason=self.get_body_argument("reason", ""),
            until=self.get_body_argument("until", ""), most=requests.MOST_CHARACTERS, no_hours=no_hours,
        )  # fmt: skip

    def _named(self) -> tuple[QuotaScope, str | None]:
        try:
            scope = QuotaScope(self.get_argument("scope", "user"))
        except ValueError:
            raise NotFound("This page") from None
        if scope not in (QuotaScope.USER, QuotaScope.WORKSPACE, QuotaScope.MEMBER):
            raise NotFound("This page")
        return scope, None if scope == QuotaScope.USER else self.get_argument("workspace", "")

    async def post(self) -> None:
        scope, workspace = self._named()
        try:
            given = check(
                routes.NewRequest,
                {
                    "scope": scope.value, "workspace": workspace, "limits": amounts.shape(typed_limits(self)),
                    "reason": typed_text(self, "reason"), "needed_until": self._until(),
                },
            )  # fmt: skip
            await self.do(ROUTE[routes.create_quota_request], {}, given)
        except RemoteGPUError as error:
            self.set_status(error.status)
            await self.render_form(error)
            return
        self.back("limits", told="asked")

    def _until(self) -> datetime | None:
        """The end of the day that was typed."""
        text = self.get_body_argument("until", "")
        try:
            day = datetime.fromisoformat(text).date() if text else None
        except ValueError:
            raise Invalid("{value} is not a day: write one such as 2026-12-31.", value=text) from None
        return datetime.combine(day, time(23, 59, 59), UTC) if day else None


def typed_limits(page: Page) -> dict[str, int]:
    """The limits that were typed into a form. Raises: Invalid."""
    found = {}
    for name in page.request.body_arguments:
        if amounts.is_limit(name):
            unlimited = page.get_body_argument(f"unlimited:{name}", "") == "yes"
            value = amounts.read(name, page.get_body_argument(name, ""), unlimited=unlimited)
            if value is not None:
                found[name] = value
    return found


def typed_text(page: Page, name: str) -> str:
    """A reason or an answer that must be there. Raises: Invalid."""
    text = page.get_body_argument(name, "").replace("\r\n", "\n")
    if not 1 <= len(text) <= requests.MOST_CHARACTERS:
        raise Invalid("Say why in 1 to {count} characters.", count=requests.MOST_CHARACTERS)
    return text


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (r"limits", MyLimits, {}),
    (r"limits/ask", AskForMore, {}),
    (r"limits/requests/(?P<id>[0-9]+)/withdraw", Withdraw, {}),
]
