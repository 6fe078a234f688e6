"""Pages of a workspace's members: roles, suspending, removing, invitations, and what each may hold there."""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select

from ...domain import inventory, quotas, workspaces
from ...domain import invitations as street
from ...errors import Invalid, NotFound, RemoteGPUError
from ...orm import QUOTA_RESOURCES, MemberStatus, Role, User
from ..api import Call, check, tag
from ..pages import Bar, View
from . import amounts, invitations, limits, spaces
from .pages import _bars as bars_of
from .space_frame import NAME, SpacePage, named, route_of, running_of

A_PAGE = 50
PUT = route_of(spaces.put_member)
KEPT = ("search", "role", "cursor")
"""Of the list: what a form comes back to."""
HIGH = (Role.OWNER, Role.ADMIN)
OUT = {"remove": "leave", "suspend": "suspended"}
"""What shuts the page to whoever does it to themselves, and what they are told on the list of their workspaces."""


@dataclass(frozen=True)
class Person:
    """A member in the list."""

    user: str
    role: Role
    status: MemberStatus
    from_group: bool
    tag: str
    """ETag of what is shown, for the forms."""
    running: int
    gpus: str
    runs: str
    """Names, for the question."""
    may_change: bool


@dataclass(frozen=True)
class People:
    rows: list[Person]
    following: str | None
    invited: list[dict[str, Any]]
    roles: list[Role]
    """What the reader may make of somebody."""


def ranks(call: Call) -> list[Role]:
    """Roles that the caller gives and takes."""
    low = [role for role in Role if role not in HIGH]
    return list(Role) if call.caller.hub_admin or call.role == Role.OWNER else low if call.role == Role.ADMIN else []


def people(call: Call, view: View, asked: dict[str, str]) -> People:
    """One page of members, and who is invited for who may change that."""
    query = check(spaces.MembersAsked, {**asked, "limit": A_PAGE})
    shown, following = spaces.list_members(replace(call, query=query))
    roles = ranks(call)
    known = select(User.name, User.id).where(User.name.in_([one["user"] for one in shown]), User.deleted_at.is_(None))
    ids = dict(call.session.execute(known).tuples().all())
    held = running_of(call.session, call.space, list(ids.values()))
    rows = []
    for one in shown:
        if one["user"] not in ids:  # gone meanwhile
            continue
        runs = held[ids[one["user"]]]
        gpus = sum(millis for _, millis in runs)
        rows.append(
            Person(
                one["user"], one["role"], one["status"], one["from_group"], tag(PUT, one), len(runs),
                view.quantity("gpus", gpus) if gpus else "", named(view, [name for name, _ in runs]),
                one["role"] in roles,
            )
        )  # fmt: skip
    invited = street.of_workspace(call.session, workspace=call.space) if roles else []
    return People(rows, following, [invitations.shown(call, one) for one in invited], roles)


async def show_members(
    page: SpacePage, name: str, error: RemoteGPUError | None = None, typed: dict[str, str] | None = None
) -> None:
    """Render the list, with what went wrong, and with an invitation as it was typed."""
    asked = page.asked(*KEPT)
    frame, view, found = await page.read(name, lambda call, view: people(call, view, asked))
    page.show_tab(
        "space_members.html", "members", frame, view, error, found=found, asked=asked, Status=MemberStatus,
        values={"user": "", "role": "member", "days": str(street.DEFAULT_DAYS), **(typed or {})},
    )  # fmt: skip


class Members(SpacePage):
    """Who is in, in which role; who is invited."""

    async def get(self, name: str) -> None:
        await show_members(self, name)

    async def post(self, name: str) -> None:
        """Invite somebody."""
        typed = {field: self.given(field).strip() for field in ("user", "role", "days")}
        try:
            days = whole(typed["days"] or str(street.DEFAULT_DAYS))
            body = check(invitations.NewInvitation, {**typed, "days": days})
            await self.do(route_of(invitations.create_invitation), {"workspace": name}, body)
        except RemoteGPUError as error:
            await show_members(self, name, error, typed)
            return
        self.onward(name, "members", told="invited")


class TakeBack(SpacePage):
    """Take an invitation back."""

    async def get(self, name: str, user: str) -> None:
        self.onward(name, "members")

    async def post(self, name: str, user: str) -> None:
        try:
            await self.do(route_of(invitations.take_back_invitation), {"workspace": name, "user": user})
        except RemoteGPUError as error:
            await show_members(self, name, error)
            return
        self.onward(name, "members", told="taken-back")


class ChangeMember(SpacePage):
    """Another role, suspended or back, or out; only while they are as the page showed them."""

    async def get(self, name: str, user: str, verb: str) -> None:
        self.onward(name, "members", **self.asked(*KEPT))

    async def post(self, name: str, user: str, verb: str) -> None:
        path = {"workspace": name, "user": user}
        try:
            if verb == "remove":
                await self.do(route_of(spaces.remove_member), path, seen=self.given("seen"))
            else:
                status = {"suspend": "suspended", "resume": "active"}.get(verb, self.given("status"))
                body = check(spaces.MemberEdit, {"role": self.given("role"), "status": status})
                await self.do(PUT, path, body, seen=self.given("seen"))
        except RemoteGPUError as error:
            await show_members(self, name, error)
            return
        if user == self.current_user["name"] and verb in OUT:
            self.back("spaces", told=OUT[verb])
            return
        self.onward(name, "members", told=verb, **self.asked(*KEPT))


