"""Pages for everybody: my environments, a new one, my SSH keys."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from ...domain import allocations, environments, invitations, metering, ports, prices, quotas, workspaces
from ...domain import keys as street_keys
from ...domain.metering import Slice
from ...errors import RemoteGPUError
from ...orm import (
    Allocation,
    BillingRecord,
    Environment,
    EnvironmentState,
    MemberMonth,
    SubjectKind,
    User,
)
from ...runtime import utcnow
from ...units import month_of
from ..api import Route
from ..pages import Bar, Page, View, bar, slug
from . import keys as key_routes
from . import runs

MONTH_OF_A_USER = "UTC"


@dataclass(frozen=True)
class Row:
    """An environment as its user's list shows it."""

    environment: Environment
    run: Allocation | None
    """What it holds now."""
    last: Allocation | None
    """Its newest run, ended or not."""
    cost: int
    """Of the newest run so far, in millionths."""
    stops_at: datetime | None
    ways: list[Any]


@dataclass(frozen=True)
class Mine:
    """All that the first page shows of its reader."""

    rows: list[Row]
    an_hour: int
    this_month: int
    gpus: Bar
    gpu_hours: Bar
    currency: str
    invited: list[str]
    """Workspaces that ask the reader in."""


def mine(session: Session, view: View, *, user: User, login: str, now: datetime) -> Mine:
    """Read the first page: a fixed number of statements, and one for each run that is not wholly on the ledger."""
    found = environments.of_user(session, user=user)
    newest = _newest_runs(session, [one.id for one in found])
    unwritten = _unwritten(session, user, now)
    costs = _costs(session, list(newest.values()), unwritten)
    rows = []
    for one in found:
        last = newest.get(one.id)
        run = last if last is not None and last.ended_at is None else None
        stops_at = allocations.stops_at(session, allocation_id=run.id) if run else None
        ways = ports.ways(run, login=login) if run else []
        rows.append(Row(one, run, last, costs.get(last.id, 0) if last else 0, stops_at, ways))
    rows.sort(key=lambda row: (row.run is None, -row.environment.id))
    month = month_of(now, MONTH_OF_A_USER)
    written = session.scalar(
        select(func.sum(MemberMonth.amount)).where(MemberMonth.user_id == user.id, MemberMonth.month == month)
    )
    parts = [part for one in unwritten.values() for part in one if month_of(part.start, MONTH_OF_A_USER) == month]
    level = _own_level(session, user, now)
    return Mine(
        rows=rows,
        an_hour=sum(row.run.price_per_hour for row in rows if row.run),
        this_month=int(written or 0) + sum(part.amount for part in parts),
        gpus=bar(view, view.say("Your GPUs"), "gpus", level.held["gpu_millis"], level.limits["gpu_millis"]),
        gpu_hours=bar(
            view, view.say("GPU hours this month"), "gpu_hours", level.gpu_time, level.limits["gpu_hours"] * 3_600_000
        ),
        currency=prices.currency(session),
        invited=[one.workspace.display_name for one in invitations.open_of(session, user=user, now=now)],
    )


def _newest_runs(session: Session, ids: list[int]) -> dict[int, Allocation]:
    newest = (
        select(func.max(Allocation.id)).where(Allocation.environment_id.in_(ids)).group_by(Allocation.environment_id)
    )
    wanted = (selectinload(Allocation.host), selectinload(Allocation.ports))
    query = select(Allocation).where(Allocation.id.in_(newest)).options(*wanted)
    return {run.environment_id: run for run in session.scalars(query)}


def _costs(session: Session, found: list[Allocation], unwritten: dict[int, list[Slice]]) -> dict[int, int]:
    """What runs cost so far, on the ledger and not yet."""
    ids = [run.id for run in found]
    written = select(BillingRecord.subject_id, func.sum(BillingRecord.amount)).where(
        BillingRecord.subject_kind == SubjectKind.ALLOCATION, BillingRecord.subject_id.in_(ids)
    )
    costs = {number: int(amount) for number, amount in session.execute(written.group_by(BillingRecord.subject_id))}
    return {one: costs.get(one, 0) + sum(part.amount for part in unwritten.get(one, ())) for one in ids}


def _unwritten(session: Session, user: User, now: datetime) -> dict[int, list[Slice]]:
    """What is not on the ledger yet of each of the user's runs."""
    history = prices.history(session)
    unmetered = session.scalars(select(Allocation).where(Allocation.user_id == user.id, ~Allocation.metered))
    return {run.id: metering.running(session, allocation=run, now=now, history=history) for run in unmetered}


def _own_level(session: Session, user: User, now: datetime) -> Any:
    """What limits the user everywhere, whatever the workspace."""
    member = next(iter(workspaces.of_user(session, user=user)), None)
    found = quotas.levels(
        session, user_id=user.id, workspace_id=member.workspace_id if member else 0, time_zone=MONTH_OF_A_USER, now=now
    )
    return found["user"]


