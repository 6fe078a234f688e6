"""Routes of environments: what is kept, what of it runs, and to start, stop, restart and delete it through the hub."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import select, true
from sqlalchemy.orm import Session, aliased, selectinload

from ... import plain
from ...clients.hub import HubClient
from ...domain import allocations, environments, ports, prices, users, workspaces
from ...errors import Conflict, Denied, NotFound
from ...orm import (
    DELETED,
    ENDED,
    STOPPED,
    Allocation,
    AllocationSlot,
    AllocationState,
    EndReason,
    Environment,
    EnvironmentState,
    GpuSlot,
    Role,
    User,
)
from ..api import ROLES, Call, Later, Needs, Route, Shape
from ..base import hub_client
from ..paging import Paging, page

HOLDING = (EnvironmentState.CREATING, EnvironmentState.RUNNING, EnvironmentState.STOPPING)
"""States in which an environment has a run that is not over."""
RESTART_SECONDS = 60
"""How long a restart waits for the stop: a pod takes some ten seconds."""


class Way(Shape):
    service: str
    address: str
    command: str | None = Field(description="To paste, for SSH.")
    url: str | None
    hub_path: str | None = Field(description="Below the hub's address, behind its login.")


class RunShown(Shape):
    allocation_id: int
    state: AllocationState
    host: str
    gpus: list[str] = Field(description="UUIDs.")
    price_per_hour_micros: int = Field(description="Millionths of the currency.")
    currency: str
    admitted_at: datetime
    started_at: datetime | None
    seen_at: datetime | None
    stops_at: datetime | None = Field(description="When it will be stopped, where that is known.")
    stops_reason: EndReason | None
    stops_message: str = Field(description="Why, as a sentence.")
    access: list[Way]


class EnvironmentShown(Shape):
    id: int
    user: str
    server_name: str
    display_name: str
    workspace: str
    image: str
    flavor: str | None
    gpu_model: str | None
    gpu_slots: int
    cpu_millis: int
    memory_bytes: int
    ports: list[str]
    state: EnvironmentState
    message: str
    created_at: datetime
    run: RunShown | None = Field(description="What it holds now.")


class EnvironmentsAsked(Paging):
    sort: Literal["id", "-id", "display_name", "-display_name"] = "-id"
    state: EnvironmentState | None = None
    running: bool | None = Field(None, description="Only those that hold something now, or that do not.")
    search: str | None = Field(None, max_length=100, description="In the display name or the server's name.")
    user: str | None = Field(None, max_length=255)


class DeletionAsked(Shape):
    volume: bool = Field(
        False,
        description="Give its home volume up too, with all that is in it. 409 where other environments of its user in "
        "the workspace use the same one.",
    )


class PastRun(Shape):
    allocation_id: int
    state: AllocationState
    host: str
    requested_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    end_reason: str | None


class Asked(Shape):
    """What the hub was asked for; it tells by itself when it is done."""

    done: bool = Field(description="False: it is under way.")


def shown_all(session: Session, found: list[Environment], login: str) -> list[dict[str, Any]]:
    """With what they hold now: a few more statements, however many they are."""
    ids = [one.id for one in found]
    slots = selectinload(Allocation.slots).selectinload(AllocationSlot.slot).selectinload(GpuSlot.gpu)
    held = (slots, selectinload(Allocation.ports), selectinload(Allocation.host))
    open_runs = select(Allocation).where(Allocation.environment_id.in_(ids), Allocation.state != ENDED).options(*held)
    runs = {one.environment_id: one for one in session.scalars(open_runs)}
    ends = allocations.deadlines(session, allocation_ids=[run.id for run in runs.values()])
    currency = prices.currency(session)
    rows = []
    for one in found:
        run = runs.get(one.id)
        row = plain.environment(one, run, ends.get(run.id) if run else None, currency)
        if run is not None:
            row["run"]["access"] = ports.ways(run, login=login)
        rows.append(row)
    return rows


def listed(call: Call, query: Any) -> Any:
    """A page of these environments, filtered and sorted as was asked, with what they hold."""
    asked: EnvironmentsAsked = call.query
    query = query.where(Environment.state != DELETED)
    if asked.state is not None:
        query = query.where(Environment.state == asked.state)
    if asked.user is not None:
        query = query.where(Environment.user_id.in_(select(User.id).where(User.name == asked.user)))
    if asked.search:
        query = query.where(fits(asked.search))
    if asked.running is not None:
        holds = Environment.state.in_(HOLDING)
        query = query.where(holds if asked.running else ~holds)
    one: Any = Environment
    busy = asked.running or asked.state not in (None, EnvironmentState.STOPPED)
    if busy:
        query = query.where(Environment.state != STOPPED)
    if busy or asked.user is not None:
        # Few of all: found first and sorted then. A database left alone walks all in the order of the list instead,
        # until it has met a page of those that are wanted.
        one = aliased(Environment, query.cte("few").prefix_with("MATERIALIZED"))
        query = select(one)
    query = query.options(selectinload(one.user), selectinload(one.workspace), selectinload(one.image))
    sorts = {"id": (one.id,), "display_name": (one.display_name, one.id)}
    found, following = page(call.session, query, asked, sorts=sorts, sort=asked.sort, shown=lambda one: one)
    return shown_all(call.session, found, call.runtime.settings.ssh_user), following


def fits(search: str) -> Any:
    """Environments by their display name or their server's."""
    return Environment.display_name.icontains(search, autoescape=True) | Environment.server_name.icontains(
        search, autoescape=True
    )


