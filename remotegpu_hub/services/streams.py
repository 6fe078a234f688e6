"""Answers that come line by line: they end with their source, with their reader, or when the reader loses the right."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from ..errors import RemoteGPUError, TooMany
from .base import Handler

log = logging.getLogger("remotegpu")

FIRST_SECONDS: Final = 1.0
"""How long the answer's status waits for the first line: what cannot be read at all is told by an error."""
RIGHTS_SECONDS: Final = 5.0
"""How often it is looked whether the reader is still there and may still read."""
MOST_OPEN: Final = 8
"""Streams that one caller may have open."""
_open: Counter[str] = Counter()


async def send(handler: Handler, lines: AsyncIterator[str], *, goes_on: Callable[[], Awaitable[bool]]) -> None:
    """Send lines as they come. `goes_on` tells whether more may come, and raises when the reader may not read on.

    Raises: TooMany; whatever the lines raise before the first one.
    """
    who = f"{handler.current_user.get('kind')}:{handler.current_user['name']}"
    if _open[who] >= MOST_OPEN:
        raise TooMany(after_seconds=round(RIGHTS_SECONDS))
    _open[who] += 1
    try:
        await _send(handler, lines, goes_on)
    finally:
        _open[who] -= 1


async def _send(handler: Handler, lines: AsyncIterator[str], goes_on: Callable[[], Awaitable[bool]]) -> None:
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
                await handler.know_caller()
                if not await goes_on():  # what was printed at the very end is on its way
                    await asyncio.wait([sending], timeout=FIRST_SECONDS)
                    break
        if sending.done():
            sending.result()
        handler.finish()
    except StreamClosedError:
        return
    except (HTTPError, RemoteGPUError) as error:
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
