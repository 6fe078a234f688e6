"""When a limit or a budget is nearly used up: each step is told once, and again only after it was left meanwhile, or in
the next month where a month is counted.

Nothing of this happens at an admission: a tick reads what runs, and compares with what it told last."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..orm import Allocation, Budget, EventKind, Told, User, Workspace, WorkspaceKind
from ..units import GPU_HOUR, UNLIMITED, month_of
from . import budgets, events, quotas
from .quotas import Level

STEPS: Final = (80, 90, 100)
"""Percent of a limit at which it is told, as the marks of the bars on the pages."""
_RESOURCES = {
    "gpu_millis": "gpus", "cpu_millis": "cpu", "memory_bytes": "memory", "storage_bytes": "storage",
    "environments": "environments",
}  # fmt: skip
Holder = tuple[int, int]
"""A user and a workspace in which something of theirs runs."""


@dataclass(frozen=True)
class Reading:
    """How much of one limit or budget is used, in percent rounded down."""

    what: str
    kind: EventKind
    workspace_id: int | None
    user_id: int | None
    percent: int
    steps: Sequence[int]
    monthly: bool
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The highest step that is reached; 0 for none."""
        return max((one for one in self.steps if one <= self.percent), default=0)


def holders(session: Session) -> set[Holder]:
    """Who has a run that is open or not wholly on the ledger."""
    query = select(Allocation.user_id, Allocation.workspace_id).where(~Allocation.metered).distinct()
    return {(user, space) for user, space in session.execute(query)}


def readings(session: Session, *, pairs: Iterable[Holder], now: datetime) -> list[Reading]:
    """Read all limits and budgets that concern these: one statement for each pair, and a few for all of them."""
    wanted = sorted(pairs)
    spaces = {one.id: one for one in session.scalars(select(Workspace).where(Workspace.id.in_({w for _, w in wanted})))}
    people = {one.id: one for one in session.scalars(select(User).where(User.id.in_({u for u, _ in wanted})))}
    terms = {one.workspace_id: one for one in session.scalars(select(Budget).where(Budget.workspace_id.in_(spaces)))}
    found: dict[str, Reading] = {}
    for user_id, workspace_id in wanted:
        space, user = spaces[workspace_id], people[user_id]
        month = month_of(now, space.time_zone)
        levels = quotas.levels(
            session, user_id=user_id, workspace_id=workspace_id, time_zone=space.time_zone, now=now
        )  # fmt: skip
        ids: dict[str, tuple[int | None, int | None]] = {
            "user": (None, user_id), "workspace": (workspace_id, None), "member": (workspace_id, user_id),
        }  # fmt: skip
        if space.kind == WorkspaceKind.PERSONAL:  # small on purpose, and its user sees it: no news for anybody
            del ids["workspace"], ids["member"]
        if user.deleted_at is not None:
            ids = {scope: one for scope, one in ids.items() if scope == "workspace"}
        for scope, (of_workspace, of_user) in ids.items():
            for one in _of_level(levels[scope], scope, of_workspace, of_user, month):
                found.setdefault(one.what, one)
        status = budgets.status(
            terms.get(workspace_id), levels["workspace"], workspace=space.name, time_zone=space.time_zone, now=now
        )
        if status is not None:
            one = _of_budget(status, workspace_id)
            found.setdefault(one.what, one)
    return list(found.values())


def _percent(used: int, limit: int) -> int:
    return 100 * used // limit if limit else 100 * (used > 0)


def _of_level(level: Level, scope: str, workspace_id: int | None, user_id: int | None, month: str) -> list[Reading]:
    used = [(name, level.held[column], level.limits[column]) for column, name in _RESOURCES.items()]
    used += [(f"gpu:{model}", level.held_slots.get(model, 0), slots) for model, slots in level.slot_limits.items()]
    hours = level.limits["gpu_hours"]
    if hours < UNLIMITED:
        used.append(("gpu_hours", level.gpu_time, hours * GPU_HOUR))
    whose = " ".join(str(one) for one in (scope, workspace_id, user_id) if one is not None)
    return [
        Reading(
            f"{whose} {name} {month}" if name == "gpu_hours" else f"{whose} {name}", EventKind.QUOTA, workspace_id,
            user_id, _percent(held, limit), STEPS, name == "gpu_hours",
            {"scope": scope, "resource": name, "held": held, "limit": limit},
        )
        for name, held, limit in used
        if limit < UNLIMITED
    ]  # fmt: skip


def _of_budget(status: budgets.BudgetStatus, workspace_id: int) -> Reading:
    return Reading(
        f"budget {workspace_id} {status.month}", EventKind.BUDGET, workspace_id, None,
        _percent(status.spent, status.amount), sorted({one for one in (status.warn_percent, 100) if one}), True,
        {"month": status.month, "spent_micros": status.spent, "amount_micros": status.amount,
         "action": status.action.value},
    )  # fmt: skip


def last_told(session: Session) -> dict[str, int]:
    """The step that was told last, by what it is of."""
    return {one.what: one.percent for one in session.scalars(select(Told))}


def changes(told: Mapping[str, int], found: Iterable[Reading]) -> tuple[list[Reading], list[str]]:
    """What is to be written: readings whose step is another one than was told, and limits that are no longer near.

    What counts a month is told once in it, even if the limit was raised meanwhile. Where nothing runs nothing is held,
    but what is stored.
    """
    read = {one.what: one for one in found}
    moved = [
        one
        for one in read.values()
        if one.step > told.get(one.what, 0) or (one.step < told.get(one.what, 0) and not one.monthly)
    ]
    left = [what for what in told if what not in read and not _of_a_month(what) and not what.endswith(" storage")]
    return moved, left


def _of_a_month(what: str) -> bool:
    return what.startswith("budget ") or " gpu_hours " in what


def write(session: Session, *, moved: Iterable[Reading], left: Iterable[str], now: datetime) -> None:
    """Keep the steps, and tell of those that were reached from below."""
    for one in moved:
        row = session.get(Told, one.what)
        before = row.percent if row is not None else 0
        if one.step == 0:
            if row is not None:
                session.delete(row)
            continue
        if row is None:
            row = Told(what=one.what)
            session.add(row)
        row.percent, row.at = one.step, now
        if one.step > before:
            events.record(
                session, kind=one.kind, now=now, workspace_id=one.workspace_id, user_id=one.user_id, percent=one.step,
                **one.detail,
            )  # fmt: skip
    for what in left:
        row = session.get(Told, what)
        if row is not None:
            session.delete(row)
    session.flush()
