"""Limits on what may be held at once, and GPU hours a month. Both levels always: user, workspace, user in workspace.

NULL inherits the default row of its level, no row anywhere is 0, unlimited is written explicitly. A member level
without a row, and a GPU model without a row, do not limit by themselves: the levels above and `gpus` still do.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    String,
    bindparam,
    case,
    cast,
    extract,
    func,
    literal_column,
    or_,
    select,
    type_coerce,
    union_all,
)
from sqlalchemy.orm import Session, aliased

from ..errors import Breach, Denied, Invalid, NotFound, QuotaExceeded
from ..orm import (
    ENDED,
    QUOTA_RESOURCES,
    Allocation,
    Budget,
    BudgetAction,
    HostModel,
    Member,
    MemberMonth,
    MemberStatus,
    Quota,
    QuotaModel,
    QuotaScope,
    Role,
    User,
    Volume,
    Workspace,
    WorkspaceStatus,
)
from ..units import GPU_HOUR, UNLIMITED, month_bounds, month_of, spell_limit
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
    budget: "BudgetTerms | None"


@dataclass(frozen=True)
class BudgetTerms:
    """What was agreed for a workspace's months; the columns of its budget."""

    amount: int
    warn_percent: int
    action: BudgetAction


@dataclass
class Level:
    """One level's limits, with the defaults filled in, and what counts against them."""

    limits: dict[str, int] = field(default_factory=dict)
    """By `QUOTA_RESOURCES`; `UNLIMITED` where nothing limits."""
    slot_limits: dict[str, int] = field(default_factory=dict)
    """Slots by GPU model, where one is limited."""
    held: dict[str, int] = field(default_factory=lambda: dict.fromkeys(QUOTA_RESOURCES, 0))
    """Sums over open allocations."""
    held_slots: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    gpu_time: int = 0
    """Milli-GPU-seconds of this month, up to where each run was seen."""
    written: int = 0
    """Millionths that the ledger has of this month."""
    unwritten: int = 0
    """What runs cost since then to now, in millionths an hour × seconds, at the prices of their admission."""
    per_hour: int = 0
    """Millionths an hour for everything that is open."""

    def count(self, resources: list[Any], model: str | None, slots: int | None, *sums: int | None) -> None:
        """Add one row of sums; None is 0."""
        for name, number in zip(QUOTA_RESOURCES, resources, strict=True):
            self.held[name] += number or 0
        if slots and model:
            self.held_slots[model] += slots
        gpu_time, written, unwritten, per_hour = (number or 0 for number in sums)
        self.gpu_time += gpu_time
        self.written += written
        self.unwritten += unwritten
        self.per_hour += per_hour

    @property
    def spent(self) -> int:
        """Millionths of this month, to the second."""
        return self.written + self.unwritten // 3600


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
        Budget.amount,
        Budget.warn_percent,
        Budget.action,
    )
    .select_from(User)
    .join(Workspace, Workspace.id == bindparam("workspace_id"))
    .join(Member, (Member.workspace_id == Workspace.id) & (Member.user_id == User.id))
    .outerjoin(Budget, Budget.workspace_id == Workspace.id)
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
    user_name, _deleted, workspace_name, status, time_zone, role, _member_status, slot_millis, *budget = row
    check_may_start(workspace_name, status, role)
    terms = BudgetTerms(*budget) if budget[0] is not None else None
    return Scopes(user_id, user_name, workspace_id, workspace_name, time_zone, slot_millis or 0, terms)


def check_may_start(workspace: str, status: WorkspaceStatus, role: Role) -> None:
    """Raises: Denied when nobody, or not this role, may start environments there."""
    if status != WorkspaceStatus.ACTIVE:
        raise Denied("The workspace {name} is archived. Choose another one.", name=workspace)
    if role == Role.VIEWER:
        raise Denied("You are a viewer of {name}. Ask its owner to make you a member.", name=workspace)


_user: Any = bindparam("user_id")
_workspace: Any = bindparam("workspace_id")
_quota, _model = aliased(Quota, name="q"), aliased(QuotaModel, name="m")
_run, _month = aliased(Allocation, name="a"), aliased(MemberMonth, name="u")
_NUMBERS = (*QUOTA_RESOURCES, "slots", "gpu_time", "written", "unwritten", "per_hour")


