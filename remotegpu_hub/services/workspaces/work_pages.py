"""Pages of what a workspace runs and used: all members' environments, and each day of a month by member."""

from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import selectinload

from ... import words
from ...domain import billing, metering, prices
from ...domain.billing import Days
from ...errors import RemoteGPUError
from ...orm import Allocation, Environment, EnvironmentState, Image
from ...units import GPU_HOUR, MICROS, month_of
from ..api import ROLES, Call, Needs, check
from ..pages import View
from . import runs, usage
from .pages import written_of_run
from .space_frame import NAME, SpacePage, route_of

A_PAGE = 50
MOST_SERIES = 6
"""Members with a colour of their own; the rest are one series."""
KEPT = ("search", "user", "running", "cursor")
"""Of the list of environments: what a form comes back to."""


@dataclass(frozen=True)
class Row:
    """An environment in the workspace's list: as the API tells it, with its image's name and its newest run's cost."""

    shown: dict[str, Any]
    image: str
    run: Allocation | None
    """What it holds now."""
    cost: int | None
    stops_at: datetime | None
    may_stop: bool


def environments(call: Call, asked: dict[str, str]) -> tuple[list[Row], str | None]:
    """One page of the environments of a workspace."""
    running = {"running": asked["running"]} if asked.get("running") in ("true", "false") else {}
    given = {name: value for name, value in asked.items() if name != "running"}
    query = check(runs.EnvironmentsAsked, {**given, **running, "limit": A_PAGE})
    shown, following = runs.list_environments_of_workspace(replace(call, query=query))
    ids = [one["id"] for one in shown]
    newest = _newest_runs(call, ids)
    named = select(Environment.id, Image.display_name).join(Image, Image.id == Environment.image_id)
    images = dict(call.session.execute(named.where(Environment.id.in_(ids))).tuples().all())
    manages = call.caller.hub_admin or call.role in ROLES[Needs.MANAGER]
    starts = call.role in ROLES[Needs.STARTER]
    rows = []
    for one in shown:
        last, cost = newest.get(one["id"], (None, None))
        own = starts and one["user"] == call.caller.person.name
        run = last if last is not None and last.ended_at is None else None
        ends = one["run"]["stops_at"] if one["run"] else None
        stops_at = datetime.fromisoformat(ends) if ends else None
        rows.append(Row(one, images[one["id"]], run, cost, stops_at, manages or own))
    return rows, following


def _newest_runs(call: Call, ids: list[int]) -> dict[int, tuple[Allocation, int]]:
    """The newest run of each of these environments, with what it cost so far."""
    newest = (
        select(func.max(Allocation.id)).where(Allocation.environment_id.in_(ids)).group_by(Allocation.environment_id)
    )
    history, zone = prices.history(call.session), call.space.time_zone
    found = {}
    query = select(Allocation, written_of_run()).where(Allocation.id.in_(newest))
    for run, written in call.session.execute(query.options(selectinload(Allocation.host))):
        more = () if run.metered else metering.unwritten(run, call.now, history=history, time_zone=zone)
        found[run.environment_id] = (run, int(written) + sum(part.amount for part in more))
    return found


async def show_environments(page: SpacePage, name: str, error: RemoteGPUError | None = None) -> None:
    """Render the list, with what went wrong."""
    asked = page.asked(*KEPT)
    frame, view, (rows, following) = await page.read(name, lambda call, _: environments(call, asked))
    page.show_tab(
        "space_environments.html", "environments", frame, view, error, rows=rows, following=following, asked=asked,
        State=EnvironmentState,
    )  # fmt: skip


class Environments(SpacePage):
    """What everybody keeps and runs in the workspace."""

    async def get(self, name: str) -> None:
        await show_environments(self, name)


class StopEnvironment(SpacePage):
    """Stop one; what cannot be is told on the list."""

    async def get(self, name: str, id: str) -> None:
        self.onward(name, "environments", **self.asked(*KEPT))

    async def post(self, name: str, id: str) -> None:
        try:
            await self.do(route_of(runs.stop_environment), {"id": id})
        except RemoteGPUError as error:
            await show_environments(self, name, error)
            return
        self.onward(name, "environments", told="stop", **self.asked(*KEPT))


