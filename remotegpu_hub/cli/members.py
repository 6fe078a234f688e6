"""`remotegpu members`: who belongs to a workspace, in which role."""

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..domain import workspaces
from ..errors import NotFound
from ..orm import Member, MemberStatus, Role, User, Workspace
from ..runtime import utcnow
from ..units import iso
from . import people
from .command import Command, Text, chosen, option
from .stop import Refused, Usage
from .tables import Column

COLUMNS = [
    Column("WORKSPACE", "workspace"),
    Column("USER", "user"),
    Column("ROLE", "role"),
    Column("STATUS", "status"),
    Column("BY GROUP", lambda row: "yes" if row["from_group"] else "no"),
]
ROLES = "`owner`, `admin`, `member` or `viewer`"


def plain(member: Member) -> dict[str, Any]:
    """A membership for programs."""
    return {
        "workspace": member.workspace.name,
        "user": member.user.name,
        "role": member.role.value,
        "status": member.status.value,
        "from_group": member.from_group,
        "created_at": iso(member.created_at),
    }


class MembersList(Command):
    name = "list"
    words = ("[WORKSPACE]",)
    description = "List the members of one workspace, or of all."

    def run(self) -> None:
        with self.transaction(read_only=True) as session:
            name = self.word(0)
            if name is not None:
                chosen_ones = [workspaces.by_name(session, name=name)]
            else:
                chosen_ones = list(session.scalars(select(Workspace).order_by(Workspace.name)))
            rows = [plain(one) for each in chosen_ones for one in workspaces.members(session, workspace=each)]
        self.show_rows("members", rows, COLUMNS, empty="There are no members.")


class _Change(Command):
    """Changes one membership."""

    words = ("WORKSPACE", "USER")

    def run(self) -> None:
        now = utcnow()
        with self.transaction() as session:
            workspace = workspaces.by_name(session, name=self.need(0))
            user = people.user(session, self.need(1), now=now)
            known = session.get(Member, (workspace.id, user.id))
            row, sentence = self.change(session, workspace, user, known, now)
        self.show_one("member", row, sentence)

    def change(
        self, session: Session, workspace: Workspace, user: User, known: Member | None, now: datetime
    ) -> tuple[dict[str, Any], str]:
        raise NotImplementedError

    def put(
        self, session: Session, workspace: Workspace, user: User, role: Role, status: MemberStatus, now: datetime
    ) -> dict[str, Any]:
        member = workspaces.put_member(
            session, workspace=workspace, user=user, role=role, status=status, actor=self.actor, now=now
        )
        return plain(member)


class MembersAdd(_Change):
    name = "add"
    description = "Add a hub user to a workspace."
    examples = "remotegpu members add vision bob\nremotegpu members add vision carol --role viewer"
    role = option(Text(help=f"{ROLES}. Default: member."), "role", "ROLE")

    def change(
        self, session: Session, workspace: Workspace, user: User, known: Member | None, now: datetime
    ) -> tuple[dict[str, Any], str]:
        role = chosen(Role, self.role, "--role") or Role.MEMBER
        if known is not None:
            raise Refused(
                f"{user.name} is {known.role.value} of {workspace.name} already, {known.status.value}: "
                "change that with `remotegpu members set`."
            )
        row = self.put(session, workspace, user, role, MemberStatus.ACTIVE, now)
        return row, f"{user.name} is now {role.value} of {workspace.name}."


class MembersSet(_Change):
    name = "set"
    description = "Change a member's role or status."
    examples = "remotegpu members set vision bob --role admin\nremotegpu members set vision carol --status active"
    role = option(Text(help=f"{ROLES}."), "role", "ROLE")
    status = option(Text(help="`active`, `invited` or `suspended`."), "status", "STATUS")

    def run(self) -> None:
        if self.role is None and self.status is None:
            raise Usage(f"Name what to change: --role, --status or both. Try `{self.path} --help`.")
        super().run()

    def change(
        self, session: Session, workspace: Workspace, user: User, known: Member | None, now: datetime
    ) -> tuple[dict[str, Any], str]:
        role, status = chosen(Role, self.role, "--role"), chosen(MemberStatus, self.status, "--status")
        if known is None:
            raise NotFound(f"The member {user.name}")
        row = self.put(session, workspace, user, role or known.role, status or known.status, now)
        return row, f"{user.name} is now {row['role']} of {workspace.name}, {row['status']}."


class MembersSuspend(_Change):
    name = "suspend"
    description = "Let a member start nothing more in the workspace, and keep the membership."

    def change(
        self, session: Session, workspace: Workspace, user: User, known: Member | None, now: datetime
    ) -> tuple[dict[str, Any], str]:
        if known is None:
            raise NotFound(f"The member {user.name}")
        row = self.put(session, workspace, user, known.role, MemberStatus.SUSPENDED, now)
        return row, f"{user.name} is suspended in {workspace.name}."


class MembersRemove(_Change):
    name = "remove"
    description = "Take a member out of a workspace. The last owner stays."

    def change(
        self, session: Session, workspace: Workspace, user: User, known: Member | None, now: datetime
    ) -> tuple[dict[str, Any], str]:
        if known is None:
            raise NotFound(f"The member {user.name}")
        row = plain(known)
        workspaces.remove_member(session, workspace=workspace, user=user, actor=self.actor, now=now)
        return row, f"{user.name} is no longer a member of {workspace.name}."


class Members(MembersList):
    name = "members"
    description = (
        "Who belongs to a workspace, in which role. Without a command: list them.\n"
        "A personal workspace is written in quotes, such as '~alice': the shell takes ~ for a home folder."
    )
    subcommands = {  # noqa: RUF012 - traitlets reads it from the class
        "list": (MembersList, "list those of a workspace, or all"),
        "add": (MembersAdd, "add a hub user"),
        "set": (MembersSet, "change role or status"),
        "suspend": (MembersSuspend, "let one start nothing more there"),
        "remove": (MembersRemove, "take one out"),
    }
