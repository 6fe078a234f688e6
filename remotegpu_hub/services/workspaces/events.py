"""What happens, as a list and as a stream. All streams of the process live on one reader of the table, which looks
only while somebody listens, and reads everybody's rights together with what is new."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from tornado.iostream import StreamClosedError

from ...db import begin
from ...domain import events, workspaces
from ...domain.events import Happened, Sight
from ...errors import Denied, Invalid, Unavailable
from ...orm import Event, EventKind
from ...runtime import Runtime
from .. import streams
from ..api import LARGEST, Api, Call, Needs, Route, Shape, call_of
from ..base import log
from ..paging import Paging, page
from .runs import find, may_read

MOST_WAITING: Final = 500
"""Events that wait for a listener who reads slowly; then the stream ends, and they may go on from where they were."""
LOOK_SECONDS: Final = 1.0
RIGHTS_SECONDS: Final = 8.0
"""How old rights may be where nothing happens; with each event they are read anew."""
TOKEN_SECONDS: Final = 20.0
BEAT_SECONDS: Final = 15.0
SEND_SECONDS: Final = 30.0
BATCH: Final = 200
STREAM: Final = "text/event-stream"


class EventShown(Shape):
    id: int = Field(description="Grows in the order in which events are told.")
    at: datetime
    kind: EventKind
    workspace: str | None
    user: str | None
    environment_id: int | None
    detail: dict[str, Any] = Field(description="Plain facts: names, the reason, percent.")


class EventsAsked(Paging):
    sort: Literal["-id", "id"] = "-id"
    after: int | None = Field(None, ge=0, le=LARGEST, description="Only what was told after this id.")
    kind: EventKind | None = None
    mine: bool = Field(False, description="Only about what is the caller's own.")


def sight_of(call: Call) -> Sight:
    """Whose events the caller may see, and asks for. Raises: Denied."""
    if call.query.mine:
        return Sight(call.caller.person.id)
    if call.caller.hub_admin:
        return Sight(everything=True)
    person = call.caller.person
    found = workspaces.sights(call.session, user_ids=[person.id])
    if person.id not in found:
        raise Denied("This is for users of the hub.")
    return found[person.id]


def list_events(call: Call) -> Any:
    asked: EventsAsked = call.query
    query = select(Event).where(Event.number.is_not(None), sight_of(call).clause())
    if asked.after is not None:
        query = query.where(Event.number > asked.after)
    if asked.kind is not None:
        query = query.where(Event.kind == asked.kind.value)
    rows, following = page(
        call.session, query, asked, sorts={"id": (Event.number,)}, sort=asked.sort, shown=lambda one: one.id
    )  # fmt: skip
    found = events.of_ids(call.session, rows)
    return [found[one].plain for one in rows if one in found], following


def list_events_of_environment(call: Call) -> Any:
    one = find(call, may=Needs.MEMBER)
    query = select(Event).where(
        Event.number.is_not(None), Event.user_id == one.user_id, Event.environment_id == one.id,
        may_read(call, one, Event.workspace_id),
    )  # fmt: skip
    rows, following = page(
        call.session, query, call.query, sorts={"id": (Event.number,)}, sort="-id", shown=lambda event: event.id
    )  # fmt: skip
    found = events.of_ids(call.session, rows)
    return [found[row].plain for row in rows if row in found], following


ROUTES = [
    Route("GET", "events", "List what happened in the last week, or listen to it", Needs.SELF, list_events,
          answers=EventShown, query=EventsAsked, listing=True, streams=True),
    Route("GET", "environments/{id}/events", "List what happened to it in the last week, newest first", Needs.SELF,
          list_events_of_environment, answers=EventShown, query=Paging, listing=True),
]  # fmt: skip


@dataclass(eq=False)
class Listener:
    """One open stream."""

    user: int | None
    """Whose rights count, by our id, which a rename leaves as it is; None: a service, which may see all while its token
    is good."""
    sight: Sight
    kind: str | None
    mine: bool = False
    begins: int = 0
    """What was told up to here comes from the table, the rest by `tell`."""
    waiting: list[Happened] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False

    def tell(self, found: Sequence[Happened]) -> None:
        mine = [one for one in found if self.wants(one)]
        if not mine:
            return
        if len(self.waiting) + len(mine) > MOST_WAITING:
            self.end()
            return
        self.waiting += mine
        self.news.set()

    def wants(self, event: Happened) -> bool:
        return self.kind in (None, event.kind) and self.sight.sees(event)

    def end(self) -> None:
        self.ended = True
        self.news.set()

    def take(self) -> list[Happened]:
        taken, self.waiting = self.waiting, []
        self.news.clear()
        return taken


class Feed:
    """The one reader for all listeners of this process."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._last = 0
        self._turn = asyncio.Lock()
        self._somebody = asyncio.Event()

    async def join(self, runtime: Runtime, listener: Listener) -> None:
        """From now on it is told what is new."""
        async with self._turn:
            if not self._listeners:
                self._last = await asyncio.to_thread(_newest, runtime)
            listener.begins = self._last
            self._listeners.add(listener)
            self._somebody.set()

    def leave(self, listener: Listener) -> None:
        """Forget a listener who joined."""
        self._listeners.discard(listener)
        if not self._listeners:
            self._somebody.clear()

    async def run(self, runtime: Runtime) -> None:
        """Look once a second while somebody listens. Never ends by an error."""
        loop = asyncio.get_running_loop()
        rights_at = 0.0
        while True:
            await self._somebody.wait()
            stale = loop.time() - rights_at > RIGHTS_SECONDS
            ids = {one.user for one in self._listeners if one.user is not None}
            try:
                async with self._turn:
                    found, sights = await asyncio.to_thread(_look, runtime, self._last, ids, stale)
                    self._tell(found, sights, ids)
                if sights is not None:
                    rights_at = loop.time()
                if len(found) == BATCH:
                    continue
            except Unavailable as error:
                log.warning("events: %s", error)
            except Exception:
                log.exception("events could not be read; it will be tried again")
            await asyncio.sleep(LOOK_SECONDS)

    def _tell(self, found: Sequence[Happened], sights: Mapping[int, Sight] | None, asked: set[int]) -> None:
        for one in list(self._listeners):
            if sights is not None and one.user is not None and one.user in asked:
                if one.user not in sights:
                    one.end()
                    continue
                seen = sights[one.user]
                one.sight = Sight(seen.user_id) if one.mine else seen
            one.tell(found)
        if found:
            self._last = found[-1].id


