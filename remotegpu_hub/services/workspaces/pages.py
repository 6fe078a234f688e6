"""Pages for everybody: my environments, a new one, my SSH keys."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode

from sqlalchemy import bindparam, func, select, union_all
from sqlalchemy.orm import Session, aliased, joinedload, selectinload

from ...domain import allocations, environments, invitations, metering, ports, prices, quotas, volumes, workspaces
from ...domain import keys as street_keys
from ...errors import Invalid, RemoteGPUError
from ...orm import (
    DELETED,
    ENDED,
    USAGE,
    Allocation,
    BillingRecord,
    Deadline,
    Environment,
    EnvironmentState,
    Host,
    Image,
    MemberMonth,
    SubjectKind,
    User,
    Workspace,
)
from ...runtime import utcnow
from ...units import GPU_HOUR, month_of
from ..api import LARGEST, Route
from ..pages import Bar, Page, View, bar, slug
from . import keys as key_routes
from . import runs

MONTH_OF_A_USER = "UTC"
A_PAGE = 20
"""Of environments that hold nothing; what holds something is shown always."""


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
    why: str
    """Why it stops then, as it is kept."""
    ways: list[Any]
    home: volumes.Home | None = None
    """Its home volume, where it holds nothing."""


@dataclass(frozen=True)
class Mine:
    """All that the first page shows of its reader."""

    running: list[Row]
    """All that hold something now."""
    rest: list[Row]
    """A page of the others, the newest first."""
    following: str
    """The cursor of the next page; empty on the last one."""
    an_hour: int
    this_month: int
    gpus: Bar
    gpu_hours: Bar
    currency: str
    invited: list[str]
    """Workspaces that ask the reader in."""


def mine(
    session: Session, view: View, *, user: User, login: str, now: datetime, search: str = "", cursor: str = ""
) -> Mine:
    """Read the first page: a few statements, however many environments there are. Search and cursor are of those that
    hold nothing. Raises: Invalid for a cursor of another list."""
    query = _kept(runs.fits(search)) if search else _all_kept
    kept = session.execute(query, {"whose": user.id, "before": _before(cursor)}).all()
    unwritten = metering.running_of(session, user_id=user.id, now=now)
    rows = []
    for one, last, stops_at, why, written in kept:
        run = last if last is not None and last.ended_at is None else None
        cost = int(written) + sum(part.amount for part in unwritten.get(last.id, ())) if last else 0
        ways = ports.ways(run, login=login) if run else []
        rows.append(Row(one, run, last, cost, stops_at if run else None, why or "", ways))
    rows.sort(key=lambda row: -row.environment.id)
    running, rest = [row for row in rows if row.run], [row for row in rows if not row.run]
    homes = volumes.homes(session, user_id=user.id) if rest else {}
    rest = [replace(row, home=homes.get(row.environment.workspace_id)) for row in rest]
    following = str(rest[A_PAGE - 1].environment.id) if len(rest) > A_PAGE else ""
    month = month_of(now, MONTH_OF_A_USER)
    written, currency = session.execute(_sums, {"whose": user.id, "month": month}).one()
    parts = [part for one in unwritten.values() for part in one if month_of(part.start, MONTH_OF_A_USER) == month]
    level = _own_level(session, user, now)
    return Mine(
        running=running,
        rest=rest[:A_PAGE],
        following=following,
        an_hour=sum(row.run.price_per_hour for row in running if row.run),
        this_month=int(written or 0) + sum(part.amount for part in parts),
        gpus=bar(view, view.say("Your GPUs"), "gpus", level.held["gpu_millis"], level.limits["gpu_millis"]),
        gpu_hours=bar(
            view, view.say("GPU hours this month"), "gpu_hours", level.gpu_time, level.limits["gpu_hours"] * GPU_HOUR
        ),
        currency=currency,
        invited=[one.workspace.display_name for one in invitations.open_of(session, user=user, now=now)],
    )


def written_of_run() -> Any:
    """What the ledger has of a run; of usage and of the rest by an index each."""

    def part(of: Any) -> Any:
        theirs = (BillingRecord.subject_kind == SubjectKind.ALLOCATION) & (BillingRecord.subject_id == Allocation.id)
        return select(func.coalesce(func.sum(BillingRecord.amount), 0)).where(theirs, of).scalar_subquery()

    return part(BillingRecord.kind == USAGE) + part(BillingRecord.kind != USAGE)


_newest, _open = aliased(Allocation), aliased(Allocation)
_whose: Any = bindparam("whose")
_running = select(_open.environment_id).where(_open.user_id == _whose, _open.state != ENDED, ~_open.metered)


def _kept(*wanted: Any) -> Any:
    """A user's environments, each with its newest run, when and why that stops, and what the ledger has of it: all
    that hold something, and of the others that are wanted a page and one more."""
    others = (
        select(Environment.id)
        .where(
            Environment.user_id == _whose, Environment.state != DELETED, Environment.id < bindparam("before"),
            Environment.id.not_in(_running), *wanted,
        )
        .order_by(Environment.id.desc())
        .limit(A_PAGE + 1)
        .subquery()
    )  # fmt: skip
    return (
        select(
            Environment,
            Allocation,
            allocations.first_deadline(Deadline.at),
            allocations.first_deadline(Deadline.message),
            written_of_run(),
        )
        .outerjoin(
            Allocation,
            Allocation.id
            == select(func.max(_newest.id)).where(_newest.environment_id == Environment.id).scalar_subquery(),
        )
        .where(Environment.id.in_(union_all(_running, select(others.c.id))))
        .options(
            joinedload(Environment.workspace, innerjoin=True).load_only(Workspace.display_name),
            joinedload(Environment.image, innerjoin=True).load_only(Image.display_name),
            joinedload(Allocation.host).load_only(Host.name, Host.address),
            selectinload(Allocation.ports),
        )
    )


_all_kept = _kept()


def _before(cursor: str) -> int:
    """Raises: Invalid."""
    if not cursor:
        return LARGEST
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise Invalid("This cursor is none of this list. Begin without one.")
    return int(cursor)


_sums = select(
    select(func.sum(MemberMonth.amount))
    .where(MemberMonth.user_id == bindparam("whose"), MemberMonth.month == bindparam("month"))
    .scalar_subquery(),
    prices.CURRENCY,
)


def _own_level(session: Session, user: User, now: datetime) -> Any:
    """What limits the user everywhere, whatever the workspace: there is none with the number 0."""
    return quotas.levels(session, user_id=user.id, workspace_id=0, time_zone=MONTH_OF_A_USER, now=now)["user"]


async def show_mine(page: Page, error: RemoteGPUError | None = None) -> None:
    """Render the list of the reader's environments, with what went wrong."""
    settings = page.runtime.settings
    view, now = View(page.language, currency=settings.currency), utcnow()
    asked = asked_of(page)

    def work(session: Session) -> Mine:
        return mine(session, view, user=page.caller(session), login=settings.ssh_user, now=now, **asked)

    found = await page.ask(work)
    view = View(page.language, currency=found.currency)
    page.show(
        "environments.html", view, title=view.say("My environments"), here="", found=found, now=now, error=error,
        State=EnvironmentState, quote=lambda text: quote(text, safe=""), asked=asked,
        kept=query(**asked), beginning=query(**{**asked, "cursor": ""}),
        following=query(**{**asked, "cursor": found.following}) if found.following else "",
    )  # fmt: skip


