"""The whole hub at a glance: GPUs by model, environments by state, who holds most, and what needs a hand. A fixed
number of statements, however large the hub is."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from urllib.parse import quote, urlencode

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session, aliased

from ...domain import budgets
from ...orm import (
    DELETED,
    ENDED,
    Allocation,
    AllocationSlot,
    AllocationState,
    Budget,
    Environment,
    EnvironmentState,
    Gpu,
    GpuSlot,
    GpuStatus,
    Host,
    HostStatus,
    TickLease,
    User,
    Workspace,
)
from ..pages import View
from . import admin_pages, entries

TOP: Final = 8
"""Holders that are listed."""
MOST_OF_A_KIND: Final = 10
"""Concerns of one kind that are listed."""
SILENT: Final = timedelta(minutes=3)
"""A host is looked at every 20 seconds."""
UNFINISHED: Final = timedelta(minutes=5)
"""An end takes half a minute at most, and the reconciler comes each minute."""
LATE: Final = timedelta(minutes=5)
TICKS: Final = {"sync": "workspaces", "reconcile": "workspaces", "meter": "billing"}
"""Which service does a tick; of another name, whatever it is, only one that was done before can be late."""
FORGOTTEN: Final = timedelta(days=2)
"""A tick that was not done for so long is done no more, by this version."""
KINDS: Final = ("held", "free", "foreign", "bad", "off")
Kind = Literal[
    "tick_late", "host_offline", "host_silent", "host_overcommitted", "gpu_missing", "gpu_error", "gpu_foreign",
    "run_stuck", "environment_failed", "budget_spent",
]  # fmt: skip
"""What a concern is about, for programs."""


@dataclass(frozen=True)
class Stack:
    """GPUs of one model by what can be done with them, as parts of one bar."""

    model: str
    counts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def parts(self) -> list[tuple[str, float, float]]:
        """Kind, where it begins, and how wide it is, both in percent."""
        begin, found = 0.0, []
        for kind in KINDS:
            width = 100 * self.counts[kind] / self.total if self.total else 0.0
            if width:
                found.append((kind, begin, width))
            begin += width
        return found


@dataclass(frozen=True)
class Holder:
    name: str
    path: str
    plain: str
    """Its name for programs."""
    runs: int
    gpu_millis: int
    per_hour: int
    percent: float
    """Of what the first one of the list holds."""


@dataclass(frozen=True)
class Concern:
    """One thing that somebody should look at, and the page where it is mended."""

    level: str
    """`bad` or `warm`."""
    kind: Kind
    says: str
    path: str
    since: datetime | None = None


@dataclass(frozen=True)
class Overview:
    stacks: list[Stack]
    states: dict[str, int]
    users: list[Holder]
    workspaces: list[Holder]
    concerns: list[Concern]
    per_hour: int
    running: int
    more: int = 0
    """Concerns that are not listed."""

    @property
    def all_gpus(self) -> Stack:
        summed = Counter[str]()
        for one in self.stacks:
            summed.update(one.counts)
        return Stack("", {kind: summed[kind] for kind in KINDS})


@dataclass
class _Sum:
    runs: int = 0
    gpu_millis: int = 0
    per_hour: int = 0

    def add(self, gpu_millis: int, per_hour: int) -> None:
        self.runs += 1
        self.gpu_millis += gpu_millis
        self.per_hour += per_hour


@dataclass
class _Found:
    """Concerns as they are found, a few of each kind."""

    concerns: list[Concern] = field(default_factory=list)
    more: int = 0

    def add(self, found: Iterable[Concern]) -> None:
        all_of_them = list(found)
        self.concerns += all_of_them[:MOST_OF_A_KIND]
        self.more += len(all_of_them[MOST_OF_A_KIND:])


def read(session: Session, view: View, *, now: datetime) -> Overview:
    """Read everything that the page shows, and that the API tells."""
    columns = (Allocation.user_id, Allocation.workspace_id, Allocation.gpu_millis, Allocation.price_per_hour)
    ending = (Allocation.id, Allocation.state, Allocation.ending_at)
    runs = session.execute(select(*columns, *ending).where(Allocation.state != ENDED)).all()
    of_users: dict[int, _Sum] = defaultdict(_Sum)
    of_workspaces: dict[int, _Sum] = defaultdict(_Sum)
    for user, workspace, gpu_millis, per_hour, *_ in runs:
        of_users[user].add(gpu_millis, per_hour)
        of_workspaces[workspace].add(gpu_millis, per_hour)
    states = select(Environment.state, func.count()).where(Environment.state != DELETED).group_by(Environment.state)
    found = _Found()
    found.add(_ticks(session, view, now))
    found.add(_hosts(session, view, now))
    found.add(_gpus(session, view))
    found.add(_unfinished(session, view, [row.id for row in runs if _stuck(row, now)]))
    found.add(_failed(session, view, now))
    found.add(_budgets(session, view, now))
    return Overview(
        stacks=_stacks(session),
        states={state.value: number for state, number in session.execute(states)},
        users=_holders(of_users, _user_names(session, of_users)),
        workspaces=_holders(of_workspaces, _workspace_names(session, of_workspaces)),
        concerns=found.concerns,
        more=found.more,
        per_hour=sum(one.per_hour for one in of_users.values()),
        running=len(runs),
    )


def _stacks(session: Session) -> list[Stack]:
    held = (
        select(GpuSlot.gpu_id)
        .join(AllocationSlot, AllocationSlot.slot_id == GpuSlot.id)
        .where(AllocationSlot.open)
        .distinct()
        .subquery()
    )
    facts = (Gpu.model, Gpu.status, Gpu.missing, Gpu.foreign, Host.status, held.c.gpu_id.is_not(None))
    counted = (
        select(*facts, func.count())
        .join(Host, Host.id == Gpu.host_id)
        .outerjoin(held, held.c.gpu_id == Gpu.id)
        .group_by(*facts)
    )
    models: dict[str, Counter[str]] = defaultdict(Counter)
    for model, status, missing, foreign, host, is_held, number in session.execute(counted):
        if not missing or is_held:
            kind = admin_pages.kind_of(status, missing, foreign, host, held=int(is_held), slots=1)
            models[model][kind] += number
    stacks = [Stack(model, {kind: counts[kind] for kind in KINDS}) for model, counts in models.items()]
    return sorted(stacks, key=lambda one: (-one.total, one.model))


def _top(sums: dict[int, _Sum]) -> list[int]:
    return sorted(sums, key=lambda one: (-sums[one].gpu_millis, -sums[one].per_hour, one))[:TOP]


_Names = dict[int, tuple[str, str, str]]
"""Of holders: how each is shown, where, and its name for programs."""


def _holders(sums: dict[int, _Sum], names: _Names) -> list[Holder]:
    top = _top(sums)
    most = max((sums[one].gpu_millis for one in top), default=0)
    return [
        Holder(
            *names[one], sums[one].runs, sums[one].gpu_millis, sums[one].per_hour,
            100 * sums[one].gpu_millis / most if most else 0.0,
        )
        for one in top
    ]  # fmt: skip


def _user_names(session: Session, sums: dict[int, _Sum]) -> _Names:
    rows = session.execute(select(User.id, User.name).where(User.id.in_(_top(sums))))
    return {number: (name, _search(name), name) for number, name in rows}


def _workspace_names(session: Session, sums: dict[int, _Sum]) -> _Names:
    columns = (Workspace.id, Workspace.display_name, Workspace.name)
    rows = session.execute(select(*columns).where(Workspace.id.in_(_top(sums))))
    return {number: (shown, space_path(name), name) for number, shown, name in rows}


def space_path(name: str) -> str:
    """The page of a workspace."""
    return "spaces/" + quote(name, safe="~")


def _search(text: str) -> str:
    return "gpus?" + urlencode({"search": text})


def _ticks(session: Session, view: View, now: datetime) -> Iterable[Concern]:
    done = dict(session.execute(select(TickLease.name, TickLease.last_done_at)).tuples().all())
    others = {name: "workspaces" for name, last in done.items() if last is not None and last > now - FORGOTTEN}
    for name, service in {**others, **TICKS}.items():
        last = done.get(name)
        if last is None or last < now - LATE:
            text = "The tick {name} is late: the service {service} does it, and tells why in the hub's log."
            yield Concern("bad", "tick_late", view.say(text, name=name, service=service), "", last)


def _hosts(session: Session, view: View, now: datetime) -> Iterable[Concern]:
    too_much = (
        (Host.used_gpu_millis > Host.gpu_millis)
        | (Host.used_cpu_millis + Host.foreign_cpu_millis > Host.cpu_millis)
        | (Host.used_memory_bytes + Host.foreign_memory_bytes > Host.memory_bytes)
    )
    silent = (Host.status == HostStatus.ONLINE) & (Host.last_seen_at < now - SILENT)
    columns = (Host.name, Host.status, Host.last_seen_at, too_much, Host.used_environments)
    bad = select(*columns).where((Host.status == HostStatus.OFFLINE) | silent | too_much).order_by(Host.name)
    for name, status, seen, overcommitted, runs in session.execute(bad):
        if status == HostStatus.OFFLINE:
            text = "{host} is offline. Environments that hold something there: {count}."
            yield Concern("bad", "host_offline", view.say(text, host=name, count=runs), _search(name), seen)
        elif status == HostStatus.ONLINE and seen < now - SILENT:
            says = view.say("{host} was not seen for a while.", host=name)
            yield Concern("bad", "host_silent", says, _search(name), seen)
        if overcommitted:
            text = "{host} holds more than it has: nothing starts there until somebody stops."
            yield Concern("warm", "host_overcommitted", view.say(text, host=name), _search(name))


def _gpus(session: Session, view: View) -> Iterable[Concern]:
    other = aliased(Gpu)
    replaced = exists().where(other.host_id == Gpu.host_id, other.index == Gpu.index, ~other.missing)
    bad = (Gpu.status == GpuStatus.ERROR) | Gpu.foreign | (Gpu.missing & ~replaced)
    query = select(Gpu, Host.name).join(Host, Host.id == Gpu.host_id).where(bad, Host.status == HostStatus.ONLINE)
    for gpu, host in session.execute(query.order_by(Host.name, Gpu.index)):
        path = "gpus?" + urlencode({"search": host, "focus": gpu.id})
        facts = {"host": host, "index": gpu.index}
        if gpu.missing:
            yield Concern("bad", "gpu_missing", view.say("GPU {index} of {host} is missing.", **facts), path)
        elif gpu.status == GpuStatus.ERROR:
            yield Concern("bad", "gpu_error", view.say("GPU {index} of {host} is in error.", **facts), path)
        else:
            says = view.say("GPU {index} of {host} is used by somebody outside the hub.", **facts)
            yield Concern("warm", "gpu_foreign", says, path)


def _stuck(run: Any, now: datetime) -> bool:
    return bool(run.state == AllocationState.ENDING and run.ending_at and run.ending_at < now - UNFINISHED)


def _unfinished(session: Session, view: View, ids: Sequence[int]) -> Iterable[Concern]:
    names = (User.name, Environment.display_name, Host.name, Allocation.ending_at)
    query = (
        select(*names)
        .join(User, User.id == Allocation.user_id)
        .join(Environment, Environment.id == Allocation.environment_id)
        .join(Host, Host.id == Allocation.host_id)
        .where(Allocation.id.in_(ids))
        .order_by(Allocation.ending_at)
    )
    for user, environment, host, since in session.execute(query) if ids else ():
        text = "{name} of {user} cannot be ended on {host}: it keeps what it holds."
        says = view.say(text, name=environment, user=user, host=host)
        yield Concern("bad", "run_stuck", says, _search(host), since)


def _failed(session: Session, view: View, now: datetime) -> Iterable[Concern]:
    newest = (
        select(func.max(Allocation.id)).where(Allocation.environment_id == Environment.id).correlate(Environment)
    ).scalar_subquery()
    query = (
        select(User.name, Environment, Allocation.id, Allocation.ended_at, Allocation.end_reason)
        .join(User, User.id == Environment.user_id)
        .join(Allocation, Allocation.id == newest)
        .where(Environment.state == EnvironmentState.ERROR, Allocation.ended_at >= now - timedelta(days=1))
        .order_by(Allocation.ended_at.desc())
    )
    for user, environment, run, ended_at, reason in session.execute(query):
        why = view.stored(environment.message) or entries.why(view, reason.value if reason else "failed")
        text = "{name} of {user} ended by an error: {why}"
        says = view.say(text, name=environment.display_name, user=user, why=why)
        path = "admin/audit?" + urlencode({"entity": "allocation", "which": run})
        yield Concern("warm", "environment_failed", says, path, ended_at)


def _budgets(session: Session, view: View, now: datetime) -> Iterable[Concern]:
    rows = session.execute(select(Budget, Workspace).join(Workspace, Workspace.id == Budget.workspace_id)).all()
    found = budgets.months(session, workspaces=[space for _budget, space in rows], now=now)
    for budget, space in sorted(rows, key=lambda row: -found[row[1].id].spent):
        spent = found[space.id].spent
        if spent and spent * 100 >= budget.amount * budget.warn_percent:
            says = view.say(
                "{workspace} has spent {spent} of {amount} this month.", workspace=space.display_name,
                spent=view.money(spent, short=True), amount=view.money(budget.amount, short=True),
            )  # fmt: skip
            level = "bad" if spent >= budget.amount else "warm"
            yield Concern(level, "budget_spent", says, space_path(space.name))
