"""What every service of ours shares: identity from the hub, rights from the database, one shape of JSON and of errors,
and a life that ends with the hub's process."""

import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse
from uuid import uuid4

import psutil
from jupyterhub.services.auth import HubOAuth, HubOAuthCallbackHandler, HubOAuthenticated
from jupyterhub.utils import url_path_join
from sqlalchemy.orm import Session
from tornado.httputil import HTTPServerRequest
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from .. import origin, words, workers
from ..clients import processes
from ..clients.hub import HubClient
from ..db import begin
from ..domain import users
from ..errors import Denied, NotFound, RemoteGPUError, TooLarge, TooMany, Unavailable
from ..orm import User
from ..runtime import RUNTIME_VARIABLE, Runtime, utcnow

T = TypeVar("T")
log = logging.getLogger("remotegpu")

TOKEN_CACHE_SECONDS = 10
MOST_BODY = 1_000_000
"""Bytes of a request's body."""
MOST_READ = 100 * MOST_BODY
"""Bytes of a body that is too large which are read all the same; who sends still more is cut off."""
_PR_SET_PDEATHSIG = 1
Routes = Sequence[tuple[str, type[RequestHandler], dict[str, Any]]]
"""Pattern below the service's prefix, handler, and what the handler is given beside runtime and login."""


def plain(value: Any) -> Any:
    """A frozen value as JSON takes it: times as ISO 8601, errors as code, message and facts."""
    if isinstance(value, RemoteGPUError):
        return error_body(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def error_body(error: RemoteGPUError) -> dict[str, Any]:
    """The one shape of errors: a code for programs, a message a person can act on, the facts."""
    facts = {name: [asdict(one) for one in value] if isinstance(value, tuple) else value
             for name, value in error.facts.items()}  # fmt: skip
    return {"code": error.code, "message": words.explain_text(error, "en"), "facts": facts}


class Request(HubOAuthenticated, RequestHandler):  # type: ignore[misc]
    """One request: who asks, answered from one transaction."""

    def initialize(self, runtime: Runtime, hub_auth: HubOAuth) -> None:
        self.runtime = runtime
        self.hub_auth = hub_auth

    def set_default_headers(self) -> None:
        """Tornado calls this before each answer, also before that of an error."""
        if not hasattr(self, "request_id"):
            self.request_id = uuid4().hex[:16]
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Request-Id", self.request_id)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.clear_header("Server")

    @property
    def client_address(self) -> str:
        """Whom the hub's proxy speaks for: the audit keeps it."""
        peer, forwarded = str(self.request.remote_ip), self.request.headers.get("X-Forwarded-For", "")
        return origin.address_of(peer, forwarded, proxies=self.runtime.settings.proxies)

    async def know_caller(self) -> None:
        """Ask the hub whose token or cookie this is, without holding up other requests; `current_user` has it then."""
        await self.hub_auth.get_user(self, sync=False)

    def caller(self, session: Session) -> User:
        """The live user behind this request. Raises: Denied for services and users whom the sync has not seen yet."""
        model = self.current_user
        if model.get("kind") != "user":
            raise Denied("This is for users of the hub.")
        with suppress(NotFound):
            return users.current(session, name=model["name"])
        raise Denied("The hub does not know {name} here yet. Try again in a minute.", name=model["name"])

    async def ask(self, work: Callable[[Session], T], *, read_only: bool = True) -> T:
        """Do the request's one transaction in a thread."""

        def transact() -> T:
            with begin(self.runtime.engine, read_only=read_only) as session:
                return work(session)

        result: T = await asyncio.wrap_future(self.runtime.submit(transact))
        return result

    def log_exception(self, kind: Any, value: Any, trace: Any) -> None:
        if not isinstance(value, RemoteGPUError):
            super().log_exception(kind, value, trace)


class Handler(Request):
    """A JSON route, authenticated by the hub."""

    def get_login_url(self) -> str:
        """A program, or a page's fetch, is told 403 instead of being sent to log in."""
        raise HTTPError(403, reason="Log in to the hub, or send a token.")

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")

    async def prepare(self) -> None:
        await self.know_caller()
        if self.current_user is None:
            raise HTTPError(403, reason="Log in to the hub, or send a token.")

    def answer(self, value: Any) -> None:
        self.finish(json.dumps(plain(value), ensure_ascii=False))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, RemoteGPUError):
            self.set_status(error.status)
            if isinstance(error, TooMany):
                self.set_header("Retry-After", str(error.facts["after_seconds"]))
            body = error_body(error)
        else:
            sentence = self._reason if status_code < 500 else "Something broke here. The log has it by this request id."
            body = {"code": "http", "message": sentence, "facts": {}}
        self.finish(json.dumps({"error": {**body, "request_id": self.request_id}}, ensure_ascii=False, default=str))


