"""Routes of quotas: of users, of workspaces, of members inside a workspace, and the two default rows."""

from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt
from sqlalchemy import select
from sqlalchemy.orm import selectinload

from ... import plain
from ...domain import quotas, users, workspaces
from ...errors import NotFound
from ...orm import QUOTA_RESOURCES, Quota, QuotaScope, User, Workspace
from ...units import UNLIMITED
from ..api import Call, Needs, Route, Shape
from ..paging import Paging, named, page
from .spaces import check_may_limit

Amount = Annotated[StrictInt, Field(ge=0, lt=UNLIMITED)]
Limit = Amount | Literal["unlimited"] | None
"""Null inherits the default of its level."""


class QuotaShown(Shape):
    scope: QuotaScope
    workspace: str | None
    user: str | None
    gpu_millis: Limit = Field(description="Thousandths of GPUs held at once.")
    cpu_millis: Limit = Field(description="Thousandths of cores held at once.")
    memory_bytes: Limit
    storage_bytes: Limit
    environments: Limit = Field(description="Environments that run at once.")
    gpu_hours: Limit = Field(description="Each calendar month.")
    models: dict[str, Amount | Literal["unlimited"]] = Field(description="Slots of one GPU model held at once.")


class QuotaEdit(Shape):
    """What is not named stays; null inherits the default, and takes the limit of a model away."""

    gpu_millis: Limit = None
    cpu_millis: Limit = None
    memory_bytes: Limit = None
    storage_bytes: Limit = None
    environments: Limit = None
    gpu_hours: Limit = None
    models: dict[Annotated[str, Field(min_length=1, max_length=80)], Limit] = Field({}, max_length=50)


class QuotasAsked(Paging):
    sort: Literal["id", "-id"] = Field("id", description="In the order in which they were first set.")
    scope: QuotaScope | None = None
    workspace: str | None = Field(None, max_length=63, description="Of this one, and of members inside it.")
    user: str | None = Field(None, max_length=255, description="Of this one, also inside workspaces.")


def shown(quota: Quota | None, scope: QuotaScope, workspace: Workspace | None, user: User | None) -> dict[str, Any]:
    """A quota, also one that nobody has set: then everything in it inherits."""
    described = quotas.describe(quota) if quota is not None else {}
    return {
        "scope": scope,
        "workspace": workspace.name if workspace else None,
        "user": user.name if user else None,
        **plain.limits(described),
    }


class _Of:
    """The quota that a route's path names."""

    def __init__(self, call: Call, scope: QuotaScope) -> None:
        self.call, self.scope = call, scope
        self.workspace = call.space if scope in (QuotaScope.WORKSPACE, QuotaScope.MEMBER) else None
        self.user = self._user() if scope in (QuotaScope.USER, QuotaScope.MEMBER) else None

    def _user(self) -> User:
        name = self.call.path["user"]
        if self.scope == QuotaScope.USER:
            if self.call.body is None:
                return users.by_name(self.call.session, name=name)
            return users.named(self.call.session, name=name, now=self.call.now)
        return workspaces.member_named(self.call.session, workspace=self.call.space, name=name).user

    def read(self) -> dict[str, Any]:
        call = self.call
        if call.locked:
            quotas.keep_still(call.session, scope=self.scope, workspace=self.workspace, user=self.user)
            call.afresh()
        row = quotas.find(
            call.session, scope=self.scope, workspace_id=self.workspace.id if self.workspace else None,
            user_id=self.user.id if self.user else None,
        )  # fmt: skip
        return shown(row, self.scope, self.workspace, self.user)

    def edit(self) -> dict[str, Any]:
        given: QuotaEdit = self.call.body

        def stored(value: Any) -> int | None:
            return UNLIMITED if value == "unlimited" else value

        quotas.keep_still(self.call.session, scope=self.scope, workspace=self.workspace, user=self.user)
        row = quotas.put(
            self.call.session,
            scope=self.scope,
            values={name: stored(getattr(given, name)) for name in QUOTA_RESOURCES if name in given.model_fields_set},
            models={name: stored(value) for name, value in given.models.items()},
            workspace=self.workspace,
            user=self.user,
            actor=self.call.actor,
            now=self.call.now,
        )
        return shown(row, self.scope, self.workspace, self.user)