def query(**asked: str) -> str:
    """What is behind the address of the part of the list."""
    given = {name: value for name, value in asked.items() if value}
    return f"?{urlencode(given)}" if given else ""


def asked_of(page: Page) -> dict[str, str]:
    """Which part of the list its address asks for."""
    given = {name: page.get_query_argument(name, "")[:100].replace("\0", "") for name in ("search", "cursor")}
    return {name: value for name, value in given.items() if value}


class MyEnvironments(Page):
    """What the reader keeps, what runs, what it costs, and what can be done with it."""

    async def get(self) -> None:
        await show_mine(self)


VERBS: dict[str, Route] = {
    route.path.rsplit("/", 1)[1] if route.method == "POST" else "delete": route
    for route in runs.ROUTES
    if route.changes
}


def deletion_of(page: Page) -> dict[str, bool]:
    """What else the question before a deletion was answered with."""
    return {"volume": True} if page.get_body_argument("volume", "") else {}


class ChangeEnvironment(Page):
    """Start, stop, restart or delete one; what cannot be is told on the list."""

    async def get(self, id: str, verb: str) -> None:
        self.back(**asked_of(self))

    async def post(self, id: str, verb: str) -> None:
        try:
            query = deletion_of(self) if verb == "delete" else {}
            await self.do(VERBS[verb], {"id": id}, query=query)
        except RemoteGPUError as error:
            self.set_status(error.status)
            await show_mine(self, error)
            return
        self.back(told="delete-all" if query else verb, **asked_of(self))


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
    hours = level.limits["gpu_hours"] * GPU_HOUR
    bars.append(bar(view, view.say("GPU hours this month"), "gpu_hours", level.gpu_time, hours))
    for model, slots in sorted(level.slot_limits.items()):
        bars.append(bar(view, model, f"gpu:{model}", level.held_slots[model], slots))
    return [one for one in bars if not (only_limited and one.unlimited)]


class MyKeys(Page):
    """The reader's SSH keys."""

    async def get(self, id: str | None = None) -> None:
        if id is not None:  # the address of a form that was refused
            self.back("keys")
            return
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
