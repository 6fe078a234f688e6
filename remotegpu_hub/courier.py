"""Carries events to where they are told: gives them their order, brings them to webhooks, and tells when limits are
nearly used up. Runs under the leases of `workers.every`.

What is delivered is written after it was: who is killed between the two delivers again, under the same event id."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic, sleep
from typing import Final

import httpx
from sqlalchemy.exc import IntegrityError

from .clients import webhooks as receivers
from .db import begin
from .domain import events, thresholds, webhooks
from .domain.thresholds import Holder
from .domain.webhooks import Due
from .errors import RemoteGPUError
from .observed import Reply
from .runtime import Runtime, utcnow

log = logging.getLogger("remotegpu")

LEASE_SECONDS: Final = 40.0
"""After a machine died nothing is told for as long: it has the lease nearly all the time."""
SHIFT_SECONDS: Final = 15.0
"""How long one lease is worked under: with the last tries it ends well before the lease does."""
REST_SECONDS: Final = 0.5
"""Between two shifts."""
LOOK_SECONDS: Final = 0.5
FEW: Final = 10
"""Rows that a transaction makes or changes: SQLite has one writer, who must be done within 20 ms …"""
MOST_ROWS: Final = 30
"""… and of the plain ones that number events and hand them to webhooks."""
AT_ONCE: Final = 2
"""Tries at one webhook at the same time. Each webhook has its own, so that none waits for another."""
BATCH: Final = 20
PAIRS: Final = 5
"""Users in workspaces that a transaction reads the limits of; between two, as long again is left to others: pages are
answered by the same process."""
FORGOTTEN: Final = 20
"""Rows that a transaction drops."""
THRESHOLD_SECONDS: Final = 60
PAUSE_SECONDS: Final = 0.05
"""Between transactions that only tidy up: others may write meanwhile."""


class Courier:
    """One process's part of it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._visited: set[Holder] = set()
        self._ending = False

    async def shift(self) -> None:
        """Work for a while: number what is new, and let each webhook that waits be served, all at the same time.

        Raises: Unavailable when the database cannot be asked.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + SHIFT_SECONDS
        serving: dict[int, asyncio.Task[None]] = {}
        self._ending = False
        async with receivers.client() as http:
            try:
                while not self._ending or not all(one.done() for one in serving.values()):
                    for webhook_id in await asyncio.to_thread(self._look):
                        if not self._ending and (webhook_id not in serving or serving[webhook_id].done()):
                            serving[webhook_id] = asyncio.create_task(self._serve(http, webhook_id))
                    await asyncio.sleep(LOOK_SECONDS)
                    self._ending = loop.time() >= end  # the last tries may take long, and new events wait for none
            finally:
                self._ending = True
                await asyncio.gather(*serving.values(), return_exceptions=True)

    def _look(self) -> list[int]:
        """Number what is new; the webhooks that wait for something. Nothing is written where nothing happened."""
        with suppress(IntegrityError):  # another process gave these numbers: then it holds the lease by now
            while True:
                with begin(self._runtime.engine, read_only=True) as session:
                    if not events.untold(session, limit=1):
                        return webhooks.waiting(session, now=utcnow())
                with begin(self._runtime.engine) as session:
                    webhooks.tell(session, now=utcnow(), limit=MOST_ROWS)
        return []

    async def _serve(self, http: httpx.AsyncClient, webhook_id: int) -> None:
        """Try what is due at one webhook, until nothing is or the shift ends."""
        at_work = asyncio.Semaphore(AT_ONCE)
        try:
            while not self._ending:
                found = await asyncio.to_thread(self._due, webhook_id)
                if not found:
                    return
                await asyncio.gather(*(self._try(http, one, at_work) for one in found))
        except RemoteGPUError as error:
            log.warning("webhook %s: %s", webhook_id, error)
        except Exception:
            log.exception("webhook %s could not be served; it will be tried again", webhook_id)

    async def _try(self, http: httpx.AsyncClient, found: Due, at_work: asyncio.Semaphore) -> None:
        async with at_work:
            one = None if self._ending else await asyncio.to_thread(self._afresh, found)
            if one is None:
                return
            if one.secret is None:
                reply = Reply(None, webhooks.KEY_CHANGED)
            else:
                now = int(utcnow().timestamp())
                reply = await receivers.send(
                    http, url=one.url, secret=one.secret, event=one.event.plain, now_seconds=now,
                    more=self._runtime.webhook_networks,
                )  # fmt: skip
            await asyncio.to_thread(self._note, one.delivery_id, reply)

    def _due(self, webhook_id: int) -> list[Due]:
        key = self._runtime.settings.webhook_key
        with begin(self._runtime.engine, read_only=True) as session:
            return webhooks.due(session, webhook_id=webhook_id, key=key, now=utcnow(), limit=BATCH)

    def _afresh(self, found: Due) -> Due | None:
        with begin(self._runtime.engine, read_only=True) as session:
            return webhooks.afresh(session, found, key=self._runtime.settings.webhook_key)

    def _note(self, delivery_id: int, reply: Reply) -> None:
        pauses = self._runtime.settings.webhook_pauses
        with begin(self._runtime.engine) as session:
            webhooks.note(session, delivery_id=delivery_id, reply=reply, pauses=pauses, now=utcnow())

    async def look_at_limits(self) -> None:
        """Tell which limits and budgets came near their end, and drop what nobody reads any more. Whoever had a run at
        the last look is looked at once more: what it cost may have been counted since.

        Raises: Unavailable when the database cannot be asked.
        """
        now_holding = await asyncio.to_thread(self._holders)
        pairs = sorted(now_holding | self._visited)
        found: list[thresholds.Reading] = []
        for start in range(0, len(pairs), PAIRS):
            began = monotonic()
            found += await asyncio.to_thread(self._read, pairs[start : start + PAIRS])
            await asyncio.sleep(max(PAUSE_SECONDS, monotonic() - began))
        await asyncio.to_thread(self._compare, found)
        self._visited = now_holding
        await asyncio.to_thread(self._forget)

    def _holders(self) -> set[Holder]:
        with begin(self._runtime.engine, read_only=True) as session:
            return thresholds.holders(session)

    def _read(self, pairs: Sequence[Holder]) -> list[thresholds.Reading]:
        with begin(self._runtime.engine, read_only=True) as session:
            return thresholds.readings(session, pairs=pairs, now=utcnow())

    def _compare(self, found: list[thresholds.Reading]) -> None:
        with begin(self._runtime.engine, read_only=True) as session:
            moved, left = thresholds.changes(thresholds.last_told(session), found)
        for start in range(0, len(moved), FEW):
            with begin(self._runtime.engine) as session:
                thresholds.write(session, moved=moved[start : start + FEW], left=(), now=utcnow())
        for start in range(0, len(left), FEW):
            with begin(self._runtime.engine) as session:
                thresholds.write(session, moved=(), left=left[start : start + FEW], now=utcnow())

    def _forget(self) -> None:
        gone = 1
        while gone:
            with begin(self._runtime.engine) as session:
                gone = webhooks.given_up(session, now=utcnow(), limit=FORGOTTEN)
                gone += events.forget(session, now=utcnow(), limit=FORGOTTEN)
            sleep(PAUSE_SECONDS)
