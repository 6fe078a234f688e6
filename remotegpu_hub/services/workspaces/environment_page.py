"""The page of one environment: what it holds and costs, what can be done with it, how to get in, what it
prints, and how its runs ended."""

from typing import Any
from urllib.parse import quote

from sqlalchemy import select
from sqlalchemy.orm import selectinload

from ...domain import allocations, metering, ports, prices, volumes
from ...errors import Denied, RemoteGPUError
from ...orm import Allocation, EndReason, EnvironmentState
from ..api import Needs, Route, call_of
from ..pages import Page, View
from .pages import VERBS, deletion_of, written_of_run
from .runs import find, may_delete, may_read

MOST_RUNS = 10
DOTS = {"running": "free", "creating": "idle", "stopping": "idle", "error": "bad"}
"""The colour beside a state's word."""


def read_page(call: Any) -> dict[str, Any]:
    """Everything that the page shows, for who may see the environment."""
    one = find(call, may=Needs.MEMBER)
    wanted = (selectinload(Allocation.host), selectinload(Allocation.ports), selectinload(Allocation.slots))
    newest = (
        select(Allocation, written_of_run())
        .where(Allocation.environment_id == one.id, may_read(call, one, Allocation.workspace_id))
        .order_by(Allocation.id.desc())
        .limit(MOST_RUNS)
        .options(*wanted)
    )
    unwritten = metering.running_of(call.session, user_id=one.user_id, now=call.now)
    runs = [
        (run, int(written) + sum(part.amount for part in unwritten.get(run.id, ())))
        for run, written in call.session.execute(newest)
    ]
    run = runs[0][0] if runs and runs[0][0].ended_at is None else None
    try:
        find(call, may=Needs.MANAGER)
        may_change = True
    except Denied:
        may_change = False
    return {
        "one": one,
        "owner": one.user.name,
        "space": one.workspace.display_name,
        "image": one.image,
        "run": run,
        "now": call.now,
        "runs": runs,
        "ways": ports.ways(run, login=call.runtime.settings.ssh_user) if run else [],
        "uuids": [held.gpu.uuid for held in run.slots if held.open] if run else [],
        "ends": allocations.deadlines(call.session, allocation_ids=[run.id]).get(run.id) if run else None,
        "may_change": may_change,
        "may_delete": may_change and may_delete(call, one),
        "home": volumes.homes(call.session, user_id=one.user_id).get(one.workspace_id)
        if run is None and may_change and may_delete(call, one)
        else None,
        "own": one.user_id == call.caller.person.id,
        "currency": prices.currency(call.session),
    }


PAGE = Route("GET", "environments/{id}", "The page of an environment", Needs.SELF, read_page)


def states(view: View) -> dict[EnvironmentState, str]:
    return {
        EnvironmentState.CREATING: view.say("starting"),
        EnvironmentState.RUNNING: view.say("running"),
        EnvironmentState.STOPPING: view.say("stopping"),
        EnvironmentState.STOPPED: view.say("stopped"),
        EnvironmentState.ERROR: view.say("ended by an error"),
        EnvironmentState.DELETED: view.say("deleted"),
    }


def reasons(view: View) -> dict[EndReason, str]:
    """Why runs ended, in a few words each."""
    return {
        EndReason.USER: view.say("stopped by its user"),
        EndReason.ADMIN: view.say("stopped by an admin"),
        EndReason.EXITED: view.say("ended by itself"),
        EndReason.FAILED: view.say("did not start"),
        EndReason.TIMEOUT: view.say("did not start in time"),
        EndReason.GHOST: view.say("never began"),
        EndReason.ORPHAN: view.say("the hub had lost it"),
        EndReason.IDLE: view.say("stood idle"),
        EndReason.BUDGET: view.say("the budget was spent"),
        EndReason.QUOTA: view.say("the quota was used up"),
        EndReason.EVICTED: view.say("the cluster took its place"),
        EndReason.OOM_KILLED: view.say("used more memory than it had"),
        EndReason.NODE_LOST: view.say("its host was lost"),
        EndReason.POD_DELETED: view.say("deleted from outside"),
        EndReason.IMAGE_PULL_FAILED: view.say("its image could not be pulled"),
        EndReason.DRAINED: view.say("its host was drained"),
        EndReason.UNSCHEDULABLE: view.say("the cluster found no place"),
    }


async def show_one(page: Page, id: str, error: RemoteGPUError | None = None) -> None:
    """Render it, with what went wrong."""
    found = await page.ask(lambda session: PAGE.work(call_of(page, session, PAGE, {"id": id}, None, None)))
    view = View(page.language, currency=found["currency"])
    page.show(
        "environment.html", view, title=found["one"].display_name, here="environment", error=error,
        log=page.address(f"api/environments/{id}/logs"), State=EnvironmentState, states=states(view), dots=DOTS,
        reasons=reasons(view), quote=lambda text: quote(text, safe=""), **found,
    )  # fmt: skip


class EnvironmentPage(Page):
    """One environment, for all who may see it."""

    async def get(self, id: str) -> None:
        await show_one(self, id)


class ChangeHere(Page):
    """Start, stop, restart or delete it, and stay on its page as long as there is one."""

    async def get(self, id: str, verb: str) -> None:
        self.back(f"environments/{id}")

    async def post(self, id: str, verb: str) -> None:
        try:
            query = deletion_of(self) if verb == "delete" else {}
            await self.do(VERBS[verb], {"id": id}, query=query)
        except RemoteGPUError as error:
            self.set_status(error.status)
            await show_one(self, id, error)
            return
        self.back("" if verb == "delete" else f"environments/{id}", told="delete-all" if query else verb)


ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (r"environments/(?P<id>[0-9]+)", EnvironmentPage, {}),
    (r"environments/(?P<id>[0-9]+)/here/(?P<verb>start|stop|restart|delete)", ChangeHere, {}),
]
