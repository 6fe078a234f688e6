"""Pages for admins of the hub: every GPU as one square, with who holds it, and taking hosts and GPUs out for repair."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session, selectinload

from ... import plain
from ...domain import requests
from ...errors import RemoteGPUError
from ...orm import (
    ENDED,
    Allocation,
    AllocationSlot,
    Deadline,
    EndReason,
    Gpu,
    GpuSlot,
    GpuStatus,
    Host,
    HostModel,
    HostStatus,
    User,
    Workspace,
)
from ...runtime import utcnow
from ..api import Needs, Route, call_of
from ..pages import Page, View
from . import machines, runs

MOST_HOSTS = 200


@dataclass(frozen=True)
class Square:
    """One GPU of the map."""

    gpu: Gpu
    kind: str
    """`free`, `held`, `part` (some shares are held), `foreign`, `bad` or `off`."""
    condition: str
    held: int
    slots: int
    runs: tuple[Allocation, ...]

    @property
    def number(self) -> str:
        return (
            "!" if self.kind == "bad" else f"{self.held}/{self.slots}" if self.kind == "part" else str(self.gpu.index)
        )


@dataclass(frozen=True)
class HostRow:
    host: Host
    squares: list[Square]
    models: list[str]
    cpu_percent: int
    memory_percent: int
    runs: list[Allocation]
    """What holds something there, the oldest first."""
    ends_at: datetime | None
    """When the last of them ends, where the host is drained."""


@dataclass(frozen=True)
class Totals:
    """Of all hosts, whatever is searched for."""

    held: int
    gpus: int
    free: int
    bad: int
    off: int


@dataclass(frozen=True)
class Map:
    rows: list[HostRow]
    totals: Totals
    more_after: str | None
    focus: Square | None


def read_map(session: Session, *, search: str, model: str, after: str, focus: str) -> Map:
    """Up to 200 hosts by name, each with its GPUs; everything else about them in four statements."""
    query = select(Host).order_by(Host.name)
    if search:
        query = query.where(_fits(search))
    if model:
        query = query.where(
            exists().where(HostModel.host_id == Host.id, HostModel.model == model, HostModel.usable > 0)
        )
    if after:
        query = query.where(Host.name > after)
    hosts = list(session.scalars(query.limit(MOST_HOSTS + 1)))
    more = hosts[MOST_HOSTS - 1].name if len(hosts) > MOST_HOSTS else None
    hosts = hosts[:MOST_HOSTS]
    runs_of = _runs(session, hosts)
    squares, ends = _squares(session, hosts, runs_of), _ends(session, hosts)
    there: dict[int, list[Allocation]] = defaultdict(list)
    for run in sorted(runs_of.values(), key=lambda one: one.id):
        there[run.host_id].append(run)
    rows = [_row(host, squares[host.id], there[host.id], ends.get(host.id)) for host in hosts]
    found = next((one for row in rows for one in row.squares if str(one.gpu.id) == focus), None)
    return Map(rows, _totals(session), more, found)


def _fits(search: str) -> Any:
    """Hosts by their own name, by a GPU's UUID, or by who holds something there."""
    holders = (
        exists()
        .where(Allocation.host_id == Host.id, Allocation.state != ENDED)
        .where(Allocation.user_id == User.id, Allocation.workspace_id == Workspace.id)
        .where(
            User.name.icontains(search, autoescape=True)
            | Workspace.name.icontains(search, autoescape=True)
            | Workspace.display_name.icontains(search, autoescape=True)
        )
    )
    uuids = exists().where(Gpu.host_id == Host.id, Gpu.uuid.icontains(search, autoescape=True))
    return Host.name.icontains(search, autoescape=True) | uuids | holders


def _runs(session: Session, hosts: Sequence[Host]) -> dict[int, Allocation]:
    ids = [host.id for host in hosts]
    open_runs = select(Allocation).where(Allocation.host_id.in_(ids), Allocation.state != ENDED)
    wanted = (selectinload(Allocation.user), selectinload(Allocation.workspace), selectinload(Allocation.environment))
    return {run.id: run for run in session.scalars(open_runs.options(*wanted))}


