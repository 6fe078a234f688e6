"""`remotegpu workspaces`: the teams that own environments, quotas, budgets and invoices."""

from typing import Any

from traitlets import Bool

from .. import words
from ..orm import Role, WorkspaceKind
from .asking import Asking
from .command import Text, chosen, option
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
MEMBERS = [Column("MEMBER", "user"), Column("ROLE", "role"), Column("STATUS", "status")]
PATH = "workspaces/{workspace}"


def listed(command: Asking, *, archived: bool) -> list[dict[str, Any]]:
    """All workspaces; of who is no admin of the hub, their own."""
    wanted = {"status": None if archived else "active"}
    found = command.allowed(lambda: command.every("workspaces", query={**wanted, "mine": False}))
    return command.every("workspaces", query=wanted) if found is None else found


def names_of_workspaces(command: Asking) -> list[str]:
    return [one["name"] for one in listed(command, archived=True)]


def members_of(command: Asking, workspace: str) -> list[dict[str, Any]]:
    """All members, owners first."""
    items = command.every("workspaces/{workspace}/members", workspace=workspace)
    rows = [{"workspace": workspace, **one} for one in items]
    return sorted(rows, key=lambda row: (list(Role).index(Role(row["role"])), row["user"]))


class WorkspacesList(Asking):
    name = "list"
    description = "List the workspaces that you may see, with their members and what runs in them."
    examples = "remotegpu workspaces\nremotegpu workspaces list --all --json"
    all = option(Bool(False, help="Archived workspaces too."), "all")

    def run(self) -> None:
        rows = listed(self, archived=self.all)
        self.show_rows("workspaces", rows, COLUMNS, empty="There are no workspaces.")


class _One(Asking):
    """Works on one workspace."""

    words = ("WORKSPACE",)

    def overview(self) -> dict[str, Any]:
        """Its row as in the list, with its limits and the month's money."""
        found: dict[str, Any] = self.read(f"{PATH}/overview", workspace=self.need(0))
        return found

    def show(self, sentence: str) -> None:
        """Print what it is now; `sentence` takes its values."""
        row = self.overview()
        del row["limits"], row["month"]
        self.show_one("workspace", row, sentence.format_map(row))


class WorkspacesCreate(_One):
    name = "create"
    description = "Make a workspace. Its owner is its first member."
    examples = "remotegpu workspaces create vision --owner alice --display-name '视觉组' --time-zone Asia/Shanghai"
    owner = option(Text(help="The hub user who owns it. Required."), "owner", "USER")
    display_name = option(Text(help="Its name on pages, in any script. Default: WORKSPACE."), "display-name", "TEXT")
    kind = option(Text(help="`team` (default) or `enterprise`."), "kind", "KIND", values=("team", "enterprise"))
    hub_group = option(Text(help="Link it to a hub group: its members follow the group."), "hub-group", "GROUP")
    time_zone = option(Text(help="Where its months begin, such as Asia/Shanghai. Default: UTC."), "time-zone", "ZONE")

    def run(self) -> None:
        if not self.owner:
            raise Usage(f"--owner is missing: a workspace belongs to somebody. Try `{self.path} --help`.")
        kind = chosen(WorkspaceKind, self.kind, "--kind") or WorkspaceKind.TEAM
        if kind == WorkspaceKind.PERSONAL:
            raise Usage("--kind is team or enterprise: personal workspaces come with their users.")
        self.create(
            "workspaces",
            {
                "name": self.need(0), "display_name": self.display_name or self.need(0), "owner": self.owner,
                "kind": kind.value, "hub_group": self.hub_group or None, "time_zone": self.time_zone or "UTC",
            },
        )  # fmt: skip
        self.show("Made the workspace {name}, owned by {owner}.")


class WorkspacesShow(_One):
    name = "show"
    description = "Show a workspace: its settings, members, limits, and the month's money."

    def run(self) -> None:
        row = self.overview()
        limits, month = row.pop("limits"), row.pop("month")
        members = members_of(self, self.need(0))
        if self.json:
            self.say(dump({"workspace": {**row, "members": members, "limits": limits, "month": month}}))
            return
        self.say(pairs([*((name.replace("_", " "), row[name]) for name in row), *_money(month)]))
        self.say("\n" + table(LIMITS, limits))
        self.say("\n" + table(MEMBERS, members))


