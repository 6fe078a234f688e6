"""Limits on what may be held at once, and GPU hours a month. Both levels always: user, workspace, user in workspace.

NULL inherits the default row of its level, no row anywhere is 0, unlimited is written explicitly. A member level
without a row, and a GPU model without a row, do not limit by themselves: the levels above and `gpus` still do.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, case, extract, func, or_, select
from sqlalchemy.orm import Session

from ..errors import Breach, Denied, Invalid, NotFound, QuotaExceeded
from ..orm import (
    QUOTA_RESOURCES,
    Allocation,
    AllocationState,
    HostModel,
    Member,
    MemberStatus,
    Quota,
    QuotaModel,
    QuotaScope,
    Role,
    User,
    Workspace,
    WorkspaceStatus,
)
from ..units import UNLIMITED, month_bounds, month_of
from .audit import Actor, record

LEVELS = ("user", "workspace", "member")
HELD_AT_ONCE = ("gpu_millis", "cpu_millis", "memory_bytes", "environments")
_SHOWN = {"gpu_millis": "gpus", "cpu_millis": "cpu", "memory_bytes": "memory"}


@dataclass(frozen=True)
class Resources:
    """What a run holds."""

    gpu_model: str | None
    gpu_slots: int
    gpu_millis: int
    """All its slots together, as thousandths of a whole GPU."""
    cpu_millis: int
    memory_bytes: int


@dataclass(frozen=True)
class Scopes:
    """The locked rows that an admission counts against, and what it needs of them."""

    user_id: int
    user_name: str
    workspace_id: int
    workspace_name: str
    time_zone: str
    slot_millis: int
    """Fraction of one slot of the wanted model; 0 without GPUs or for an unknown model."""


@dataclass
class Held:
    """Sums over open allocations of one level."""

    amounts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HELD_AT_ONCE, 0))
    models: dict[str, int] = field(default_factory=lambda: defaultdict(int))


@dataclass
class Limits:
    """Limits of one level with the defaults filled in; `UNLIMITED` where nothing limits."""

    amounts: dict[str, int]
    models: dict[str, int]


_lock = (
    select(
        User.name,
        User.deleted_at,
        Workspace.name,
        Workspace.status,
        Workspace.time_zone,
        Member.role,
        Member.status,
        select(HostModel.gpu_millis).where(HostModel.model == bindparam("model")).limit(1).scalar_subquery(),
    )
    .select_from(User)
    .join(Workspace, Workspace.id == bindparam("workspace_id"))
    .join(Member, (Member.workspace_id == Workspace.id) & (Member.user_id == User.id))
    .where(User.id == bindparam("user_id"))
    .with_for_update(of=(User, Workspace, Member), key_share=True)
)


def lock(session: Session, *, user_id: int, workspace_id: int, gpu_model: str | None) -> Scopes:
    """Lock user, workspace and membership, always in this order, and check that a start is allowed at all.

    The locks are those of a plain UPDATE, so that whoever writes a row that refers to one of these need not wait.

    Raises: NotFound for who is no member (foreign and unknown look alike), Denied for viewers and closed workspaces.
    """
    row = (
        session.connection()
        .execute(_lock, {"user_id": user_id, "workspace_id": workspace_id, "model": gpu_model or ""})
        .first()
    )
    if row is None or row[1] is not None or row[6] != MemberStatus.ACTIVE:
        raise NotFound("The workspace")
    user_name, _deleted, workspace_name, status, time_zone, role, _member_status, slot_millis = row
    check_may_start(workspace_name, status, role)
    return Scopes(user_id, user_name, workspace_id, workspace_name, time_zone, slot_millis or 0)


def check_may_start(workspace: str, status: WorkspaceStatus, role: Role) -> None:
    """Raises: Denied when nobody, or not this role, may start environments there."""
    if status != WorkspaceStatus.ACTIVE:
        raise Denied("The workspace {name} is archived. Choose another one.", name=workspace)
    if role == Role.VIEWER:
        raise Denied("You are a viewer of {name}. Ask its owner to make you a member.", name=workspace)


_limits = select(
    Quota.scope, *(getattr(Quota, name) for name in QUOTA_RESOURCES), QuotaModel.model, QuotaModel.slots
).outerjoin(QuotaModel, QuotaModel.quota_id == Quota.id)
_limits = _limits.where(
    or_(
        Quota.scope.in_([QuotaScope.USER_DEFAULT, QuotaScope.WORKSPACE_DEFAULT]),
        (Quota.scope == QuotaScope.USER) & (Quota.user_id == bindparam("user_id")),
        (Quota.scope == QuotaScope.WORKSPACE) & (Quota.workspace_id == bindparam("workspace_id")),
        (Quota.scope == QuotaScope.MEMBER)
        & (Quota.workspace_id == bindparam("workspace_id"))
        & (Quota.user_id == bindparam("user_id")),
    )
)


def limits(session: Session, *, user_id: int, workspace_id: int) -> dict[str, Limits]:
    """Read what limits each level, defaults filled in."""
    rows: dict[str, Any] = {}
    models: dict[str, dict[str, int]] = defaultdict(dict)
    for row in session.connection().execute(_limits, {"user_id": user_id, "workspace_id": workspace_id}):
        rows[row[0].value] = row
        if row[-2] is not None:
            models[row[0].value][row[-2]] = row[-1]
    result = {}
    for level in LEVELS:
        own, default = rows.get(level), rows.get(f"{level}-default")
        amounts = {}
        for index, name in enumerate(QUOTA_RESOURCES, start=1):
            value = own[index] if own is not None else None
            if value is None and default is not None:
                value = default[index]
            amounts[name] = value if value is not None else UNLIMITED if level == "member" else 0
        result[level] = Limits(amounts, {**models.get(f"{level}-default", {}), **models.get(level, {})})
    return result


_mine = case((Allocation.user_id == bindparam("user_id"), 1), else_=0).label("mine")
_here = case((Allocation.workspace_id == bindparam("workspace_id"), 1), else_=0).label("here")
_held = (
    select(
        _mine,
        _here,
        Allocation.gpu_model,
        func.sum(Allocation.gpu_millis),
        func.sum(Allocation.cpu_millis),
        func.sum(Allocation.memory_bytes),
        func.count(),
        func.sum(Allocation.gpu_slots),
    )
    .where(
        Allocation.state != AllocationState.ENDED,
        or_(Allocation.user_id == bindparam("user_id"), Allocation.workspace_id == bindparam("workspace_id")),
    )
    .group_by("mine", "here", Allocation.gpu_model)
)


def held(session: Session, *, user_id: int, workspace_id: int) -> dict[str, Held]:
    """Sum what open allocations hold, by level."""
    result = {level: Held() for level in LEVELS}
    ids = {"user_id": user_id, "workspace_id": workspace_id}
    for mine, here, model, *sums, slots in session.connection().execute(_held, ids):
        levels = [level for level, counts in (("user", mine), ("workspace", here), ("member", mine and here)) if counts]
        for level in levels:
            for name, value in zip(HELD_AT_ONCE, sums, strict=True):
                result[level].amounts[name] += int(value)
            if model:
                result[level].models[model] += int(slots)
    return result


_until = func.coalesce(Allocation.ended_at, Allocation.seen_at, Allocation.started_at)
_start: Any = bindparam("start", type_=Allocation.started_at.type)
_begin = case((Allocation.started_at < _start, _start), else_=Allocation.started_at)
_gpu_time = func.sum(Allocation.gpu_millis * (extract("epoch", _until) - extract("epoch", _begin)))
_this_month = (
    (Allocation.gpu_millis > 0)
    & Allocation.started_at.is_not(None)
    & (_until > _start)
    & or_(Allocation.ended_at.is_(None), Allocation.ended_at > _start)
)
_of_user = Allocation.user_id == bindparam("user_id")
_of_workspace = Allocation.workspace_id == bindparam("workspace_id")
_used = select(
    _gpu_time.filter(_of_user), _gpu_time.filter(_of_workspace), _gpu_time.filter(_of_user & _of_workspace)
).where(_this_month, _of_user | _of_workspace)


def used(session: Session, *, user_id: int, workspace_id: int, time_zone: str, now: datetime) -> dict[str, int]:
    """GPU time in the current month of that zone, by level, in milli-GPU-seconds, up to where each run was seen."""
    start, _end = month_bounds(month_of(now, time_zone), time_zone)
    facts = {"user_id": user_id, "workspace_id": workspace_id, "start": start}
    sums = session.connection().execute(_used, facts).one()
    return {level: int(gpu_time or 0) for level, gpu_time in zip(LEVELS, sums, strict=True)}


def usage_of(session: Session, *, now: datetime, time_zone: str, workspace_id: int) -> int:
    """GPU time of a workspace in the current month of that zone, in milli-GPU-seconds."""
    start, _end = month_bounds(month_of(now, time_zone), time_zone)
    query = select(_gpu_time).where(_this_month, Allocation.workspace_id == workspace_id)
    return int(session.scalar(query, {"start": start}) or 0)


@dataclass(frozen=True)
class Measured:
    """One limit with what is held and wanted of it; in the units of `errors.Breach`."""

    scope: str
    name: str
    resource: str
    wanted: int
    held: int
    limit: int

    @property
    def broken(self) -> bool:
        if self.resource == "gpu_hours":
            return self.wanted > 0 and self.held >= self.limit
        return self.wanted > 0 and self.held + self.wanted > self.limit


def measure(session: Session, *, scopes: Scopes, wanted: Resources, now: datetime) -> list[Measured]:
    """Lay every limit that is not unlimited beside what is held and what is wanted."""
    allowed = limits(session, user_id=scopes.user_id, workspace_id=scopes.workspace_id)
    holding = held(session, user_id=scopes.user_id, workspace_id=scopes.workspace_id)
    more = {
        "gpu_millis": wanted.gpu_millis,
        "cpu_millis": wanted.cpu_millis,
        "memory_bytes": wanted.memory_bytes,
        "environments": 1,
    }
    hours = {level: allowed[level].amounts["gpu_hours"] for level in LEVELS}
    used_gpu_time = {}
    if wanted.gpu_millis and min(hours.values()) < UNLIMITED:
        used_gpu_time = used(
            session,
            user_id=scopes.user_id,
            workspace_id=scopes.workspace_id,
            time_zone=scopes.time_zone,
            now=now,
        )
    result = []
    for level in LEVELS:
        name = scopes.user_name if level == "user" else scopes.workspace_name
        for resource in HELD_AT_ONCE:
            limit = allowed[level].amounts[resource]
            if limit < UNLIMITED:
                shown = _SHOWN.get(resource, resource)
                result.append(Measured(level, name, shown, more[resource], holding[level].amounts[resource], limit))
        if wanted.gpu_model is not None and wanted.gpu_model in allowed[level].models:
            limit = allowed[level].models[wanted.gpu_model]
            if limit < UNLIMITED:
                already = holding[level].models[wanted.gpu_model]
                result.append(Measured(level, name, f"gpu:{wanted.gpu_model}", wanted.gpu_slots, already, limit))
        if hours[level] < UNLIMITED and wanted.gpu_millis:
            limit = hours[level] * 3_600_000
            result.append(Measured(level, name, "gpu_hours", wanted.gpu_millis * 3600, used_gpu_time[level], limit))
    return result


def check(session: Session, *, scopes: Scopes, wanted: Resources, now: datetime) -> None:
    """Raises: QuotaExceeded with every limit that the wish would break, on all levels."""
    refuse_broken(measure(session, scopes=scopes, wanted=wanted, now=now))


def refuse_broken(measured: list[Measured]) -> None:
    """Raises: QuotaExceeded when any of the measured limits is broken."""
    breaches = tuple(
        Breach(one.scope, one.name, one.resource, one.wanted, one.held, one.limit) for one in measured if one.broken
    )
    if breaches:
        raise QuotaExceeded(breaches)


def find(session: Session, *, scope: QuotaScope, workspace_id: int | None, user_id: int | None) -> Quota | None:
    """The row of exactly this scope."""
    return session.scalar(
        select(Quota).where(
            Quota.scope == scope,
            func.coalesce(Quota.workspace_id, 0) == (workspace_id or 0),
            func.coalesce(Quota.user_id, 0) == (user_id or 0),
        )
    )


def put(
    session: Session,
    *,
    scope: QuotaScope,
    values: Mapping[str, int | None],
    actor: Actor,
    now: datetime,
    workspace: Workspace | None = None,
    user: User | None = None,
    models: Mapping[str, int | None] | None = None,
) -> Quota:
    """Write limits of one scope; names not given keep their value, a model given as None loses its row.

    A limit below what is held stops nothing; new starts are refused. Raises: Invalid.
    """
    wants_workspace = scope in (QuotaScope.WORKSPACE, QuotaScope.MEMBER)
    wants_user = scope in (QuotaScope.USER, QuotaScope.MEMBER)
    if (workspace is not None) != wants_workspace or (user is not None) != wants_user:
        raise Invalid("A quota of the scope {scope} names other owners.", scope=scope.value)
    for name, value in values.items():
        if name not in QUOTA_RESOURCES:
            raise Invalid("{value} is not a quota.", value=name)
        if value is not None and not 0 <= value <= UNLIMITED:
            raise Invalid("A quota is 0 or more.")
    if any(slots is not None and not 0 <= slots <= UNLIMITED for slots in (models or {}).values()):
        raise Invalid("A quota is 0 or more.")
    ids = {"workspace_id": workspace.id if workspace else None, "user_id": user.id if user else None}
    quota = find(session, scope=scope, **ids)
    before: dict[str, Any] = {}
    if quota is None:
        quota = Quota(scope=scope, models=[], **ids)
        session.add(quota)
    else:
        before = describe(quota)
    for name, value in values.items():
        setattr(quota, name, value)
    rows = {row.model: row for row in quota.models}
    for model, slots in (models or {}).items():
        if slots is None:
            if model in rows:
                quota.models.remove(rows[model])
        elif model in rows:
            rows[model].slots = slots
        else:
            quota.models.append(QuotaModel(model=model, slots=slots))
    session.flush()
    record(session, actor=actor, action="quota.put", entity="quota", entity_id=quota.id, now=now,
           before=before, after=describe(quota), scope=scope.value,
           workspace=workspace.name if workspace else None, user=user.name if user else None)  # fmt: skip
    return quota


def describe(quota: Quota) -> dict[str, Any]:
    """The row as plain values, for audit and programs; unlimited is the word."""

    def shown(value: int | None) -> int | str | None:
        return "unlimited" if value == UNLIMITED else value

    plain = {name: shown(getattr(quota, name)) for name in QUOTA_RESOURCES}
    return {**plain, **{f"gpu:{row.model}": shown(row.slots) for row in quota.models}}
