"""The first page for admins of the hub."""

from typing import Any

from sqlalchemy.orm import Session

from ...runtime import utcnow
from ..api import call_of
from ..pages import Page, View
from . import hub_overview, overview


class AdminOverview(Page):
    """GPUs, environments and holders as they are now, and what needs attention with the page that mends it."""

    async def get(self) -> None:
        view = View(self.language, currency=self.runtime.settings.currency)

        def work(session: Session) -> overview.Overview:
            call = call_of(self, session, hub_overview.READ, {}, None, None)
            return overview.read(call.session, view, now=call.now)

        self.show("overview.html", view, title=view.say("Overview"), here="admin", found=await self.ask(work),
                  now=utcnow(), kinds=overview.KINDS)  # fmt: skip


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [(r"admin", AdminOverview, {})]
