"""What the pages of one workspace share: its frame, what its reader may do there, and forms that name what they saw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from sqlalchemy import select
from sqlalchemy.orm import Session

from ...domain import prices
from ...errors import RemoteGPUError
from ...orm import (
    ENDED,
    Allocation,
    Environment,
    Member,
    MemberStatus,
    Role,
    User,
    Workspace,
    WorkspaceKind,
    WorkspaceStatus,
)
from ...runtime import utcnow
from ..api import Call, Route, call_of
from ..pages import Page, View
from ..paging import MOST_CURSOR
from . import invitations, limits, runs, spaces, usage

T = TypeVar("T")
NAME = r"spaces/(?P<name>[^/]+)"
MOST_NAMED = 5
"""Environments that a question names; of more it says how many."""
ROUTES_OF = {
    route.work: route
    for route in (
        *spaces.ROUTES, *invitations.ROUTES, *limits.ROUTES, *runs.ROUTES, *usage.ROUTES
    )
}  # fmt: skip
"""A page does nothing that the API would not do: by the function, its route."""


def route_of(work: Callable[[Call], Any]) -> Route:
    return ROUTES_OF[work]


@dataclass(frozen=True)
class Frame:
    """What every page of one workspace shows above its own part, and what its reader may do there."""

    name: str
    display_name: str
    role: Role | None
    """None of a hub admin who is no member."""
    kind: WorkspaceKind
    archived: bool
    hub_group: str | None
    time_zone: str
    owners: tuple[str, ...]
    manages: bool
    owns: bool

    @property
    def personal(self) -> bool:
        return self.kind == WorkspaceKind.PERSONAL


def frame_of(call: Call) -> Frame:
    space, role, hub_admin = call.space, call.role, call.caller.hub_admin
    owners = call.session.scalars(
        select(User.name)
        .join(Member, Member.user_id == User.id)
        .where(
            Member.workspace_id == space.id, Member.role == Role.OWNER, Member.status == MemberStatus.ACTIVE,
            User.deleted_at.is_(None),
        )
        .order_by(User.name)
        .limit(MOST_NAMED)
    )  # fmt: skip
    return Frame(
        name=space.name,
        display_name=space.display_name,
        role=role,
        kind=space.kind,
        archived=space.status == WorkspaceStatus.ARCHIVED,
        hub_group=space.hub_group,
        time_zone=space.time_zone,
        owners=tuple(owners),
        manages=hub_admin or role in (Role.OWNER, Role.ADMIN),
        owns=hub_admin or role == Role.OWNER,
    )


class SpacePage(Page):
    """A page of one workspace: read in one transaction, as the reader's role allows."""

    def path_of(self, name: str, *parts: str, **query: str) -> str:
        """The address of a page of a workspace, below the service's."""
        path = "/".join(quote(one, safe="") for one in ("spaces", name, *parts))
        kept = {key: value for key, value in query.items() if value}
        return path + (f"?{urlencode(kept)}" if kept else "")

    def asked(self, *names: str) -> dict[str, str]:
        """Query arguments of these names that a database can keep."""
        given = {name: self.get_query_argument(name, "")[:MOST_CURSOR] for name in names}
        return {name: value.replace("\0", "") for name, value in given.items() if value}

    def given(self, name: str, most: int = 500) -> str:
        """A field of the form."""
        return self.get_body_argument(name, "")[:most].replace("\0", "")

    async def read(
        self, name: str, work: Callable[[Call, View], T], route: Route | None = None
    ) -> tuple[Frame, View, T]:
        """What `work` finds, with the workspace's frame. Raises: NotFound where the reader may not see it."""
        chosen = route or route_of(spaces.read_workspace)

        def transact(session: Session) -> tuple[Frame, View, T]:
            call = call_of(self, session, chosen, {"workspace": name}, None, None)
            view = View(self.language, currency=prices.currency(session))
            return frame_of(call), view, work(call, view)

        return await self.ask(transact)

    def show_tab(
        self, template: str, tab: str, frame: Frame, view: View, error: RemoteGPUError | None, **given: Any
    ) -> None:
        """Render one tab; a refusal has its status."""
        if error is not None:
            self.set_status(error.status)
        self.show(
            template, view, title=frame.display_name, here="spaces", frame=frame, tab=tab, error=error, now=utcnow(),
            of=lambda *parts, **query: self.address(self.path_of(frame.name, *parts, **query)), Role=Role, **given,
        )  # fmt: skip

    def onward(self, name: str, *parts: str, told: str = "", **query: str) -> None:
        """Answer a form: the page anew, by a GET, with one sentence on it."""
        self.redirect(self.address(self.path_of(name, *parts, told=told, **query)), status=303)


def named(view: View, names: Sequence[str]) -> str:
    """Some names in a row, and how many more there are."""
    shown = view.say(", ").join(names[:MOST_NAMED])
    more = len(names) - MOST_NAMED
    return view.say("{names} and {count} more", names=shown, count=more) if more > 0 else shown


def running_of(session: Session, workspace: Workspace, user_ids: Sequence[int]) -> dict[int, list[tuple[str, int]]]:
    """Of each of these users, the names and GPUs (in thousandths) of what holds something in the workspace."""
    rows = session.execute(
        select(Allocation.user_id, Environment.display_name, Allocation.gpu_millis)
        .join(Environment, Environment.id == Allocation.environment_id)
        .where(
            Allocation.workspace_id == workspace.id, Allocation.user_id.in_(user_ids), Allocation.state != ENDED,
            ~Allocation.metered,
        )
        .order_by(Allocation.id)
    )  # fmt: skip
    found: dict[int, list[tuple[str, int]]] = {number: [] for number in user_ids}
    for user_id, name, gpu_millis in rows:
        found[user_id].append((name, gpu_millis))
    return found
