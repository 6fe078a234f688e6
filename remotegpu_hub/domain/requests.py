"""Asking for higher limits: a user for themselves, an owner or admin for the workspace, a member for themselves inside
one. Whoever may set the limit decides.

Of one level a user has one open request: a newer one takes the place of the older one. The newest wish is the one that
counts, and nobody approves numbers that are not wanted any more.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..errors import Conflict, Denied, Invalid, NotFound
from ..orm import (
    QUOTA_RESOURCES,
    QuotaRequest,
    QuotaScope,
    RequestState,
    Role,
    User,
    Workspace,
    WorkspaceKind,
    WorkspaceStatus,
)
from ..units import UNLIMITED, spell_limit
from . import quotas, workspaces
from .audit import Actor, record
from .quotas import Level

MOST_OPEN: Final = 20
MOST_CHARACTERS: Final = 1000
LONGEST: Final = timedelta(days=3653)
MOVES: Final[Mapping[RequestState, frozenset[RequestState]]] = {
    RequestState.OPEN: frozenset({RequestState.APPROVED, RequestState.REFUSED, RequestState.WITHDRAWN}),
    RequestState.APPROVED: frozenset(),
    RequestState.REFUSED: frozenset(),
    RequestState.WITHDRAWN: frozenset(),
}

Limits = Mapping[str, int]
"""By `QUOTA_RESOURCES`, and slots by `gpu:MODEL`."""


def ask(
    session: Session,
    *,
    scope: QuotaScope,
    asker: User,
    workspace: Workspace | None,
    wanted: Limits,
    reason: str,
    actor: Actor,
    now: datetime,
    needed_until: datetime | None = None,
) -> QuotaRequest:
    """Ask for limits of one level; an open request of that level is withdrawn.

    Raises: Invalid, also where nothing is wanted that is not allowed already; NotFound for a workspace of others;
    Denied where the role does not allow it; Conflict at too many open ones.
    """
    _hold_asker(session, asker)
    _check_may_ask(session, scope, asker, workspace)
    _check_limits(wanted)
    reason = _text(reason)
    if needed_until is not None and not now < needed_until <= now + LONGEST:
        raise Invalid("Until when it is needed is a moment of the next ten years.")
    level = level_of(session, scope=scope, workspace=workspace, user=asker, now=now)
    if not _more(wanted, level):
        raise Invalid("That much is allowed already. Ask for more than there is now.")
    theirs = select(QuotaRequest).where(QuotaRequest.asker_id == asker.id, QuotaRequest.state == RequestState.OPEN)
    open_ones = session.scalars(theirs.with_for_update().execution_options(populate_existing=True)).all()
    workspace_id = workspace.id if workspace else None
    older = next((one for one in open_ones if (one.scope, one.workspace_id) == (scope, workspace_id)), None)
    if older is not None:
        _decide(session, older, RequestState.WITHDRAWN, actor=actor, now=now)
    elif len(open_ones) >= MOST_OPEN:
        raise Conflict("You have {count} open requests. Withdraw one first.", count=len(open_ones))
    request = QuotaRequest(
        scope=scope, asker_id=asker.id, workspace_id=workspace_id, wanted=spell(wanted), reason=reason,
        needed_until=needed_until, state=RequestState.OPEN, answer="", created_at=now,
    )  # fmt: skip
    session.add(request)
    session.flush()
    record(session, actor=actor, action="quota_request.ask", entity="quota_request", entity_id=request.id, now=now,
           scope=scope.value, workspace=workspace.name if workspace else None, user=asker.name,
           wanted=request.wanted, reason=reason)  # fmt: skip
    return request


def approve(
    session: Session,
    *,
    request: QuotaRequest,
    actor: Actor,
    now: datetime,
    limits: Limits | None = None,
    answer: str = "",
    lower: bool = False,
) -> QuotaRequest:
    """Give what was asked for, or `limits`. What is higher by now stays so, unless `lower` says that it may fall.

    Raises: Invalid; Conflict when it is decided already, the workspace is archived, or the asker is no member any more.
    """
    if limits is not None:
        _check_limits(limits)
    answer = _text(answer, needed=False)
    user = hold(session, request)
    _check_open(request, RequestState.APPROVED)
    _check_still_there(session, request)
    level = level_of(session, scope=request.scope, workspace=request.workspace, user=user, now=now)
    given = limits if limits is not None else read(request.wanted)
    changed = {name: value for name, value in given.items() if value != limit(level, name)}
    if not lower:
        changed = _more(changed, level)
    if changed:
        quotas.put(
            session, scope=request.scope, workspace=request.workspace, user=user, actor=actor, now=now,
            values={name: value for name, value in changed.items() if name in QUOTA_RESOURCES},
            models={name.removeprefix("gpu:"): value for name, value in changed.items() if name.startswith("gpu:")},
        )  # fmt: skip
    request.granted = spell(changed)
    _decide(session, request, RequestState.APPROVED, actor=actor, now=now, answer=answer)
    return request


def refuse(session: Session, *, request: QuotaRequest, answer: str, actor: Actor, now: datetime) -> QuotaRequest:
    """Refuse with an answer for who asked. Raises: Invalid without one; Conflict when it is decided already."""
    answer = _text(answer)
    _hold(session, request)
    _decide(session, request, RequestState.REFUSED, actor=actor, now=now, answer=answer)
    return request


def withdraw(session: Session, *, request: QuotaRequest, actor: Actor, now: datetime) -> QuotaRequest:
    """Take it back; twice is no mistake. Raises: Conflict when it is approved or refused already."""
    _hold(session, request)
    if request.state != RequestState.WITHDRAWN:
        _decide(session, request, RequestState.WITHDRAWN, actor=actor, now=now)
    return request


def count_open(session: Session, *, for_hub: bool = True) -> int:
    """How many wait for admins of the hub; else, for owners of workspaces."""
    members = QuotaRequest.scope == QuotaScope.MEMBER
    query = select(func.count()).where(QuotaRequest.state == RequestState.OPEN, ~members if for_hub else members)
    return session.scalar(query) or 0


def level_of(
    session: Session, *, scope: QuotaScope, workspace: Workspace | None, user: User | None, now: datetime
) -> Level:
    """What a level allows now, defaults filled in, and what is held of it."""
    found = quotas.levels(
        session,
        user_id=user.id if user and scope != QuotaScope.WORKSPACE else 0,
        workspace_id=workspace.id if workspace else 0,
        time_zone=workspace.time_zone if workspace else "UTC",
        now=now,
    )
    return found[scope.value]


def limit(level: Level, name: str) -> int:
    """One limit of a level, by its name in `Limits`."""
    model = name.removeprefix("gpu:")
    return level.slot_limits.get(model, UNLIMITED) if model != name else level.limits[name]


def spell(limits: Limits) -> dict[str, Any]:
    """Limits as they are kept: unlimited is the word."""
    return {name: spell_limit(value) for name, value in limits.items()}


def read(kept: Mapping[str, Any]) -> dict[str, int]:
    """Limits as they were kept, as numbers."""
    return {name: UNLIMITED if value == "unlimited" else int(value) for name, value in kept.items()}


def _more(wanted: Limits, level: Level) -> dict[str, int]:
    return {name: value for name, value in wanted.items() if value > limit(level, name)}


def _check_limits(limits: Limits) -> None:
    if not limits:
        raise Invalid("Name at least one limit.")
    for name, value in limits.items():
        if name not in QUOTA_RESOURCES and not name.startswith("gpu:"):
            raise Invalid("{value} is not a quota.", value=name)
        if not 0 <= value <= UNLIMITED:
            raise Invalid("A quota is 0 or more.")


def _text(text: str, *, needed: bool = True) -> str:
    text = text.strip()
    if len(text) > MOST_CHARACTERS or (needed and not text):
        raise Invalid("Say why in 1 to {count} characters.", count=MOST_CHARACTERS)
    return text


def _hold_asker(session: Session, asker: User) -> None:
    """Let one wish of a user come after the other, and none after the user is gone."""
    gone = select(User.deleted_at).where(User.id == asker.id).with_for_update(key_share=True)
    if session.scalar(gone) is not None:
        raise NotFound("The user")


def _check_may_ask(session: Session, scope: QuotaScope, asker: User, workspace: Workspace | None) -> None:
    if scope not in (QuotaScope.USER, QuotaScope.WORKSPACE, QuotaScope.MEMBER) or (
        (workspace is None) != (scope == QuotaScope.USER)
    ):
        raise Invalid("A quota of the scope {scope} names other owners.", scope=scope.value)
    if workspace is None:
        return
    role = workspaces.role_of(session, workspace_id=workspace.id, user_id=asker.id)
    if role is None:
        raise NotFound("The workspace")
    if workspace.status != WorkspaceStatus.ACTIVE:
        raise Denied("The workspace {name} is archived. Choose another one.", name=workspace.name)
    if scope == QuotaScope.WORKSPACE and role not in (Role.OWNER, Role.ADMIN):
        raise Denied("Only an owner or admin of {name} asks for more for all of it.", name=workspace.name)
    if scope == QuotaScope.MEMBER and role == Role.VIEWER:
        raise Denied("You are a viewer of {name}. Ask its owner to make you a member.", name=workspace.name)
    if scope == QuotaScope.MEMBER and workspace.kind == WorkspaceKind.PERSONAL:
        raise Conflict("A personal workspace is its user's own: it has no other members and no settings.")


def hold(session: Session, request: QuotaRequest) -> User | None:
    """Let nobody else decide it or change what it is about, until the transaction ends. Returns whose level it is."""
    user = request.asker if request.scope != QuotaScope.WORKSPACE else None
    quotas.keep_still(session, scope=request.scope, workspace=request.workspace, user=user)
    _hold(session, request)
    return user


def _hold(session: Session, request: QuotaRequest) -> None:
    """Let nobody else decide it, and read it anew. It is locked after users, workspaces and quotas."""
    session.scalar(
        select(QuotaRequest)
        .where(QuotaRequest.id == request.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )


def _check_open(request: QuotaRequest, after: RequestState) -> None:
    """Raises: Conflict that says who was faster."""
    if after in MOVES[request.state]:
        return
    if request.state == RequestState.WITHDRAWN:
        raise Conflict("This request was withdrawn meanwhile.")
    if request.state == RequestState.APPROVED:
        raise Conflict("{name} has approved this request already.", name=request.decided_by)
    raise Conflict("{name} has refused this request already.", name=request.decided_by)


def _check_still_there(session: Session, request: QuotaRequest) -> None:
    space = request.workspace
    if space is None:
        return
    session.refresh(space)
    if space.status != WorkspaceStatus.ACTIVE:
        raise Conflict("The workspace {name} is archived: nothing starts there any more.", name=space.name)
    role = workspaces.role_of(session, workspace_id=space.id, user_id=request.asker_id)
    if request.scope == QuotaScope.MEMBER and role is None:
        raise Conflict("{user} is no member of {name} any more.", user=request.asker.name, name=space.name)


def _decide(
    session: Session, request: QuotaRequest, state: RequestState, *, actor: Actor, now: datetime, answer: str = ""
) -> None:
    _check_open(request, state)
    request.state, request.answer = state, answer
    request.decided_at, request.decided_by = now, actor.name
    session.flush()
    action = {"approved": "approve", "refused": "refuse", "withdrawn": "withdraw"}[state.value]
    record(session, actor=actor, action=f"quota_request.{action}", entity="quota_request", entity_id=request.id,
           now=now, user=request.asker.name, wanted=request.wanted, granted=request.granted, answer=answer)  # fmt: skip