# usage over time


@dataclass(frozen=True)
class Series:
    """A member, or all the others, in the chart and in the table."""

    name: str | None
    """None: all the others together."""
    number: int
    """Which colour."""
    values: list[str]
    """By day, for people."""
    plain: list[float]
    """By day, for the chart."""
    total: str
    other_total: str
    """Of what the chart does not show: money beside GPU hours, GPU hours beside money."""
    percent: float


@dataclass(frozen=True)
class Chart:
    month: str
    before: str
    after: str
    """The next month; empty for the current one."""
    days: tuple[date, ...]
    series: list[Series]
    everybody: list[Series]
    """Each member, for the sums."""
    totals: list[str]
    """By day."""
    total: str
    headline: str
    other_total: str


def chart(view: View, found: Days, *, money: bool, now_month: str) -> Chart:
    """Lay a month out: who used most has a colour of their own, the rest share one."""

    def of(which: bool, value: int) -> str:
        return view.money(value, short=True) if which else words.bare("gpu_hours", value)

    def series(name: str | None, number: int, amounts: tuple[int, ...], times: tuple[int, ...], whole: int) -> Series:
        mine, other = (amounts, times) if money else (times, amounts)
        scale = MICROS if money else GPU_HOUR
        return Series(
            name, number, [of(money, value) if value else "" for value in mine],
            [round(value / scale, 4) for value in mine], of(money, sum(mine)), of(not money, sum(other)),
            100.0 * sum(mine) / whole if whole > 0 else 0.0,
        )  # fmt: skip

    chosen = [sum(one.amounts if money else one.gpu_times) for one in found.members]
    order = sorted(range(len(found.members)), key=lambda place: -chosen[place])
    members, whole = [found.members[place] for place in order], sum(chosen)
    everybody = [
        series(one.user, min(place, MOST_SERIES) + 1, one.amounts, one.gpu_times, whole)
        for place, one in enumerate(members)
    ]
    rest = members[MOST_SERIES:]
    shown = everybody[:MOST_SERIES]
    if len(rest) == 1:
        shown = everybody
    elif rest:
        sums = (added([one.amounts for one in rest]), added([one.gpu_times for one in rest]))
        shown.append(series(None, MOST_SERIES + 1, *sums, whole))
    by_day = added([one.amounts if money else one.gpu_times for one in members])
    others = sum(sum(one.gpu_times if money else one.amounts) for one in members)
    year, number = map(int, found.month.split("-"))
    after = f"{year + number // 12}-{number % 12 + 1:02}"
    return Chart(
        month=found.month,
        before=f"{year - (number == 1)}-{(number - 2) % 12 + 1:02}",
        after=after if after <= now_month else "",
        days=found.days,
        series=shown,
        everybody=everybody,
        totals=[of(money, value) if value else "" for value in by_day],
        total=of(money, whole),
        headline=view.money(whole, short=True) if money else view.quantity("gpu_hours", whole),
        other_total=of(not money, others),
    )


def added(rows: list[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip(*rows, strict=True))


class Usage(SpacePage):
    """Who used how much on which day of a month: as a chart, as sums, and as a table."""

    async def get(self, name: str) -> None:
        asked = self.asked("month", "show")
        money = asked.get("show") == "money"

        def work(call: Call, view: View) -> Chart:
            query = check(usage.UsageAsked, {"month": asked.get("month")})
            found = billing.by_day(call.session, workspace=call.space, month=query.month, now=call.now)
            return chart(view, found, money=money, now_month=month_of(call.now, call.space.time_zone))

        frame, view, found = await self.read(name, work)
        self.show_tab("space_usage.html", "usage", frame, view, None, found=found, money=money)


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (NAME + r"/environments", Environments, {}),
    (NAME + r"/environments/(?P<id>[0-9]+)/stop", StopEnvironment, {}),
    (NAME + r"/usage", Usage, {}),
]