def list_environments(call: Call) -> Any:
    return listed(call, select(Environment).where(Environment.user_id == call.caller.person.id))


def list_all_environments(call: Call) -> Any:
    if call.query.user is not None:
        users.by_name(call.session, name=call.query.user)
    return listed(call, select(Environment))


def list_environments_of_workspace(call: Call) -> Any:
    return listed(call, select(Environment).where(Environment.workspace_id == call.space.id))


def find(call: Call, *, may: Needs) -> Environment:
    """The environment of the path: the caller's own, or of a workspace in which their role is enough.

    Raises: NotFound where they may not even see it, Denied where they may see it only.
    """
    one = call.session.get(Environment, call.number("id"))
    if one is None or one.state == EnvironmentState.DELETED:
        raise NotFound("The environment")
    if call.caller.hub_admin:
        return one
    role = workspaces.role_of(call.session, workspace_id=one.workspace_id, user_id=call.caller.person.id)
    own = one.user_id == call.caller.person.id
    if role is None and not own:
        raise NotFound("The environment")
    if may == Needs.MEMBER or (own and role != Role.VIEWER):
        return one
    if role in ROLES[may]:
        return one
    if own:
        raise Denied("You are a viewer of its workspace now. Ask its owners or admins to do that.")
    raise Denied("Only its user, and the owners and admins of its workspace may do that.")


def may_read(call: Call, one: Environment, workspace_id: Any) -> Any:
    """The condition on what belongs to an environment's past, each in the workspace of this column: its user and admins
    of the hub read all, everybody else what was in its present workspace."""
    if call.caller.hub_admin or one.user_id == call.caller.person.id:
        return true()
    return workspace_id == one.workspace_id


def read_environment(call: Call) -> Any:
    return shown_all(call.session, [find(call, may=Needs.MEMBER)], call.runtime.settings.ssh_user)[0]


def list_runs(call: Call) -> Any:
    one = find(call, may=Needs.MEMBER)
    theirs = (Allocation.environment_id == one.id, may_read(call, one, Allocation.workspace_id))
    query = select(Allocation).where(*theirs).options(selectinload(Allocation.host))

    def past(run: Allocation) -> dict[str, Any]:
        columns = ("state", "requested_at", "started_at", "ended_at", "end_reason")
        return {"allocation_id": run.id, "host": run.host.name, **{name: getattr(run, name) for name in columns}}

    return page(call.session, query, call.query, sorts={"id": (Allocation.id,)}, sort="-id", shown=past)


