"""`remotegpu workspaces`: the teams that own environments, quotas, budgets and invoices."""

from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from traitlets import Bool

from .. import words
from ..domain import billing, budgets, quotas, workspaces
from ..orm import (
    QUOTA_RESOURCES,
    Allocation,
    AllocationState,
    Member,
    MemberStatus,
    Workspace,
    WorkspaceKind,
    WorkspaceStatus,
)
from ..runtime import utcnow
from ..units import UNLIMITED, iso
from . import people
from .command import Command, Text, chosen, option
from .members import plain as plain_member
from .stop import Usage
from .tables import Column, Row, dump, pairs, table

COLUMNS = [
    Column("WORKSPACE", "name"),
    Column("DISPLAY NAME", "display_name"),
    Column("KIND", "kind"),
    Column("STATUS", "status"),
    Column("OWNER", "owner"),
    Column("MEMBERS", "members", right=True),
    Column("RUNNING", "running", right=True),
    Column("HUB GROUP", "hub_group"),
    Column("TIME ZONE", "time_zone"),
]
LIMITS = [
    Column("LIMIT", "resource"),
    Column("HELD", lambda row: words.bare(row["resource"], row["held"]), right=True),
    Column(
        "MAY HOLD",
        lambda row: "unlimited" if row["limit"] is None else words.bare(row["resource"], row["limit"]),
        right=True,
    ),
]
SHOWN = {"gpu_millis": "gpus", "cpu_millis": "cpu", "memory_bytes": "memory", "storage_bytes": "storage"}


def plain(workspace: Workspace, *, members: int, running: int) -> dict[str, Any]:
    """A workspace for programs."""
    return {
        "name": workspace.name,
        "display_name": workspace.display_name,
        "kind": workspace.kind.value,
        "status": workspace.status.value,
        "owner": workspace.owner.name,
        "hub_group": workspace.hub_group,
        "time_zone": workspace.time_zone,
        "members": members,
        "running": running,
        "created_at": iso(workspace.created_at),
    }


def listed(session: Session, *, archived: bool, only: Workspace | None = None) -> list[dict[str, Any]]:
    """Workspaces with the number of their active members and of their running environments."""
    counted = select(Member.workspace_id, func.count()).where(Member.status == MemberStatus.ACTIVE)
    members = dict(session.execute(counted.group_by(Member.workspace_id)).tuples().all())
    open_runs = select(Allocation.workspace_id, func.count()).where(Allocation.state != AllocationState.ENDED)
    running = dict(session.execute(open_runs.group_by(Allocation.workspace_id)).tuples().all())
    query = select(Workspace).order_by(Workspace.name)
    if only is not None:
        query = query.where(Workspace.id == only.id)
    elif not archived:
        query = query.where(Workspace.status == WorkspaceStatus.ACTIVE)
    return [
        plain(one, members=members.get(one.id, 0), running=running.get(one.id, 0)) for one in session.scalars(query)
    ]


def limits_of(session: Session, workspace: Workspace) -> list[dict[str, Any]]:
    """What the workspace holds beside what it may hold, in the unit of each resource; None is unlimited."""
    level = quotas.levels(session, user_id=0, workspace_id=workspace.id, time_zone=workspace.time_zone, now=utcnow())[
        "workspace"
    ]
    amounts = {SHOWN.get(name, name): (level.held[name], level.limits[name]) for name in QUOTA_RESOURCES}
    hours = level.limits["gpu_hours"]
    amounts["gpu_hours"] = (level.gpu_time, hours if hours == UNLIMITED else hours * 3_600_000)
    amounts |= {f"gpu:{model}": (level.held_slots[model], slots) for model, slots in sorted(level.slot_limits.items())}
    return [
        {"resource": name, "held": holds, "limit": None if limit == UNLIMITED else limit}
        for name, (holds, limit) in amounts.items()
    ]


def month_of(session: Session, workspace: Workspace, now: datetime) -> dict[str, Any]:
    """The current month's money: spent so far, and the budget where there is one."""
    usage = billing.usage_of(session, workspace=workspace, month=None, now=now)
    status = budgets.status_of(session, workspace=workspace, now=now)
    return {
        "month": usage.month,
        "spent_micros": usage.total,
        "budget_micros": status.amount if status else None,
        "per_hour_micros": status.per_hour if status else None,
        "currency": usage.currency,
    }


class WorkspacesList(Command):
    name = "list"
    description = "List the workspaces with their members and what runs in them."
    examples = "remotegpu workspaces\nremotegpu workspaces list --all --json"
    all = option(Bool(False, help="Archived workspaces too."), "all")

    def run(self) -> None:
        with self.transaction(read_only=True) as session:
            rows = listed(session, archived=self.all)
        self.show_rows("workspaces", rows, COLUMNS, empty="There are no workspaces.")


