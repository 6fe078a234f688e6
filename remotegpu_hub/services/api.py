"""REST by declaration: a route says what it needs, what it takes and what it answers; from that one declaration come
the checks, the OpenAPI description and the tests of who may do what."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from time import monotonic
from typing import Annotated, Any, Final, cast

from jupyterhub.services.auth import HubOAuth
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, ValidationError
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from tornado.web import HTTPError

from ..domain import idempotency, users, workspaces
from ..domain.audit import Actor
from ..errors import Changed, Conflict, Denied, Invalid, NotFound, RemoteGPUError, TooMany
from ..orm import Member, MemberStatus, Role, User, Workspace
from ..runtime import Runtime, utcnow
from . import streams
from .base import Handler, Request
from .streams import Lines

READ, WRITE, ADMIN = "custom:remotegpu:read", "custom:remotegpu:write", "custom:remotegpu:admin"
BURST: Final = 120
"""Requests that a caller may make at once …"""
PER_SECOND: Final = 30.0
"""… and then, lasting."""
JSON: Final = "application/json"
LARGEST: Final = 2**63 - 1
"""What a database keeps in a whole number."""


class Shape(BaseModel):
    """What goes in or out; a name that is not declared is refused."""

    model_config = ConfigDict(extra="forbid", from_attributes=True, str_strip_whitespace=True)


def in_utc(moment: datetime) -> datetime:
    """Raises: ValueError at the edge of the calendar."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("in UTC it is beyond the calendar") from None


Moment = Annotated[AwareDatetime, AfterValidator(in_utc)]
"""An instant that a caller gives, with its zone."""


class Nothing(Shape):
    """No query and no body."""


class Needs(StrEnum):
    """What a caller must be. Who is a hub admin may do everything but act as somebody else."""

    SELF = "any user, about what is their own"
    MEMBER = "any member of the workspace"
    STARTER = "an owner, admin or member of the workspace"
    MANAGER = "an owner or admin of the workspace"
    OWNER = "an owner of the workspace"
    DECIDER = "who may set the limit: an admin of the hub; inside a workspace also its owners and admins"
    HUB_ADMIN = "an admin of the hub"


ROLES: Final[Mapping[Needs, frozenset[Role]]] = {
    Needs.MEMBER: frozenset(Role),
    Needs.STARTER: frozenset({Role.OWNER, Role.ADMIN, Role.MEMBER}),
    Needs.MANAGER: frozenset({Role.OWNER, Role.ADMIN}),
    Needs.OWNER: frozenset({Role.OWNER}),
}


@dataclass(frozen=True)
class Caller:
    """Who asks: a live user, or a service of the hub, which has none of its own."""

    name: str
    user: User | None
    scopes: frozenset[str]
    hub_admin: bool
    """By the hub's database, and carried by the token; of a service the token alone."""

    @property
    def person(self) -> User:
        """Raises: Denied for a service."""
        if self.user is None:
            raise Denied("This is for users of the hub.")
        return self.user


@dataclass(frozen=True)
class Call:
    """One request, checked, with what its route works on."""

    session: Session
    runtime: Runtime
    caller: Caller
    path: Mapping[str, str]
    query: Any
    body: Any
    now: datetime
    actor: Actor
    workspace: Workspace | None = None
    """The one of the path, which the caller may see."""
    role: Role | None = None
    """The caller's own in it; none of a hub admin who is no member."""
    key: str | None = None
    """Its Idempotency-Key."""
    locked: bool = False
    """What is read is about to be edited: nobody else may change it until the transaction ends."""

    def afresh(self) -> None:
        """Forget what was read before the lock was had: it may be old by now."""
        self.session.expire_all()

    @property
    def space(self) -> Workspace:
        if self.workspace is None:
            raise AssertionError("the route names no workspace")
        return self.workspace

    def number(self, name: str) -> int:
        """A numeric id of the path. Raises: NotFound, as for one that is not there."""
        text = self.path[name]
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise NotFound("This")
        return int(text)


@dataclass(frozen=True)
class Later:
    """What remains to be done once the transaction is over, such as asking the hub; its result is the answer."""

    act: Callable[[], Any]
    hub: bool = True
    """It asks another machine, or the hub; else a database is enough for it."""


