"""Routes of what is reached from outside: ports of environments, how to get in, and what a run prints."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import Select, select
from sqlalchemy.orm import contains_eager, selectinload

from ...domain import ports
from ...errors import NotFound
from ...orm import Allocation, Environment, PortMapping, PortService
from ..api import LARGEST, Call, Moment, Needs, Route, Shape
from ..paging import Paging, page
from ..streams import Lines
from . import site
from .runs import Way, find, may_read

MOST_LINES = 5000


class PortShown(Shape):
    id: int
    environment_id: int
    environment: str = Field(description="Its display name.")
    user: str
    workspace: str
    service: PortService
    protocol: str
    address: str = Field(description="Of a host, of the cluster's nodes (`cluster`), or host and path at the Ingress.")
    internal_port: int
    external_port: int
    url: str | None
    open: bool
    since: datetime


class PortsAsked(Paging):
    sort: Literal["id", "-id"] = "-id"
    service: PortService | None = None
    open: bool = Field(True, description="False: those that were given back.")


class LogsAsked(Shape):
    tail: int = Field(200, ge=1, le=MOST_LINES, description="Lines from the end to begin with.")
    since: Moment | None = Field(
        None, description="None that it printed before, to the second. Only on a cluster: local logs carry no times."
    )
    follow: bool = Field(False, description="Go on with each line as it comes, until the run ends.")
    run: int | None = Field(None, ge=1, le=LARGEST, description="`allocation_id` of an older run; else the newest.")


def _listed(call: Call, query: Select[Any]) -> Any:
    asked: PortsAsked = call.query
    query = (
        query.join(PortMapping.allocation).join(Allocation.environment).where(PortMapping.open == asked.open)
        .options(
            contains_eager(PortMapping.allocation).options(
                contains_eager(Allocation.environment), selectinload(Allocation.user),
                selectinload(Allocation.workspace),
            )
        )
    )  # fmt: skip
    if asked.service is not None:
        query = query.where(PortMapping.service == asked.service)

    def shown(port: PortMapping) -> dict[str, Any]:
        run = port.allocation
        columns = ("id", "service", "protocol", "address", "internal_port", "external_port", "url", "open")
        return {
            **{name: getattr(port, name) for name in columns},
            "environment_id": run.environment_id,
            "environment": run.environment.display_name,
            "user": run.user.name,
            "workspace": run.workspace.name,
            "since": run.admitted_at,
        }

    return page(call.session, query, asked, sorts={"id": (PortMapping.id,)}, sort=asked.sort, shown=shown)


def list_ports(call: Call) -> Any:
    return _listed(call, select(PortMapping).where(Environment.user_id == call.caller.person.id))


def list_all_ports(call: Call) -> Any:
    return _listed(call, select(PortMapping))


def list_access(call: Call) -> Any:
    """What can be pasted to get in; nothing while it does not run."""
    run = _newest(call, None)
    query = select(PortMapping).where(PortMapping.allocation_id == (run.id if run else 0), PortMapping.open)
    login = call.runtime.settings.ssh_user
    return page(
        call.session, query, call.query, sorts={"id": (PortMapping.id,)}, sort="id",
        shown=lambda port: ports.way(port, login=login),
    )  # fmt: skip


def _newest(call: Call, number: int | None) -> Allocation | None:
    """The environment's newest run, or the one with this number.

    Raises: NotFound for one of another environment, or of another workspace of its user.
    """
    one = find(call, may=Needs.MEMBER)
    theirs = (Allocation.environment_id == one.id, may_read(call, one, Allocation.workspace_id))
    query = select(Allocation).where(*theirs).order_by(Allocation.id.desc())
    if number is not None:
        query = query.where(Allocation.id == number)
    found = call.session.scalar(query.limit(1))
    if found is None and number is not None:
        raise NotFound("The run")
    return found


def read_logs(call: Call) -> Any:
    """What the server printed: its user's business, and that of those who may stop it."""
    asked: LogsAsked = call.query
    find(call, may=Needs.MANAGER)
    run = _newest(call, asked.run)
    if run is None:
        raise NotFound("What it printed")
    where, number, follow = site.of(call.runtime), run.id, asked.follow and run.ended_at is None
    return Lines(lambda: where.output(number, tail=asked.tail, follow=follow, since=asked.since), goes_on=follow)


ROUTES = [
    Route("GET", "ports", "List the port mappings of your environments, newest first", Needs.SELF, list_ports,
          answers=PortShown, query=PortsAsked, listing=True),
    Route("GET", "all-ports", "List everybody's port mappings", Needs.HUB_ADMIN, list_all_ports, answers=PortShown,
          query=PortsAsked, listing=True),
    Route("GET", "environments/{id}/access", "Tell how its open ports are reached", Needs.SELF, list_access,
          answers=Way, query=Paging, listing=True),
    Route("GET", "environments/{id}/logs", "Read what it prints", Needs.SELF, read_logs, query=LogsAsked, lines=True),
]  # fmt: skip