def list_quotas(call: Call) -> Any:
    query = select(Quota).options(selectinload(Quota.models))
    if call.query.scope is not None:
        query = query.where(Quota.scope == call.query.scope)
    if call.query.workspace is not None:
        query = query.where(Quota.workspace_id == workspaces.by_name(call.session, name=call.query.workspace).id)
    if call.query.user is not None:
        query = query.where(Quota.user_id == users.by_name(call.session, name=call.query.user).id)

    found, following = page(
        call.session, query, call.query, sorts={"id": (Quota.id,)}, sort=call.query.sort, shown=lambda one: one
    )  # fmt: skip
    spaces = named(call.session, Workspace, [one.workspace_id for one in found])
    people = named(call.session, User, [one.user_id for one in found])
    return [shown(one, one.scope, spaces.get(one.workspace_id), people.get(one.user_id)) for one in found], following


def read_workspace_quota(call: Call) -> Any:
    return _Of(call, QuotaScope.WORKSPACE).read()


def edit_workspace_quota(call: Call) -> Any:
    return _Of(call, QuotaScope.WORKSPACE).edit()


def read_member_quota(call: Call) -> Any:
    return _Of(call, QuotaScope.MEMBER).read()


def edit_member_quota(call: Call) -> Any:
    member = workspaces.member_named(call.session, workspace=call.space, name=call.path["user"])
    check_may_limit(call, call.space, call.role, member.role)
    return _Of(call, QuotaScope.MEMBER).edit()


def read_user_quota(call: Call) -> Any:
    return _Of(call, QuotaScope.USER).read()


def edit_user_quota(call: Call) -> Any:
    return _Of(call, QuotaScope.USER).edit()


def _default(call: Call) -> QuotaScope:
    try:
        return QuotaScope(f"{call.path['level']}-default")
    except ValueError:
        raise NotFound("The default quota") from None


def read_default_quota(call: Call) -> Any:
    return _Of(call, _default(call)).read()


def edit_default_quota(call: Call) -> Any:
    return _Of(call, _default(call)).edit()


ROUTES = [
    Route("GET", "quotas", "List all quotas", Needs.HUB_ADMIN, list_quotas, answers=QuotaShown, query=QuotasAsked,
          listing=True),
    Route("GET", "workspaces/{workspace}/quota", "Read the quota of a workspace", Needs.MEMBER, read_workspace_quota,
          answers=QuotaShown, etag=True),
    Route("PATCH", "workspaces/{workspace}/quota", "Set limits of a workspace", Needs.HUB_ADMIN, edit_workspace_quota,
          answers=QuotaShown, body=QuotaEdit, etag=True, shows=read_workspace_quota),
    Route("GET", "workspaces/{workspace}/members/{user}/quota", "Read a member's quota in the workspace", Needs.MEMBER,
          read_member_quota, answers=QuotaShown, etag=True),
    Route("PATCH", "workspaces/{workspace}/members/{user}/quota", "Set a member's limits in the workspace",
          Needs.MANAGER, edit_member_quota, answers=QuotaShown, body=QuotaEdit, etag=True, shows=read_member_quota),
    Route("GET", "users/{user}/quota", "Read the quota of a user", Needs.HUB_ADMIN, read_user_quota,
          answers=QuotaShown, etag=True),
    Route("PATCH", "users/{user}/quota", "Set limits of a user", Needs.HUB_ADMIN, edit_user_quota,
          answers=QuotaShown, body=QuotaEdit, etag=True, shows=read_user_quota),
    Route("GET", "default-quotas/{level}", "Read a default quota: `user` or `workspace`", Needs.HUB_ADMIN,
          read_default_quota, answers=QuotaShown, etag=True),
    Route("PATCH", "default-quotas/{level}", "Set a default quota: `user` or `workspace`", Needs.HUB_ADMIN,
          edit_default_quota, answers=QuotaShown, body=QuotaEdit, etag=True, shows=read_default_quota),
]  # fmt: skip
