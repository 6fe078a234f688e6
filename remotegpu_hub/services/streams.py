"""Answers that go on: a caller has a few of them at once, and each ends with its source, with its reader, or when the
reader loses the right."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from ..errors import Crowded, RemoteGPUError
from .base import Handler

log = logging.getLogger("remotegpu")

MOST_OPEN: Final = 5
"""Streams that one caller may have open: a browser has six connections to a hub, and needs some for its pages."""
FIRST_SECONDS: Final = 1.0
"""How long the answer's status waits for the first line: what cannot be read at all is told by an error."""
RIGHTS_SECONDS: Final = 5.0
"""How often it is looked whether the reader of lines is still there and may still read."""
_open: Counter[str] = Counter()


@dataclass(frozen=True)
class Lines:
    """Text that comes line by line, perhaps for as long as somebody reads it."""

    read: Callable[[], AsyncIterator[str]]
    goes_on: bool = False
    """More may come."""


@contextmanager
def place(handler: Handler) -> Iterator[None]:
    """Take one of the places of the caller for as long as a stream is open. Raises: Crowded."""
    who = f"{handler.current_user.get('kind')}:{handler.current_user['name']}"
    if _open[who] >= MOST_OPEN:
        raise Crowded(count=MOST_OPEN, after_seconds=10)
    _open[who] += 1
    try:
        yield
    finally:
        _open[who] -= 1
        if not _open[who]:
            del _open[who]


async def token_holds(handler: Handler) -> bool:
    """Whether the hub still takes the caller's token, for no less than it was. A hub that does not answer revokes
    nothing. (The handler itself asks the hub only once.)"""
    auth, was = handler.hub_auth, handler.current_user
    try:
        now = await auth.user_for_token(auth.get_token(handler), session_id=auth.get_session_id(handler), sync=False)
    except HTTPError:
        return True
    return now is not None and _ours(was) <= _ours(now)  # whose it is, stays, whatever their name is by then


def _ours(model: dict[str, Any]) -> set[str]:
    return {scope for scope in model.get("scopes", ()) if scope.startswith("custom:remotegpu:")}


async def send(handler: Handler, text: Lines, *, again: Callable[[], Awaitable[Lines]]) -> None:
    """Send lines as they come. `again` asks for them anew, and raises when the reader may not read on.

    Raises: Crowded; whatever the lines raise before the first one.
    """
    with place(handler):
        await _send(handler, text, again)


async def _send(handler: Handler, text: Lines, again: Callable[[], Awaitable[Lines]]) -> None:
    lines = text.read()
    first = asyncio.ensure_future(_next(lines))
    await asyncio.wait([first], timeout=FIRST_SECONDS)
    if first.done():
        first.result()
    handler.set_header("Content-Type", "text/plain; charset=utf-8")
    sending = asyncio.ensure_future(_pump(handler, first, lines))
    try:
        while not sending.done():
            await asyncio.wait([sending], timeout=RIGHTS_SECONDS)
            if handler.request.connection.stream.closed():  # type: ignore[union-attr]
                return
            if not sending.done():
                if not await token_holds(handler):
                    log.info("a stream ends with its token")
                    break
                more = await again()
                if text.goes_on and not more.goes_on:  # what was printed at the very end is on its way
                    await asyncio.wait([sending], timeout=FIRST_SECONDS)
                    break
        if sending.done():
            sending.result()
        handler.finish()
    except StreamClosedError:
        return
    except RemoteGPUError as error:
        log.info("a stream ends: %s", error)
        handler.finish()
    finally:
        sending.cancel()


async def _next(lines: AsyncIterator[str]) -> str | None:
    return await anext(lines, None)


async def _pump(handler: Handler, first: asyncio.Future[str | None], lines: AsyncIterator[str]) -> None:
    if not first.done():  # the hub's proxy passes an answer on with the first of its body
        handler.write("\n")
        await handler.flush()
    line = await first
    while line is not None:
        handler.write(line + "\n")
        await handler.flush()
        line = await anext(lines, None)
