"""Routes of users: the caller's own whole picture, and who there is."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from ...domain import budgets, environments, quotas, users, workspaces
from ...orm import ENDED, Allocation, Member, Role, User
from ...units import spell_limit
from ..api import Call, Needs, Route, Shape
from ..paging import Paging, page
from .limits import Limit
from .runs import EnvironmentShown, shown_all


class BudgetSeen(Shape):
    amount: int = Field(description="Millionths of the currency.")
    spent: int
    month: str


class MyWorkspace(Shape):
    name: str
    display_name: str
    role: Role
    limits: dict[str, dict[str, Limit]] = Field(description="By level: `user`, `workspace`, `member`.")
    held: dict[str, dict[str, int]] = Field(description="Of all that is limited at once, by level.")
    budget: BudgetSeen | None


class Me(Shape):
    name: str
    workspaces: list[MyWorkspace]
    environments: list[EnvironmentShown]


class UserShown(Shape):
    name: str
    created_at: datetime = Field(description="When the hub's user was first seen here.")
    workspaces: list[str] = Field(description="Names; a personal one begins with `~`.")
    running: int = Field(description="Environments that hold something now.")


class UsersAsked(Paging):
    sort: Literal["name", "-name", "created_at", "-created_at"] = "name"
    search: str | None = Field(None, max_length=100)


def read_me(call: Call) -> Any:
    session, user = call.session, call.caller.person
    return {
        "name": user.name,
        "workspaces": [_mine(call, one) for one in workspaces.of_user(session, user=user)],
        "environments": shown_all(
            session, environments.of_user(session, user=user), call.runtime.settings.ssh_user
        ),
    }  # fmt: skip


def _mine(call: Call, member: Member) -> dict[str, Any]:
    space = member.workspace
    levels = quotas.levels(
        call.session, user_id=member.user_id, workspace_id=space.id, time_zone=space.time_zone, now=call.now
    )
    status = budgets.status_of(call.session, workspace=space, now=call.now)
    return {
        "name": space.name,
        "display_name": space.display_name,
        "role": member.role,
        "limits": {
            level: {name: spell_limit(value) for name, value in one.limits.items()} for level, one in levels.items()
        },
        "held": {level: {name: one.held[name] for name in quotas.HELD_AT_ONCE} for level, one in levels.items()},
        "budget": {"amount": status.amount, "spent": status.spent, "month": status.month} if status else None,
    }


def list_users(call: Call) -> Any:
    asked: UsersAsked = call.query
    query = select(User).where(User.deleted_at.is_(None))
    if asked.search:
        query = query.where(User.name.icontains(asked.search, autoescape=True))
    sorts = {"name": (User.name,), "created_at": (User.created_at, User.id)}
    found, following = page(call.session, query, asked, sorts=sorts, sort=asked.sort, shown=lambda one: one)
    return _shown(call.session, found), following


def read_user(call: Call) -> Any:
    return _shown(call.session, [users.by_name(call.session, name=call.path["user"])])[0]


def _shown(session: Session, found: list[User]) -> list[dict[str, Any]]:
    ids = [user.id for user in found]
    spaces: dict[int, list[str]] = {number: [] for number in ids}
    of_them = select(Member).where(Member.user_id.in_(ids)).options(selectinload(Member.workspace))
    for member in session.scalars(of_them):
        spaces[member.user_id].append(member.workspace.name)
    running = dict(
        session.execute(
            select(Allocation.user_id, func.count())
            .where(Allocation.user_id.in_(ids), Allocation.state != ENDED)
            .group_by(Allocation.user_id)
        )
        .tuples()
        .all()
    )
    return [
        {
            "name": user.name, "created_at": user.created_at, "workspaces": sorted(spaces[user.id]),
            "running": running.get(user.id, 0),
        }
        for user in found
    ]  # fmt: skip


ROUTES = [
    Route("GET", "me", "Read what you may hold, what you hold, and what you run", Needs.SELF, read_me, answers=Me,
          bare=True),
    Route("GET", "users", "List the users of the hub", Needs.HUB_ADMIN, list_users, answers=UserShown,
          query=UsersAsked, listing=True),
    Route("GET", "users/{user}", "Read a user", Needs.HUB_ADMIN, read_user, answers=UserShown),
]  # fmt: skip