def hub_client() -> HubClient:
    """The hub, asked with this service's own token."""
    return HubClient(os.environ["JUPYTERHUB_API_URL"], os.environ["JUPYTERHUB_API_TOKEN"])


class Health(RequestHandler):
    """What the hub asks to see whether the service is up: nothing that needs a login or the database."""

    def get(self) -> None:
        self.finish({"service": os.environ["JUPYTERHUB_SERVICE_NAME"]})


class Unknown(Handler):
    """Every path without a route, so that it answers in our one shape."""

    async def prepare(self) -> None:
        raise NotFound("This page")


@stream_request_body
class Large(Handler):
    """Every request that sends too much: it is read to its end, so that its sender hears the answer, and dropped."""

    async def prepare(self) -> None:
        """Nobody's login is looked at."""

    def data_received(self, chunk: bytes) -> None:
        """Drop it."""

    def get(self) -> None:
        raise TooLarge(limit_mb=MOST_BODY // 1_000_000)

    head = post = put = patch = delete = options = get


class Service(Application):
    """Our routes, for requests of a bearable size."""

    def find_handler(self, request: HTTPServerRequest, **given: Any) -> Any:
        length = request.headers.get("Content-Length", "")
        if length.isdecimal() and len(length) < 19 and int(length) > MOST_BODY:
            return self.get_handler_delegate(request, Large, self.settings["default_handler_args"])
        request.connection.set_max_body_size(MOST_BODY)  # type: ignore[union-attr]
        return super().find_handler(request, **given)


def die_with_parent(hub_process: str) -> None:
    """End this process when the hub's process ends, by whatever death: an old service must not answer for a new hub.

    Raises: SystemExit when that process, told by its mark, is not the parent (any more).
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    hub = processes.parse_mark(hub_process)
    if hub is None or hub.pid != os.getppid() or not processes.alive(hub):
        sys.exit("the hub's process is gone")


def end_older_copy(pid_file: Path, module: str) -> None:
    """End a copy of this service that an earlier hub left behind, and note our own pid."""
    with suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
        older = psutil.Process(int(pid_file.read_text()))
        if older.pid != os.getpid() and module in older.cmdline():
            log.warning("ending an older copy, pid %s", older.pid)
            older.kill()
            older.wait(10)
    pid_file.write_text(str(os.getpid()))


def run(
    module: str,
    routes: Routes,
    ticks: Callable[[Runtime], list[Awaitable[None]]],
) -> None:
    """Serve the routes and run the ticks until the hub's process ends or asks us to."""
    path = os.environ[RUNTIME_VARIABLE]
    runtime = Runtime.read(path)
    die_with_parent(runtime.settings.hub_process)
    logging.basicConfig(level=logging.INFO, format="[%(levelname)1.1s %(asctime)s %(name)s] %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    end_older_copy(Path(f"{path}.{os.environ['JUPYTERHUB_SERVICE_NAME']}.pid"), module)
    asyncio.run(_serve(runtime, routes, ticks))
    with suppress(Unavailable):
        workers.give_back(runtime.engine, holder=workers.holder(), now=utcnow())


async def _serve(
    runtime: Runtime,
    routes: Routes,
    ticks: Callable[[Runtime], list[Awaitable[None]]],
) -> None:
    prefix = os.environ["JUPYTERHUB_SERVICE_PREFIX"]
    auth = HubOAuth.instance(cache_max_age=TOKEN_CACHE_SECONDS)  # the login's handler takes the same
    given = {"runtime": runtime, "hub_auth": auth}
    handlers: list[Any] = [
        (prefix + pattern, handler, {**given, **more} if issubclass(handler, Request) else more)
        for pattern, handler, more in routes
    ]
    handlers.append((url_path_join(prefix, "/?"), Health))
    handlers.append((url_path_join(prefix, "oauth_callback"), HubOAuthCallbackHandler))
    application = Service(
        handlers,
        prefix=prefix,
        default_handler_class=Unknown,
        default_handler_args=given,
        cookie_secret=os.urandom(32),
    )
    address = urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
    server = application.listen(address.port or 80, address.hostname or "127.0.0.1", max_body_size=MOST_READ)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    running = [asyncio.ensure_future(tick) for tick in ticks(runtime)]
    await stopping.wait()
    for tick in running:
        tick.cancel()
    server.stop()
    runtime.engine.dispose()
