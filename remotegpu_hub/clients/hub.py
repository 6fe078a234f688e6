"""The hub's own REST API, as far as services need it: who has which server, start one, stop one."""

import asyncio
import logging
import random
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from ..errors import Denied, NotFound, Refused, RemoteGPUError, Unavailable
from ..observed import Server

log = logging.getLogger(__name__)

PAGE_SIZE: Final = 25
"""Users that a page has. The hub makes a page in one go, some 1.6 ms for each server of theirs, and nobody else is
answered meanwhile: with 200 users of ten servers each that was three seconds."""
TRIES: Final = 3
ACT_SECONDS: Final = 30.0
"""How long a start or a stop is waited for. The hub answers "it is under way" only when its own `slow_spawn_timeout` or
`slow_stop_timeout` is over, 10 s unless the operator says otherwise: who gives up as early never hears it, though the
server starts all the same."""
LOOK_SECONDS: Final = 0.5
FIRST_PAUSE_SECONDS: Final = 0.2
LIST_ROUNDS: Final = 5
_PAGINATED: Final = "application/jupyterhub-pagination+json"
_WORTH_ANOTHER_TRY: Final = frozenset({429, 502, 503, 504})


class HubClient:
    """Asks one hub with one token; an async context manager.

    Needs the scopes `list:users`, `read:servers` and, to start and stop servers, `start:servers` and `delete:servers`.
    Environment proxies are not used: the hub is near, and its token goes nowhere else. `timeout_seconds` is for what is
    read; what starts, stops or drops a server is waited for `ACT_SECONDS`.
    """

    def __init__(self, api_url: str, token: str, timeout_seconds: float = 10.0, *, page_size: int = PAGE_SIZE) -> None:
        self._page_size = page_size
        self._read_seconds = timeout_seconds
        self._client = httpx.AsyncClient(
            base_url=api_url.rstrip("/") + "/",
            headers={"Authorization": f"token {token}"},
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def servers(self) -> list[Server]:
        """Every server that runs, starts or stops now, by user and server name; stopped ones are not told.

        A start is listed before the spawner's `start()` is called, and a stop until after its `stop()` has returned;
        the post-stop hook runs when the server is no longer listed.

        Raises: Denied, Unavailable. Never returns a part: who is missing here has no server.
        """
        for _ in range(LIST_ROUNDS):
            users = await self._active_users()
            if users is not None:
                return [server for user in users for server in _servers_of(user)]
        raise Unavailable("The hub's list of servers changes faster than it can be read; try again.")

    async def stop_server(self, user_name: str, server_name: str = "") -> bool:
        """Ask the hub to stop a server: True when it says that it is done, False when it is still stopping.

        Done means that the hub forgot it; whether its processes are gone only the process table tells.

        Raises: NotFound, Denied, Unavailable.
        """
        path = f"users/{quote(user_name, safe='')}/"
        path += f"servers/{quote(server_name, safe='')}" if server_name else "server"
        answer = await self._send("DELETE", path)
        return answer.status_code == httpx.codes.NO_CONTENT

    async def start_server(
        self, user_name: str, server_name: str = "", options: Mapping[str, Any] | None = None
    ) -> bool:
        """Ask the hub to start a server, with these user options or as it is kept: True when it runs, False when it is
        starting.

        Raises: Refused with the hub's own sentence, NotFound, Denied, Unavailable.
        """
        path = f"users/{quote(user_name, safe='')}/"
        path += f"servers/{quote(server_name, safe='')}" if server_name else "server"
        answer = await self._send("POST", path, refusals=True, body=options)
        return answer.status_code == httpx.codes.CREATED

    async def forget_server(self, user_name: str, server_name: str) -> bool:
        """Let the hub drop a named server that stands still; one that runs, starts or stops is left alone.

        Returns whether there was one to drop. Raises: Denied, Unavailable.
        """
        try:
            if await self._stopped(user_name, server_name) is not True:
                return False
            path = f"users/{quote(user_name, safe='')}/servers/{quote(server_name, safe='')}"
            await self._send("DELETE", path, body={"remove": True})
        except NotFound:
            return False
        return True

    async def until_stopped(self, user_name: str, server_name: str, *, seconds: float) -> bool:
        """Wait until a server stands still; False when it does not in time. Raises: NotFound, Denied, Unavailable."""
        deadline = asyncio.get_running_loop().time() + seconds
        while await self._stopped(user_name, server_name) is False:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True

    async def _stopped(self, user_name: str, server_name: str) -> bool | None:
        """Whether the hub says that a server stands still; None for one that it does not have."""
        query = {"include_stopped_servers": "1"}
        user = (await self._send("GET", f"users/{quote(user_name, safe='')}", query)).json()
        server = user.get("servers", {}).get(server_name)
        return None if not server else bool(server["stopped"])

    async def _active_users(self) -> list[dict[str, Any]] | None:
        """All pages; None when the list moved while it was read, which each page's overlap with the last one tells."""
        users: list[dict[str, Any]] = []
        offset = 0
        while True:
            query: dict[str, str | int] = {"state": "active", "sort": "id", "limit": self._page_size, "offset": offset}
            page = await self._get("users", query)
            items = page["items"]
            if users:
                if not items or items[0]["name"] != users[-1]["name"]:
                    return None
                items = items[1:]
            users += items
            pagination = page["_pagination"]
            if pagination["next"] is None:
                return users
            # One user again; by offset, never by the URL that the answer names: the token stays with this hub.
            offset = max(int(pagination["next"]["offset"]) - 1, offset + 1)

    async def _get(self, path: str, query: Mapping[str, str | int]) -> dict[str, Any]:
        """Ask for a page, more than once when the hub is away for a moment: reading twice harms nobody."""
        pause_seconds = FIRST_PAUSE_SECONDS
        for _ in range(TRIES - 1):
            try:
                return _page(await self._send("GET", path, query))
            except Unavailable as error:
                log.info("Trying again: %s", error)
            await asyncio.sleep(random.uniform(0.5, 1.5) * pause_seconds)
            pause_seconds *= 3
        return _page(await self._send("GET", path, query))

    async def _send(
        self, method: str, path: str, query: Mapping[str, str | int] | None = None, *, body: Any = None,
        refusals: bool = False,
    ) -> httpx.Response:  # fmt: skip
        seconds = self._read_seconds if method == "GET" else ACT_SECONDS
        try:
            answer = await self._client.request(
                method, path, params=query, headers={"Accept": _PAGINATED}, json=body, timeout=seconds
            )
        except httpx.TimeoutException as error:
            raise Unavailable("The hub did not answer in time; nothing is known.") from error
        except httpx.HTTPError as error:
            raise Unavailable("The hub cannot be reached: {reason}.", reason=str(error) or repr(error)) from error
        if refusals and answer.status_code in (400, 403, 409) and "scope" not in answer.text:
            raise Refused("The hub does not start it: {reason}", reason=_told(answer))
        if not answer.is_success:
            raise _error_of(answer)
        return answer


def _servers_of(user: dict[str, Any]) -> list[Server]:
    if "servers" not in user:
        raise Denied("The hub's token may not see servers: it lacks the scope {scope}.", scope="read:servers")
    return [
        Server(user["name"], name, ready=bool(server["ready"]), pending=server["pending"] is not None)
        for name, server in user["servers"].items()
        if not server["stopped"]
    ]


def _error_of(answer: httpx.Response) -> RemoteGPUError:
    """Say in our words what the hub refused. Its own sentence names the scope that is missing."""
    told = _told(answer)
    status = answer.status_code
    if status == httpx.codes.FORBIDDEN:
        return Denied("The hub refuses this token: {reason}", reason=told)
    if status == httpx.codes.UNAUTHORIZED:
        return Denied("The hub does not know this token.")
    if status == httpx.codes.NOT_FOUND:
        return NotFound("The user or server")
    if status in _WORTH_ANOTHER_TRY or status >= 500:
        return Unavailable("The hub answers {status}: {reason}", status=status, reason=told)
    return RemoteGPUError("The hub answers {status}: {reason}", status=status, reason=told)


def _told(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase


def _page(answer: httpx.Response) -> dict[str, Any]:
    try:
        page = answer.json()
    except ValueError:
        page = None
    if not isinstance(page, dict) or "items" not in page or "_pagination" not in page:
        raise RemoteGPUError("What answers at {url} is no JupyterHub API.", url=str(answer.url.copy_with(query=None)))
    return page