def start_environment(call: Call) -> Any:
    one = find(call, may=Needs.STARTER)
    if one.user_id != getattr(call.caller.user, "id", None) and not call.caller.hub_admin:
        raise Denied("Only its user may start it.")
    user, name = one.user.name, one.server_name
    return asking(call, lambda hub: hub.start_server(user, name))


def stop_environment(call: Call) -> Any:
    one = find(call, may=Needs.MANAGER)
    _note_who(call, one)
    user, name = one.user.name, one.server_name
    return asking(call, lambda hub: hub.stop_server(user, name))


def restart_environment(call: Call) -> Any:
    one = find(call, may=Needs.STARTER)
    if one.user_id != getattr(call.caller.user, "id", None):
        raise Denied("Only its user may restart it.")
    user, name = one.user.name, one.server_name

    async def again(hub: HubClient) -> bool:
        if not await hub.stop_server(user, name) and not await hub.until_stopped(user, name, seconds=RESTART_SECONDS):
            raise Conflict("It is still stopping. Start it in a moment.")
        return await hub.start_server(user, name)

    return asking(call, again)


def may_delete(call: Call, one: Environment) -> bool:
    """Whether it is the caller's to delete, and its home with it: those who may stop others' keep what others made."""
    return call.caller.hub_admin or one.user_id == call.caller.person.id


def delete_environment(call: Call) -> Any:
    one = find(call, may=Needs.STARTER)
    asked: DeletionAsked = call.query
    if not may_delete(call, one):
        raise Denied("Only its user, or an admin of the hub, deletes it.")
    user, name = one.user.name, one.server_name
    environments.delete(
        call.session, user_id=one.user_id, server_name=name, actor=call.actor, now=call.now, with_home=asked.volume
    )

    async def forget(hub: HubClient) -> bool:
        return await hub.forget_server(user, name) if name else True

    return asking(call, forget)


def _note_who(call: Call, one: Environment) -> None:
    """Keep why it will end, where it is not its user who ends it."""
    if call.caller.user is not None and call.caller.user.id == one.user_id:
        return
    run = allocations.open_of(call.session, user_id=one.user_id, server_name=one.server_name)
    if run is not None:
        allocations.mark_ending(
            call.session, attempt=run.attempt, reason=EndReason.ADMIN, actor=call.actor, now=call.now
        )  # fmt: skip


def asking(call: Call, work: Callable[[HubClient], Awaitable[bool]]) -> Later:
    """Ask the hub when the transaction is over."""

    async def act() -> dict[str, bool]:
        async with hub_client() as hub:
            return {"done": await work(hub)}

    return Later(act)


ROUTES = [
    Route("GET", "environments", "List your environments, newest first", Needs.SELF, list_environments,
          answers=EnvironmentShown, query=EnvironmentsAsked, listing=True),
    Route("GET", "all-environments", "List everybody's environments", Needs.HUB_ADMIN, list_all_environments,
          answers=EnvironmentShown, query=EnvironmentsAsked, listing=True),
    Route("GET", "workspaces/{workspace}/environments", "List the environments of a workspace", Needs.MEMBER,
          list_environments_of_workspace, answers=EnvironmentShown, query=EnvironmentsAsked, listing=True),
    Route("GET", "environments/{id}", "Read an environment", Needs.SELF, read_environment, answers=EnvironmentShown,
          etag=True),
    Route("GET", "environments/{id}/runs", "List its runs, newest first, with why each ended", Needs.SELF, list_runs,
          answers=PastRun, query=Paging, listing=True),
    Route("POST", "environments/{id}/start", "Start it as it is kept", Needs.SELF, start_environment, answers=Asked,
          status=202),
    Route("POST", "environments/{id}/stop", "Stop it", Needs.SELF, stop_environment, answers=Asked, status=202),
    Route("POST", "environments/{id}/restart", "Stop it and start it again", Needs.SELF, restart_environment,
          answers=Asked, status=202),
    Route("DELETE", "environments/{id}", "Delete it once it has stopped; its home volume stays, unless you say so",
          Needs.SELF, delete_environment, answers=Asked, query=DeletionAsked),
]  # fmt: skip