def _ends(session: Session, hosts: Sequence[Host]) -> dict[int, datetime]:
    ids = [host.id for host in hosts]
    latest = (
        select(Allocation.host_id, func.max(Deadline.at))
        .join(Deadline, Deadline.allocation_id == Allocation.id)
        .where(Allocation.host_id.in_(ids), Allocation.state != ENDED, Deadline.reason == EndReason.DRAINED)
        .group_by(Allocation.host_id)
    )
    return dict(session.execute(latest).tuples().all())


def _squares(session: Session, hosts: Sequence[Host], runs_of: dict[int, Allocation]) -> dict[int, list[Square]]:
    ids = [host.id for host in hosts]
    by_id = {host.id: host for host in hosts}
    holders: dict[int, list[int | None]] = defaultdict(list)
    whose = (
        select(GpuSlot.gpu_id, AllocationSlot.allocation_id)
        .outerjoin(AllocationSlot, (AllocationSlot.slot_id == GpuSlot.id) & AllocationSlot.open)
        .where(GpuSlot.host_id.in_(ids), ~GpuSlot.retired | AllocationSlot.allocation_id.is_not(None))
    )
    for gpu_id, allocation_id in session.execute(whose):
        holders[gpu_id].append(allocation_id)
    found: dict[int, list[Square]] = defaultdict(list)
    gpus = select(Gpu).where(Gpu.host_id.in_(ids)).order_by(Gpu.host_id, Gpu.index).options(selectinload(Gpu.host))
    for gpu in session.scalars(gpus):
        held = [number for number in holders[gpu.id] if number is not None]
        if gpu.missing and not held:
            continue
        its_runs = tuple(runs_of[number] for number in dict.fromkeys(held) if number in runs_of)
        host, slots = by_id[gpu.host_id], len(holders[gpu.id])
        kind = kind_of(gpu.status, gpu.missing, gpu.foreign, host.status, held=len(held), slots=slots)
        found[gpu.host_id].append(
            Square(gpu, kind, plain.condition(gpu), len(held), slots, its_runs)
        )  # fmt: skip
    return found


def kind_of(status: GpuStatus, missing: bool, foreign: bool, host: HostStatus, *, held: int, slots: int) -> str:
    """One of the kinds of `Square`: what keeps a GPU from being given out comes first."""
    if missing or status == GpuStatus.ERROR:
        return "bad"
    if held:
        return "held" if held == slots else "part"
    if status == GpuStatus.MAINTENANCE or host != HostStatus.ONLINE:
        return "off"
    return "foreign" if foreign else "free"


def _row(host: Host, squares: list[Square], there: list[Allocation], ends_at: datetime | None) -> HostRow:
    def percent(used: int, whole: int) -> int:
        return round(100 * used / whole) if whole else 0

    return HostRow(
        host, squares, sorted({one.gpu.model for one in squares}),
        percent(host.used_cpu_millis + host.foreign_cpu_millis, host.cpu_millis),
        percent(host.used_memory_bytes + host.foreign_memory_bytes, host.memory_bytes),
        there, ends_at,
    )  # fmt: skip


def _totals(session: Session) -> Totals:
    held = set(
        session.scalars(
            select(GpuSlot.gpu_id).join(AllocationSlot, AllocationSlot.slot_id == GpuSlot.id).where(AllocationSlot.open)
        )
    )
    columns = (Gpu.id, Gpu.status, Gpu.missing, Gpu.foreign, Host.status)
    counted: Counter[str] = Counter()
    for number, status, missing, foreign, host in session.execute(select(*columns).join(Host, Host.id == Gpu.host_id)):
        if not missing or number in held:
            counted[kind_of(status, missing, foreign, host, held=number in held, slots=1)] += 1
    return Totals(counted["held"], counted.total(), counted["free"], counted["bad"], counted["off"])