@dataclass(frozen=True)
class Route:
    """One verb on one path. `work` runs inside the request's transaction and returns what `answers` can be made of."""

    method: str
    path: str
    summary: str
    needs: Needs
    work: Callable[[Call], Any]
    answers: type[BaseModel] | None = None
    """None: 204, nothing."""
    body: type[BaseModel] | None = None
    query: type[BaseModel] = Nothing
    status: int = 200
    bare: bool = False
    """Also for tokens that carry nothing of ours, such as the one inside a user's server."""
    lines: bool = False
    """Answers `Lines`, as plain text."""
    listing: bool = False
    """Answers a page: `{"items": […], "next": cursor or null}`."""
    etag: bool = False
    """The answer has an ETag, and an edit heeds If-Match: `shows` reads what is to be edited."""
    shows: Callable[[Call], Any] | None = None
    volatile: frozenset[str] = frozenset()
    """Names in the answer that change by themselves: they are no part of the ETag, and none answers 304."""
    streams: bool = False
    """Where `text/event-stream` is asked for, the list goes on as a stream."""
    adds: Callable[[Call, str], str] | None = None
    """Completes the answer with what must not be kept of it under an Idempotency-Key: a secret."""
    repeats: bool = False
    """Done again under its Idempotency-Key it makes nothing twice, and the answer says how things are by then."""
    shown_as: type[BaseModel] | None = None
    """What `shows` is read as, where the edit answers something else."""

    @property
    def changes(self) -> bool:
        return self.method != "GET"

    @property
    def scopes(self) -> frozenset[str]:
        """Any one of these is enough."""
        if not self.changes:
            return frozenset({READ, WRITE, ADMIN})
        return frozenset({ADMIN}) if self.needs == Needs.HUB_ADMIN else frozenset({WRITE, ADMIN})

    @property
    def operation(self) -> str:
        return str(self.work.__name__)

    @property
    def pattern(self) -> str:
        """The path as tornado takes it."""
        parts = [f"(?P<{part[1:-1]}>[^/]+)" if part.startswith("{") else part for part in self.path.split("/")]
        return "/".join(parts)


class Buckets:
    """How many requests each caller has left: a token bucket each, in memory, forgotten when full."""

    def __init__(self, burst: float = BURST, per_second: float = PER_SECOND) -> None:
        self._burst, self._per_second = burst, per_second
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> None:
        """Raises: TooMany, with the seconds until the next one."""
        now = monotonic()
        left, at = self._left.get(name, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_second)
        if left < 1:
            raise TooMany(after_seconds=max(1, round((1 - left) / self._per_second)))
        if len(self._left) > 10_000:
            self._left = {who: one for who, one in self._left.items() if now - one[1] < self._burst / self._per_second}
        self._left[name] = (left - 1, now)


