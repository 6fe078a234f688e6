"""The route that makes a new environment: a server of the hub under a name of its own, started with a choice."""

import asyncio
import hashlib
import secrets
from typing import Any

from pydantic import Field, StrictFloat, StrictInt
from sqlalchemy import select
from sqlalchemy.orm import Session

from ... import choices
from ...db import begin
from ...domain import environments, users
from ...errors import Refused
from ...orm import Environment, EnvironmentState
from ..api import Call, Later, Needs, Route, Shape
from ..base import hub_client
from ..pages import slug


class NewEnvironment(Shape):
    """What is not named is taken as the spawn page would fill it in."""

    name: str = Field(min_length=1, max_length=100, description="Any script.")
    workspace: str | None = Field(None, max_length=64, description="One of yours.")
    image: str | None = Field(None, max_length=512)
    flavor: str | None = Field(None, max_length=64, description="Instead of the four below.")
    gpu_model: str | None = Field(None, max_length=80)
    gpus: StrictInt | None = Field(None, ge=0, le=choices.MOST_GPUS)
    cpu: StrictInt | StrictFloat | str | None = Field(None, description='Cores: 4, 0.5 or "500m".')
    memory: str | None = Field(None, max_length=32, description="Such as 16G.")
    ports: list[str] | None = Field(None, max_length=10, description="Port services that this hub offers.")


class Made(Shape):
    """An environment that was asked for."""

    id: int | None = Field(description="Null until the hub has admitted it: it is in the list of yours then.")
    server_name: str = Field(description="The name of its server at the hub.")
    done: bool = Field(description="False: it is starting.")


def create_environment(call: Call) -> Any:
    """Ask the hub to start a server that nobody has yet. Repeated under its Idempotency-Key it is the same server.

    Without a key its name ends in what no other has: of two starts of one server the hub drops the second's options and
    answers both alike.
    """
    given: NewEnvironment = call.body
    options = given.model_dump(exclude_none=True)
    user = call.caller.person
    choice = choices.parse(options)
    environments.resolve(call.session, user=user, server_name="", choice=choice, rules=call.runtime.rules, kept=None)
    user_name = user.name
    end = hashlib.sha256(call.key.encode()).hexdigest()[:8] if call.key is not None else secrets.token_hex(4)
    server = f"{slug(given.name, ())}-{end}"
    if call.key is not None and server in _names(call.session, user.id):
        return Later(lambda: _answer(call, server))

    async def act() -> dict[str, Any]:
        try:
            async with hub_client() as hub:
                await hub.start_server(user_name, server, options)
        except Refused:
            made = await _answer(call, server)
            if call.key is None or made["id"] is None:
                raise
            return made  # its twin was faster
        return await _answer(call, server)

    return Later(act)


async def _answer(call: Call, server: str) -> dict[str, Any]:
    def look() -> dict[str, Any]:
        with begin(call.runtime.engine, read_only=True) as session:
            user = users.current(session, name=call.caller.name)
            found = environments.find(session, user_id=user.id, server_name=server)
            done = found is not None and found.state == EnvironmentState.RUNNING
            return {"id": found.id if found else None, "server_name": server, "done": done}

    return await asyncio.to_thread(look)


def _names(session: Session, user_id: int) -> list[str]:
    """Server names that the user's environments have or had: a new one is never mistaken for an old one."""
    return list(session.scalars(select(Environment.server_name).where(Environment.user_id == user_id)))


ROUTES = [
    Route("POST", "environments", "Make an environment and start it", Needs.SELF, create_environment, answers=Made,
          body=NewEnvironment, status=202, repeats=True),
]  # fmt: skip