def gpu_map(call: Any) -> Any:
    return read_map(call.session, **call.query)


MAP = Route("GET", "gpus", "The map of all GPUs", Needs.HUB_ADMIN, gpu_map)
_CHANGES = {route.work: route for route in (*machines.ROUTES, *runs.ROUTES)}


async def show_map(page: Page, error: RemoteGPUError | None = None) -> None:
    """Render the map, with what went wrong."""
    view = View(page.language, currency=page.runtime.settings.currency)
    names = ("search", "model", "after", "focus")
    query = {name: page.get_query_argument(name, "")[:100].replace("\0", "") for name in names}

    def work(session: Session) -> tuple[Map, list[str], int]:
        found: Map = MAP.work(call_of(page, session, MAP, {}, query, None))
        models = list(session.scalars(select(HostModel.model).distinct().order_by(HostModel.model)))
        return found, models, requests.count_open(session)

    found, models, waiting = await page.ask(work)

    def link(**changed: str) -> str:
        kept = {name: value for name, value in {**query, **changed}.items() if value}
        return page.address("gpus") + (f"?{urlencode(kept)}" if kept else "")

    page.show(
        "gpus.html", view, title=view.say("Hosts and GPUs"), here="gpus", found=found, query=query, models=models,
        link=link, error=error, now=utcnow(), Status=HostStatus, GpuStatus=GpuStatus,
        open_requests=waiting,
    )  # fmt: skip


GRACES: Final = {"now": 0, "1h": 3600, "4h": 4 * 3600, "24h": 24 * 3600}
"""How long what runs on a host may go on, in seconds, by what the question offers."""


class GpuMap(Page):
    """Every GPU as one square; the one in focus is explained beside, with what can be done."""

    async def get(self) -> None:
        await show_map(self)


class ChangeMachine(Page):
    """Take a host or a GPU out for repair and back, or stop what holds a GPU. A GPU is named by its host and its number
    there: a device plugin's have no names of their own."""

    async def get(self, kind: str, name: str, verb: str, index: str = "") -> None:
        self.back("gpus")

    async def post(self, kind: str, name: str, verb: str, index: str = "") -> None:
        try:
            grace = GRACES.get(self.get_body_argument("grace", ""))
            if kind == "hosts" and verb == "maintenance" and grace is not None:
                await self.do(_CHANGES[machines.drain_host], {"host": name}, machines.Drain(grace_seconds=grace))
            elif kind == "hosts" and index:
                body = machines.GpuEdit(status=verb)  # type: ignore[arg-type]
                await self.do(_CHANGES[machines.edit_gpu_of_host], {"host": name, "index": index}, body)
            elif kind == "hosts":
                await self.do(_CHANGES[machines.edit_host], {"host": name}, machines.HostEdit(status=verb))  # type: ignore[arg-type]
            else:
                await self.do(_CHANGES[runs.stop_environment], {"id": name})
        except RemoteGPUError as error:
            self.set_status(error.status)
            await show_map(self, error)
            return
        kept = {
            one: value for one in ("search", "model", "focus") if (value := self.get_query_argument(one, "")[:100])
        }  # fmt: skip
        self.redirect(self.address("gpus") + (f"?{urlencode(kept)}" if kept else ""), status=303)


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (r"gpus", GpuMap, {}),
    (r"machines/(?P<kind>hosts)/(?P<name>[^/]+)/(?P<verb>maintenance|online)", ChangeMachine, {}),
    (
        r"machines/(?P<kind>hosts)/(?P<name>[^/]+)/gpus/(?P<index>[0-9]+)/(?P<verb>maintenance|available)",
        ChangeMachine,
        {},
    ),
    (r"machines/(?P<kind>environments)/(?P<name>[0-9]+)/(?P<verb>stop)", ChangeMachine, {}),
]