class Api(Handler):
    """All verbs of one path."""

    def initialize(  # type: ignore[override]
        self, runtime: Runtime, hub_auth: HubOAuth, routes: Mapping[str, Route], buckets: Buckets
    ) -> None:
        super().initialize(runtime, hub_auth)
        self.routes, self.buckets = routes, buckets

    async def get(self, **path: str) -> None:
        await self._handle(path)

    post = put = patch = delete = get

    def admit(self) -> Route:
        """The route of this request, for a caller who does not ask too often and whose token carries it.

        Raises: HTTPError, TooMany, Denied.
        """
        route = self.routes.get(str(self.request.method))
        if route is None:
            raise HTTPError(405, reason=f"This path knows {', '.join(sorted(self.routes))}.")
        model = self.current_user
        self.buckets.take(f"{model.get('kind')}:{model['name']}")
        if not route.bare and not route.scopes & set(model.get("scopes", ())):
            raise Denied(
                "This token may not do that: it needs the scope {scope}.", scope=" or ".join(sorted(route.scopes))
            )
        return route

    async def _handle(self, path: dict[str, str]) -> None:
        route = self.admit()
        query, body = self.asked(route), self._body(route)
        key = self._idempotency_key(route)
        work = lambda session: self._work(session, route, path, query, body, key)  # noqa: E731
        try:
            status, text, tag = await self.ask(work, read_only=not route.changes)
        except (IntegrityError, Conflict) as error:
            if key is not None:  # perhaps its twin was faster: then the answer is there by now
                status, text, tag = await self.ask(work, read_only=False)
            elif isinstance(error, Conflict):
                raise
            else:
                raise Conflict("Somebody else changed it at the same moment. Look again, then repeat it.") from error
        if isinstance(text, Lines):

            async def again() -> Lines:
                _status, lines, _tag = await self.ask(work)
                return cast(Lines, lines)

            await streams.send(self, text, again=again)
            return
        if isinstance(text, Later):
            text = await self._act(text, key, status)
        unchanged = tag and self.request.headers.get("If-None-Match") == tag and not route.volatile
        if unchanged and not route.changes:
            self.set_header("ETag", tag)
            self.set_status(304)
            self.finish()
            return
        if tag:
            self.set_header("ETag", tag)
        self.set_status(status)
        if text:
            self.finish(text)
        else:
            self.clear_header("Content-Type")
            self.finish()

    async def _act(self, later: Later, key: str | None, status: int) -> str:
        """Do what remained, and keep under the key how it went; what went wrong may be tried again under it."""
        owner = actor_name(self.current_user)
        try:
            value = await later.act()
        except Exception:
            if key is not None:
                with suppress(RemoteGPUError):
                    await self.ask(lambda session: idempotency.drop(session, owner=owner, key=key), read_only=False)
            raise
        text = json.dumps(value, ensure_ascii=False) if value is not None else ""
        if key is not None:
            with suppress(RemoteGPUError):
                finish = partial(idempotency.finish, owner=owner, key=key, status=status, body=text)
                await self.ask(finish, read_only=False)
        return text

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 405:
            self.set_header("Allow", ", ".join(sorted(self.routes)))
        super().write_error(status_code, **kwargs)

    # what came in

    def asked(self, route: Route) -> Any:
        """The query, checked. Raises: Invalid."""
        return check(route.query, self.given())

    def given(self) -> dict[str, Any]:
        """The query as it came. Raises: Invalid."""
        found: dict[str, Any] = {}
        for name, values in self.request.query_arguments.items():
            if len(values) > 1:
                raise Invalid("{name} is given more than once.", name=name)
            found[name] = values[0].decode("utf-8", "replace")
        return found

    def _body(self, route: Route) -> Any:
        raw = self.request.body
        if route.body is None:
            if raw.strip():
                raise Invalid("This takes no body.")
            return None
        kind = self.request.headers.get("Content-Type", "").split(";")[0].strip().lower()
        if kind != JSON:
            raise HTTPError(415, reason=f"Send {JSON}.")
        try:
            given = json.loads(raw)
        except (ValueError, RecursionError):
            raise Invalid("The body is not JSON.") from None
        return check(route.body, given)

    def _idempotency_key(self, route: Route) -> str | None:
        key = self.request.headers.get("Idempotency-Key")
        if key is None or route.method != "POST":
            return None
        if not 1 <= len(key) <= 100 or not key.isprintable():
            raise Invalid("An Idempotency-Key has 1 to 100 printable characters.")
        return str(key)

    # the one transaction

    def _work(
        self, session: Session, route: Route, path: dict[str, str], query: Any, body: Any, key: str | None
    ) -> tuple[int, Any, str]:
        call = replace(call_of(self, session, route, path, query, body), key=key)
        if key is not None:
            said = self._said_before(call, key)
            if said is not None and not route.repeats:
                if said.status == idempotency.UNDER_WAY:
                    raise Conflict(
                        "This was asked for under the same Idempotency-Key. See how it went before another try."
                    )
                return said.status, route.adds(call, said.body) if route.adds else said.body, ""
            begun = said is not None
        check_unchanged(route, call, self.request.headers.get("If-Match"))
        value = route.work(call)
        if isinstance(value, Later | Lines):
            if key is not None and not begun:
                self._keep(call, key, idempotency.UNDER_WAY, "")
            return route.status, value, ""
        text = write(route, value)
        status = route.status if route.answers is not None else 204
        if key is not None:
            self._keep(call, key, status, text)
        if route.adds is not None:
            text = route.adds(call, text)
        return status, text, tag_of(text, route.volatile) if route.etag else ""

    def _keep(self, call: Call, key: str, status: int, body: str) -> None:
        idempotency.keep(
            call.session, owner=call.actor.name, key=key, request=self._fingerprint(), status=status, body=body,
            now=call.now,
        )  # fmt: skip

    def _said_before(self, call: Call, key: str) -> idempotency.Said | None:
        said = idempotency.find(call.session, owner=call.actor.name, key=key)
        if said is not None and said.request != self._fingerprint():
            raise Conflict("This Idempotency-Key was used for another request. Take a new one.")
        return said

    def _fingerprint(self) -> str:
        text = f"{self.request.method} {self.request.path}\0".encode() + self.request.body
        return hashlib.sha256(text).hexdigest()


def check_unchanged(route: Route, call: Call, seen: str | None) -> None:
    """What is edited is still what the caller saw, by its ETags; it stays so until the transaction ends.

    Raises: Changed.
    """
    if seen is None or not route.changes:
        return
    if route.shows is None:
        raise Invalid("This heeds no If-Match. Look at what is there, then send it without.")
    shown = replace(route, answers=route.shown_as or route.answers)
    now = tag(shown, route.shows(replace(call, locked=True)))
    if seen != "*" and now not in [one.strip() for one in seen.split(",")]:
        raise Changed