def _money(month: Row) -> list[tuple[str, Any]]:
    def shown(micros: int | None) -> str:
        return "no budget" if micros is None else words.money(micros, month["currency"], "en")

    return [(f"spent in {month['month']}", shown(month["spent_micros"])), ("budget", shown(month["budget_micros"]))]


class WorkspacesUpdate(_One):
    name = "update"
    description = "Change a workspace's display name, time zone or linked hub group."
    examples = (
        "remotegpu workspaces update vision --time-zone Asia/Shanghai\n"
        "remotegpu workspaces update vision --hub-group ''"
    )
    display_name = option(Text(help="Its name on pages, in any script."), "display-name", "TEXT")
    time_zone = option(Text(help="Where its months begin, such as Asia/Shanghai."), "time-zone", "ZONE")
    hub_group = option(Text(help="The hub group that its members follow; '' unlinks it."), "hub-group", "GROUP")

    def run(self) -> None:
        named = {"display_name": self.display_name, "time_zone": self.time_zone}
        body = {name: value for name, value in named.items() if value is not None}
        if self.hub_group is not None:
            body["hub_group"] = self.hub_group or None
        if not body:
            raise Usage(f"Nothing to change was named. Try `{self.path} --help`.")
        self.ask("PATCH", PATH, body=body, workspace=self.need(0))
        self.show("Changed the workspace {name}.")


class WorkspacesArchive(_One):
    name = "archive"
    description = "Close a workspace for new starts. Its records stay. Refused while environments run in it."

    def run(self) -> None:
        self.ask("POST", f"{PATH}/archive", workspace=self.need(0))
        self.show("Archived the workspace {name}: nobody can start there any more.")


class WorkspacesReopen(_One):
    name = "reopen"
    description = "Let an archived workspace start environments again, with the members, limits and budget that it had."

    def run(self) -> None:
        self.ask("POST", f"{PATH}/reopen", workspace=self.need(0))
        self.show("The workspace {name} is open: its members can start environments there.")


class WorkspacesLeave(_One):
    name = "leave"
    description = "Leave a workspace. What you run there ends an hour later; files in your home stay."
    examples = "remotegpu workspaces leave vision --yes"
    yes = option(Bool(False, help="Really: somebody has to let you in again."), "yes")

    def run(self) -> None:
        if not self.yes:
            raise Usage(f"Somebody would have to let you into {self.need(0)} again. Add --yes if that is meant.")
        self.needs_hub()
        self.ask("POST", f"{PATH}/leave", workspace=self.need(0))
        self.show_one("workspace", {"name": self.need(0)}, f"You are no member of {self.need(0)} any more.")


class WorkspacesUsage(_One):
    name = "usage"
    description = "Show what each member used in a month: money, and GPU hours. With --json by day."
    examples = "remotegpu workspaces usage vision --month 2026-11"
    month = option(Text(help="Such as 2026-11. Default: the current one, where the workspace is."), "month", "MONTH")

    def run(self) -> None:
        found = self.read(f"{PATH}/usage", query={"month": self.month}, workspace=self.need(0))
        if self.json:
            self.say(dump({"usage": found}))
            return
        rows = [
            {"user": one["user"], "amount": sum(one["amounts"]), "gpu_time": sum(one["gpu_times"])}
            for one in found["members"]
        ]
        columns = [
            Column("MEMBER", "user"),
            Column("COST", lambda row: words.money(row["amount"], found["currency"], "en"), right=True),
            Column("GPU HOURS", lambda row: words.bare("gpu_hours", row["gpu_time"]), right=True),
        ]
        self.show_rows("usage", rows, columns, empty=f"Nobody used anything in {found['month']}.")


class Workspaces(WorkspacesList):
    name = "workspaces"
    description = "The teams that own environments, quotas, budgets and invoices. Without a command: list them."
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (WorkspacesList, "list them"),
        "create": (WorkspacesCreate, "make one"),
        "show": (WorkspacesShow, "settings, members, limits and the month's money of one"),
        "update": (WorkspacesUpdate, "change display name, time zone or hub group"),
        "archive": (WorkspacesArchive, "close one for new starts"),
        "reopen": (WorkspacesReopen, "let an archived one start again"),
        "usage": (WorkspacesUsage, "what each member used in a month"),
        "leave": (WorkspacesLeave, "leave one"),
    }
