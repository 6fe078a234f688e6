"""Routes of webhooks: addresses that are told of events by a signed POST, and how that went."""

import asyncio
import json
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlsplit
from uuid import uuid4

from pydantic import Field, StrictBool
from sqlalchemy import select

from ...clients import networks
from ...clients import webhooks as receivers
from ...db import begin
from ...domain import events, webhooks
from ...errors import Conflict, Invalid
from ...observed import Reply
from ...orm import Delivery, DeliveryState, EventKind, Webhook
from ...runtime import utcnow
from ..api import Call, Later, Needs, Route, Shape
from ..paging import Paging, page

Kinds = Annotated[list[EventKind], Field(min_length=1, max_length=len(EventKind))]
Url = Annotated[str, Field(max_length=webhooks.MOST_URL, description="http or https, best https; no user in it.")]
TEST: str = "test"


class WebhookShown(Shape):
    id: int
    url: str
    kinds: list[EventKind]
    active: bool
    created_at: datetime


class WebhookMade(WebhookShown):
    secret: str = Field(description="Checks signatures. It is told here and never again.")


class NewWebhook(Shape):
    url: Url
    kinds: Kinds


class WebhookEdit(Shape):
    """What is not named stays."""

    url: Url | None = None
    kinds: Kinds | None = None
    active: StrictBool | None = Field(None, description="False: nothing is told until it is true again.")


class Tested(Shape):
    delivered: bool
    status: int | None = Field(description="HTTP status of the receiver; null: it said nothing.")
    error: str = Field(description="What went wrong; empty when it was taken.")
    said: str = Field(description="The beginning of the receiver's answer.")
    milliseconds: int


class DeliveryShown(Shape):
    id: int
    event_id: int | None = Field(description="Null: a test.")
    kind: str
    state: DeliveryState
    tries: int
    created_at: datetime
    next_try_at: datetime | None
    last_try_at: datetime | None
    last_status: int | None
    last_error: str


def list_webhooks(call: Call) -> Any:
    query = select(Webhook).where(Webhook.deleted_at.is_(None))
    return page(call.session, query, call.query, sorts={"id": (Webhook.id,)}, sort="id", shown=lambda one: one)


def read_webhook(call: Call) -> Webhook:
    return webhooks.find(call.session, webhook_id=call.number("id"), lock=call.locked)


def create_webhook(call: Call) -> Any:
    given: NewWebhook = call.body
    _check_reach(call, given.url)
    made = webhooks.create(
        call.session, url=given.url, kinds=[one.value for one in given.kinds], key=call.runtime.settings.webhook_key,
        actor=call.actor, now=call.now,
    )  # fmt: skip
    return {**{name: getattr(made, name) for name in WebhookShown.model_fields}, "secret": ""}


def _check_reach(call: Call, url: str) -> None:
    """Tell at once what would never be sent; what a name stands for is looked at with each event. Raises: Invalid."""
    with suppress(ValueError):  # the street says what is wrong with it
        address = networks.literal(urlsplit(url).hostname or "")
        if address is not None and not networks.allowed(address, call.runtime.webhook_networks):
            raise Invalid(
                "{value} is this machine or its neighbourhood, which webhooks may not reach unless "
                "c.RemoteGPU.webhook_networks allows it.", value=str(address),
            )  # fmt: skip


def add_secret(call: Call, text: str) -> str:
    """The answer with the secret, which is kept nowhere: also where the creation is repeated."""
    told = json.loads(text)
    webhook = webhooks.find(call.session, webhook_id=told["id"])
    told["secret"] = webhooks.secret(webhook, key=call.runtime.settings.webhook_key) or ""
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"))


def edit_webhook(call: Call) -> Any:
    given: WebhookEdit = call.body
    if given.url is not None:
        _check_reach(call, given.url)
    values: dict[str, Any] = given.model_dump(exclude_unset=True, exclude_none=True)
    if "kinds" in values:
        values["kinds"] = [one.value for one in values["kinds"]]
    return webhooks.edit(
        call.session, webhook_id=call.number("id"), values=values, actor=call.actor, now=call.now
    )  # fmt: skip


def remove_webhook(call: Call) -> None:
    webhooks.remove(call.session, webhook_id=call.number("id"), actor=call.actor, now=call.now)


