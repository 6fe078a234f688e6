"""The API's routes at work in this process, on the hub's database, as an admin of the hub who is no user of it."""

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy.orm import Session

from ..clients.api import Answer
from ..domain.audit import Actor
from ..runtime import Runtime, Settings, utcnow
from ..services.api import ADMIN, READ, WRITE, Call, Caller, Later, authorise, check, check_unchanged, tag_of, write
from ..services.workspaces.routes import ROUTES
from .asking import ASK_THE_HUB
from .database import Place
from .stop import Refused

_BY_PATH = {(route.method, route.path): route for route in ROUTES}


class OnDatabase:
    """Answers as the service would. `transaction` opens one."""

    def __init__(self, transaction: Callable[..., AbstractContextManager[Session]], place: Place, actor: Actor) -> None:
        self._transaction, self._actor = transaction, actor
        settings = place.settings or Settings(db_url=place.url, db_kwargs=place.kwargs, ssh_user="USER")
        self._runtime = Runtime(settings)

    def ask(
        self, method: str, path: str, names: Mapping[str, str], *, query: Mapping[str, Any] | None = None,
        body: Any = None, match: str = "", key: str = "",
    ) -> Answer:  # fmt: skip
        """Do a route's work in one transaction. Raises: RemoteGPUError; Refused where it needs the hub itself."""
        route = _BY_PATH[method, path]
        with self._transaction(read_only=not route.changes) as session:
            call = Call(
                session=session,
                runtime=self._runtime,
                caller=Caller(self._actor.name, None, frozenset({READ, WRITE, ADMIN}), hub_admin=True),
                path=names,
                query=check(route.query, dict(query or {})),
                body=None if route.body is None else check(route.body, body),
                now=utcnow(),
                actor=self._actor,
            )
            call = authorise(route, call)
            check_unchanged(route, call, match or None)
            value = route.work(call)
            if isinstance(value, Later) and value.hub:
                raise Refused(ASK_THE_HUB)
            text = "" if isinstance(value, Later) else write(route, value)
            if route.adds is not None:
                text = route.adds(call, text)
        if isinstance(value, Later):
            try:
                return Answer(asyncio.run(value.act()), "")
            finally:
                self._runtime.close()
        return Answer(json.loads(text) if text else None, tag_of(text, route.volatile) if route.etag else "")
