"""Commands that work both ways: on the hub's database, on its machine, or on its API, from anywhere.

Each asks for routes of the API; on the database the same routes do their work in this process. So what is allowed, and
what comes out, is the same. The nearer name decides which way it goes, and two that are equally near are refused."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from uuid import uuid4

from ..clients.api import Address, Answer, ApiClient
from ..errors import NotFound, RemoteGPUError
from . import logins
from .command import Command, Text, option
from .database import DEFAULT_CONFIG, URL_VARIABLE
from .stop import Refused, Usage

T = TypeVar("T")

RULE: Final = (
    "A command works on the hub that is named nearest: on the command line (--hub, or --config and --db-file), else in "
    f"the env vars ({logins.HUB_VARIABLE}, or {URL_VARIABLE}), else by the login, or by the {DEFAULT_CONFIG} in this "
    "folder. Where both an API and a database are named equally near, it is refused."
)
ASK_THE_HUB: Final = "That asks the hub itself, not its database: `remotegpu login URL` first, then add --hub URL."
MOST_A_PAGE: Final = 200
_NAMED_BY: Final = {
    "The member": "user",
    "The environment": "id",
    "The flavor": "name",
    "The webhook": "id",
    "The volume": "id",
}
"""Which name of a path tells what was not found, where it is not of that kind's own name."""


class Way(Protocol):
    """What answers for routes of the API."""

    def ask(
        self, method: str, path: str, names: Mapping[str, str], *, query: Mapping[str, Any] | None = None,
        body: Any = None, match: str = "", key: str = "",
    ) -> Answer: ...  # fmt: skip


def hub_of(*, hub: str | None, config_file: str | None, db_file: str | None) -> Address | None:
    """The hub whose API is asked, or None to work on the database. Raises: Usage where both are named equally near."""
    base = "--config" if config_file else "--db-file" if db_file else ""
    if hub and base:
        raise Usage(f"--hub and {base} name two hubs: write one of them.")
    if hub or base:
        return logins.to(hub) if hub else None
    url, base = os.environ.get(logins.HUB_VARIABLE), os.environ.get(URL_VARIABLE, "")
    if url and base:
        raise Usage(f"The env vars {logins.HUB_VARIABLE} and {URL_VARIABLE} name two hubs: unset one of them.")
    if url or base:
        return logins.to(url) if url else None
    here = Path(DEFAULT_CONFIG).exists()
    kept = logins.read()
    if kept and here:
        raise Usage(
            f"Which hub? There is a {DEFAULT_CONFIG} in this folder, and you are logged in to {kept.address.url}: add "
            f"--config {DEFAULT_CONFIG} or --hub {kept.address.url}."
        )
    if kept is None and not here:
        raise Usage(
            f"Which hub? There is no {DEFAULT_CONFIG} in this folder, and no login. On the hub's machine name its "
            f"configuration with --config, or put the database's URL into a file for --db-file or into the env var "
            f"{URL_VARIABLE}; from elsewhere, `remotegpu login URL`."
        )
    return kept.address if kept else None


class Asking(Command):
    """A command that asks routes of the API, whichever way."""

    hub = option(Text(help="The hub to ask by its API, instead of its database. See `remotegpu whoami`."), "hub", "URL")

    @cached_property
    def address(self) -> Address | None:
        return hub_of(hub=self.hub, config_file=self.config_file, db_file=self.db_file)

    @cached_property
    def way(self) -> Way:
        if self.address is not None:
            return ApiClient(self.address)
        from .local import OnDatabase

        return OnDatabase(self.transaction, self.place, self.actor)

    def needs_hub(self) -> ApiClient:
        """The way to the API, for what no database can do. Raises: Refused."""
        if not isinstance(self.way, ApiClient):
            raise Refused(ASK_THE_HUB)
        return self.way

    def close(self) -> None:
        super().close()
        way = self.__dict__.get("way")
        if isinstance(way, ApiClient):
            way.close()

    def ask(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None, match: str = "",
        key: str = "", **names: str,
    ) -> Answer:  # fmt: skip
        """Ask one route; `names` fill its path. Raises: RemoteGPUError, in the same words whichever way."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        for name, value in names.items():
            if value in ("", ".", ".."):
                raise Usage(f"`{value}` names no {name}.")
        try:
            return self.way.ask(method, path, names, query=given, body=body, match=match, key=key)
        except RemoteGPUError as error:
            raise _with_name(error, names) from error.__cause__

    def lines(self, path: str, *, query: Mapping[str, Any], **names: str) -> Iterator[str]:
        """What a route answers line by line. Raises: RemoteGPUError, Refused on a database."""
        try:
            yield from self.needs_hub().lines(
                path, names, query={name: value for name, value in query.items() if value}
            )
        except RemoteGPUError as error:
            raise _with_name(error, names) from error.__cause__

    def read(self, path: str, *, query: Mapping[str, Any] | None = None, **names: Any) -> Any:
        """What a route that changes nothing answers."""
        return self.ask("GET", path, query=query, **names).value

    def every(
        self, path: str, *, query: Mapping[str, Any] | None = None, most: int | None = None, **names: Any
    ) -> list[dict[str, Any]]:
        """All rows of a list, page after page, or the first ones, at most so many."""
        return list(self.each(path, query=query, most=most, **names))

    def each(
        self, path: str, *, query: Mapping[str, Any] | None = None, most: int | None = None, **names: Any
    ) -> Iterator[dict[str, Any]]:
        """The rows of a list one by one, a page of them in memory."""
        cursor, left = None, most
        while left is None or left > 0:
            limit = MOST_A_PAGE if left is None else min(MOST_A_PAGE, left)
            page = self.read(path, query={**(query or {}), "limit": limit, "cursor": cursor}, **names)
            yield from page["items"]
            left = None if left is None else left - len(page["items"])
            cursor = page["next"]
            if cursor is None:
                return

    def allowed(self, work: Callable[[], T]) -> T | None:
        """What the caller gets by it, or None where only others may ask that."""
        try:
            return work()
        except RemoteGPUError as error:
            if error.code != "denied":
                raise
            return None

    def create(self, path: str, body: Any, **names: Any) -> Any:
        """Make something, once, even where the answer is lost on the way."""
        return self.ask("POST", path, body=body, key=uuid4().hex, **names).value


def _with_name(error: RemoteGPUError, names: Mapping[str, str]) -> RemoteGPUError:
    """Say what was not found by the name that was typed: the API tells only which kind of thing it is."""
    what = error.facts.get("what")
    if error.code != "not_found" or not isinstance(what, str):
        return error
    name = names.get(_NAMED_BY.get(what, what.removeprefix("The ")))
    return NotFound(" ".join((what, name))) if name is not None else error


def missing(error: RemoteGPUError, what: str) -> bool:
    """Whether this is what the API did not find, such as `The member`."""
    return error.code == "not_found" and str(error.facts.get("what", "")).startswith(what)
