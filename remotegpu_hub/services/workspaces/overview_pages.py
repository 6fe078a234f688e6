"""The first page for admins of the hub."""

from typing import Any, Final

from sqlalchemy.orm import Session

from ...runtime import utcnow
from ..api import Call, Needs, Route, call_of
from ..pages import Page, View
from . import overview


def read_overview(call: Call) -> Any:
    return overview.read(call.session, call.query, now=call.now)


OVERVIEW: Final = Route("GET", "overview", "The hub at a glance", Needs.HUB_ADMIN, read_overview)


class AdminOverview(Page):
    """GPUs, environments and holders as they are now, and what needs attention with the page that mends it."""

    async def get(self) -> None:
        view = View(self.language, currency=self.runtime.settings.currency)

        def work(session: Session) -> overview.Overview:
            found: overview.Overview = OVERVIEW.work(call_of(self, session, OVERVIEW, {}, view, None))
            return found

        self.show("overview.html", view, title=view.say("Overview"), here="admin", found=await self.ask(work),
                  now=utcnow(), kinds=overview.KINDS)  # fmt: skip


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [(r"admin", AdminOverview, {})]