def _newest(runtime: Runtime) -> int:
    with begin(runtime.engine, read_only=True) as session:
        return events.newest(session)


def _look(runtime: Runtime, after: int, ids: set[int], stale: bool) -> tuple[list[Happened], dict[int, Sight] | None]:
    """What is new, and in the same transaction what everybody may see of it."""
    with begin(runtime.engine, read_only=True) as session:
        found = events.told(session, after=after, sight=Sight(everything=True), limit=BATCH)
        sights = workspaces.sights(session, user_ids=ids) if ids and (found or stale) else None
        return found, sights


class Stream(Api):
    """The list; and where a stream is asked for, what happens from now on until one of both sides has enough."""

    feed = Feed()
    listener: Listener | None = None

    def on_connection_close(self) -> None:
        if self.listener is not None:
            self.listener.end()

    async def get(self, **path: str) -> None:
        if STREAM not in self.request.headers.get("Accept", ""):
            await self._handle(path)
            return
        route = self.admit()
        asked: EventsAsked = self.asked(route)
        after = self._after(asked)

        def enter(session: Session) -> tuple[Sight, int | None]:
            call = call_of(self, session, route, path, asked, None)
            return sight_of(call), call.caller.user.id if call.caller.user is not None else None

        with streams.place(self):
            sight, user = await self.ask(enter)
            await self._stream(Listener(user, sight, asked.kind.value if asked.kind else None, asked.mine), after)

    async def _stream(self, listener: Listener, after: int | None) -> None:
        await self.feed.join(self.runtime, listener)
        self.listener = listener
        try:
            self.set_header("Content-Type", STREAM)
            self.set_header("X-Accel-Buffering", "no")
            await self._send("retry: 3000\n\n")
            if after is not None:
                await self._catch_up(listener, after)
            await self._follow(listener)
        except StreamClosedError:
            return
        except TimeoutError:
            self.detach().close()  # who listens reads no more
            return
        except Unavailable as error:
            log.warning("events: %s", error)
        finally:
            self.feed.leave(listener)
        with suppress(StreamClosedError):
            await self.finish()

    def _after(self, asked: EventsAsked) -> int | None:
        given = self.request.headers.get("Last-Event-ID")
        if given is None or given == "":
            return asked.after
        if not given.isascii() or not given.isdigit() or len(given) > 19 or int(given) > LARGEST:
            raise Invalid("{value} is not the id of an event.", value=given[:100])
        return int(given)

    async def _catch_up(self, listener: Listener, after: int) -> None:
        """What was told before the listener came, from the table."""
        while after < listener.begins:
            found = await self.ask(lambda session: events.told(session, after=after, sight=listener.sight, limit=BATCH))  # noqa: B023
            earlier = [one for one in found if one.id <= listener.begins]
            await self._send("".join(_frame(one) for one in earlier if listener.wants(one)))
            if len(found) < BATCH or len(earlier) < len(found):
                return
            after = found[-1].id

    async def _follow(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        token_until = loop.time() + TOKEN_SECONDS
        beat_at = loop.time() + BEAT_SECONDS
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(listener.news.wait(), max(min(token_until, beat_at) - loop.time(), 0))
            news = listener.take()
            if listener.ended:
                return
            if loop.time() >= token_until:
                if not await streams.token_holds(self):
                    return
                token_until = loop.time() + TOKEN_SECONDS
            if news or loop.time() >= beat_at:
                await self._send("".join(map(_frame, news)) or ": still here\n\n")
                beat_at = loop.time() + BEAT_SECONDS

    async def _send(self, text: str) -> None:
        if text:
            self.write(text)
            await asyncio.wait_for(self.flush(), SEND_SECONDS)


def _frame(event: Happened) -> str:
    return f"id: {event.id}\ndata: {json.dumps(event.plain, ensure_ascii=False)}\n\n"