def call_of(asked: Request, session: Session, route: Route, path: Mapping[str, str], query: Any, body: Any) -> Call:
    """What a request is about, for a caller who may do it. Raises: Denied, NotFound."""
    model = asked.current_user
    scopes = frozenset(model.get("scopes", ()))
    if model.get("kind") == "user":
        user = asked.caller(session)
        admin = users.is_hub_admin(session, user=user)
        caller = Caller(model["name"], user, scopes, admin and (ADMIN in scopes or not route.changes))
    else:
        caller = Caller(model["name"], None, scopes, ADMIN in scopes or (READ in scopes and not route.changes))
    if not can_be_kept(dict(path)):
        raise NotFound("This")
    call = Call(
        session=session, runtime=asked.runtime, caller=caller, query=query, body=body, now=utcnow(), path=dict(path),
        actor=Actor(actor_name(model), request_id=asked.request_id, address=asked.client_address),
    )  # fmt: skip
    return authorise(route, call)


def actor_name(model: Mapping[str, Any]) -> str:
    """Who acts, as the audit names them."""
    return str(model["name"]) if model.get("kind") == "user" else f"service:{model['name']}"


def authorise(route: Route, call: Call) -> Call:
    """Find the workspace of the path and the caller's role in it. Raises: NotFound where it is none of the caller's,
    as where it is not there; Denied where the role is not enough."""
    caller = call.caller
    if route.needs == Needs.HUB_ADMIN and not caller.hub_admin:
        raise Denied("Only an admin of the hub may do that.")
    if "workspace" not in call.path or route.needs == Needs.SELF:
        if route.needs in ROLES:
            raise AssertionError(f"{route.path} names no workspace")
        return call
    member = _membership(call)
    if member is None and not caller.hub_admin:
        raise NotFound("The workspace")
    try:
        space = member.workspace if member else workspaces.by_name(call.session, name=call.path["workspace"])
    except NotFound:
        raise NotFound("The workspace") from None
    role = member.role if member else None
    allowed = ROLES.get(route.needs)
    if allowed is not None and role not in allowed and not caller.hub_admin:
        raise Denied(
            "Your role in {name} is {role}. That needs {needs}.", name=space.name, role=str(role), needs=route.needs
        )
    return replace(call, workspace=space, role=role)


def _membership(call: Call) -> Member | None:
    if call.caller.user is None:
        return None
    return call.session.scalar(
        select(Member)
        .join(Member.workspace)
        .where(
            Workspace.name == call.path["workspace"],
            Member.user_id == call.caller.user.id,
            Member.status == MemberStatus.ACTIVE,
        )
    )


def check(shape: type[BaseModel], given: Any) -> Any:
    """Raises: Invalid, with every place that is wrong and why."""
    if not can_be_kept(given):
        raise Invalid("Text holds characters that cannot be kept: NUL, or half of a pair.")
    try:
        return shape.model_validate(given)
    except ValidationError as error:
        problems = [
            {"at": ".".join(str(part) for part in one["loc"]) or "body", "says": one["msg"]}
            for one in error.errors(include_url=False, include_input=False, include_context=False)
        ][:20]
        first = problems[0]
        raise Invalid("{at}: {says}.", at=first["at"], says=first["says"], problems=problems) from None


def can_be_kept(value: Any) -> bool:
    """Whether both databases can store every text in it: PostgreSQL takes no NUL, and neither half of a pair. However
    deep it is nested."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str) and ("\0" in one or any("\ud800" <= letter <= "\udfff" for letter in one)):
            return False
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            left += one
    return True


def write(route: Route, value: Any) -> str:
    """A route's answer as text, always spelt alike, so that its hash tells whether it changed."""
    if route.answers is None:
        return ""
    if route.listing:
        items, following = value
        plain: Any = {
            "items": [route.answers.model_validate(one, from_attributes=True).model_dump(mode="json") for one in items],
            "next": following,
        }
    else:
        plain = route.answers.model_validate(value, from_attributes=True).model_dump(mode="json")
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def tag(route: Route, value: Any) -> str:
    """The ETag of what a route answers with this."""
    return tag_of(write(route, value), route.volatile)


def tag_of(text: str, volatile: frozenset[str] = frozenset()) -> str:
    """A strong ETag (RFC 9110) of an answer, of what in it does not change by itself."""
    if volatile:
        text = json.dumps({name: value for name, value in json.loads(text).items() if name not in volatile})
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def handlers(
    routes: Sequence[Route], special: Mapping[str, type[Api]] | None = None
) -> list[tuple[str, type[Handler], dict[str, Any]]]:
    """What tornado serves: one handler for each path, with its verbs; `special` names paths that have their own."""
    by_path: dict[str, dict[str, Route]] = defaultdict(dict)
    for route in routes:
        by_path[route.pattern][route.method] = route
    buckets = Buckets()
    own = special or {}
    return [
        (f"api/{pattern}/?", own.get(pattern, Api), {"routes": verbs, "buckets": buckets})
        for pattern, verbs in by_path.items()
    ]
