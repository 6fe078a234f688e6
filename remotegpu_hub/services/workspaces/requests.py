"""Routes of quota requests: asking for higher limits, taking it back, and deciding."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from ... import plain
from ...domain import requests, workspaces
from ...domain.requests import MOST_CHARACTERS, read
from ...errors import Denied, NotFound
from ...orm import (
    QUOTA_RESOURCES,
    QuotaRequest,
    QuotaScope,
    RequestState,
    Role,
    Workspace,
)
from ..api import ROLES, Call, Moment, Needs, Route, Shape
from ..paging import Paging, page
from .limits import Amount, Limit
from .spaces import check_may_limit

Scope = Literal["user", "workspace", "member"]
Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Model = Annotated[str, Field(min_length=1, max_length=80)]


class Limits(Shape):
    """Null is not asked for, or not changed."""

    gpu_millis: Limit = Field(None, description="Thousandths of GPUs held at once.")
    cpu_millis: Limit = Field(None, description="Thousandths of cores held at once.")
    memory_bytes: Limit = None
    storage_bytes: Limit = None
    environments: Limit = Field(None, description="Environments that run at once.")
    gpu_hours: Limit = Field(None, description="Each calendar month.")
    models: dict[Model, Amount | Literal["unlimited"]] = Field(
        {}, max_length=50, description="Slots of one GPU model held at once."
    )

    def by_name(self) -> dict[str, int]:
        """As the street takes them."""
        named = {name: value for name in QUOTA_RESOURCES if (value := getattr(self, name)) is not None}
        return read({**named, **{f"gpu:{model}": slots for model, slots in self.models.items()}})


class RequestShown(Shape):
    id: int
    scope: Scope
    workspace: str | None
    user: str = Field(description="Who asks.")
    wanted: Limits
    reason: str
    needed_until: datetime | None = Field(description="Nothing ends by itself then.")
    state: RequestState
    granted: Limits | None = Field(description="What the approval changed.")
    answer: str
    created_at: datetime
    decided_at: datetime | None
    decided_by: str | None


class NewRequest(Shape):
    scope: Scope = Field(description="`member`: yours inside the workspace.")
    workspace: str | None = Field(None, max_length=64)
    limits: Limits
    reason: Text = Field(min_length=1)
    needed_until: Moment | None = Field(None, description="With its zone, such as 2026-12-31T00:00:00Z.")


class Approval(Shape):
    limits: Limits | None = Field(None, description="Other numbers than were asked for.")
    answer: Text = ""
    lower: bool = Field(False, description="Also lower what is higher by now.")


class Refusal(Shape):
    answer: Text = Field(min_length=1, description="Why, and what to do instead.")


class RequestsAsked(Paging):
    sort: Literal["-id", "id"] = "-id"
    state: RequestState | None = None
    scope: Scope | None = None
    inside: bool | None = Field(None, description="Only those inside a workspace, which its owners decide, or others.")


def _listed(call: Call, query: Any) -> Any:
    asked: RequestsAsked = call.query
    query = query.options(selectinload(QuotaRequest.asker), selectinload(QuotaRequest.workspace))
    if asked.state is not None:
        query = query.where(QuotaRequest.state == asked.state)
    if asked.scope is not None:
        query = query.where(QuotaRequest.scope == asked.scope)
    if asked.inside is not None:
        inside = QuotaRequest.scope == QuotaScope.MEMBER
        query = query.where(inside if asked.inside else ~inside)
    sorts = {"id": (QuotaRequest.id,)}
    return page(call.session, query, asked, sorts=sorts, sort=asked.sort, shown=plain.quota_request)


def list_quota_requests(call: Call) -> Any:
    return _listed(call, select(QuotaRequest).where(QuotaRequest.asker_id == call.caller.person.id))


def list_all_quota_requests(call: Call) -> Any:
    return _listed(call, select(QuotaRequest))


def list_quota_requests_of_workspace(call: Call) -> Any:
    return _listed(call, select(QuotaRequest).where(QuotaRequest.workspace_id == call.space.id))


def create_quota_request(call: Call) -> Any:
    given: NewRequest = call.body
    made = requests.ask(
        call.session, scope=QuotaScope(given.scope), asker=call.caller.person, workspace=_workspace(call, given),
        wanted=given.limits.by_name(), reason=given.reason, needed_until=given.needed_until, actor=call.actor,
        now=call.now,
    )  # fmt: skip
    return plain.quota_request(made)


def _workspace(call: Call, given: NewRequest) -> Workspace | None:
    if given.workspace is None:
        return None
    try:
        return workspaces.by_name(call.session, name=given.workspace)
    except NotFound:
        raise NotFound("The workspace") from None  # as one of others


def _find(call: Call) -> tuple[QuotaRequest, bool]:
    """The request of the path, and whether the caller may decide it. Raises: NotFound where they may not see it."""
    found = call.session.get(QuotaRequest, call.number("id"))
    if found is None:
        raise NotFound("The request")
    manages = call.caller.hub_admin or _role(call, found) in ROLES[Needs.MANAGER]
    if not manages and found.asker_id != getattr(call.caller.user, "id", None):
        raise NotFound("The request")
    return found, manages and (call.caller.hub_admin or found.scope == QuotaScope.MEMBER)


def _role(call: Call, request: QuotaRequest) -> Role | None:
    if call.caller.user is None or request.workspace_id is None:
        return None
    return workspaces.role_of(call.session, workspace_id=request.workspace_id, user_id=call.caller.user.id)


def _to_decide(call: Call) -> QuotaRequest:
    found, may_decide = _find(call)
    if may_decide:
        if found.workspace is not None and found.scope == QuotaScope.MEMBER:
            asker = workspaces.role_of(call.session, workspace_id=found.workspace.id, user_id=found.asker_id)
            check_may_limit(call, found.workspace, _role(call, found), asker)
        return found
    if found.scope == QuotaScope.MEMBER:
        raise Denied("An owner or admin of the workspace decides that.")
    raise Denied("Only an admin of the hub may do that.")


def read_quota_request(call: Call) -> Any:
    found, _ = _find(call)
    if call.locked:
        requests.hold(call.session, found)
    return plain.quota_request(found)


def approve_quota_request(call: Call) -> Any:
    given: Approval = call.body
    done = requests.approve(
        call.session, request=_to_decide(call), limits=given.limits.by_name() if given.limits else None,
        answer=given.answer, lower=given.lower, actor=call.actor, now=call.now,
    )  # fmt: skip
    return plain.quota_request(done)


def refuse_quota_request(call: Call) -> Any:
    given: Refusal = call.body
    return plain.quota_request(
        requests.refuse(call.session, request=_to_decide(call), answer=given.answer, actor=call.actor, now=call.now)
    )


def withdraw_quota_request(call: Call) -> Any:
    found, _ = _find(call)
    if found.asker_id != getattr(call.caller.user, "id", None):
        raise Denied("Only who asked may take it back.")
    return plain.quota_request(requests.withdraw(call.session, request=found, actor=call.actor, now=call.now))


ROUTES = [
    Route("GET", "quota-requests", "List what you asked for, newest first", Needs.SELF, list_quota_requests,
          answers=RequestShown, query=RequestsAsked, listing=True),
    Route("POST", "quota-requests", "Ask for higher limits; an open request of the same level is withdrawn",
          Needs.SELF, create_quota_request, answers=RequestShown, body=NewRequest, status=201),
    Route("GET", "all-quota-requests", "List what everybody asked for, newest first", Needs.HUB_ADMIN,
          list_all_quota_requests, answers=RequestShown, query=RequestsAsked, listing=True),
    Route("GET", "workspaces/{workspace}/quota-requests", "List what was asked for the workspace, and inside it",
          Needs.MANAGER, list_quota_requests_of_workspace, answers=RequestShown, query=RequestsAsked, listing=True),
    Route("GET", "quota-requests/{id}", "Read a request", Needs.SELF, read_quota_request, answers=RequestShown,
          etag=True),
    Route("POST", "quota-requests/{id}/approve", "Set what was asked for, or other numbers", Needs.DECIDER,
          approve_quota_request, answers=RequestShown, body=Approval, etag=True, shows=read_quota_request),
    Route("POST", "quota-requests/{id}/refuse", "Refuse it with an answer", Needs.DECIDER, refuse_quota_request,
          answers=RequestShown, body=Refusal, etag=True, shows=read_quota_request),
    Route("POST", "quota-requests/{id}/withdraw", "Take back what you asked for", Needs.SELF, withdraw_quota_request,
          answers=RequestShown),
]  # fmt: skip
