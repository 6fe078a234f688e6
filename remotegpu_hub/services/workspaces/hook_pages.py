"""The page of webhooks for admins of the hub: what is told where, how that went last, and the log of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from ...domain import webhooks as street
from ...errors import Invalid, RemoteGPUError
from ...orm import Delivery, DeliveryState, Webhook
from ...runtime import utcnow
from ..api import Call, Needs, Route, call_of, check, tag_of, write
from ..pages import Page, View
from ..paging import MOST_CURSOR, Paging
from . import webhooks

HERE = "admin/webhooks"
A_PAGE = 20


def words_of(view: View) -> dict[str, str]:
    """The kinds of events in the reader's language, in their usual order."""
    return {
        "environment.creating": view.say("An environment is starting"),
        "environment.started": view.say("An environment runs"),
        "environment.stopping": view.say("An environment is stopping"),
        "environment.stopped": view.say("An environment has stopped"),
        "environment.failed": view.say("An environment has failed"),
        "environment.deleted": view.say("An environment was deleted"),
        "environment.deadline": view.say("An environment will be stopped soon"),
        "environment.spared": view.say("An environment will not be stopped after all"),
        "quota.threshold": view.say("A limit is at 80, 90 or 100 %"),
        "budget.threshold": view.say("A budget is at its warning, or spent"),
        "test": view.say("Test"),
    }


@dataclass(frozen=True)
class Row:
    webhook: Webhook
    last: Delivery | None
    """The newest one that was tried."""
    seen: str
    """ETag of what is shown, for the form."""


@dataclass(frozen=True)
class Found:
    rows: list[Row]
    focus: Webhook | None
    log: list[dict[str, Any]]
    """Of the one in focus."""
    older: str | None
    """Cursor."""


def read_page(call: Call) -> Found:
    asked: Mapping[str, str] = call.query
    hooks = street.live(call.session)
    last = street.newest_of(call.session, hooks)
    focus = next((one for one in hooks if str(one.id) == asked["focus"]), None)
    log: list[dict[str, Any]] = []
    older = None
    if focus is not None:
        given = {"limit": A_PAGE, **({"cursor": asked["cursor"]} if asked["cursor"] else {})}
        log, older = webhooks.log_of(call, focus, check(Paging, given))
    return Found([Row(one, last.get(one.id), tag_of(write(_EDIT, one))) for one in hooks], focus, log, older)


SHOW = Route("GET", HERE, "The page of webhooks", Needs.HUB_ADMIN, read_page)
_ROUTES = {route.work: route for route in webhooks.ROUTES}
_EDIT = _ROUTES[webhooks.edit_webhook]


async def show(
    page: Page, *, error: RemoteGPUError | None = None, secret: str = "", url: str = "", kinds: tuple[str, ...] = (),
    focus: str = "",
) -> None:  # fmt: skip
    """Render the page, with what went wrong, or with the secret of a webhook that was just made."""
    view = View(page.language)
    query = {
        "focus": focus or page.get_query_argument("focus", "")[:20],
        "cursor": page.get_query_argument("cursor", "")[:MOST_CURSOR],
    }
    found = await page.ask(lambda session: SHOW.work(call_of(page, session, SHOW, {}, query, None)))

    def link(**changed: str) -> str:
        return page.address(HERE) + (f"?{urlencode(changed)}" if changed else "")

    page.show(
        "webhooks.html", view, title=view.say("Webhooks"), here=HERE, found=found, error=error, secret=secret, url=url,
        kinds=kinds, words=words_of(view), link=link, now=utcnow(), State=DeliveryState, query=query,
        default_kinds=("environment.started", "environment.stopped", "environment.failed", "quota.threshold",
                       "budget.threshold"),
    )  # fmt: skip


class Webhooks(Page):
    """All webhooks; a new one is answered with its secret at once, since no later page could show it."""

    async def get(self) -> None:
        await show(self)

    async def post(self) -> None:
        url, kinds = self.get_body_argument("url", "")[: street.MOST_URL], tuple(self.get_body_arguments("kinds")[:20])
        try:
            if not kinds:
                raise Invalid("Choose at least one kind of event.")
            body = check(webhooks.NewWebhook, {"url": url, "kinds": list(kinds)})
            made = await self.do(_ROUTES[webhooks.create_webhook], {}, body)
        except RemoteGPUError as error:
            self.set_status(error.status)
            await show(self, error=error, url=url, kinds=kinds)
            return

        def read(session: Any) -> str:
            row = street.find(session, webhook_id=made["id"])
            return street.secret(row, key=self.runtime.settings.webhook_key) or ""

        await show(self, secret=await self.ask(read), focus=str(made["id"]))


class ChangeWebhook(Page):
    """Test, pause, go on, change or remove one; send an event again."""

    async def get(self, id: str, verb: str, delivery: str = "") -> None:
        self.back(HERE)

    async def post(self, id: str, verb: str, delivery: str = "") -> None:
        path, told, body, seen = {"id": id}, verb, None, None
        try:
            if verb in ("pause", "resume"):
                work, body = webhooks.edit_webhook, webhooks.WebhookEdit(active=verb == "resume")
            elif verb == "edit":
                given = {"url": self.get_body_argument("url", ""), "kinds": self.get_body_arguments("kinds")}
                work, body = webhooks.edit_webhook, check(webhooks.WebhookEdit, given)
                seen = self.get_body_argument("seen", "")
            elif verb == "again":
                work, path["delivery"] = webhooks.deliver_again, delivery
            else:
                work = webhooks.test_webhook if verb == "test" else webhooks.remove_webhook
            await self.do(_ROUTES[work], path, body, seen=seen)
        except RemoteGPUError as error:
            self.set_status(error.status)
            await show(self, error=error, focus=id)
            return
        kept = {"told": told} if verb == "remove" else {"focus": id, "told": told}
        self.redirect(self.address(HERE) + f"?{urlencode(kept)}", status=303)


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (HERE, Webhooks, {}),
    (rf"{HERE}/(?P<id>[0-9]+)/(?P<verb>test|pause|resume|edit|remove)", ChangeWebhook, {}),
    (rf"{HERE}/(?P<id>[0-9]+)/deliveries/(?P<delivery>[0-9]+)/(?P<verb>again)", ChangeWebhook, {}),
]