async def show_mine(page: Page, error: RemoteGPUError | None = None) -> None:
    """Render the list of the reader's environments, with what went wrong."""
    settings = page.runtime.settings
    view, now = View(page.language, currency=settings.currency), utcnow()

    def work(session: Session) -> Mine:
        return mine(session, view, user=page.caller(session), login=settings.ssh_user, now=now)

    found = await page.ask(work)
    view = View(page.language, currency=found.currency)
    page.show(
        "environments.html", view, title=view.say("My environments"), here="", found=found, now=now, error=error,
        State=EnvironmentState, quote=lambda text: quote(text, safe=""),
    )  # fmt: skip


class MyEnvironments(Page):
    """What the reader keeps, what runs, what it costs, and what can be done with it."""

    async def get(self) -> None:
        await show_mine(self)


VERBS: dict[str, Route] = {
    route.path.rsplit("/", 1)[1] if route.method == "POST" else "delete": route
    for route in runs.ROUTES
    if route.changes
}


class ChangeEnvironment(Page):
    """Start, stop, restart or delete one; what cannot be is told on the list."""

    async def get(self, id: str, verb: str) -> None:
        self.back()

    async def post(self, id: str, verb: str) -> None:
        try:
            await self.do(VERBS[verb], {"id": id})
        except RemoteGPUError as error:
            self.set_status(error.status)
            await show_mine(self, error)
            return
        self.back(told=verb)


class NewEnvironment(Page):
    """Asks for a name, then leads to the spawn page of a new server."""

    async def get(self) -> None:
        view = View(self.language)
        self.show("new.html", view, title=view.say("New environment"), here="", problem="")

    async def post(self) -> None:
        name = self.get_body_argument("name", "")
        try:
            name = workspaces.check_display_name(name)
        except RemoteGPUError as error:
            view = View(self.language)
            self.set_status(400)
            self.show("new.html", view, title=view.say("New environment"), here="", problem=view.explain(error))
            return

        def taken(session: Session) -> list[str]:
            return [one.server_name for one in environments.of_user(session, user=self.caller(session))]

        server = slug(name, await self.ask(taken))
        who = quote(self.current_user["name"], safe="")
        self.redirect(f"{self.hub_prefix}spawn/{who}/{server}?{urlencode({'name': name})}", status=303)


def _bars(view: View, level: Any, *, only_limited: bool = False) -> list[Bar]:
    named = {
        "gpu_millis": ("gpus", view.say("GPUs")), "cpu_millis": ("cpu", view.say("Cores")),
        "memory_bytes": ("memory", view.say("Main memory")), "storage_bytes": ("storage", view.say("Storage")),
        "environments": ("environments", view.say("Running environments")),
    }  # fmt: skip
    bars = [
        bar(view, label, resource, level.held[name], level.limits[name])
        for name, (resource, label) in named.items()
    ]  # fmt: skip
    hours = level.limits["gpu_hours"] * 3_600_000
    bars.append(bar(view, view.say("GPU hours this month"), "gpu_hours", level.gpu_time, hours))
    for model, slots in sorted(level.slot_limits.items()):
        bars.append(bar(view, model, f"gpu:{model}", level.held_slots[model], slots))
    return [one for one in bars if not (only_limited and one.unlimited)]


class MyKeys(Page):
    """The reader's SSH keys."""

    async def get(self) -> None:
        await self.render_keys()

    async def render_keys(self, error: RemoteGPUError | None = None, text: str = "") -> None:
        view = View(self.language)
        found = await self.ask(lambda session: street_keys.of_user(session, user=self.caller(session)))
        self.show("keys.html", view, title=view.say("My SSH keys"), here="keys", keys=found, error=error, text=text)

    async def post(self, id: str | None = None) -> None:
        add, remove = (next(one for one in key_routes.ROUTES if one.work is work)
                       for work in (key_routes.add_key, key_routes.remove_key))  # fmt: skip
        try:
            if id is not None:
                await self.do(remove, {"id": id})
            else:
                text = self.get_body_argument("public_key", "")
                name = self.get_body_argument("name", "")[:100]
                await self.do(add, {}, key_routes.NewKey(public_key=text[:8000], name=name))
        except RemoteGPUError as error:
            self.set_status(error.status)
            await self.render_keys(error, "" if id else self.get_body_argument("public_key", "")[:8000])
            return
        self.back("keys")


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (r"", MyEnvironments, {}),
    (r"new", NewEnvironment, {}),
    (r"environments/(?P<id>[0-9]+)/(?P<verb>start|stop|restart|delete)", ChangeEnvironment, {}),
    (r"keys", MyKeys, {}),
    (r"keys/(?P<id>[0-9]+)/remove", MyKeys, {}),
]
