"""Addresses that are told of events: which kinds, under which secret, and how far each delivery has come.

The secret is derived from a salt in the row and a key that only a file of mode 600 holds, so neither the database nor
a copy of it can sign. A check of the secret stands in the row: if the key is ever another one, nothing is sent under a
signature that the receiver would refuse; its admin is told instead.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from ..errors import Conflict, Invalid, NotFound
from ..observed import Reply
from ..orm import Delivery, DeliveryState, Event, EventKind, Webhook
from . import events
from .audit import Actor, record
from .events import Happened

MOST_WEBHOOKS: Final = 20
MOST_URL: Final = 2000
GIVEN_UP_AFTER: Final = timedelta(hours=24)
JITTER: Final = 0.2
"""A pause is up to a fifth shorter or longer, so that what failed together is not tried again together."""
KINDS: Final = tuple(kind.value for kind in EventKind)
KEY_CHANGED: Final = "The hub's key is another one than when this webhook was made. Remove it and add it anew."
_jitter = Random()


def secret_of(key: str, salt: str) -> str:
    """The secret with which the receiver checks signatures."""
    made = hmac.new(key.encode(), b"webhook\0" + salt.encode(), hashlib.sha256).digest()
    return "whsec_" + base64.urlsafe_b64encode(made).decode().rstrip("=")


def check_of(secret: str) -> str:
    """Tells a secret from another one, and nothing about it."""
    return hashlib.sha256(secret.encode()).hexdigest()


def secret(webhook: Webhook, *, key: str) -> str | None:
    """The secret as its receiver knows it; None where the key was lost and it cannot be made again."""
    made = secret_of(key, webhook.salt)
    return made if hmac.compare_digest(check_of(made), webhook.check_of_secret) else None


def check_url(url: str) -> str:
    """Raises: Invalid for what is no plain http or https address."""
    url = url.strip()
    if len(url) > MOST_URL or not url.isascii() or any(not one.isprintable() or one == " " for one in url):
        raise Invalid("A webhook's address has at most {count} plain characters and no spaces.", count=MOST_URL)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Invalid("{value} is not an address: write one such as https://example.org/hook.", value=url) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise Invalid("{value} is not an address: write one such as https://example.org/hook.", value=url)
    if parts.username is not None or parts.password is not None:
        raise Invalid("A webhook's address carries no user and no password: the signature says who sends.")
    if parts.fragment:
        raise Invalid("A webhook's address has no part behind #.")
    return url


def check_kinds(kinds: Collection[str]) -> list[str]:
    """In their usual order, each once. Raises: Invalid."""
    for kind in kinds:
        if kind not in KINDS:
            raise Invalid("{value} is not a kind of event.", value=kind)
    if not kinds:
        raise Invalid("Choose at least one kind of event.")
    return [kind for kind in KINDS if kind in kinds]


def describe(webhook: Webhook) -> dict[str, Any]:
    """What the audit keeps of it."""
    return {"url": webhook.url, "kinds": list(webhook.kinds), "active": webhook.active}


def live(session: Session) -> list[Webhook]:
    """All that were not removed, oldest first."""
    return list(session.scalars(select(Webhook).where(Webhook.deleted_at.is_(None)).order_by(Webhook.id)))


def find(session: Session, *, webhook_id: int, lock: bool = False) -> Webhook:
    """Raises: NotFound."""
    query = select(Webhook).where(Webhook.id == webhook_id, Webhook.deleted_at.is_(None))
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    found = session.scalar(query)
    if found is None:
        raise NotFound("The webhook")
    return found


def create(
    session: Session, *, url: str, kinds: Collection[str], key: str, actor: Actor, now: datetime
) -> Webhook:  # fmt: skip
    """Add a webhook. Raises: Invalid, Conflict."""
    url, wanted = check_url(url), check_kinds(kinds)
    there = live(session)
    if len(there) >= MOST_WEBHOOKS:
        raise Conflict("There are {count} webhooks already. Remove one first.", count=len(there))
    _check_alone(there, url)
    salt = secrets.token_hex(16)
    made = Webhook(
        url=url, kinds=wanted, active=True, salt=salt, check_of_secret=check_of(secret_of(key, salt)), created_at=now
    )
    session.add(made)
    session.flush()
    record(session, actor=actor, action="webhook.create", entity="webhook", entity_id=made.id, now=now,
           after=describe(made))  # fmt: skip
    return made


def _check_alone(there: Sequence[Webhook], url: str) -> None:
    if any(one.url == url for one in there):
        raise Conflict("There is a webhook for this address already.")


def edit(
    session: Session, *, webhook_id: int, values: Mapping[str, Any], actor: Actor, now: datetime
) -> Webhook:  # fmt: skip
    """Change address, kinds, or whether it is told at all; what is not named stays. What already waits for a paused
    one waits on, at most as long as ever.

    Raises: NotFound, Invalid, Conflict.
    """
    webhook = find(session, webhook_id=webhook_id, lock=True)
    before = describe(webhook)
    if "url" in values:
        url = check_url(values["url"])
        _check_alone([one for one in live(session) if one.id != webhook.id], url)
        webhook.url = url
    if "kinds" in values:
        webhook.kinds = check_kinds(values["kinds"])
    if "active" in values:
        webhook.active = bool(values["active"])
    session.flush()
    after = describe(webhook)
    if after != before:
        record(session, actor=actor, action="webhook.edit", entity="webhook", entity_id=webhook.id, now=now,
               before=before, after=after)  # fmt: skip
    return webhook


def remove(session: Session, *, webhook_id: int, actor: Actor, now: datetime) -> None:
    """Tell it nothing more; its log goes with the week. Raises: NotFound."""
    webhook = find(session, webhook_id=webhook_id, lock=True)
    webhook.deleted_at, webhook.active = now, False
    session.flush()
    record(session, actor=actor, action="webhook.remove", entity="webhook", entity_id=webhook.id, now=now,
           before=describe(webhook))  # fmt: skip


_send = insert(Delivery).inline()


def tell(session: Session, *, now: datetime, limit: int) -> int:
    """Give new events their numbers, and put each on its way to the webhooks that want it: about so many rows in all.
    Returns how many events."""
    wanting = [one for one in live(session) if one.active]
    ids = events.untold(session, limit=max(limit // (1 + len(wanting)), 1))
    if not ids:
        return 0
    events.number(session, ids)
    if wanting:
        rows = session.execute(select(Event.id, Event.kind, Event.at).where(Event.id.in_(ids)).order_by(Event.number))
        made = [
            {
                "webhook_id": one.id, "event_id": number, "state": DeliveryState.WAITING, "tries": 0, "created_at": now,
                "next_try_at": now, "give_up_at": now + GIVEN_UP_AFTER, "last_error": "",
            }
            for number, kind, at in rows
            for one in wanting
            if kind in one.kinds and one.created_at <= at
        ]  # fmt: skip
        if made:
            session.connection().execute(_send, made)
    return len(ids)


@dataclass(frozen=True)
class Due:
    """One delivery to be tried now."""

    delivery_id: int
    url: str
    secret: str | None
    event: Happened


_told: Final = (Webhook.active, Webhook.deleted_at.is_(None))


def waiting(session: Session, *, now: datetime) -> list[int]:
    """Webhooks that have something to be tried now, or to be given up."""
    query = (
        select(Delivery.webhook_id)
        .join(Webhook, Webhook.id == Delivery.webhook_id)
        .where(Delivery.state == DeliveryState.WAITING, Delivery.next_try_at <= now, *_told)
        .distinct()
    )
    return list(session.scalars(query))


def due(session: Session, *, webhook_id: int, key: str, now: datetime, limit: int) -> list[Due]:
    """What is to be tried now at one webhook, in the order of the events."""
    webhook = session.scalar(select(Webhook).where(Webhook.id == webhook_id, *_told))
    if webhook is None:
        return []
    rows = session.execute(
        select(Delivery.id, Delivery.event_id)
        .where(Delivery.webhook_id == webhook_id, Delivery.state == DeliveryState.WAITING, Delivery.next_try_at <= now)
        .order_by(Delivery.next_try_at, Delivery.id)
        .limit(limit)
    ).all()
    found = events.of_ids(session, [row.event_id for row in rows])
    made = secret(webhook, key=key)
    return [Due(row.id, webhook.url, made, found[row.event_id]) for row in rows if row.event_id in found]


def afresh(session: Session, one: Due, *, key: str) -> Due | None:
    """The same delivery as it is to be made now: others may have been tried since it was read. None where its webhook
    was paused or removed meanwhile, or somebody else has made it."""
    waits = (Delivery.id == one.delivery_id, Delivery.state == DeliveryState.WAITING)
    webhook = session.scalar(select(Webhook).join(Delivery, Delivery.webhook_id == Webhook.id).where(*waits, *_told))
    return None if webhook is None else replace(one, url=webhook.url, secret=secret(webhook, key=key))


def pause(tries: int, pauses: Sequence[float]) -> timedelta:
    """How long to wait after so many tries: the pauses in their order, the last one again and again."""
    usual = pauses[min(tries, len(pauses)) - 1]
    return timedelta(seconds=usual * _jitter.uniform(1 - JITTER, 1 + JITTER))


def note(session: Session, *, delivery_id: int, reply: Reply, pauses: Sequence[float], now: datetime) -> Delivery:
    """Keep how a try went and when the next one is: the last one comes when its day is over. Raises: NotFound."""
    delivery = session.get(Delivery, delivery_id)
    if delivery is None:
        raise NotFound("The delivery")
    delivery.tries += 1
    delivery.last_try_at, delivery.last_status, delivery.last_error = now, reply.status, reply.error[:200]
    if reply.taken:
        delivery.state = DeliveryState.DELIVERED
    elif now >= delivery.give_up_at:
        delivery.state = DeliveryState.GIVEN_UP
    else:
        delivery.next_try_at = min(now + pause(delivery.tries, pauses), delivery.give_up_at)
    session.flush()
    return delivery


def note_test(session: Session, *, webhook_id: int, reply: Reply, actor: Actor, now: datetime) -> Delivery:
    """Keep a test in the log; it is not repeated."""
    made = Delivery(
        webhook_id=webhook_id, event_id=None, tries=1, created_at=now, next_try_at=now, give_up_at=now, last_try_at=now,
        state=DeliveryState.DELIVERED if reply.taken else DeliveryState.GIVEN_UP, last_status=reply.status,
        last_error=reply.error[:200],
    )  # fmt: skip
    session.add(made)
    session.flush()
    record(session, actor=actor, action="webhook.test", entity="webhook", entity_id=webhook_id, now=now,
           status=reply.status, error=reply.error[:200])  # fmt: skip
    return made


def again(session: Session, *, webhook_id: int, delivery_id: int, actor: Actor, now: datetime) -> Delivery:
    """Put an event on its way once more, under its old id, for another day. Raises: NotFound, Conflict for a test."""
    find(session, webhook_id=webhook_id)
    delivery = session.get(Delivery, delivery_id)
    if delivery is None or delivery.webhook_id != webhook_id:
        raise NotFound("The delivery")
    if delivery.event_id is None:
        raise Conflict("A test is not repeated. Send another one.")
    delivery.state, delivery.next_try_at, delivery.give_up_at = DeliveryState.WAITING, now, now + GIVEN_UP_AFTER
    session.flush()
    record(session, actor=actor, action="webhook.again", entity="webhook", entity_id=webhook_id, now=now,
           delivery=delivery_id)  # fmt: skip
    return delivery


def newest_of(session: Session, hooks: Sequence[Webhook]) -> dict[int, Delivery]:
    """The newest delivery of each of these that was tried."""
    found = {}
    for one in hooks:
        tried = select(Delivery).where(Delivery.webhook_id == one.id, Delivery.last_try_at.is_not(None))
        last = session.scalars(tried.order_by(Delivery.id.desc()).limit(1)).first()
        if last is not None:
            found[one.id] = last
    return found


def given_up(session: Session, *, now: datetime, limit: int) -> int:
    """End what waits for a webhook that was paused or removed, once its day is over. Returns how many."""
    late = (
        select(Delivery.id)
        .where(Delivery.state == DeliveryState.WAITING, Delivery.give_up_at < now - timedelta(hours=1))
        .limit(limit)
    )
    ended: Any = session.execute(
        update(Delivery)
        .where(Delivery.id.in_(late))
        .values(state=DeliveryState.GIVEN_UP)
        .execution_options(synchronize_session=False)
    )
    return int(ended.rowcount)