def test_webhook(call: Call) -> Later:
    webhook = webhooks.find(call.session, webhook_id=call.number("id"))
    secret = webhooks.secret(webhook, key=call.runtime.settings.webhook_key)
    if secret is None:
        raise Conflict(webhooks.KEY_CHANGED)
    number, url, runtime = webhook.id, webhook.url, call.runtime
    event: dict[str, Any] = {
        "at": call.now.isoformat(), "id": f"test-{uuid4().hex[:12]}", "kind": TEST, "workspace": None,
        "user": call.caller.name, "environment_id": None, "detail": {},
    }  # fmt: skip

    def note(reply: Reply) -> None:
        with begin(runtime.engine) as session:
            webhooks.note_test(session, webhook_id=number, reply=reply, actor=call.actor, now=utcnow())

    async def act() -> dict[str, Any]:
        async with receivers.client() as http:
            reply = await receivers.send(
                http, url=url, secret=secret, event=event, now_seconds=int(utcnow().timestamp()),
                more=runtime.webhook_networks,
            )  # fmt: skip
        await asyncio.wrap_future(runtime.submit(note, reply))
        return {
            "delivered": reply.taken, "status": reply.status, "error": reply.error, "said": reply.said,
            "milliseconds": reply.milliseconds,
        }  # fmt: skip

    return Later(act)


def list_deliveries(call: Call) -> Any:
    return log_of(call, webhooks.find(call.session, webhook_id=call.number("id")), call.query)


def log_of(call: Call, webhook: Webhook, paging: Paging) -> tuple[list[dict[str, Any]], str | None]:
    """One page of what was sent to a webhook, newest first."""
    query = select(Delivery).where(Delivery.webhook_id == webhook.id)
    rows, following = page(
        call.session, query, paging, sorts={"id": (Delivery.id,)}, sort="-id", shown=lambda one: one
    )  # fmt: skip
    return shown(call, rows), following


def shown(call: Call, rows: list[Delivery]) -> list[dict[str, Any]]:
    """Deliveries with the events that they are of, in one more statement."""
    found = events.of_ids(call.session, [row.event_id for row in rows if row.event_id is not None])
    told = []
    for row in rows:
        event = found[row.event_id] if row.event_id is not None else None
        columns = ("id", "state", "tries", "created_at", "last_try_at", "last_status", "last_error")
        told.append(
            {
                **{name: getattr(row, name) for name in columns},
                "event_id": event.id if event else None,
                "kind": event.kind if event else TEST,
                "next_try_at": row.next_try_at if row.state == DeliveryState.WAITING else None,
            }
        )
    return told


def deliver_again(call: Call) -> Any:
    row = webhooks.again(
        call.session, webhook_id=call.number("id"), delivery_id=call.number("delivery"), actor=call.actor, now=call.now
    )
    return shown(call, [row])[0]


ROUTES = [
    Route("GET", "webhooks", "List webhooks", Needs.HUB_ADMIN, list_webhooks, answers=WebhookShown, query=Paging,
          listing=True),
    Route("POST", "webhooks", "Add a webhook; the answer tells its secret, once", Needs.HUB_ADMIN, create_webhook,
          answers=WebhookMade, body=NewWebhook, status=201, adds=add_secret),
    Route("GET", "webhooks/{id}", "Read a webhook", Needs.HUB_ADMIN, read_webhook, answers=WebhookShown, etag=True),
    Route("PATCH", "webhooks/{id}", "Change its address or kinds, pause it or let it go on", Needs.HUB_ADMIN,
          edit_webhook, answers=WebhookShown, body=WebhookEdit, etag=True, shows=read_webhook),
    Route("DELETE", "webhooks/{id}", "Remove a webhook", Needs.HUB_ADMIN, remove_webhook,
          shows=read_webhook, shown_as=WebhookShown),
    Route("POST", "webhooks/{id}/test", "Send it an event of the kind `test` now, and tell what it said",
          Needs.HUB_ADMIN, test_webhook, answers=Tested),
    Route("GET", "webhooks/{id}/deliveries", "List what was sent to it, newest first", Needs.HUB_ADMIN,
          list_deliveries, answers=DeliveryShown, query=Paging, listing=True),
    Route("POST", "webhooks/{id}/deliveries/{delivery}/again", "Send it this event once more", Needs.HUB_ADMIN,
          deliver_again, answers=DeliveryShown, status=202),
]  # fmt: skip