def _word(text: str) -> Any:
    return literal_column(f"'{text}'", String)


def _rows(kind: str, scope: Any, model: Any, **numbers: Any) -> Any:
    """One part of the union below; what is not named is 0."""
    columns = [numbers.get(name, literal_column("0")) for name in _NUMBERS]
    named = [cast(column, BigInteger).label(name) for name, column in zip(_NUMBERS, columns, strict=True)]
    return select(_word(kind).label("kind"), scope.label("scope"), model.label("model"), *named)


def _level(table: Any) -> Any:
    """Which levels a row counts for: it is the user's, the workspace's, or both."""
    of_user, of_workspace = table.user_id == _user, table.workspace_id == _workspace
    return case((of_user & of_workspace, _word("member")), (of_user, _word("user")), else_=_word("workspace"))


def _theirs(table: Any) -> Any:
    return or_(table.user_id == _user, table.workspace_id == _workspace)


def _open(column: Any) -> Any:
    return func.sum(column).filter(_run.state != ENDED)


_month_start: Any = bindparam("start", type_=_run.started_at.type)
_since: Any = func.coalesce(_run.metered_until, _run.started_at)
_since = case((_since < _month_start, _month_start), else_=_since)
_until = func.coalesce(_run.ended_at, _run.seen_at)
_since_epoch = extract("epoch", _since)
_now = case((_run.ended_at.is_(None), bindparam("now")), else_=extract("epoch", _run.ended_at))

_limits = (
    _rows(
        "limit", type_coerce(_quota.scope, String), _model.model, slots=_model.slots,
        **{name: getattr(_quota, name) for name in QUOTA_RESOURCES},
    )
    .select_from(_quota)
    .outerjoin(_model, _model.quota_id == _quota.id)
    .where(
        or_(
            _quota.scope.in_([_word("user-default"), _word("workspace-default")]),
            (_quota.scope == _word("user")) & (_quota.user_id == _user),
            (_quota.scope == _word("workspace")) & (_quota.workspace_id == _workspace),
            (_quota.scope == _word("member")) & (_quota.workspace_id == _workspace) & (_quota.user_id == _user),
        )
    )
)  # fmt: skip
_held = (
    _rows(
        "held", _level(_run), _run.gpu_model,
        slots=_open(_run.gpu_slots), gpu_millis=_open(_run.gpu_millis), cpu_millis=_open(_run.cpu_millis),
        memory_bytes=_open(_run.memory_bytes), environments=_open(literal_column("1")),
        gpu_time=func.sum(_run.gpu_millis * (extract("epoch", _until) - _since_epoch)).filter(_until > _since),
        unwritten=func.sum(_run.price_per_hour * (_now - _since_epoch)).filter(_now > _since_epoch),
        per_hour=_open(_run.price_per_hour),
    )
    .where(~_run.metered, _theirs(_run))
    .group_by("scope", "model")
)  # fmt: skip
_used = (
    _rows("used", _level(_month), _word(""), gpu_time=func.sum(_month.gpu_time), written=func.sum(_month.amount))
    .where(_month.month == bindparam("month"), _theirs(_month))
    .group_by("scope")
)
_stored = (
    _rows("stored", _level(Volume), _word(""), storage_bytes=func.sum(Volume.size_bytes))
    .where(Volume.deleted_at.is_(None), _theirs(Volume))
    .group_by("scope")
)
_levels = union_all(_limits, _held, _used, _stored)
"""All that an admission counts, in one statement: the limits, what runs hold and have used since they were last
metered, and what the ledger has of the month."""


