"""Pages of who decides requests: admins of the hub, and owners and admins of a workspace for those inside it."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from sqlalchemy.orm import Session

from ...domain import requests
from ...errors import RemoteGPUError
from ...orm import QuotaRequest, RequestState
from ...runtime import utcnow
from ..api import Route, call_of, check
from ..pages import Page, View
from . import amounts, limit_pages, quota_pages
from . import requests as routes
from .amounts import Amount
from .limit_pages import ROUTE, typed_limits, typed_text, where

AT_ONCE = 20


@dataclass(frozen=True)
class Card:
    """One request, with what its level allows and holds now."""

    request: QuotaRequest
    where: str
    amounts: list[Amount]
    """With what is wanted as what is typed."""
    wanted: dict[str, str]
    hours: list[Amount]
    """GPU hours, where GPUs are wanted, no hours are, and there are none: without them no GPU starts."""
    granted: list[str]


@dataclass(frozen=True)
class Cards:
    cards: list[Card]
    more: str | None


def read_cards(
    session: Session, page: Page, view: View, route: Route, path: dict[str, str], *, state: RequestState, inside: bool
) -> Cards:
    """Up to 20 requests of a list, of the open ones the oldest first. One statement for each tells what it has now."""
    query = {
        "limit": AT_ONCE, "state": state.value, "inside": inside, "cursor": page.get_query_argument("cursor", None),
        "sort": "id" if state == RequestState.OPEN else "-id",
    }  # fmt: skip
    items, more = route.work(call_of(page, session, route, path, check(route.query, query), None))
    return Cards([_card(session, view, one) for one in limit_pages.rows(session, items)], more)


def _card(session: Session, view: View, request: QuotaRequest) -> Card:
    wanted = requests.read(request.wanted)
    level = requests.level_of(
        session, scope=request.scope, workspace=request.workspace, user=request.asker, now=utcnow()
    )  # fmt: skip
    gpus = any(name == "gpu_millis" or name.startswith("gpu:") for name in wanted)
    lacks = gpus and "gpu_hours" not in wanted and not level.limits["gpu_hours"]
    return Card(
        request=request,
        where=where(view, request),
        amounts=[amounts.amount(view, level, name, value) for name, value in wanted.items()],
        wanted={name: amounts.words(view, name, value) for name, value in wanted.items()},
        hours=[amounts.amount(view, level, "gpu_hours")] if lacks else [],
        granted=amounts.in_words(view, request.granted or {}),
    )


def _state(page: Page) -> RequestState:
    wanted = page.get_query_argument("state", "open")
    return next((one for one in RequestState if one.value == wanted), RequestState.OPEN)


async def show_all(page: Page, error: RemoteGPUError | None = None) -> None:
    """Render what admins of the hub decide, and below it quotas and budgets."""
    view = View(page.language, currency=page.runtime.settings.currency)
    state = _state(page)
    members = bool(page.get_query_argument("members", ""))
    search, after = (page.get_query_argument(one, "")[:100].replace("\0", "") for one in ("search", "budgets"))

    def work(session: Session) -> tuple[Cards, int, int, quota_pages.Found]:
        route = ROUTE[routes.list_all_quota_requests]
        cards = read_cards(session, page, view, route, {}, state=state, inside=members)
        counts = requests.count_open(session), requests.count_open(session, for_hub=False)
        return cards, *counts, quota_pages.find(session, view, search, after)

    cards, waiting, of_members, found = await page.ask(work)
    view = View(page.language, currency=found.currency)

    def link(**changed: str) -> str:
        kept = {"state": state.value, "members": "yes" if members else "", "search": search, **changed}
        kept = {name: value for name, value in kept.items() if value and (name, value) != ("state", "open")}
        return page.address("admin/quotas") + (f"?{urlencode(kept)}" if kept else "")

    page.show(
        "quotas.html", view, title=view.say("Quotas and requests"), here="admin/quotas", cards=cards, error=error,
        open_requests=waiting, of_members=of_members, members=members, state=state, State=RequestState, link=link,
        search=search, found=found, most=requests.MOST_CHARACTERS, decide_at="admin/quotas",
        query=lambda **given: urlencode(given),
    )  # fmt: skip


async def show_inside(page: Page, name: str, error: RemoteGPUError | None = None) -> None:
    """Render what members of one workspace ask for inside it."""
    view = View(page.language)
    state = _state(page)

    def work(session: Session) -> tuple[Cards, str]:
        route, path = ROUTE[routes.list_quota_requests_of_workspace], {"workspace": name}
        cards = read_cards(session, page, view, route, path, state=state, inside=True)
        return cards, call_of(page, session, route, path, None, None).space.display_name

    cards, display_name = await page.ask(work)
    here = f"spaces/{quote(name)}/requests"

    def link(**changed: str) -> str:
        kept = {key: value for key, value in {"state": state.value, **changed}.items() if value not in ("", "open")}
        return page.address(here) + (f"?{urlencode(kept)}" if kept else "")

    page.show(
        "space_requests.html", view, title=view.say("Requests in {workspace}", workspace=display_name), here="spaces",
        cards=cards, error=error, state=state, State=RequestState, link=link, most=requests.MOST_CHARACTERS,
        decide_at=f"spaces/{quote(name)}", space=f"spaces/{quote(name)}",
    )  # fmt: skip


class AllRequests(Page):
    """Open requests first, then quotas and budgets."""

    async def get(self) -> None:
        await show_all(self)


class RequestsInside(Page):
    """What members of a workspace ask of its owners and admins."""

    async def get(self, name: str) -> None:
        await show_inside(self, name)


class Decide(Page):
    """Approve or refuse one request, on the page of the hub or of a workspace."""

    async def get(self, id: str, verb: str, name: str = "") -> None:
        self.back(self._list(name))

    async def post(self, id: str, verb: str, name: str = "") -> None:
        try:
            if verb == "refuse":
                body = check(routes.Refusal, {"answer": typed_text(self, "answer")})
                await self.do(ROUTE[routes.refuse_quota_request], {"id": id}, body)
            else:
                await self.do(ROUTE[routes.approve_quota_request], {"id": id}, self._approval())
        except RemoteGPUError as error:
            self.set_status(error.status)
            await (show_inside(self, name, error) if name else show_all(self, error))
            return
        self.back(self._list(name), told="refused" if verb == "refuse" else "approved")

    def _list(self, name: str) -> str:
        return f"spaces/{quote(name)}/requests" if name else "admin/quotas"

    def _approval(self) -> Any:
        """What was asked for; or, of the form with numbers, these."""
        if not self.get_body_argument("numbers", ""):
            return check(routes.Approval, {})
        answer = self.get_body_argument("answer", "").replace("\r\n", "\n")
        lower = self.get_body_argument("lower", "") == "yes"
        return check(
            routes.Approval, {"limits": amounts.shape(typed_limits(self)), "answer": answer, "lower": lower}
        )  # fmt: skip


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (r"admin/quotas", AllRequests, {}),
    (r"admin/quotas/requests/(?P<id>[0-9]+)/(?P<verb>approve|refuse)", Decide, {}),
    (r"spaces/(?P<name>[^/]+)/requests", RequestsInside, {}),
    (r"spaces/(?P<name>[^/]+)/requests/(?P<id>[0-9]+)/(?P<verb>approve|refuse)", Decide, {}),
]