class WorkspacesCreate(Command):
    name = "create"
    words = ("WORKSPACE",)
    description = "Make a workspace. Its owner is its first member."
    examples = "remotegpu workspaces create vision --owner alice --display-name '视觉组' --time-zone Asia/Shanghai"
    owner = option(Text(help="The hub user who owns it. Required."), "owner", "USER")
    display_name = option(Text(help="Its name on pages, in any script. Default: WORKSPACE."), "display-name", "TEXT")
    kind = option(Text(help="`team` (default) or `enterprise`."), "kind", "KIND")
    hub_group = option(Text(help="Link it to a hub group: its members follow the group."), "hub-group", "GROUP")
    time_zone = option(Text(help="Where its months begin, such as Asia/Shanghai. Default: UTC."), "time-zone", "ZONE")

    def run(self) -> None:
        if not self.owner:
            raise Usage(f"--owner is missing: a workspace belongs to somebody. Try `{self.path} --help`.")
        kind = chosen(WorkspaceKind, self.kind, "--kind") or WorkspaceKind.TEAM
        if kind == WorkspaceKind.PERSONAL:
            raise Usage("--kind is team or enterprise: personal workspaces come with their users.")
        now = utcnow()
        with self.transaction() as session:
            made = workspaces.create(
                session, name=self.need(0), display_name=self.display_name or self.need(0),
                owner=people.user(session, self.owner, now=now), actor=self.actor, now=now, kind=kind,
                time_zone=self.time_zone or "UTC",
            )  # fmt: skip
            if self.hub_group:
                workspaces.update_settings(session, workspace=made, actor=self.actor, now=now, hub_group=self.hub_group)
            row = listed(session, archived=True, only=made)[0]
        self.show_one("workspace", row, f"Made the workspace {row['name']}, owned by {row['owner']}.")


class WorkspacesShow(Command):
    name = "show"
    words = ("WORKSPACE",)
    description = "Show a workspace: its settings, members, limits, and the month's money."

    def run(self) -> None:
        now = utcnow()
        with self.transaction(read_only=True) as session:
            found = workspaces.by_name(session, name=self.need(0))
            row = listed(session, archived=True, only=found)[0]
            members = [plain_member(one) for one in workspaces.members(session, workspace=found)]
            limits, month = limits_of(session, found), month_of(session, found, now)
        if self.json:
            self.say(dump({"workspace": {**row, "members": members, "limits": limits, "month": month}}))
            return
        self.say(pairs([*((name.replace("_", " "), row[name]) for name in row), *_money(month)]))
        self.say("\n" + table(LIMITS, limits))
        people_columns = [Column("MEMBER", "user"), Column("ROLE", "role"), Column("STATUS", "status")]
        self.say("\n" + table(people_columns, members))


def _money(month: Row) -> list[tuple[str, Any]]:
    def shown(micros: int | None) -> str:
        return "no budget" if micros is None else words.money(micros, month["currency"], "en")

    return [(f"spent in {month['month']}", shown(month["spent_micros"])), ("budget", shown(month["budget_micros"]))]


class WorkspacesUpdate(Command):
    name = "update"
    words = ("WORKSPACE",)
    description = "Change a workspace's display name, time zone or linked hub group."
    examples = (
        "remotegpu workspaces update vision --time-zone Asia/Shanghai\n"
        "remotegpu workspaces update vision --hub-group ''"
    )
    display_name = option(Text(help="Its name on pages, in any script."), "display-name", "TEXT")
    time_zone = option(Text(help="Where its months begin, such as Asia/Shanghai."), "time-zone", "ZONE")
    hub_group = option(Text(help="The hub group that its members follow; '' unlinks it."), "hub-group", "GROUP")

    def run(self) -> None:
        if self.display_name is None and self.time_zone is None and self.hub_group is None:
            raise Usage(f"Nothing to change was named. Try `{self.path} --help`.")
        with self.transaction() as session:
            found = workspaces.by_name(session, name=self.need(0))
            group = workspaces.UNSET if self.hub_group is None else self.hub_group or None
            workspaces.update_settings(
                session, workspace=found, actor=self.actor, now=utcnow(), display_name=self.display_name,
                time_zone=self.time_zone, hub_group=group,
            )  # fmt: skip
            row = listed(session, archived=True, only=found)[0]
        self.show_one("workspace", row, f"Changed the workspace {row['name']}.")


class WorkspacesArchive(Command):
    name = "archive"
    words = ("WORKSPACE",)
    description = "Close a workspace for new starts. Its records stay. Refused while environments run in it."

    def run(self) -> None:
        with self.transaction() as session:
            found = workspaces.by_name(session, name=self.need(0))
            workspaces.archive(session, workspace=found, actor=self.actor, now=utcnow())
            row = listed(session, archived=True, only=found)[0]
        self.show_one("workspace", row, f"Archived the workspace {row['name']}: nobody can start there any more.")


class Workspaces(WorkspacesList):
    name = "workspaces"
    description = "The teams that own environments, quotas, budgets and invoices. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (WorkspacesList, "list them"),
        "create": (WorkspacesCreate, "make one"),
        "show": (WorkspacesShow, "settings, members, limits and the month's money of one"),
        "update": (WorkspacesUpdate, "change display name, time zone or hub group"),
        "archive": (WorkspacesArchive, "close one for new starts"),
    }