def levels(session: Session, *, user_id: int, workspace_id: int, time_zone: str, now: datetime) -> dict[str, Level]:
    """Read what limits each level, defaults filled in, and what counts against it in the current month of the zone.
    A user's month is, in each workspace, the month of that workspace."""
    month = month_of(now, time_zone)
    facts = {"user_id": user_id, "workspace_id": workspace_id, "month": month, "now": int(now.timestamp())}
    rows = session.connection().execute(_levels, {**facts, "start": month_bounds(month, time_zone)[0]}).all()
    result = {level: Level() for level in LEVELS}
    limits: dict[str, Any] = {}
    models: dict[str, dict[str, int]] = defaultdict(dict)
    for kind, scope, model, *numbers in rows:
        resources, (slots, *sums) = numbers[: len(QUOTA_RESOURCES)], numbers[len(QUOTA_RESOURCES) :]
        if kind == "limit":
            limits[scope] = resources
            if model is not None:
                models[scope][model] = slots
        else:
            for level in LEVELS if scope == "member" else (scope,):
                result[level].count(resources, model, slots, *sums)
    for level, counted in result.items():
        own, default = limits.get(level, _NOTHING), limits.get(f"{level}-default", _NOTHING)
        absent = UNLIMITED if level == "member" else 0
        for name, mine, usual in zip(QUOTA_RESOURCES, own, default, strict=True):
            counted.limits[name] = mine if mine is not None else usual if usual is not None else absent
        counted.slot_limits = {**models[f"{level}-default"], **models[level]}
    return result


_NOTHING = [None] * len(QUOTA_RESOURCES)


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


def measure(
    found: Mapping[str, Level], *, scopes: Scopes, wanted: Resources, storage: Mapping[str, int] | None = None
) -> list[Measured]:
    """Lay every limit that is not unlimited beside what is held and what is wanted. `storage` are bytes of new volumes
    by level: a shared volume is not a user's."""
    more = {
        "gpu_millis": wanted.gpu_millis,
        "cpu_millis": wanted.cpu_millis,
        "memory_bytes": wanted.memory_bytes,
        "environments": 1,
    }
    result: list[Measured] = []
    for scope, level in found.items():
        name = scopes.user_name if scope == "user" else scopes.workspace_name
        laid = [(_SHOWN.get(one, one), more[one], level.held[one], level.limits[one]) for one in HELD_AT_ONCE]
        if storage and storage[scope]:
            laid.append(("storage", storage[scope], level.held["storage_bytes"], level.limits["storage_bytes"]))
        if wanted.gpu_model is not None:
            model = wanted.gpu_model
            slots = level.slot_limits.get(model, UNLIMITED)
            laid.append((f"gpu:{model}", wanted.gpu_slots, level.held_slots[model], slots))
            hours = level.limits["gpu_hours"] * GPU_HOUR
            laid.append(("gpu_hours", wanted.gpu_millis * 3600, level.gpu_time, hours))
        result += [Measured(scope, name, *facts) for facts in laid if facts[-1] < UNLIMITED]
    return result


def check(
    found: Mapping[str, Level], *, scopes: Scopes, wanted: Resources, storage: Mapping[str, int] | None = None
) -> None:
    """Raises: QuotaExceeded with every limit that the wish would break, on all levels."""
    breaches = tuple(
        Breach(one.scope, one.name, one.resource, one.wanted, one.held, one.limit)
        for one in measure(found, scopes=scopes, wanted=wanted, storage=storage)
        if one.broken
    )
    if breaches:
        raise QuotaExceeded(breaches)


def find(session: Session, *, scope: QuotaScope, workspace_id: int | None, user_id: int | None) -> Quota | None:
    """The row of exactly this scope."""
    found: Quota | None = session.scalar(_row(scope, workspace_id, user_id))
    return found


def _row(scope: QuotaScope, workspace_id: int | None, user_id: int | None) -> Any:
    return select(Quota).where(
        Quota.scope == scope,
        func.coalesce(Quota.workspace_id, 0) == (workspace_id or 0),
        func.coalesce(Quota.user_id, 0) == (user_id or 0),
    )


def keep_still(session: Session, *, scope: QuotaScope, workspace: Workspace | None, user: User | None) -> None:
    """Let nobody else change these limits until the transaction ends; users before workspaces, as starts do."""
    if user is not None:
        session.execute(select(User.id).where(User.id == user.id).with_for_update(key_share=True))
    if workspace is not None:
        session.execute(select(Workspace.id).where(Workspace.id == workspace.id).with_for_update(key_share=True))
    session.execute(_row(scope, workspace.id if workspace else None, user.id if user else None).with_for_update())


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
    plain = {name: spell_limit(getattr(quota, name)) for name in QUOTA_RESOURCES}
    return {**plain, **{f"gpu:{row.model}": spell_limit(row.slots) for row in quota.models}}
