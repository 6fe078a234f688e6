"""Routes and ticks of the service `billing`."""

import asyncio
import re
from collections.abc import Awaitable

from sqlalchemy.orm import Session

from ... import workers
from ...domain import billing, workspaces
from ...domain.billing import MonthUsage
from ...errors import Invalid, NotFound
from ...runtime import Runtime, utcnow
from ..base import Handler, run


class Usage(Handler):
    """A workspace's month, for each of its members: `?workspace=NAME&month=2026-11`."""

    async def get(self) -> None:
        name = self.get_query_argument("workspace")
        month = self.get_query_argument("month", None)
        if month is not None and not re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", month):
            raise Invalid("{value} is not a month: write one such as 2026-11.", value=month[:20])

        def work(session: Session) -> MonthUsage:
            for member in workspaces.of_user(session, user=self.caller(session)):
                if member.workspace.name == name:
                    return billing.usage_of(session, workspace=member.workspace, month=month, now=utcnow())
            raise NotFound("The workspace")

        usage = await self.ask(work)
        self.answer({**vars(usage), "total": usage.total})


def ticks(runtime: Runtime) -> list[Awaitable[None]]:
    async def meter() -> None:
        await asyncio.to_thread(workers.meter, runtime)

    return [workers.every(runtime, "meter", workers.TICK_SECONDS, meter)]


def main() -> None:
    """Serve until the hub's process ends."""
    run("remotegpu_hub.services.billing", [(r"api/usage/?", Usage, {})], ticks)