# one member's limits


@dataclass(frozen=True)
class Field:
    """A limit in its form."""

    name: str
    label: str
    value: str


@dataclass(frozen=True)
class OneMember:
    user: str
    role: Role
    status: MemberStatus
    bars: list[Bar]
    over: bool
    """More is held than allowed: nothing is stopped."""
    fields: list[Field]
    tag: str
    runs: str


LIMITS_READ, LIMITS_EDIT = route_of(limits.read_member_quota), route_of(limits.edit_member_quota)
UNLIMITED_WORDS = ("unlimited", "不限")


def labels(view: View) -> dict[str, str]:
    return {
        "gpu_millis": view.say("GPUs"),
        "cpu_millis": view.say("Cores"),
        "memory_bytes": view.say("Main memory, GiB"),
        "storage_bytes": view.say("Storage, GiB"),
        "environments": view.say("Running environments"),
        "gpu_hours": view.say("GPU hours a month"),
    }


def written(view: View, name: str, value: int | str | None) -> str:
    """A limit as the form has it: empty inherits."""
    if value is None:
        return ""
    if isinstance(value, str):
        return view.say(value)
    return amounts.show(name, value)


def read_limit(name: str, text: str) -> int | str | None:
    """What was typed, in the column's unit, exactly. Raises: Invalid."""
    return "unlimited" if text.strip().lower() in UNLIMITED_WORDS else amounts.read(name, text)


def whole(text: str) -> int:
    """Raises: Invalid."""
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise Invalid("{value} is not a whole number.", value=text[:40])
    return int(text)


def one_member(call: Call, view: View) -> OneMember:
    """What a member holds in the workspace and may hold there."""
    member = workspaces.member_named(call.session, workspace=call.space, name=call.path["user"])
    quota = limits.read_member_quota(call)
    level = quotas.levels(
        call.session, user_id=member.user_id, workspace_id=call.space.id, time_zone=call.space.time_zone, now=call.now
    )["member"]
    fields = [Field(name, label, written(view, name, quota[name])) for name, label in labels(view).items()]
    models = sorted({*quota["models"], *inventory.known_models(call.session)})
    fields += [Field(f"model:{one}", one, written(view, "", quota["models"].get(one))) for one in models]
    runs = running_of(call.session, call.space, [member.user_id])[member.user_id]
    return OneMember(
        user=member.user.name,
        role=member.role,
        status=member.status,
        bars=bars_of(view, level),
        over=any(level.held[name] > level.limits[name] for name in QUOTA_RESOURCES if name != "gpu_hours")
        or any(level.held_slots[model] > slots for model, slots in level.slot_limits.items()),
        fields=fields,
        tag=tag(LIMITS_EDIT, quota),
        runs=named(view, [name for name, _ in runs]),
    )


class MemberLimits(SpacePage):
    """What one member may hold in the workspace, beside what they hold."""

    async def get(self, name: str, user: str) -> None:
        await self.show_it(name, user)

    async def show_it(
        self, name: str, user: str, error: RemoteGPUError | None = None, typed: dict[str, str] | None = None
    ) -> None:
        def work(call: Call, view: View) -> tuple[OneMember, bool]:
            found = one_member(replace(call, path={"workspace": name, "user": user}), view)
            return found, found.role in ranks(call)

        frame, view, (found, may_change) = await self.read(name, work)
        self.show_tab(
            "space_member.html", "members", frame, view, error, found=found, may_change=may_change,
            values=typed or {one.name: one.value for one in found.fields},
        )  # fmt: skip

    async def post(self, name: str, user: str) -> None:
        path = {"workspace": name, "user": user}
        typed = {
            field: self.given(field)
            for field in self.request.body_arguments
            if field in QUOTA_RESOURCES or field.startswith("model:")
        }
        try:
            given = {field: read_limit(field, text) for field, text in typed.items()}
            models = {field.removeprefix("model:"): given.pop(field) for field in typed if field.startswith("model:")}
            body = check(limits.QuotaEdit, {**given, "models": models})
            await self.do(LIMITS_EDIT, path, body, seen=self.given("seen"))
        except NotFound:
            raise
        except RemoteGPUError as error:
            await self.show_it(name, user, error, None if error.code == "changed" else typed)
            return
        self.onward(name, "members", user, told="limits")


USER = NAME + r"/members/(?P<user>[^/]+)"
ROUTES: list[tuple[str, type[Any], dict[str, Any]]] = [
    (NAME + r"/members", Members, {}),
    (USER, MemberLimits, {}),
    (USER + r"/(?P<verb>role|suspend|resume|remove)", ChangeMember, {}),
    (NAME + r"/invitations/(?P<user>[^/]+)/take-back", TakeBack, {}),
]
